"""Four rising curves from a stack logit to log-odds, each fitted to labels through `LabelLoss`.

Platt, temperature and beta calibration are one family, η = −a log(1 + e^−z) + b log(1 + e^z) + c:
beta has a, b ≥ 0 of its own (Kull, Silva Filho & Flach 2017: log-odds linear in log p and log(1−p)
of p = σ(z)), Platt has a = b, so that η = a z + c (Platt 1999), temperature c = 0 besides (Guo et
al. 2017). Isotonic is a broken line through the steps of an isotonic regression of s.
"""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import logit
from sklearn.isotonic import IsotonicRegression

from clusterray.pu.label_loss import LabelLoss
from clusterray.pu.labelling import LabelModel

__all__ = ["KINDS", "Kind", "evaluate", "fit_curve"]

Kind = Literal["platt", "beta", "isotonic", "temperature"]
KINDS: Final[tuple[Kind, ...]] = ("platt", "beta", "isotonic", "temperature")

_SLOPE_SCATTER = 0.5
"""log a and log b are N(0, 0.5²): without labels a is 1, and 95 % of it lies in 0.38 to 2.7."""

Floats = NDArray[np.float64]


def evaluate(kind: Kind, parameters: Floats, z: Floats) -> Floats:
    """Log-odds (n,) of stack logits z (n,).

    Parameters
    ----------
    parameters : (a, b, c); of an isotonic curve the m knots followed by the log-odds there (2m,).
    """
    if kind == "isotonic":
        knots, eta = np.split(parameters, 2)
        return np.asarray(np.interp(z, knots, eta))
    a, b, c = parameters
    if kind != "beta":
        return np.asarray(a * z + c)
    return np.asarray(-a * np.logaddexp(0.0, -z) + b * np.logaddexp(0.0, z) + c)


def fit_curve(
    kind: Kind, z: Floats, s: NDArray[np.int8], *, loss: LabelLoss, weight: Floats
) -> Floats:
    """Parameters of the curve for stack logits z (n,) with labels s (n,) in {1, 0}.

    Parameters
    ----------
    loss : of these rows, with these weights.
    weight : (n,) times each row counts.
    """
    if kind == "isotonic":
        return _isotonic(z, s, loss.model, weight)
    # The logit's origin is where most rows are: a and c are then fitted apart.
    center = float(np.median(z)) if kind == "platt" else 0.0
    n_slopes = 2 if kind == "beta" else 1
    has_offset = kind != "temperature"
    pieces = _pieces(kind, z - center)

    def objective(theta: Floats) -> tuple[float, Floats]:
        slopes = np.exp(theta[:n_slopes])
        value, gradient = loss(pieces @ slopes + (theta[-1] if has_offset else 0.0))
        prior = theta[:n_slopes] / _SLOPE_SCATTER**2
        total = value + 0.5 * float(theta[:n_slopes] @ prior)
        slope = slopes * (gradient @ pieces) + prior
        full = np.append(slope, gradient.sum()) if has_offset else slope
        return total / len(z), full / len(z)

    start = np.zeros(n_slopes + has_offset)
    if has_offset:
        start[-1] = _offset(pieces.sum(axis=1), loss)
    free: list[tuple[float | None, float | None]] = [(None, None)] * has_offset
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=[*[(-5.0, 5.0)] * n_slopes, *free],
        options={"maxiter": 500, "ftol": 1e-11, "gtol": 1e-7},
    )  # fmt: skip
    slopes = np.exp(found.x[:n_slopes])
    c = float(found.x[-1]) if has_offset else 0.0
    return np.array([slopes[0], slopes[-1], c - slopes[0] * center])


def _pieces(kind: Kind, z: Floats) -> Floats:
    """What the slopes multiply (n, 1 or 2)."""
    if kind != "beta":
        return z[:, None]
    return np.column_stack([-np.logaddexp(0.0, -z), np.logaddexp(0.0, z)])


def _offset(x: Floats, loss: LabelLoss) -> float:
    """The c at which mean σ(x + c) over the survey is π: where the search begins."""

    def excess(c: float) -> float:
        return loss.mean_probability(x + c) - loss.prior

    reach = 40.0 + float(np.abs(x).max())
    return float(brentq(excess, -reach, reach)) if excess(reach) > 0.0 > excess(-reach) else 0.0


def _isotonic(z: Floats, s: NDArray[np.int8], model: LabelModel, weight: Floats) -> Floats:
    labelled = (s == 1).astype(np.float64)
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(z, labelled, sample_weight=weight)
    knots = np.asarray(fitted.X_thresholds_, dtype=np.float64)
    g = np.asarray(fitted.y_thresholds_, dtype=np.float64)
    # No known lens among m rows is what half a lens among them would be, not log-odds of −∞.
    least = float(weight[fitted.predict(z) <= 0.0].sum())
    g = np.maximum(g, 0.5 / max(least, 1.0) if least else 0.0)
    p = model.posterior(g / np.maximum(1.0 - g, 1e-300))
    most = 1.0 - 0.5 / max(float(weight.sum()), 1.0)
    return np.concatenate([knots, np.maximum.accumulate(logit(np.clip(p, 1e-15, most)))])
