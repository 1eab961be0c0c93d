"""How far a night's new objects lie from what the models were trained on.

Quantities are keyed by (group, name); the groups are those of `DriftGroup` in the settings. All
functions are of arrays and tables alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from clusterray import schema
from clusterray.ensemble.drift_reference import Quantities

__all__ = [
    "Statistic",
    "compare",
    "exceeded",
    "ks",
    "ks_noise",
    "of_run",
    "psi",
    "psi_noise",
    "score_spread",
    "table",
]

Floats = NDArray[np.float64]

_BINS: Final = 10
_BY_CHANCE: Final = 1e-3
_NAMES: Final = {"psi": "PSI", "ks": "KS distance", "spread": "spread"}


@dataclass(frozen=True)
class Statistic:
    """One row of `schema.DRIFT`."""

    group: str
    quantity: str
    statistic: str
    value: float | None
    n_night: int
    noise: float | None = None
    limit: float | None = None
    exceeded: bool = False
    n_reference: int | None = None
    median_reference: float | None = None
    median_night: float | None = None

    def __str__(self) -> str:
        value, limit = ("unknown" if x is None else f"{x:.3g}" for x in (self.value, self.limit))
        what = self.quantity
        if self.statistic != "value":
            what = f"{_NAMES[self.statistic]} of {self.quantity} ({self.group})"
        bound = "least" if self.statistic == "spread" else "most"
        return f"{what} is {value}, at {bound} {limit} allowed"


def compare(
    reference: pa.Table,
    night: Quantities,
    *,
    max_psi: Mapping[str, float] | None = None,
    max_ks: Mapping[str, float] | None = None,
) -> list[Statistic]:
    """PSI and KS distance of every quantity that both sides have.

    Parameters
    ----------
    reference : what `drift_reference.summarise` made of the training rows.
    night : (n,) values of the new objects.
    max_psi, max_ks : limits by group.

    Raises
    ------
    ContractError : `reference` is another table.
    """
    rows = schema.check(reference, schema.DRIFT_REFERENCE, where="drift reference").to_pylist()
    limits = {"psi": max_psi or {}, "ks": max_ks or {}}
    found: list[Statistic] = []
    for row in rows:
        key = (row["group"], row["quantity"])
        if key in night:
            found += _statistics(row, np.asarray(night[key], np.float64), limits)
    return found


def _statistics(
    row: Mapping[str, Any], values: Floats, limits: Mapping[str, Mapping[str, float]]
) -> list[Statistic]:
    known = np.array(row["sorted"], np.float64)
    new = values[np.isfinite(values)]
    n_known = row["n"] - row["n_missing"]
    expected, observed = _counts(known, n_known, row["n_missing"], values)
    measured = {
        "psi": (
            psi(expected, observed),
            psi_noise(len(expected), row["n"], len(values)),
        ),
        "ks": (ks(known, new), ks_noise(n_known, len(new))),
    }
    found = []
    for name, (value, noise) in measured.items():
        limit = limits[name].get(row["group"])
        beyond = None not in (value, noise, limit) and cast(float, value) > max(
            cast(float, noise), cast(float, limit)
        )
        found.append(
            Statistic(
                group=row["group"],
                quantity=row["quantity"],
                statistic=name,
                value=value,
                noise=noise,
                limit=limit,
                exceeded=beyond,
                n_reference=row["n"],
                n_night=len(values),
                median_reference=_median(known),
                median_night=_median(new),
            )
        )
    return found


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None


def _counts(known: Floats, n_known: int, n_missing: int, values: Floats) -> tuple[Floats, Floats]:
    """Counts per bin of the reference and of the night: deciles of the reference, and missing."""
    edges = _edges(known)
    new = values[np.isfinite(values)]
    expected = np.bincount(np.digitize(known, edges), minlength=len(edges) + 1).astype(np.float64)
    expected *= n_known / max(len(known), 1)
    observed = np.bincount(np.digitize(new, edges), minlength=len(edges) + 1).astype(np.float64)
    absent = len(values) - len(new)
    if n_missing or absent:
        expected, observed = np.append(expected, n_missing), np.append(observed, absent)
    return expected, observed


def _edges(known: Floats) -> Floats:
    if not len(known):
        return np.empty(0)
    cuts = np.quantile(known, np.linspace(0, 1, _BINS + 1), method="inverted_cdf")
    inner, counts = np.unique(cuts, return_counts=True)
    # A value that fills more than a bin gets one to itself, or growth beyond it would not be seen.
    atoms = inner[counts > 1]
    return np.unique(np.concatenate([np.unique(cuts[1:-1]), atoms, np.nextafter(atoms, np.inf)]))


def psi(expected: ArrayLike, observed: ArrayLike) -> float | None:
    """Population stability index of two sets of counts in the same bins.

    Σ (o − e) ln(o/e) over the shares e and o (Jeffreys' divergence; Siddiqi 2006, Credit Risk
    Scorecards, ch. 9), each with half an object added to every bin, so that an empty one counts
    and is finite. None where either set is empty.
    """
    e, o = np.asarray(expected, np.float64), np.asarray(observed, np.float64)
    if not (e.sum() and o.sum()):
        return None
    e, o = (e + 0.5) / (e + 0.5).sum(), (o + 0.5) / (o + 0.5).sum()
    return float(((o - e) * np.log(o / e)).sum())


def psi_noise(bins: int, n_reference: int, n_night: int) -> float | None:
    """What the PSI of two draws from one distribution stays below, in 99.9 % of the cases.

    (1/n + 1/m) χ²(bins − 1) (Yurdakul & Naranjo 2020, J. Risk Model Validation 14, 89).
    """
    if bins < 2 or not (n_reference and n_night):
        return None
    return float((1 / n_reference + 1 / n_night) * stats.chi2.isf(_BY_CHANCE, bins - 1))


def ks(reference: ArrayLike, night: ArrayLike) -> float | None:
    """Kolmogorov–Smirnov distance of two samples; None where either is empty."""
    a, b = np.asarray(reference, np.float64), np.asarray(night, np.float64)
    return float(stats.ks_2samp(a, b, method="asymp").statistic) if len(a) and len(b) else None


def ks_noise(n_reference: int, n_night: int) -> float | None:
    """What the KS distance of two draws from one distribution stays below, in 99.9 %.

    √(−ln(α/2)/2 · (1/n + 1/m)) (Smirnov 1948, Ann. Math. Stat. 19, 279).
    """
    if not (n_reference and n_night):
        return None
    return float(np.sqrt(-np.log(_BY_CHANCE / 2) / 2 * (1 / n_reference + 1 / n_night)))


def score_spread(reference: pa.Table, logit: ArrayLike, *, least: float | None) -> Statistic | None:
    """Interquartile range of the night's stack scores over that of training; 0 is a collapse.

    None where either is not known.
    """
    rows = [r for r in reference.to_pylist() if (r["group"], r["quantity"]) == _STACK]
    night = np.asarray(logit, np.float64)
    if not (rows and len(rows[0]["sorted"]) and len(night)):
        return None
    then, now = (float(stats.iqr(x)) for x in (rows[0]["sorted"], night))
    value = now / then if then > 0 else None
    return Statistic(
        group="score",
        quantity="logit_stack",
        statistic="spread",
        value=value,
        limit=least,
        exceeded=value is not None and least is not None and value < least,
        n_reference=rows[0]["n"],
        n_night=len(night),
        median_reference=_median(np.array(rows[0]["sorted"])),
        median_night=_median(night),
    )


_STACK: Final = ("score", "logit_stack")


def of_run(name: str, value: float | None, *, most: float | None, n_night: int) -> Statistic:
    """A number that describes the night's run itself, such as its reject rate."""
    return Statistic(
        group="run",
        quantity=name,
        statistic="value",
        value=value,
        limit=most,
        exceeded=value is not None and most is not None and value > most,
        n_night=n_night,
    )


def table(statistics: Sequence[Statistic]) -> pa.Table:
    """The statistics as a `schema.DRIFT` table, in the order given."""
    return pa.Table.from_pylist([vars(s) for s in statistics], schema=schema.DRIFT)


def exceeded(statistics: Sequence[Statistic]) -> tuple[str, ...]:
    """A sentence for each limit that is exceeded."""
    return tuple(str(s) for s in statistics if s.exceeded)
