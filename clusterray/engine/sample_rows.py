"""Where the pixels of a training sample are, and how a fit comes by them.

A sample that fits is put into Ray's object store once: every fit on a machine then reads one and
the same copy, without one of its own. A larger one is streamed through Ray Data at each epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from clusterray.engine.row_files import Kind, read_rows, row_bytes
from clusterray.engine.row_stream import RowStream
from clusterray.engine.sample import Sample
from clusterray.vision.sources import Blocks, Windowed

__all__ = ["SampleRows", "locate", "share"]

_SHARE_OF_STORE = 0.6
_BLOCK_BYTES = 64 * 2**20
# It fits into the eighth of two CPUs that fits leave free, so that lost blocks can be read anew.
_READER_CPUS = 0.25


@dataclass(frozen=True)
class SampleRows:
    """A handle of the sample's cutouts, or of their tokens, that travels to any process.

    Parameters
    ----------
    object_id : (n,) in the sample's order.
    urls : the gathered files.
    rows_per_file, place : as in `Sample`.
    shape, kind : as in `read_rows`.
    refs : blocks of consecutive files in the object store.
    streamed : read in passing at every epoch. Without either, a fit reads the files itself.
    """

    object_id: NDArray[Any]
    urls: tuple[str, ...]
    rows_per_file: tuple[int, ...]
    place: NDArray[Any]
    shape: tuple[int, int, int]
    refs: tuple[Any, ...] = ()
    streamed: bool = False
    kind: Kind = "cutouts"

    def __len__(self) -> int:
        return len(self.object_id)

    @property
    def nbytes(self) -> int:
        """Size of all rows, decoded."""
        return len(self) * row_bytes(self.kind, self.shape)

    @property
    def file_of(self) -> NDArray[np.int64]:
        """(n,) the number of the file that each row is in."""
        ends = np.cumsum(self.rows_per_file)
        return np.searchsorted(ends, self.place, side="right").astype(np.int64)

    def open(self, resident: NDArray[np.int64]) -> Windowed:
        """The arrays of the rows, for a fit in this process.

        Parameters
        ----------
        resident : rows to keep in memory where the others are streamed, such as known lenses.

        Raises
        ------
        ContractError, StorageError : as `read_rows`.
        """
        if self.streamed:
            return RowStream(
                self.urls,
                kind=self.kind,
                rows_per_file=self.rows_per_file,
                place=self.place,
                shape=self.shape,
                resident=resident,
            )
        if self.refs:
            return Blocks(ray.get(list(self.refs)), self.place)
        return Blocks([read_rows(self.kind, self.urls, shape=self.shape)], self.place)


def locate(sample: Sample, urls: Sequence[str], *, shape: tuple[int, int, int]) -> SampleRows:
    """The rows of a gathered sample, to be read by each fit itself until they are shared."""
    return SampleRows(sample.object_id, tuple(urls), sample.rows_per_file, sample.place, shape)


def share(rows: SampleRows, *, beside: int = 0) -> SampleRows:
    """The same rows in the object store if they fill at most 0.6 of any node's, else streamed.

    Ray must be joined.

    Parameters
    ----------
    beside : bytes of other rows that are to be there too.
    """
    if rows.streamed:
        return rows
    stores = [n["Resources"].get("object_store_memory", 0.0) for n in ray.nodes() if n["Alive"]]
    if rows.nbytes + beside > _SHARE_OF_STORE * min(stores, default=0.0):
        return replace(rows, streamed=True)
    read = _read.options(num_cpus=_READER_CPUS)
    # Each reader is a process to start: no more of them than there are CPUs.
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
    refs: list[Any] = []
    for urls in _parts(rows):
        if len(refs) >= at_once:
            ray.wait(refs, num_returns=len(refs) - at_once + 1, fetch_local=False)
        refs.append(read.remote(rows.kind, urls, rows.shape))
    # Before fits hold the CPUs; an error is raised where a block is asked for.
    ray.wait(refs, num_returns=len(refs), fetch_local=False)
    return replace(rows, refs=tuple(refs))


def _parts(rows: SampleRows) -> Iterator[list[str]]:
    """Consecutive files that make a block together."""
    each = rows.nbytes / len(rows)
    part: list[str] = []
    size = 0.0
    for url, n in zip(rows.urls, rows.rows_per_file, strict=True):
        if part and size + n * each > _BLOCK_BYTES:
            yield part
            part, size = [], 0.0
        part.append(url)
        size += n * each
    yield part


@ray.remote
def _read(kind: Kind, urls: list[str], shape: tuple[int, int, int]) -> Any:
    return read_rows(kind, urls, shape=shape)
