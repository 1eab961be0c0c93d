"""How these loops are compiled: once per machine, and without the interpreter's lock."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from clusterray.compilation import njit

__all__ = ["FINITE", "RESUMMED", "compiled"]

RESUMMED: Final = frozenset({"contract", "nsz", "reassoc"})
"""Sums may be taken in another order and products fused; NaN, ∞ and masks keep their meaning."""

FINITE: Final = RESUMMED | {"nnan"}
"""As `RESUMMED`, for loops that see no NaN: minima and maxima then run on vectors."""


def _sources() -> str:
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


_SOURCES: Final = _sources()


def compiled(
    fastmath: frozenset[str] = frozenset(), *, entry: bool = False
) -> Callable[[Any], Any]:
    """Compile a function with numba at its first call, and keep the machine code on disk.

    Only an `entry` can be called from Python: to make that possible takes time too. What calls a
    function with `fastmath` must have it as well, up to the entry.
    """

    def wrap(function: Any) -> Any:
        # Numba asks only whether the file of the function itself has changed, not those of the
        # functions that are compiled into it; but it names what it keeps after the function.
        function.__qualname__ += f"-{_SOURCES}"
        # Numpy's division, which does not stop a vector to ask for a zero.
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        options |= {"fastmath": set(fastmath), "no_cfunc_wrapper": True}
        options["no_cpython_wrapper"] = not entry
        # Else the process that compiles an entry may call another version of such a function than
        # those that load the entry from disk, and the last bits of a feature would differ.
        options["forceinline"] = bool(fastmath) and not entry
        return njit(**options)(function)

    return wrap
