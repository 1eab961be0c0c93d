"""What a sweep of LightGBM-PU searches and how one trial is judged: files and arrays, without Ray.

A trial is K fits, one without each fold; the rows held out for the calibrator are never seen. It
is judged by where each known lens stands among the unlabelled rows of its own fold, so that no
score is compared with one of another fit.
"""

import math
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from clusterray import storage
from clusterray.errors import ConfigError, InputError, did_you_mean
from clusterray.provenance import digest, seed_for
from clusterray.pu.labelling import Scenario
from clusterray.pu.lightgbm_pu import DEFAULTS, PULightGBM

__all__ = [
    "Choices",
    "Objective",
    "Range",
    "SearchSpace",
    "TrialData",
    "judge",
    "out_of_fold",
    "paired_gain",
    "placements",
    "read_space",
    "run_trial",
]

Floats = NDArray[np.float64]
Value = int | float | bool | str
Objective = Literal["auroc", "average_precision"]
"""What a sweep maximises, see `judge`."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(_Strict):
    """All values from `low` to `high`; whole ones where the parameter is an integer."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} < high {self.high} does not hold")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; a logarithmic range begins above 0")
        return self


class Choices(_Strict):
    """One of some values."""

    choices: tuple[bool | int | float, ...] = Field(min_length=2)


def _form(value: Any) -> str:
    named = "choices" in value if isinstance(value, Mapping) else isinstance(value, Choices)
    return "Choices" if named else "Range"


Span = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")], Discriminator(_form)
]


class SearchSpace(_Strict):
    """A sweep as its file states it: model, objective, budget, and a range for each parameter."""

    model: Literal["lightgbm"]
    objective: Objective
    n_trials: int = Field(gt=0)
    parameters: dict[str, Span] = Field(min_length=1)

    @field_validator("parameters")
    @classmethod
    def _settable(cls, value: dict[str, Range | Choices]) -> dict[str, Range | Choices]:
        for name, span in value.items():
            if name not in DEFAULTS:
                raise ValueError(f"unknown parameter '{name}', {did_you_mean(name, DEFAULTS)}")
            kind = type(DEFAULTS[name])
            if isinstance(span, Range) and kind is bool:
                raise ValueError(f"'{name}' is true or false: write choices = [true, false]")
            ends = (span.low, span.high) if isinstance(span, Range) else span.choices
            wrong = [v for v in ends if not _is(v, kind)]
            if wrong:
                raise ValueError(f"'{name}' takes {kind.__name__} values, not {wrong[0]!r}")
        return value

    def distributions(self) -> dict[str, BaseDistribution]:
        """The ranges as Optuna's distributions."""
        return {name: _distribution(name, span) for name, span in self.parameters.items()}

    def starting_point(self, current: Mapping[str, Any]) -> dict[str, Value]:
        """The current settings of the searched parameters: the trial to beat.

        Raises
        ------
        ConfigError : one of them is no setting, or lies outside the ranges.
        """
        for name in current:
            if name not in DEFAULTS:
                raise ConfigError(
                    f"train.lightgbm: unknown parameter '{name}', {did_you_mean(name, DEFAULTS)}"
                )
        start: dict[str, Value] = {n: current.get(n, DEFAULTS[n]) for n in self.parameters}
        for name, span in self.parameters.items():
            value = start[name]
            if isinstance(span, Range):
                inside = isinstance(value, int | float) and span.low <= value <= span.high
            else:
                inside = value in span.choices
            if not inside:
                raise ConfigError(
                    f"train.lightgbm.{name} is {value!r}, outside what the sweep searches "
                    f"({span}); widen its range in the search file: the sweep begins there"
                )
        return start


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int) or kind is float


def _distribution(name: str, span: Range | Choices) -> BaseDistribution:
    if isinstance(span, Choices):
        return CategoricalDistribution(span.choices)
    if isinstance(DEFAULTS[name], int):
        return IntDistribution(int(span.low), int(span.high), log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)


def read_space(url: str) -> SearchSpace:
    """Read a search file (TOML).

    Raises
    ------
    StorageError : no such file.
    ConfigError : not TOML, an unknown key or parameter (the nearest known one is named), or a
        range that is none.
    """
    where = storage.redact(url)
    try:
        values = tomllib.loads(storage.read_bytes(url).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not a TOML file: {error}") from error
    try:
        return SearchSpace.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    known: list[str] = list(SearchSpace.model_fields)
    if len(path) > 2:
        known = list((Choices if path[2] == "Choices" else Range).model_fields)
        # The form's name is ours, not the file's.
        del path[2]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}', {did_you_mean(path[-1], known)}"
    if error["type"] == "missing":
        return f"'{name}' is missing"
    return f"'{name}': {error['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True)
class TrialData:
    """What every trial of a sweep learns from and is judged on; arrays are (n, …) in one order.

    `features` (n, f), `s`, `fold` (held-out rows < 0) and `cell` (n,) as `clusterray train` has
    them; `prior` is π of the survey, `unlabelled_prior` π_U. `seed` is the run's: a trial with
    the settings of a training run gives that run's out-of-fold logits.
    """

    features: NDArray[Any]
    s: NDArray[np.int8]
    fold: NDArray[np.int8]
    cell: NDArray[np.int64]
    feature_names: tuple[str, ...]
    scenario: Scenario
    prior: float
    unlabelled_prior: float
    unlabelled_fraction: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    """What `PULightGBM` is told about the features."""


def out_of_fold(data: TrialData, params: Mapping[str, Any], *, num_threads: int = 1) -> Floats:
    """(n,) log-odds of each row by the fit that did not see its fold; NaN for held-out rows."""
    logits = np.full(len(data.s), np.nan)
    for k in np.unique(data.fold[data.fold >= 0]).tolist():
        seen = np.flatnonzero((data.fold >= 0) & (data.fold != k))
        unseen = np.flatnonzero(data.fold == k)
        model = PULightGBM(
            data.feature_names,
            scenario=data.scenario,
            prior=data.prior,
            params=params,
            # One seed for all trials: they differ by their settings alone.
            seed=seed_for(data.seed, model="lightgbm", fold=k),
            unlabelled_fraction=data.unlabelled_fraction,
            num_threads=num_threads,
            **data.options,
        )
        names = data.feature_names
        model.fit(data.features[seen], data.s[seen], names=names, groups=data.cell[seen])
        logits[unseen] = model.decision_function(data.features[unseen], names)
    return logits


def placements(logits: Floats, s: NDArray[np.int8], *, fold: NDArray[np.int8]) -> Floats:
    """q_u of each known lens in a fold: share of its fold's unlabelled rows above it, ties half.

    In the order of the rows. 0 is above all of them.

    Raises
    ------
    InputError : a fold has known lenses and no unlabelled row.
    """
    found = np.full(len(s), np.nan)
    for k in np.unique(fold[(s == 1) & (fold >= 0)]):
        lenses = np.flatnonzero((fold == k) & (s == 1))
        unlabelled = np.sort(logits[(fold == k) & (s == 0)])
        if not len(unlabelled):
            raise InputError(
                f"fold {k} has no unlabelled row to rank its {len(lenses)} known lenses among; "
                "raise train.max_unlabelled or lower train.n_folds"
            )
        at_most = np.searchsorted(unlabelled, logits[lenses], side="right")
        below = np.searchsorted(unlabelled, logits[lenses], side="left")
        found[lenses] = 1.0 - (at_most + below) / (2.0 * len(unlabelled))
    return np.asarray(found[(s == 1) & (fold >= 0)])


def judge(q: Floats, objective: Objective, *, unlabelled_prior: float) -> float:
    """The objective of a sweep from the placements q of the held-out known lenses; more is better.

    auroc: the area under the ROC of known lenses against unlabelled rows, AUC_U = 1 − mean q, as
    that against true negatives. A share π_U of the unlabelled rows are lenses, and under SCAR
    those tie with the known ones on average, so AUC_U = (1 − π_U) AUC + π_U/2 (Menon et al. 2015,
    on mutually contaminated classes). It is linear in the ranks: the best trial is the best
    whatever π_U, and its error falls with the number of lenses as that of a mean does, which is
    why it is the choice for a dozen.

    average_precision: the mean over known lenses of the precision at their threshold, which on PU
    labels is π_U·TPR/q_u, at most 1. It looks at the top of the list only, and wants hundreds.
    """
    if objective == "auroc":
        return float((1.0 - q.mean() - unlabelled_prior / 2.0) / (1.0 - unlabelled_prior))
    tpr = np.searchsorted(np.sort(q), q, side="right") / len(q)
    precision = unlabelled_prior * tpr / np.maximum(q, unlabelled_prior * tpr)
    return float(precision.mean())


def paired_gain(
    q: Floats,
    reference: Floats,
    objective: Objective,
    *,
    unlabelled_prior: float,
    n_bootstrap: int,
    seed: int,
) -> tuple[float, float]:
    """How much better one trial is than another on the same lenses, and the bootstrap error of it.

    It errs on the bright side where the one is the best of many trials.
    """

    def gain(rows: Any) -> float:
        one, other = (judge(v[rows], objective, unlabelled_prior=unlabelled_prior) for v in pair)
        return one - other

    pair = (q, reference)
    draws = np.random.default_rng(seed).integers(0, len(q), (n_bootstrap, len(q)))
    return gain(slice(None)), float(np.std([gain(rows) for rows in draws], ddof=1))


def run_trial(
    data: TrialData,
    params: Mapping[str, Any],
    *,
    objective: Objective,
    folder: str,
    num_threads: int,
) -> dict[str, Any]:
    """Judge one set of parameters, or find the judgement that an earlier run left in `folder`.

    Tune saves its state every few seconds at best, so a killed run repeats its last trials; the
    files here make that cost nothing.
    """
    url = storage.join(folder, f"{digest(dict(params))[:16]}.json")
    if storage.exists(url):
        return dict(storage.read_json(url))
    start = time.monotonic()
    q = placements(out_of_fold(data, params, num_threads=num_threads), data.s, fold=data.fold)
    value = judge(q, objective, unlabelled_prior=data.unlabelled_prior)
    if not math.isfinite(value):
        raise InputError(f"{objective} is {value} with {dict(params)}")
    judgement = {
        "parameters": dict(params),
        "objective": value,
        "placements": q.tolist(),
        "seconds": round(time.monotonic() - start, 3),
    }
    storage.write_json(url, judgement)
    return judgement
