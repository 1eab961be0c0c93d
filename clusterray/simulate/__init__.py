"""Made surveys: lens clusters, lensed background clusters and their hard negatives.

`population` draws a system, `halo` deflects, `images` decides what is multiply imaged, `scene`
paints, `observe` adds PSF and noise, and `delivery` writes it all as a survey would deliver it.
Submodules are imported by name, since lenstronomy takes seconds to import.
"""

__all__ = [
    "delivery",
    "galaxies",
    "halo",
    "images",
    "layout",
    "negatives",
    "observe",
    "population",
    "scene",
    "surroundings",
    "system",
]
