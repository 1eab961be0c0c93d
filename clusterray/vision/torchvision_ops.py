"""The operators that `import timm` needs where torchvision's compiled library cannot load.

PyPI's torchvision is built for CUDA; beside a CPU build of torch its library does not load, and
importing it then fails with "operator torchvision::nms does not exist".
"""

import functools
import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder
from pathlib import Path

import torch

__all__ = ["declare_missing"]

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def declare_missing() -> bool:
    """Declare the operators if torchvision's own library does not load; call before `import timm`.

    Nothing is done where torchvision is already imported, absent, or whole. A declared operator
    has no kernel: calling it raises, and nothing here calls it.

    Returns
    -------
    Whether they had to be declared.
    """
    spec = importlib.util.find_spec("torchvision") if "torchvision" not in sys.modules else None
    if spec is None or spec.origin is None or _library_loads(Path(spec.origin).parent):
        return False
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SIGNATURE)
    return True


def _library_loads(folder: Path) -> bool:
    finder = FileFinder(str(folder), (ExtensionFileLoader, EXTENSION_SUFFIXES))
    library = finder.find_spec("_C")
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except (ImportError, OSError):
        return False
    return True
