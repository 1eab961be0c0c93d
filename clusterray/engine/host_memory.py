"""Ray's object store as memory that the GPU reads by itself.

A worker maps the object store (`/dev/shm/plasma…`) once, as a whole. When CUDA has been told of
that mapping, a copy to the device is a DMA straight out of the store; without it each copy goes
through a staging buffer, by a CPU core.

Of a new store no page exists yet. CUDA would have all of them made at once, and meanwhile no other
thread of the process can map memory, so that imports stand still for seconds: they are made
before, a few at a time.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import ray

__all__ = ["RegisteredStore", "mapping_of", "populate_store"]

_STORE = "/dev/shm/plasma"
_MOST_BYTES = 40 * 2**30
_READ_ONLY = 8
"""cudaHostRegisterReadOnly."""
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, of Linux 5.14."""
_SLICE_BYTES = 16 * 2**20


def mapping_of(address: int) -> tuple[int, int, str] | None:
    """Start, end and file of this process's mapping that holds an address; None where none does.

    Read from `/proc/self/maps`; on systems without it there is none.
    """
    with suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            words = line.split(maxsplit=5)
            low, high = (int(word, 16) for word in words[0].split("-"))
            if low <= address < high:
                return low, high, words[5].strip() if len(words) == 6 else ""
    return None


def populate_store() -> threading.Thread:
    """Have every page of the object store made and mapped into this process, by a thread.

    Nothing is done where the store is not to be registered, or the kernel cannot do it.
    """
    found = _store_at(_address(_stored()))
    thread = threading.Thread(target=_populate, args=found or (0, 0), daemon=True)
    thread.start()
    return thread


def _populate(low: int, high: int) -> None:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    starts = range(low, high, _SLICE_BYTES)
    # Processes of a node begin in different places, and share the work.
    first = os.getpid() * 7919 % max(1, len(starts))
    for start in (*starts[first:], *starts[:first]):
        if madvise(start, min(_SLICE_BYTES, high - start), _POPULATE_WRITE) != 0:
            return


def _stored() -> np.ndarray:
    """Some array in the store; it is too large to travel inside a message."""
    array: np.ndarray = ray.get(ray.put(np.zeros(2**20, np.uint8)))
    return array


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _store_at(address: int) -> tuple[int, int] | None:
    """Start and end of the store that holds an address; None if it is none that is registered."""
    found = mapping_of(address)
    if found is None:
        return None
    low, high, file = found
    return (low, high) if high - low <= _MOST_BYTES and file.startswith(_STORE) else None


class RegisteredStore:
    """Registers the object store with CUDA, at once or when the first array in it is seen.

    What lies elsewhere (in the heap, or in files that Ray falls back to) is not registered: such
    mappings come and go. Nor is a store of more than 40 GiB: all of it becomes resident, at up to a
    second a GiB in every actor (`cluster.object_store_gb` makes a smaller one).

    Parameters
    ----------
    register : of start, length and flags, as `cudaHostRegister`; whether it was done.
    """

    def __init__(self, register: Callable[[int, int, int], bool]) -> None:
        self._register = register
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], bool] = {}
        self._populating: threading.Thread | None = None

    def begin(self, populating: threading.Thread) -> None:
        """Register it when it is populated, in a thread; until then it holds nothing."""
        self._populating = populating

        def register() -> None:
            populating.join()
            self.holds(_stored())

        threading.Thread(target=register, daemon=True).start()

    def holds(self, array: np.ndarray) -> bool:
        """Whether the GPU can read the array where it lies."""
        if self._populating is not None and self._populating.is_alive():
            return False
        address = _address(array)
        with self._lock:
            for (low, high), registered in self._known.items():
                if low <= address < high:
                    return registered and address + array.nbytes <= high
            return self._found(address)

    def _found(self, address: int) -> bool:
        found = mapping_of(address)
        if found is None:
            return False
        low, high, _ = found
        self._known[low, high] = _store_at(address) is not None and any(
            self._register(low, high - low, flags) for flags in (0, _READ_ONLY)
        )
        return self._known[low, high]
