import mmap
import platform
import resource
import threading

import numpy as np
import pytest

from clusterray.engine import host_memory
from clusterray.engine.host_memory import RegisteredStore, mapping_of

PAGES = 16 * mmap.PAGESIZE


class Registry:
    """Takes registrations down; answers that it worked, or what it is told to."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def __call__(self, start, length, flags):
        self.calls.append((start, length, flags))
        return self.answers.pop(0) if self.answers else True


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A mapped file in place of the object store, as an array."""
    file = tmp_path / "plasmaX"
    file.write_bytes(bytes(PAGES))
    monkeypatch.setattr(host_memory, "_STORE", str(tmp_path / "plasma"))
    return np.memmap(file, np.uint8)


def address(array):
    return array.__array_interface__["data"][0]


def test_a_mapping_is_found_by_an_address_in_it(store, tmp_path):
    low, high, file = mapping_of(address(store) + 5000)
    assert (low, high - low, file) == (address(store), PAGES, str(tmp_path / "plasmaX"))
    assert mapping_of(0) is None


def test_the_store_is_registered_once_and_as_a_whole(store):
    registry = Registry()
    registered = RegisteredStore(registry)
    assert registered.holds(store[4096:9000])
    assert registered.holds(store[20000:])
    assert registry.calls == [(address(store), PAGES, 0)]


def test_the_heap_is_not_registered(store):
    registry = Registry()
    assert not RegisteredStore(registry).holds(np.zeros(10_000_000, np.uint8))
    assert registry.calls == []


def test_a_refusal_is_remembered_after_the_read_only_way_was_tried(store):
    registry = Registry(False, False)
    registered = RegisteredStore(registry)
    assert not registered.holds(store)
    assert not registered.holds(store[:10])
    assert [flags for *_, flags in registry.calls] == [0, 8]
    assert RegisteredStore(Registry(False)).holds(store)


def test_a_store_too_large_to_be_resident_is_not_registered(store, monkeypatch):
    registry = Registry()
    monkeypatch.setattr(host_memory, "_MOST_BYTES", PAGES - 1)
    assert not RegisteredStore(registry).holds(store)
    assert registry.calls == []


def test_nothing_is_in_a_store_that_is_still_being_populated(store):
    registry, end = Registry(), threading.Event()
    populating = threading.Thread(target=end.wait, daemon=True)
    populating.start()
    registered = RegisteredStore(registry)
    registered._populating = populating
    assert not registered.holds(store)
    assert registry.calls == []
    end.set()
    populating.join()
    assert registered.holds(store)


def _kernel() -> tuple[int, ...]:
    return tuple(int(v) for v in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(platform.system() != "Linux" or _kernel() < (5, 14), reason="Linux 5.14")
def test_a_populated_page_is_written_to_without_a_fault():
    def faults(array: np.ndarray) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        array[:: mmap.PAGESIZE] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    size = 3 * host_memory._SLICE_BYTES // 2
    fresh, populated = (np.frombuffer(mmap.mmap(-1, size), np.uint8) for _ in range(2))
    host_memory._populate(address(populated), address(populated) + size)
    assert faults(populated) < 0.3 * faults(fresh)
