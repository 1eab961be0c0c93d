"""Named distributions, written ``{ distribution = "uniform", low = 0, high = 1 }`` in a recipe."""

from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

__all__ = ["Constant", "Distribution", "LogNormal", "LogUniform", "Normal", "PowerLaw", "Uniform"]


class _Named(BaseModel):
    """Draws by the quantiles of what its subclasses give as `scipy()`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest value that can be drawn."""
        low, high = _frozen(self).support()
        return float(low), float(high)

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one value by inverting the distribution at one uniform number."""
        return float(_frozen(self).ppf(rng.random()))

    def draws(self, n: int, *, rng: np.random.Generator) -> NDArray[np.float64]:
        """(n,) values, from n uniform numbers."""
        return np.asarray(_frozen(self).ppf(rng.random(n)), float)


# Freezing costs more than drawing.
@lru_cache(maxsize=256)
def _frozen(distribution: Any) -> Any:
    return distribution.scipy()


class _Bounded(_Named):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class _Positive(_Bounded):
    @model_validator(mode="after")
    def _above_zero(self) -> Self:
        if self.low <= 0:
            raise ValueError(f"low is {self.low:g}, expected a value above 0")
        return self


class Constant(_Named):
    """Always the same value."""

    distribution: Literal["constant"]
    value: float

    @property
    def support(self) -> tuple[float, float]:
        """The value, twice."""
        return self.value, self.value

    def draw(self, rng: np.random.Generator) -> float:
        """Give the value; one uniform number is used up, as for any other distribution."""
        rng.random()
        return self.value

    def draws(self, n: int, *, rng: np.random.Generator) -> NDArray[np.float64]:
        """(n,) times the value."""
        rng.random(n)
        return np.full(n, self.value)


class Uniform(_Bounded):
    """Equal density between two limits."""

    distribution: Literal["uniform"]

    def scipy(self) -> Any:
        """Give the frozen scipy distribution."""
        return stats.uniform(self.low, self.high - self.low)


class LogUniform(_Positive):
    """Equal density of the logarithm between two limits."""

    distribution: Literal["log_uniform"]

    def scipy(self) -> Any:
        """Give the frozen scipy distribution."""
        return stats.loguniform(self.low, self.high)


class PowerLaw(_Positive):
    """Density ∝ x^exponent between two limits, exponent below −1."""

    distribution: Literal["power_law"]
    exponent: Annotated[float, Field(lt=-1)]

    def scipy(self) -> Any:
        """Give the frozen scipy distribution."""
        return stats.truncpareto(-self.exponent - 1, self.high / self.low, scale=self.low)


class Normal(_Bounded):
    """Gaussian, cut off at two limits."""

    distribution: Literal["normal"]
    mean: float
    sigma: Annotated[float, Field(gt=0)]

    def scipy(self) -> Any:
        """Give the frozen scipy distribution."""
        a, b = ((edge - self.mean) / self.sigma for edge in (self.low, self.high))
        return stats.truncnorm(a, b, loc=self.mean, scale=self.sigma)


class LogNormal(_Positive):
    """Gaussian in ln x about a median, cut off at two limits."""

    distribution: Literal["log_normal"]
    median: Annotated[float, Field(gt=0)]
    sigma_ln: Annotated[float, Field(gt=0)]

    def scipy(self) -> Any:
        """Give the frozen scipy distribution."""
        shape = self.sigma_ln
        whole = stats.lognorm(shape, scale=self.median)
        return _Truncated(whole, self.low, self.high)


class _Truncated:
    """A frozen scipy distribution between two limits, by its quantiles."""

    def __init__(self, whole: Any, low: float, high: float) -> None:
        self.whole, self.low, self.high = whole, low, high
        self.p_low, self.p_high = (float(whole.cdf(v)) for v in (low, high))

    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def ppf(self, p: Any) -> Any:
        return self.whole.ppf(self.p_low + np.asarray(p) * (self.p_high - self.p_low))


Distribution = Annotated[
    Constant | Uniform | LogUniform | PowerLaw | Normal | LogNormal,
    Field(discriminator="distribution"),
]
