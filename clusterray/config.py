"""One strict, frozen configuration for every verb, from one TOML file and ``--set`` overrides."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clusterray import storage
from clusterray.errors import ConfigError, StorageError, did_you_mean

__all__ = [
    "CandidateSettings",
    "ClusterSettings",
    "Config",
    "FeatureSettings",
    "IngestSettings",
    "NightlySettings",
    "PathSettings",
    "PretrainSettings",
    "PriceSettings",
    "RankSettings",
    "ScoreSettings",
    "SimulateSettings",
    "SurveySettings",
    "TrainSettings",
    "TuneSettings",
    "VisionSettings",
    "explain",
    "load",
    "resolve",
]

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
_MODELS: Final = ("lightgbm", "vit")
# The scores table has a column of the stack beside those of its models.
_TAKEN: Final = (*_MODELS, "stack")
DriftGroup = Literal["psf", "depth", "noise", "colour", "feature", "score"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SurveySettings(_Settings):
    """Which survey: a preset by name, each value of which can be replaced."""

    name: str = "demo"
    bands: tuple[str, ...] | None = None
    pixel_scale_arcsec: PositiveFloat | None = None
    size_px: Annotated[int, Field(ge=16)] | None = None
    zero_point: dict[str, float] = {}
    """AB magnitude of one count, per band, for tiles whose header does not say."""
    psf_fwhm_arcsec: dict[str, float] = {}
    depth_mag: dict[str, float] = {}


class PathSettings(_Settings):
    """Where things are: paths or URLs. What is not given lies under `root`."""

    root: str = "runs/demo"
    tiles: tuple[str, ...] = ()
    """Files, folders or glob patterns of FITS tiles."""
    catalogue: str = ""
    labels: str = ""
    truth: str = ""
    """Read by metrics only; empty where no truth is known."""
    shards: str = ""
    features: str = ""
    training: str = ""
    """What a training run keeps between its steps, so that it can be taken up again."""
    bundle: str = ""
    scores: str = ""
    nightly: str = ""
    """Dated rankings of nightly runs, and the pointer to the latest."""
    ranking: str = ""
    candidates: str = ""

    @model_validator(mode="before")
    @classmethod
    def _under_root(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        root = str(filled.get("root") or cls.model_fields["root"].default)
        survey = storage.join(root, "survey")
        defaults: dict[str, Any] = {
            "tiles": (storage.join(survey, "tiles"),),
            "catalogue": storage.join(survey, "catalogue.fits"),
            "labels": storage.join(survey, "labels.csv"),
        }
        names = ("shards", "features", "training", "bundle", "scores", "ranking")
        for name in (*names, "candidates", "nightly"):
            defaults[name] = storage.join(root, name)
        for name, default in defaults.items():
            filled[name] = filled.get(name) or default
        return filled


class SimulateSettings(_Settings):
    """A made survey: as tiles, catalogue and labels, or as shards; and, apart, its truth."""

    n_clusters: Positive = 600
    recipe: str = ""
    """TOML file of changes to the built-in recipe: path or URL."""
    lens_fraction: Fraction | None = None
    """Share of lenses; null takes the recipe's."""
    n_known: Annotated[int, Field(ge=0)] = 12
    """Lenses that `labels` names, drawn at random."""
    output: Literal["tiles", "shards"] = "tiles"
    """FITS tiles and a catalogue, to be ingested, or cutout shards at once."""
    inject_into: str = ""
    """Shards whose clusters get a lensed background cluster each, and a lens-off twin."""
    clusters_per_tile: Positive = 30
    rows_per_shard: Positive = 512
    pixel_scale_arcsec: PositiveFloat = 0.336
    """Of the tiles; cutouts have the survey's own."""
    gallery_per_class: Annotated[int, Field(ge=0)] = 6
    """Systems of each class on the gallery page."""


class IngestSettings(_Settings):
    """From tiles and a catalogue to cutout shards."""

    min_coverage: Fraction = 0.5
    """Cutouts with less of their area on a tile, in any band, are rejected."""
    rows_per_shard: Positive = 4096
    row_group_size: Positive = 512
    steps_per_sigma: Annotated[int, Field(ge=2)] = 8
    max_reject_fraction: Fraction = 0.5
    catalogue_columns: dict[str, str] = {}
    """Our column name = the catalogue's, where the usual aliases do not find it."""
    tile_bands: dict[str, str] = {}
    """File name pattern (``*_J.fits``) = band, for tiles whose header does not name it."""


class FeatureSettings(_Settings):
    """Hand-made features."""

    grid: Positive = 3
    source_redshift: PositiveFloat = 1.2
    """z_s at which the θ_E proxies are computed."""
    max_size_px: Positive = 128
    """Larger cutouts are binned by a whole factor before pixel features are taken."""


class VisionSettings(_Settings):
    """The lens network."""

    model: str = "vit_small_patch16_224"
    """Any timm model that gives a grid of tokens: a ViT, ResNet, ConvNeXt, Swin, …"""
    model_options: dict[str, int | float | bool | str] = {}
    """Keyword arguments for timm, such as depth, embed_dim, num_heads."""
    image_size_px: Positive | None = 224
    """Network input size; null keeps the cutouts' own."""
    weights: str = ""
    """Pretrained trunk as safetensors: a path, a URL, or hf-hub:owner/name@revision; empty starts
    from random weights."""
    weights_sha256: str = ""
    """Digest of that file; weights from a hub need it."""
    freeze_blocks: Annotated[int, Field(ge=0)] = 0
    """Blocks (stages of a CNN) that keep their pretrained weights, with all before them."""
    asinh_softening: PositiveFloat = 3.0
    """Stretch is asinh(flux / (softening × noise sigma))."""
    epochs: Positive = 20
    batch_size: Annotated[int, Field(ge=2)] = 64
    positives_per_batch: Positive = 8
    learning_rate: PositiveFloat = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    augment: bool = True
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the fit over which the learning rate rises to its peak; a cosine follows."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of a block over the next one's; null is 0.75 on pretrained weights, else 1."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the average of the weights that is scored, reached gradually; 0 scores the last ones."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the trunk in training; auto is bfloat16 on a GPU and float32 on a CPU."""
    patience: Positive | None = 5
    """Epochs without a lower risk on the validation slice after which a fit ends, counted from the
    middle of the fit on; null: never."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of a fit's rows, by sky cell, that early stopping is judged on."""
    shuffle_rows: Positive = 20_000
    """Rows that are shuffled together; a larger sample goes by in windows of about so many."""
    cached_views: Annotated[int, Field(ge=1, le=8)] = 1
    """Orientations in which a frozen trunk sees each cutout, in place of augmentation."""
    workers: Positive | tuple[Positive, Positive] | None = None
    """Processes, each with a GPU where there are some, that share a fit; [least, most] grows and
    shrinks with the cluster; null lets the plan choose. Never changes a result but by rounding."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a fit whose process died is taken up again before the run fails."""


class PretrainSettings(_Settings):
    """A trunk that learns from simulated pairs, without labels, before it is trained."""

    n_pairs: Positive = 2000
    lens_share: Fraction = 0.5
    """Share of pairs with a background cluster; the others have a plain lens cluster each."""
    epochs: Positive = 50
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Pairs in a batch."""
    learning_rate: PositiveFloat = 5e-4


class TrainSettings(_Settings):
    """Positive-unlabelled training, stacking and calibration."""

    scenario: Literal["single-sample", "case-control"] = "single-sample"
    models: tuple[str, ...] = ("lightgbm", "vit")
    """Base models of the stack: "lightgbm", "vit" (the network of `vision`), or of `networks`."""
    n_folds: Annotated[int, Field(ge=2)] = 5
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of sky cells kept from base models and stacker, for the calibrator."""
    nside: Positive = 64
    """HEALPix resolution of the sky cells that folds are made of (64: 55 arcmin)."""
    max_unlabelled: Positive = 20_000
    """Unlabelled rows to train on, drawn at random by object_id."""
    prior_fallback: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """π of the survey, used where the estimators disagree or none is valid."""
    target_prior: Annotated[float, Field(gt=0, lt=1)] = 0.5
    calibrator: Literal["auto", "platt", "beta", "isotonic", "temperature"] = "auto"
    """"auto" takes Platt or beta, by the log-loss of held-out sky cells."""
    context: tuple[str, ...] = ()
    """Features, such as seeing, that the stacker weighs beside the models' logits."""
    monotone: dict[str, Literal[-1, 1]] = {"richness": 1}
    """Features that LightGBM's log-odds may only rise (1) or fall (−1) with."""
    lightgbm_form: Literal["cutout", "patch-max", "patch-top3"] = "cutout"
    """One row per cutout; or one per patch, pooled by the best or the mean of the three best."""
    lightgbm: dict[str, int | float | str | bool] = {}
    n_bootstrap: Annotated[int, Field(ge=20)] = 200

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of `models` that are networks, in the stacker's order."""
        return tuple(m for m in self.models if m != "lightgbm")


class ScoreSettings(_Settings):
    """Scoring of every cutout. What changes a score is part of the run key."""

    micro_batch: Positive = 64
    """Rows the network sees at once; the last one of a row group is padded."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    views: Literal[1, 8] = 1
    """8 averages over all rotations and reflections of a cutout, at eight times the cost."""
    compile: bool = False
    """Have torch compile the network: a seventh faster on a GPU, after half a minute."""
    keep_embedding: bool = False
    keep_attention: bool = False
    max_reject_fraction: Fraction = 0.01


class RankSettings(_Settings):
    """The ranking and its report."""

    budgets: tuple[Positive, ...] = (10, 40, 100, 1000)
    """Numbers of candidates a team may inspect."""
    selection_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A list that ends at this p_lens, measured beside the budgets; null measures them alone."""
    report_top: Positive = 50
    survey_prior: Annotated[float, Field(gt=0, lt=1)] | None = None
    """π of the survey that is ranked, where it differs from the one trained for."""
    shortlist_by: Literal["budget", "probability", "fdr"] = "budget"
    """Where shortlist.csv ends: at a length, a p_lens, or an expected share of non-lenses."""
    shortlist_at: PositiveFloat = 100
    unlike_top: Positive = 20
    """Rows of unlike.csv, the list of what is unlike anything known."""
    years: PositiveFloat = 1.0
    """How long the survey takes to deliver as many clusters as are ranked."""
    minutes_per_candidate: PositiveFloat = 2.0
    """Of one reviewer, all votes together."""
    cost_per_hour: Annotated[float, Field(ge=0)] = 60.0
    """Of a reviewer, in any currency."""
    cost_per_year: Annotated[float, Field(ge=0)] = 0.0
    """Of the computing, in the same currency."""
    rgb_bands: tuple[str, str, str] | None = None
    """Bands shown as red, green, blue; null takes the reddest three."""


class CandidateSettings(_Settings):
    """The second pass, over the best of the ranking: segments and explanations for triage."""

    top_fraction: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the ranking that is looked at again; 1 takes all of it."""
    bcg_radius_arcsec: PositiveFloat = 5.0
    """How far from the catalogue position the brightest source is taken for the BCG."""
    aperture_arcsec: PositiveFloat = 3.0
    """Diameter of the aperture of the BCG's colours."""


class NightlySettings(_Settings):
    """The unattended run of a night, and the limits beyond which it ends with exit status 3."""

    day_starts_utc_hour: Annotated[float, Field(ge=0, lt=24)] = 12.0
    """When one night's date ends and the next begins: local noon of the telescope, in UTC."""
    lock_expires_minutes: PositiveFloat = 5.0
    """A run that has not renewed its claim for so long is taken for dead."""
    drift_rows: Positive = 5000
    """New cutouts whose features, PSF, depth and noise are compared with training."""
    max_psi: dict[DriftGroup, PositiveFloat] = {}
    """Largest population stability index, by group of quantities (0.25 is a usual limit)."""
    max_ks: dict[DriftGroup, PositiveFloat] = {}
    """Largest Kolmogorov-Smirnov distance, by group of quantities."""
    min_score_spread: PositiveFloat | None = None
    """Least interquartile range of the night's stack scores, in units of training's."""
    max_reject_rate: Fraction | None = None
    """Of the night's new rows."""
    max_latency_hours: PositiveFloat | None = None
    """From the last write of a new shard to the ranking that holds it."""


class PriceSettings(_Settings):
    """What a cluster costs; null where it is not known, and then no price is told."""

    cpu_hour: Annotated[float, Field(ge=0)] | None = None
    gpu_hour: Annotated[float, Field(ge=0)] | None = None
    """Of one GPU, without the CPUs beside it."""
    currency: str = "USD"


class TuneSettings(_Settings):
    """A sweep of one model's settings."""

    model: Literal["lightgbm", "nnpu"] = "lightgbm"
    """LightGBM-PU, or the network."""
    space: str = ""
    """The search file: path or URL of what is searched, and by which objective; empty is the
    model's own under ``tuning``."""
    n_trials: Positive | None = None
    """Null takes the search file's."""
    max_concurrent: Positive | None = None
    """Trials at a time; null takes what fits, at most a quarter of the trials."""
    gpus_per_trial: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a GPU that a trial of the network reserves, where there are GPUs."""
    refit: bool = False
    """Train with the best settings right away, and write the bundle."""
    storage: str = ""
    """Where Tune keeps its state (trusted: Ray unpickles it); empty is beside the trials."""


class ClusterSettings(_Settings):
    """How to reach Ray, and how much of it to use."""

    address: str = ""
    """Empty: RAY_ADDRESS if set (as in a submitted job), else a local cluster."""
    num_cpus: Positive | None = None
    """CPUs of a local cluster; null takes the machine's."""
    expected_cpus: PositiveFloat | None = None
    """CPUs that the autoscaler may bring: planned for where fewer stand now."""
    expected_gpus: PositiveFloat | None = None
    """GPUs that the autoscaler may bring: planned for where fewer stand now."""
    workers: Positive | None = None
    """Actors per pool; null lets the plan choose."""
    row_groups_per_batch: Positive | None = None
    """Row groups handed to an actor in one call; null takes two for each GPU, up to four and 96 MB.

    It never changes a result. One driver hands them all out, and GPUs want them fast.
    """
    actors_per_gpu: Positive = 1
    """Processes that share a GPU; each compiles, and holds the network."""
    calls_per_gpu_actor: Positive = 3
    """Calls that one of them works on at once, each on a CUDA stream of its own, so that the GPU
    computes for one while the pixels of another are copied to it."""
    object_store_gb: PositiveFloat | None = None
    """Object store of a local cluster; null takes Ray's share of the memory, at most 32."""


class Config(_Settings):
    """Everything a run needs to know."""

    seed: int = 20260401
    survey: SurveySettings = SurveySettings()
    paths: PathSettings = Field(default_factory=lambda: PathSettings.model_validate({}))
    simulate: SimulateSettings = SimulateSettings()
    ingest: IngestSettings = IngestSettings()
    features: FeatureSettings = FeatureSettings()
    vision: VisionSettings = VisionSettings()
    networks: dict[str, dict[str, Any]] = {}
    """Further networks for the stack: a name, and what it changes of `vision`."""
    pretrain: PretrainSettings = PretrainSettings()
    train: TrainSettings = TrainSettings()
    score: ScoreSettings = ScoreSettings()
    rank: RankSettings = RankSettings()
    candidates: CandidateSettings = CandidateSettings()
    nightly: NightlySettings = NightlySettings()
    prices: PriceSettings = PriceSettings()
    tune: TuneSettings = TuneSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _networks_exist(self) -> Self:
        for name in self.networks:
            if name in _TAKEN or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"networks.{name}: a network is named by small letters, digits and _, and not "
                    f"{' or '.join(_TAKEN)}"
                )
            try:
                self.network(name)
            except ValidationError as error:
                raise ValueError(f"networks.{name}: {explain(error, VisionSettings)}") from error
        known = (*_MODELS, *self.networks)
        for name in self.train.models:
            if name not in known:
                raise ValueError(
                    f"train.models: no model '{name}', {did_you_mean(name, known)}; a further "
                    f"network needs a section [networks.{name}]"
                )
        return self

    def network(self, name: str) -> VisionSettings:
        """Settings of a network: "vit" is that of `vision`, others change it by `networks`."""
        changes = self.networks.get(name, {})
        return VisionSettings.model_validate({**self.vision.model_dump(), **changes})

    def dump(self) -> dict[str, Any]:
        """Plain values, as they are printed, hashed and written beside outputs."""
        return self.model_dump(mode="json")


def load(url: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file (none: all defaults) and apply ``section.key=value`` overrides.

    Raises
    ------
    ConfigError : no such file, not TOML, an unknown key (the nearest known one is named), or a
        value that does not fit.
    """
    where = storage.redact(str(url)) if url else "defaults"
    values: dict[str, Any] = {}
    if url:
        try:
            values = tomllib.loads(storage.read_bytes(str(url)).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: not a TOML file: {error}") from error
        except StorageError as error:
            raise ConfigError(f"no settings: {error}") from error
    for override in overrides:
        _apply(values, override)
    return resolve(values, where=where)


def resolve(values: Mapping[str, Any], *, where: str = "config") -> Config:
    """Validate nested plain values.

    Raises
    ------
    ConfigError : listing every offending key, with the nearest known one, or naming the key of a
        URL with credentials in it.
    """
    _refuse_credentials(values, where)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Config)}") from error


def _refuse_credentials(value: Any, where: str) -> None:
    # The config is printed, and written beside every output.
    if isinstance(value, str) and storage.has_credentials(value):
        raise ConfigError(
            f"{where}: '{storage.redact(value)}' was given with credentials in it; put them in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or use the node's role"
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_credentials(inner, f"{where}: {key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_credentials(inner, where)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    try:
        path = _path(key) if equals else []
    except tomllib.TOMLDecodeError:
        path = []
    if not path:
        raise ConfigError(f"--set {storage.redact(override)}: expected section.key=value")
    node = values
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(
                f"--set {storage.redact(override)}: '{part}' is a value, not a section"
            )
    node[path[-1]] = _value(text.strip())


def _path(key: str) -> list[str]:
    """The parts of a dotted key, which may be quoted as in TOML."""
    parts: list[str] = []
    node = tomllib.loads(f"{key} = 0")
    while isinstance(node, dict):
        part, node = next(iter(node.items()))
        parts.append(part)
    return parts


def _value(text: str) -> Any:
    """A TOML value, null, or else the text itself."""
    if text == "null":
        return None
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Every offending key of a failed validation of `model`, with the nearest known one."""
    return "; ".join(_explain(e, model) for e in error.errors())


def _known_keys(location: tuple[int | str, ...], model: Any) -> list[str]:
    for part in location[:-1]:
        field = model.model_fields.get(part)
        model = field.annotation if field else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def _explain(error: Any, model: type[BaseModel]) -> str:
    location = ".".join(str(p) for p in error["loc"]) or "config"
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(str(error["loc"][-1]), _known_keys(error["loc"], model))
        return f"unknown key '{location}', {hint}"
    if error["type"] == "value_error":
        return f"'{location}': {error['msg'].removeprefix('Value error, ')}"
    return f"'{location}' is {error['input']!r}: {error['msg']}"
