import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.special import ndtr
from scipy.stats import kstest

from clusterray.simulate.distributions import Distribution

CASES = {
    "uniform": {"low": 2.0, "high": 5.0},
    "log_uniform": {"low": 0.1, "high": 30.0},
    "power_law": {"low": 1e14, "high": 1.5e15, "exponent": -2.5},
    "normal": {"mean": 1.0, "sigma": 2.0, "low": -1.0, "high": 4.0},
    "log_normal": {"median": 4.0, "sigma_ln": 0.5, "low": 2.0, "high": 6.0},
}


def named(name, **values):
    return TypeAdapter(Distribution).validate_python({"distribution": name} | values)


def unbounded(name, x, v):
    """What the cumulative distribution is proportional to, up to a constant."""
    if name == "uniform":
        return x
    if name == "log_uniform":
        return np.log(x)
    if name == "power_law":
        return -(np.asarray(x) ** (v["exponent"] + 1))
    if name == "normal":
        return ndtr((x - v["mean"]) / v["sigma"])
    return ndtr(np.log(np.asarray(x) / v["median"]) / v["sigma_ln"])


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_named_density_between_its_limits(name):
    values = CASES[name]
    drawn = named(name, **values).draws(20_000, rng=np.random.default_rng(1))
    low, high = (unbounded(name, values[k], values) for k in ("low", "high"))

    def cumulative(x):
        return (unbounded(name, x, values) - low) / (high - low)

    assert kstest(drawn, cumulative).pvalue > 0.01
    assert named(name, **values).support == pytest.approx((values["low"], values["high"]))


@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(CASES)))
def test_one_value_takes_one_uniform_number_and_stays_in_the_support(seed, name):
    law = named(name, **CASES[name])
    rngs = [np.random.default_rng(seed) for _ in range(3)]
    one = law.draw(rngs[0])
    rngs[2].random()
    assert one == law.draws(1, rng=rngs[1])[0]
    assert rngs[0].random() == rngs[1].random() == rngs[2].random()
    low, high = law.support
    assert low <= one <= high


def test_a_constant_uses_up_numbers_as_the_others_do():
    law = named("constant", value=3.0)
    first, second = np.random.default_rng(4), np.random.default_rng(4)
    assert law.draw(first) == 3.0
    assert law.draws(2, rng=first).tolist() == [3.0, 3.0]
    second.random(3)
    assert first.random() == second.random()
    assert law.support == (3.0, 3.0)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("uniform", {"low": 2.0, "high": 2.0}, "low 2 is not below high 2"),
        ("log_uniform", {"low": 0.0, "high": 2.0}, "low is 0, expected a value above 0"),
        ("power_law", {"low": 1.0, "high": 2.0, "exponent": -1.0}, "less than -1"),
        ("power_law", {"low": -1.0, "high": 2.0, "exponent": -2.0}, "low is -1"),
        ("normal", {"mean": 0.0, "sigma": 0.0, "low": 0.0, "high": 1.0}, "greater than 0"),
        ("uniform", {"low": 0.0, "high": float("nan")}, "finite"),
        ("uniform", {"low": 0.0, "high": float("inf")}, "finite"),
        ("uniform", {"low": 0.0}, "high"),
        ("constant", {"value": 1.0, "low": 0.0}, "low"),
        ("gauss", {"low": 0.0, "high": 1.0}, "'gauss' found .* expected tags: 'constant', 'uni"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, values, message):
    with pytest.raises(ValidationError, match=message):
        named(name, **values)
