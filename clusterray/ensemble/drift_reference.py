"""Distributions of the training rows, which the bundle keeps so that drift can be measured."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from clusterray import schema

__all__ = ["Quantities", "summarise"]

Quantities = Mapping[tuple[str, str], ArrayLike]

_KEPT: Final = 401


def summarise(quantities: Quantities) -> pa.Table:
    """Distributions of quantities in the form that is kept, a `schema.DRIFT_REFERENCE` table.

    Of more than 401 known values, 401 at equal steps of rank are kept; the distribution function
    is then known to 1/400.

    Parameters
    ----------
    quantities : (n,) values by (group, name); what is not finite counts as missing.
    """
    rows = []
    for (group, name), given in quantities.items():
        values = np.asarray(given, np.float64)
        known = np.sort(values[np.isfinite(values)])
        if len(known) > _KEPT:
            known = known[np.round(np.linspace(0, len(known) - 1, _KEPT)).astype(np.int64)]
        rows.append(
            {
                "group": group,
                "quantity": name,
                "n": len(values),
                "n_missing": int((~np.isfinite(values)).sum()),
                "sorted": known,
            }
        )
    return pa.Table.from_pylist(rows, schema=schema.DRIFT_REFERENCE)
