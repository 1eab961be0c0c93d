"""The file of a sweep: which model, what is searched and by which objective, all of it checked."""

import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

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
    model_validator,
)

from clusterray import storage
from clusterray.config import Config
from clusterray.engine.search import Objective
from clusterray.errors import ConfigError, did_you_mean
from clusterray.pu.lightgbm_bounds import BOUNDS as LIGHTGBM_BOUNDS
from clusterray.pu.lightgbm_pu import DEFAULTS as LIGHTGBM_DEFAULTS
from clusterray.vision.nnpu_bounds import BOUNDS as NNPU_BOUNDS
from clusterray.vision.nnpu_bounds import DEFAULTS as NNPU_DEFAULTS

__all__ = ["Asha", "Choices", "Range", "SearchSpace", "current_settings", "read_space", "with_best"]

Value = int | float | bool | str
Model = Literal["lightgbm", "nnpu"]


class _Searchable(NamedTuple):
    """The section of the settings, what may be searched there, and within which bounds."""

    section: str
    defaults: Mapping[str, int | float | bool]
    bounds: Mapping[str, tuple[float, float]]


_SEARCHABLE: Final[Mapping[str, _Searchable]] = {
    "lightgbm": _Searchable("train.lightgbm", LIGHTGBM_DEFAULTS, LIGHTGBM_BOUNDS),
    "nnpu": _Searchable("vision", NNPU_DEFAULTS, NNPU_BOUNDS),
}


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


class Asha(_Strict):
    """When trials of a network are given up (ASHA; Li et al. 2020): counts of fold-epochs.

    A trial fits its folds one after the other; after `grace` epochs, counted over the folds, and
    after `grace` times every power of `reduction`, it goes on only if it is among the best
    1/`reduction` of those that came as far.
    """

    grace: int | None = Field(default=None, gt=0)
    """Null is one whole fold: before its end the learning rate is still high."""
    reduction: int = Field(default=3, ge=2)


class SearchSpace(_Strict):
    """A sweep as its file states it: model, objective, budget, and a range for each parameter."""

    model: Model
    objective: Objective
    n_trials: int = Field(gt=0)
    asha: Asha | None = None
    """Null lets every trial run to its end."""
    parameters: dict[str, Span] = Field(min_length=1)

    @model_validator(mode="after")
    def _settable(self) -> Self:
        _, defaults, bounds = _SEARCHABLE[self.model]
        for name, span in self.parameters.items():
            if name not in defaults:
                raise ValueError(f"unknown parameter '{name}', {did_you_mean(name, defaults)}")
            kind = type(defaults[name])
            if isinstance(span, Range) and kind is bool:
                raise ValueError(f"'{name}' is true or false: write choices = [true, false]")
            ends = (span.low, span.high) if isinstance(span, Range) else span.choices
            wrong = [v for v in ends if not _is(v, kind)]
            if wrong:
                raise ValueError(f"'{name}' takes {kind.__name__} values, not {wrong[0]!r}")
            low, high = bounds.get(name, (0, 1))
            beyond = [v for v in ends if not low <= v <= high]
            if beyond:
                raise ValueError(f"'{name}' is searched at {beyond[0]}, allowed is {low} to {high}")
        if self.asha and self.model == "lightgbm":
            raise ValueError("asha is for networks: a LightGBM trial has no epochs to be cut at")
        return self

    def distributions(self) -> dict[str, BaseDistribution]:
        """The ranges as Optuna's distributions."""
        defaults = _SEARCHABLE[self.model].defaults
        return {n: _distribution(span, defaults[n]) for n, span in self.parameters.items()}

    def starting_point(self, current: Mapping[str, Any]) -> dict[str, Value]:
        """The current settings of the searched parameters: the trial to beat.

        Raises
        ------
        ConfigError : one of them is no setting, or lies outside the ranges.
        """
        section, defaults, _ = _SEARCHABLE[self.model]
        for name in current:
            if name not in defaults:
                raise ConfigError(
                    f"{section}: unknown parameter '{name}', {did_you_mean(name, defaults)}"
                )
        start: dict[str, Value] = {n: current.get(n, defaults[n]) for n in self.parameters}
        for name, span in self.parameters.items():
            value = start[name]
            if isinstance(span, Range):
                inside = isinstance(value, int | float) and span.low <= value <= span.high
            else:
                inside = value in span.choices
            if not inside:
                raise ConfigError(
                    f"{_place(self.model, name)} is {value!r}, outside what the sweep searches "
                    f"({span}); widen its range in the search file: the sweep begins there"
                )
        return start


def current_settings(config: Config, model: Model) -> dict[str, Any]:
    """What the configuration says of the model's parameters; of LightGBM only what it replaces."""
    if model == "lightgbm":
        return dict(config.train.lightgbm)
    where = {"target_prior": config.train}
    return {name: getattr(where.get(name, config.vision), name) for name in NNPU_DEFAULTS}


def with_best(config: Config, model: Model, parameters: Mapping[str, Any]) -> Config:
    """The configuration with these parameters in it."""
    train, vision = {}, dict(parameters)
    if model == "lightgbm":
        train, vision = {"lightgbm": {**config.train.lightgbm, **parameters}}, {}
    elif "target_prior" in vision:
        train = {"target_prior": vision.pop("target_prior")}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "vision": config.vision.model_copy(update=vision),
        }
    )


def _place(model: Model, name: str) -> str:
    section = "train" if name == "target_prior" else _SEARCHABLE[model].section
    return f"{section}.{name}"


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int) or kind is float


def _distribution(span: Range | Choices, default: int | float | bool) -> BaseDistribution:
    if isinstance(span, Choices):
        return CategoricalDistribution(span.choices)
    if isinstance(default, int):
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
    if path[:1] == ["asha"]:
        known = list(Asha.model_fields)
    elif len(path) > 2:
        known = list((Choices if path[2] == "Choices" else Range).model_fields)
        # The form's name is ours, not the file's.
        del path[2]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}', {did_you_mean(path[-1], known)}"
    if error["type"] == "missing":
        return f"'{name}' is missing"
    if not name:
        return str(error["msg"].removeprefix("Value error, "))
    return f"'{name}': {error['msg'].removeprefix('Value error, ')}"
