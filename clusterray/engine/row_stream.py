"""Rows of a sample that is larger than memory, streamed through Ray Data window by window."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from clusterray.engine.row_files import Kind, read_rows
from clusterray.engine.work import unwrap
from clusterray.vision.sources import Arrays, Blocks, Empty, Take

__all__ = ["RowStream"]

_READERS = 2


class RowStream:
    """Rows of gathered files, read anew in each pass; the next window is read while one is used.

    Parameters
    ----------
    urls : the files.
    rows_per_file : how many rows each holds.
    place : (n,) where row k of the sample stands in the files one after the other.
    kind, shape : as in `read_rows`.
    resident : rows to read once and keep, such as the known lenses that every batch holds some of.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        kind: Kind,
        rows_per_file: Sequence[int],
        place: NDArray[Any],
        shape: tuple[int, int, int],
        resident: NDArray[np.int64],
    ) -> None:
        self.urls, self.place = tuple(urls), np.asarray(place)
        self.kind, self.shape = kind, shape
        self.ends = np.cumsum(rows_per_file)
        self.resident = np.unique(resident)
        unit = self._unit(self.resident)
        self._kept = _read(unit, kind, shape)
        self._kept_place = np.searchsorted(unit["places"], self.place[self.resident])

    @property
    def nbytes(self) -> None:
        """Not known: rows are read as they go by."""
        return None

    def _unit(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The files that hold these rows, and the rows' places, counted over those files."""
        places = np.unique(self.place[rows])
        file = np.searchsorted(self.ends, places, side="right")
        files = np.unique(file)
        sizes = np.diff(self.ends, prepend=0)
        starts = np.cumsum(sizes[files]) - sizes[files]
        before = (self.ends - sizes)[file]
        local = places - before + starts[np.searchsorted(files, file)]
        return {"urls": [self.urls[f] for f in files], "wanted": local, "places": places}

    def windows(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Take]:
        """For each window's rows, a function that copies them out of memory."""
        units = [self._unit(np.setdiff1d(r, self.resident)) for r in rows]
        for unit, arrays in zip(units, _streamed(units, self.kind, self.shape), strict=True):
            yield self._take(unit["places"], arrays)

    def _take(self, places: NDArray[Any], arrays: Arrays) -> Take:
        kept, passing = Blocks([self._kept], self._kept_place), Blocks([arrays])

        def take(rows: NDArray[np.int64], empty: Empty = np.empty) -> Arrays:
            here = np.isin(rows, self.resident)
            parts = (
                (here, kept, np.searchsorted(self.resident, rows[here])),
                (~here, passing, np.searchsorted(places, self.place[rows[~here]])),
            )
            out = tuple(empty((len(rows), *a.shape[1:]), a.dtype) for a in arrays)
            for at, blocks, local in parts:
                if len(local):
                    for target, values in zip(out, blocks.take(local), strict=True):
                        target[at] = values
            return out

        return take


class _Reader:
    """Actor: the rows of one window, an array a column."""

    def __init__(
        self, units: Sequence[Mapping[str, Any]], kind: Kind, shape: tuple[int, int, int]
    ) -> None:
        pa.set_cpu_count(1)
        self.units, self.kind, self.shape = units, kind, shape

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (unit,) = batch["unit"].tolist()
        arrays = _read(self.units[unit], self.kind, self.shape)
        return {str(k): values for k, values in enumerate(arrays)}


def _read(unit: Mapping[str, Any], kind: Kind, shape: tuple[int, int, int]) -> Arrays:
    return read_rows(kind, unit["urls"], shape=shape, wanted=unit["wanted"])


def _streamed(
    units: Sequence[Mapping[str, Any]], kind: Kind, shape: tuple[int, int, int]
) -> Iterator[Arrays]:
    """The arrays of each unit, in order."""
    dataset = ray.data.from_items(
        [{"unit": i} for i in range(len(units))], override_num_blocks=len(units)
    )
    dataset.context.enable_progress_bars = False
    dataset.context.print_on_execution_start = False
    dataset.context.execution_options.preserve_order = True
    passing = dataset.map_batches(
        _Reader,
        fn_constructor_kwargs={"units": list(units), "kind": kind, "shape": shape},
        batch_size=1,
        compute=ActorPoolStrategy(size=min(_READERS, len(units))),
        # Fits may hold every CPU that is to be had: these must never wait for one.
        num_cpus=0,
    )
    try:
        for batch in passing.iter_batches(batch_size=None, prefetch_batches=1):
            yield tuple(np.asarray(batch[str(k)]) for k in range(len(batch)))
    except Exception as error:
        raise unwrap(error) from error
