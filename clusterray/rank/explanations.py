"""Why candidates score as they do: contributions of features to LightGBM's log-odds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clusterray import page, schema
from clusterray.errors import ContractError
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.rank import figures

__all__ = ["contribution_table", "importance", "reasons", "section"]

Floats = NDArray[np.float64]

_SHOWN = 15
_REASONS = 3


def contribution_table(
    object_id: Sequence[str], values: NDArray[np.float32], model: PULightGBM
) -> pa.Table:
    """SHAP values of some objects as a `schema.contributions` table, rows as given.

    They explain the model that scores the survey. A training row stands in the ranking by its
    out-of-fold score, which another fit gave: its contributions do not sum to that.

    Parameters
    ----------
    values : (n, features) in the model's order.

    Raises
    ------
    InputError : features that do not fit the model.
    """
    names = model.feature_names
    found = model.contributions(values, names)
    columns = dict(zip(names, np.ascontiguousarray(found[:, :-1].T, np.float32), strict=True))
    table = pa.table(
        {"object_id": pa.array(object_id, pa.string()), "base": found[:, -1], **columns}
    )
    return schema.check(table, schema.contributions(names), where="contributions")


def _matrix(table: pa.Table) -> tuple[list[str], Floats]:
    names = [n for n in table.column_names if n not in ("object_id", "base")]
    if "object_id" not in table.column_names or not names:
        raise ContractError(
            "contributions: the table has no object_id, or no features; make it with "
            "'clusterray candidates'"
        )
    return names, np.stack([table[n].to_numpy() for n in names], axis=1).astype(np.float64)


def importance(table: pa.Table) -> list[tuple[str, float, float]]:
    """Features by how much they move the candidates' scores, strongest first.

    Returns
    -------
    Name, mean absolute and mean contribution (log-odds) of each.
    """
    names, values = _matrix(table)
    strength, mean = np.abs(values).mean(axis=0), values.mean(axis=0)
    order = np.argsort(-strength, kind="stable")
    return [(names[k], float(strength[k]), float(mean[k])) for k in order]


def reasons(table: pa.Table, values: NDArray[np.float32]) -> list[str]:
    """For each object, the three features that speak loudest: name, value and contribution.

    Such as ``annulus_2_blue_alignment_g_i 0.72 (+0.81); richness 23 (−0.40); …``.

    Parameters
    ----------
    values : (n, features) in the order of the table's columns.
    """
    names, found = _matrix(table)
    texts = []
    for row, shap in zip(values, found, strict=True):
        loudest = np.argsort(-np.abs(shap), kind="stable")[:_REASONS]
        texts.append("; ".join(_reason(names[k], row[k], shap[k]) for k in loudest))
    return texts


def _reason(name: str, value: float, contribution: float) -> str:
    shown = "unknown" if np.isnan(value) else f"{value:.3g}"
    return f"{name} {shown} ({contribution:+.2f})".replace("-", "−")


def section(table: pa.Table, groups: Mapping[str, str]) -> str:
    """The report's section on what moves the scores: a figure of groups and a table of features.

    Parameters
    ----------
    table : of `contribution_table`.
    groups : group of each feature, by name; a feature that is not there is a group of its own.

    Raises
    ------
    ContractError : not a table of contributions.
    """
    ranked = importance(table)
    sums: dict[str, float] = {}
    for name, strength, _ in ranked:
        group = groups.get(name, name)
        sums[group] = sums.get(group, 0.0) + strength
    order = sorted(sums.items(), key=lambda item: -item[1])[:_SHOWN]
    drawn = page.figure(
        figures.importance([name for name, _ in order], np.array([v for _, v in order])),
        "Global importance: mean absolute contribution to LightGBM's log-odds (SHAP), summed over "
        f"the features of a group, of {len(table):,} candidates.",
    )
    rows = [[name, f"{strength:.3f}", f"{mean:+.3f}"] for name, strength, mean in ranked[:_SHOWN]]
    listed = page.table(
        "The strongest features, by log-odds",
        ["feature", "mean absolute contribution", "mean contribution"],
        rows,
    )
    return page.section("What moves the scores", f'<div class="figures">{drawn}</div>', listed)
