"""How loops are compiled here: code kept on disk, on vectors as wide as the processor's."""

from typing import Any

import numba
from numba.core import config
from numba.core.codegen import get_host_cpu_features

__all__ = ["njit"]


def _widen() -> None:
    """Have LLVM use all of an AVX-512 register.

    On most Intel processors it keeps to half of one, as if that cost clock rate; the features of a
    cutout take 0.74 of the time with all of it (Xeon, "emeraldrapids"). Before anything is
    compiled or loaded, or two processes would differ in the last bits of a sum.
    """
    features = get_host_cpu_features()
    unset = config.CPU_FEATURES is None  # type: ignore[attr-defined]
    if unset and "+avx512f" in features.split(","):
        config.CPU_FEATURES = f"{features},-prefer-256-bit"  # type: ignore[attr-defined]


_widen()


def njit(**options: Any) -> Any:
    """`numba.njit` whose code is kept on disk, where the package or the user has room for it."""

    def wrap(function: Any) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's cache can be written.
            return numba.njit(**options)(function)

    return wrap
