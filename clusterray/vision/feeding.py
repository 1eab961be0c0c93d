"""Rows of a sample on their way to the device: taken, copied ahead, or kept there whole.

A source holds arrays whose first axis is the sample's rows, such as (pixels, step, noise_sigma) or
the tokens of a frozen trunk, in one piece or in blocks that processes of one machine share.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Ahead", "Batch", "Blocks", "Feed", "Take", "Windowed"]

Arrays = tuple[NDArray[Any], ...]
Empty = Callable[[tuple[int, ...], Any], NDArray[Any]]
Take = Callable[[NDArray[np.int64], Empty], Arrays]
"""Copies of rows, into arrays that the second argument makes."""

_SHARE_OF_DEVICE = 0.5
_AHEAD = 2


class Windowed(Protocol):
    """A source that gives the rows of each window in turn."""

    @property
    def nbytes(self) -> int | None:
        """Size of all rows, where they are all at hand; None where they are read as they go by."""
        ...

    def windows(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Take]:
        """For each window, given as the rows it needs, a function that gives arrays of rows."""
        ...


class Blocks:
    """Rows in memory, in blocks that are never copied as a whole.

    Parameters
    ----------
    blocks : arrays of each block, each with the block's rows first.
    place : (n,) where row k of the sample stands in the blocks one after the other; None: as it is.
    """

    def __init__(self, blocks: Sequence[Arrays], place: NDArray[Any] | None = None) -> None:
        self.blocks = [b for b in blocks if len(b[0])] or list(blocks[:1])
        ends = np.cumsum([len(b[0]) for b in self.blocks])
        self.starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self.place = np.arange(ends[-1]) if place is None else np.asarray(place)

    @property
    def nbytes(self) -> int:
        """Size of all rows."""
        return sum(a.nbytes for block in self.blocks for a in block)

    def windows(self, rows: Sequence[NDArray[np.int64]]) -> Iterator[Take]:
        """All rows are at hand in every window."""
        for _ in rows:
            yield self.take

    def take(self, rows: NDArray[np.int64], empty: Empty = np.empty) -> Arrays:
        """Copies of these rows, in this order."""
        at = self.place[rows]
        out = tuple(empty((len(rows), *a.shape[1:]), a.dtype) for a in self.blocks[0])
        if len(self.blocks) == 1:
            for target, source in zip(out, self.blocks[0], strict=True):
                np.take(source, at, axis=0, out=target, mode="clip")
            return out
        block = np.searchsorted(self.starts, at, side="right") - 1
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order])) + 1
        for part in np.split(order, cuts):
            if len(part):
                b = int(block[part[0]])
                inside = at[part] - self.starts[b]
                for target, source in zip(out, self.blocks[b], strict=True):
                    target[part] = source[inside]
        return out


class Feed:
    """Batches of a source as tensors on a device, ahead of the network on a GPU.

    A source that fits into half of the GPU's free memory is put there once. Otherwise rows are
    taken by a thread, into pinned memory, and copied while the network works.

    Parameters
    ----------
    source : where rows come from.
    device : where they go.
    """

    def __init__(self, source: Windowed, device: torch.device) -> None:
        self.source, self.device = source, device
        self.resident: tuple[torch.Tensor, ...] | None = None
        self._place: torch.Tensor | None = None
        if self.device.type == "cuda" and isinstance(source, Blocks):
            free, _ = torch.cuda.mem_get_info(self.device)
            if source.nbytes < _SHARE_OF_DEVICE * free:
                self._settle(source)

    def _settle(self, source: Blocks) -> None:
        n = sum(len(b[0]) for b in source.blocks)
        whole = [
            torch.empty((n, *a.shape[1:]), dtype=_kind(a.dtype), device=self.device)
            for a in source.blocks[0]
        ]
        for start, block in zip(source.starts.tolist(), source.blocks, strict=True):
            for target, values in zip(whole, block, strict=True):
                target[start : start + len(values)] = _tensor(values).to(self.device)
        self.resident = tuple(whole)
        self._place = torch.from_numpy(source.place.astype(np.int64)).to(self.device)

    def __call__(
        self, windows: Sequence[Sequence[NDArray[np.int64]]]
    ) -> Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]:
        """Go through the batches of each window: their rows, and those rows' tensors."""
        if self.resident is not None and self._place is not None:
            for rows in (r for window in windows for r in window):
                at = self._place[torch.from_numpy(rows).to(self.device)]
                yield rows, tuple(t.index_select(0, at) for t in self.resident)
        elif self.device.type == "cuda":
            yield from self._copied_ahead(self._taken(windows, _pinned))
        else:
            for rows, arrays in self._taken(windows, np.empty):
                yield rows, tuple(torch.from_numpy(a) for a in arrays)

    def _taken(
        self, windows: Sequence[Sequence[NDArray[np.int64]]], empty: Empty
    ) -> Iterator[tuple[NDArray[np.int64], Arrays]]:
        needed = [np.unique(np.concatenate(list(w))) for w in windows]
        for window, take in zip(windows, self.source.windows(needed), strict=True):
            for rows in window:
                yield rows, take(rows, empty)

    def _copied_ahead(
        self, taken: Iterator[tuple[NDArray[np.int64], Arrays]]
    ) -> Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]:
        stream = torch.cuda.Stream(self.device)

        def following() -> Any:
            for rows, arrays in taken:
                with torch.cuda.stream(stream):
                    on_device = tuple(
                        torch.from_numpy(a).to(self.device, non_blocking=True) for a in arrays
                    )
                    done = torch.cuda.Event()
                    done.record(stream)
                return rows, on_device, done
            return None

        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(following) for _ in range(_AHEAD))
            while (found := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(following))
                rows, on_device, done = found
                torch.cuda.current_stream(self.device).wait_event(done)
                for tensor in on_device:
                    tensor.record_stream(torch.cuda.current_stream(self.device))
                yield rows, on_device


@dataclass
class Batch:
    """Rows of a batch, their arrays, and the network's input where it is made already."""

    rows: NDArray[np.int64]
    arrays: tuple[torch.Tensor, ...]
    inputs: torch.Tensor | None = None


class Ahead:
    """The next batch, prepared on a GPU while the network works on the one before.

    That is done by a thread: for a network of this size a GPU waits for Python as long as it
    computes. One of these serves a whole fit, because what one CUDA stream freed is not used again
    by another.

    Parameters
    ----------
    prepare : makes the network's input of rows and arrays, or None where it is to be made later.
    device : of both. On a CPU nothing is done ahead.
    """

    def __init__(
        self,
        prepare: Callable[[NDArray[np.int64], tuple[torch.Tensor, ...]], torch.Tensor | None],
        device: torch.device,
    ) -> None:
        self.prepare, self.device = prepare, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1)
        self._batches: Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]] = iter(())
        self._coming: Future[tuple[Batch, torch.cuda.Event] | None] | None = None

    def begin(self, batches: Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]) -> None:
        """Go on with rows and arrays from a `Feed`."""
        if self.stream is not None:
            # A source that was put on the device was put there in the main stream.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self._batches = batches

    def look(self) -> None:
        """Begin with the next batch, if that is of use now."""
        if self.stream is not None and self._coming is None:
            self._coming = self._thread.submit(self._made, self.stream)

    def _made(self, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event] | None:
        with torch.cuda.stream(stream):
            found = next(self._batches, None)
            if found is None:
                return None
            batch = Batch(*found)
            # Without the room it is made once the batch before is done with.
            with suppress(torch.OutOfMemoryError):
                batch.inputs = self.prepare(*found)
            done = torch.cuda.Event()
            done.record(stream)
        return batch, done

    def take(self) -> Batch | None:
        """The next batch; None after the last."""
        if self.stream is None:
            found = next(self._batches, None)
            return None if found is None else Batch(*found)
        self.look()
        assert self._coming is not None
        made, self._coming = self._coming.result(), None
        if made is None:
            return None
        batch, done = made
        main = torch.cuda.current_stream(self.device)
        main.wait_event(done)
        for tensor in (*batch.arrays, batch.inputs):
            if tensor is not None:
                tensor.record_stream(main)
        return batch


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    # torch warns of views that cannot be written, such as those of Ray's object store.
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _pinned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return torch.empty(shape, dtype=_kind(dtype), pin_memory=True).numpy()


def _kind(dtype: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
