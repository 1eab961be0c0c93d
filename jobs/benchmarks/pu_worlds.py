"""Data whose posterior is known: two Gaussians, and a table of features of lenses and others."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import multivariate_normal

__all__ = ["WORLDS", "World", "draw"]

WORLDS = ("gaussian", "features")

_N_FEATURES = 24
_N_TELLING = 6


class World(NamedTuple):
    """Rows (n, f), labels s and truth y (n,), and log-odds of the true p(y=1|x) (n,)."""

    x: NDArray[np.float32]
    s: NDArray[np.int8]
    y: NDArray[np.bool_]
    log_odds: NDArray[np.float64]


def draw(kind: str, *, n: int, prior: float, c: float, seed: int) -> World:
    """A single-sample world of n rows.

    "gaussian": four features, lenses 3 σ away along one direction. "features": six telling ones
    with another mean and covariance for lenses (so that the posterior is curved), eighteen that
    tell nothing, of three scales.
    """
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    s = (y & (rng.random(n) < c)).astype(np.int8)
    if kind == "gaussian":
        x = rng.normal(size=(n, 4))
        x += 1.5 * y[:, None]
        log_odds = logit(prior) + 1.5 * x.sum(axis=1) - 4 * 1.5**2 / 2
    else:
        x, ratio = _features(rng, y)
        log_odds = logit(prior) + ratio
    return World(x.astype(np.float32), s, y, log_odds)


def _features(
    rng: np.random.Generator, y: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # The law is the same for every seed: training and test rows come from one world.
    law = np.random.default_rng(0)
    mean = law.uniform(0.6, 1.4, _N_TELLING)
    root = np.eye(_N_TELLING) + 0.35 * law.normal(size=(_N_TELLING, _N_TELLING))
    covariance = root @ root.T
    x = rng.normal(size=(len(y), _N_FEATURES))
    lenses = rng.multivariate_normal(mean, covariance, int(y.sum()))
    x[y, :_N_TELLING] = lenses
    telling = x[:, :_N_TELLING]
    ratio = multivariate_normal(mean, covariance).logpdf(telling)
    ratio -= multivariate_normal(np.zeros(_N_TELLING)).logpdf(telling)
    x[:, _N_TELLING:] *= np.resize([0.1, 1.0, 30.0], _N_FEATURES - _N_TELLING)
    return x, ratio
