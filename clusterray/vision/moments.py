"""Mean and Ledoit–Wolf covariance of a stream of rows, in one pass and d² memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusterray.errors import InputError

__all__ = ["StreamedMoments"]

_ROUNDING = 1e-9

Floats = NDArray[np.float64]


class StreamedMoments:
    """Sums from which mean, scale and shrunk covariance of standardised rows follow.

    The shrinkage of Ledoit & Wolf (2004) needs Σ_n (Σ_i y_i²)² of the standardised rows y. Mean and
    scale are known at the end only, but that sum is a combination of the second moments of
    (u, u²), u being the rows in units of the first batch's mean and scale, so one pass is enough.
    """

    def __init__(self) -> None:
        self.n = 0

    def update(self, rows: NDArray[Any]) -> None:
        """Add rows (n, d).

        Raises
        ------
        InputError : another d than before, or values that are not finite.
        """
        x = np.asarray(rows, np.float64)
        if x.ndim != 2 or not np.isfinite(x).all():
            raise InputError(
                f"embeddings have shape {x.shape} with {int((~np.isfinite(x)).sum())} values not "
                "finite; the anomaly model needs (n, d) finite values: leave rejected rows out"
            )
        if not len(x):
            return
        if not self.n:
            self.origin, spread = x.mean(0), x.std(0)
            self.unit = np.where(spread > _ROUNDING * np.abs(self.origin), spread, 1.0)
            self.sums = np.zeros(2 * x.shape[1])
            self.products = np.zeros((2 * x.shape[1],) * 2)
        if x.shape[1] != len(self.origin):
            raise InputError(f"rows of {x.shape[1]} values after rows of {len(self.origin)}")
        u = (x - self.origin) / self.unit
        both = np.concatenate([u, u**2], axis=1)
        self.n += len(x)
        self.sums += both.sum(0)
        self.products += both.T @ both

    def mean_and_scale(self) -> tuple[Floats, Floats]:
        """Mean (d,) and standard deviation (d,) of the rows; 1 where a column never varied.

        Raises
        ------
        InputError : fewer than two rows.
        """
        first, spread = self._centred()
        mean = self.origin + self.unit * first
        scale = self.unit * spread
        return mean, np.where(scale > _ROUNDING * np.abs(mean), scale, 1.0)

    def covariance(self) -> Floats:
        """Ledoit–Wolf covariance (d, d) of the standardised rows (scikit-learn's, to rounding).

        Raises
        ------
        InputError : fewer than two rows.
        """
        first, _ = self._centred()
        d = len(first)
        # Rows in units of the scale that `mean_and_scale` gives.
        factor = self.unit / self.mean_and_scale()[1]
        second = (self.products / self.n)[:d, :d] - np.outer(first, first)
        empirical = second * np.outer(factor, factor)
        mu = float(np.trace(empirical)) / d
        fourth = float(factor**2 @ self._fourth(first) @ factor**2)
        squared = float(np.sum(empirical**2))
        beta = (fourth - squared) / (d * self.n)
        delta = (squared - 2.0 * mu * float(np.trace(empirical)) + d * mu**2) / d
        shrinkage = 0.0 if beta <= 0.0 else min(beta, delta) / delta if delta > 0.0 else 0.0
        shrunk = (1.0 - shrinkage) * empirical
        shrunk.flat[:: d + 1] += shrinkage * mu
        return shrunk

    def _centred(self) -> tuple[Floats, Floats]:
        """Mean (d,) and standard deviation (d,) in units of the first batch."""
        if self.n < 2:
            raise InputError(f"{self.n} rows; the anomaly model needs at least 2")
        d = len(self.origin)
        first = self.sums[:d] / self.n
        variance = np.diag(self.products)[:d] / self.n - first**2
        return first, np.sqrt(np.maximum(variance, 0.0))

    def _fourth(self, first: Floats) -> Floats:
        """Mean of (u_i − ū_i)² (u_j − ū_j)², (d, d), from the moments of u and u²."""
        d = len(first)
        moments = self.products / self.n
        uu, uq, qq = moments[:d, :d], moments[:d, d:], moments[d:, d:]
        q = self.sums[d:] / self.n
        a, b = first[:, None], first[None, :]
        # (u_i² − 2 a u_i + a²)(u_j² − 2 b u_j + b²), term by term.
        return np.asarray(
            qq
            - 2.0 * b * uq.T
            + b**2 * q[:, None]
            - 2.0 * a * uq
            + 4.0 * a * b * uu
            - 2.0 * a**2 * b**2
            + a**2 * q[None, :]
            - 2.0 * a**2 * b**2
            + a**2 * b**2
        )
