"""The compiled loops over pixels, on float32 planes that stay in the processor's cache.

Planes (h + 2, w + 2) hold an image of h × w pixels with a border of one that is never usable. They
are in units of the noise and zero where a pixel may not be used; `usable` says so with 1 and 0 in
the same layout. Sums run down the columns of a row of patches, so that each step is one operation
on a whole image row, and are put together per patch at the end. `scratch` is (4, w) wherever it
stands, `rows` and `columns` say where patches begin, and patch results are (grid × grid).
"""

from clusterray.features.kernels.cutout import measure
from clusterray.features.kernels.levels import level_of, quantise

__all__ = ["level_of", "measure", "quantise"]
