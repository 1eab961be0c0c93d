"""Rows of a source on their way to the device: taken, copied ahead, or kept there whole."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clusterray.vision.sources import Arrays, Blocks, Empty, Windowed

__all__ = ["Ahead", "Batch", "Feed"]

_SHARE_OF_DEVICE = 0.5
_AHEAD = 2
Taken = Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]
Prepare = Callable[[NDArray[np.int64], tuple[torch.Tensor, ...]], torch.Tensor | None]


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

    def __call__(self, windows: Sequence[Sequence[NDArray[np.int64]]]) -> Taken:
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

    def _copied_ahead(self, taken: Iterator[tuple[NDArray[np.int64], Arrays]]) -> Taken:
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
    device : of both.
    threaded : None does nothing ahead on a CPU, where the network has all cores.
    """

    def __init__(
        self, prepare: Prepare, device: torch.device, *, threaded: bool | None = None
    ) -> None:
        self.prepare, self.device = prepare, device
        on_gpu = device.type == "cuda"
        self.threaded = on_gpu if threaded is None else threaded
        self.stream = torch.cuda.Stream(device) if on_gpu else None
        self._thread = ThreadPoolExecutor(1)
        self._batches: Taken = iter(())
        self._coming: Future[tuple[Batch, torch.cuda.Event | None] | None] | None = None

    def begin(self, batches: Taken) -> None:
        """Go on with rows and arrays from a `Feed`, whatever is left of another."""
        if self.stream is not None:
            # A source that was put on the device was put there in the main stream.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        self._batches, self._coming = batches, None

    def look(self) -> None:
        """Begin with the next batch, if that is of use now."""
        if self.threaded and self._coming is None:
            self._coming = self._thread.submit(self._made, self._batches)

    def _made(self, batches: Taken) -> tuple[Batch, torch.cuda.Event | None] | None:
        with torch.cuda.stream(self.stream):  # None changes nothing.
            found = next(batches, None)
            if found is None:
                return None
            batch = Batch(*found)
            # Without the room it is made once the batch before is done with.
            with suppress(torch.OutOfMemoryError):
                batch.inputs = self.prepare(*found)
            if self.stream is None:
                return batch, None
            return batch, self.stream.record_event()

    def take(self) -> Batch | None:
        """The next batch; None after the last."""
        if not self.threaded:
            found = next(self._batches, None)
            return None if found is None else Batch(*found)
        self.look()
        assert self._coming is not None
        made, self._coming = self._coming.result(), None
        if made is None:
            return None
        batch, done = made
        if done is not None:
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
