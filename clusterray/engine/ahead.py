"""Work done ahead of its turn, by actors that would otherwise wait for the stage behind them.

While a network is loaded, or the node with its GPU is still to come, the object store is soon full
and Ray Data asks the readers for nothing more. Then each of them takes up row groups that nobody
has begun, spread over the plan, and keeps of them what is small, the features, in the object store.
A register (an actor of no CPU) knows what is begun and where what was kept lies.

A value is the same whoever computed it and when, so nothing hangs on it: what is lost with the
register, an actor or a node is computed when its turn comes.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import ray
from ray.exceptions import RayError

from clusterray.errors import ClusterrayError

__all__ = ["Ahead", "Register", "opened_register"]

_IDLE_SECONDS: Final = 0.5
"""A reader that is at work is called again sooner."""
_LOOK_SECONDS: Final = 0.1
_WAIT_SECONDS: Final = 10.0
_MOST_BYTES: Final = 192 * 2**20
"""What one actor keeps in all: some 80,000 cutouts' features of five bands."""
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


class Register:
    """Which units are begun, and what was computed of others ahead of their turn."""

    def __init__(self, n_units: int) -> None:
        # However many are taken, they lie evenly over the plan, so that whoever works through it
        # finds its work shortened from the first unit to the last.
        self._order = iter(np.argsort(np.arange(n_units) * _GOLDEN % 1.0).tolist())
        self._begun: set[int] = set()
        self._kept: dict[int, Any] = {}

    def next(self) -> int | None:
        """A unit that is neither begun nor was given out here before; None if there is none."""
        return next((unit for unit in self._order if unit not in self._begun), None)

    def keep(self, unit: int, boxed: list[Any]) -> None:
        """Note the reference, in a list, to what was computed, unless the unit is begun by now."""
        if unit not in self._begun:
            self._kept[unit] = boxed[0]

    def begin(self, unit: int) -> list[Any]:
        """Note that a unit's turn has come; what was kept of it, in a list, if anything was."""
        self._begun.add(unit)
        return [self._kept.pop(unit)] if unit in self._kept else []


@contextmanager
def opened_register(n_units: int) -> Iterator[Any]:
    """A register's actor, for as long as the block lasts."""
    register: Any = ray.remote(Register).options(num_cpus=0).remote(n_units)
    try:
        yield register
    finally:
        ray.kill(register)


class Ahead:
    """An actor's side: a thread that computes ahead while no call is at work.

    Parameters
    ----------
    register : the actor of `opened_register`.
    compute : what of a unit is kept; called in the thread, with at most one call at work beside it.
    """

    def __init__(self, register: Any, compute: Callable[[int], Any]) -> None:
        self._register, self._compute = register, compute
        self._idle_since = time.monotonic()
        threading.Thread(target=self._work, daemon=True).start()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Begin nothing ahead inside the block."""
        self._idle_since = math.inf
        try:
            yield
        finally:
            self._idle_since = time.monotonic()

    def begin(self, unit: int) -> tuple[Any, float]:
        """What was kept of a unit whose turn has come, and the seconds it took; else None, 0."""
        if self._register is None:
            return None, 0.0
        try:
            boxed = ray.get(self._register.begin.remote(unit), timeout=_WAIT_SECONDS)
        except RayError:
            # It is gone, and with it what it knew.
            self._register = None
            return None, 0.0
        try:
            return ray.get(boxed[0], timeout=_WAIT_SECONDS) if boxed else (None, 0.0)
        except RayError:
            return None, 0.0

    def _work(self) -> None:
        kept = 0
        while kept < _MOST_BYTES and (register := self._register) is not None:
            if time.monotonic() - self._idle_since < _IDLE_SECONDS:
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                unit = ray.get(register.next.remote())
                if unit is None:
                    return
                start = time.monotonic()
                value = self._compute(unit)
                kept += value.nbytes
                register.keep.remote(unit, [ray.put((value, time.monotonic() - start))])
            except (ClusterrayError, RayError):
                # Whatever is wrong is told when the unit's turn comes.
                return
