"""Ray's object store as memory that the GPU reads by itself.

A worker maps the object store (`/dev/shm/plasma…`) once, as a whole. When CUDA has been told of
that mapping, a copy to the device is a DMA straight out of the store; without it each copy goes
through a staging buffer, by a CPU core.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import ray

__all__ = ["RegisteredStore", "mapping_of"]

_STORE = "/dev/shm/plasma"
_MOST_BYTES = 40 * 2**30
_READ_ONLY = 8
"""cudaHostRegisterReadOnly."""


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


class RegisteredStore:
    """Registers the object store with CUDA, at once or when the first array in it is seen.

    What lies elsewhere (in the heap, or in files that Ray falls back to) is not registered: such
    mappings come and go. Nor is a store of more than 40 GiB: registering takes up to 0.4 s a GiB in
    every actor and makes all of it resident (`cluster.object_store_gb` makes a smaller one).

    Parameters
    ----------
    register : of start, length and flags, as `cudaHostRegister`; whether it was done.
    """

    def __init__(self, register: Callable[[int, int, int], bool]) -> None:
        self._register = register
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], bool] = {}

    def begin(self) -> None:
        """Register it in a thread, beside all else that an actor begins with."""
        # Too large to travel inside a message: this process maps the store.
        stored = ray.get(ray.put(np.zeros(2**20, np.uint8)))
        threading.Thread(target=self.holds, args=(stored,), daemon=True).start()

    def holds(self, array: np.ndarray) -> bool:
        """Whether the GPU can read the array where it lies."""
        address = array.__array_interface__["data"][0]
        with self._lock:
            for (low, high), registered in self._known.items():
                if low <= address < high:
                    return registered and address + array.nbytes <= high
            return self._found(address)

    def _found(self, address: int) -> bool:
        found = mapping_of(address)
        if found is None:
            return False
        low, high, file = found
        small = high - low <= _MOST_BYTES
        self._known[low, high] = (
            small
            and file.startswith(_STORE)
            and any(self._register(low, high - low, flags) for flags in (0, _READ_ONLY))
        )
        return self._known[low, high]
