"""Made surveys: lens clusters, lensed background clusters and their hard negatives.

`recipe` says what is drawn, `population` draws a system, `halo` and `lensing` deflect, `truth`
decides what is multiply imaged, `scene` paints, `observe` and `artefacts` add PSF, noise and
faults; `delivery` writes tiles as a survey delivers them, `cutouts` shards, `injection` lenses into
cutouts that exist. Submodules are imported by name, since lenstronomy takes seconds to import.
"""

__all__ = [
    "artefacts",
    "cutouts",
    "delivery",
    "distributions",
    "frame",
    "galaxies",
    "gallery",
    "halo",
    "injection",
    "layout",
    "lensing",
    "negatives",
    "observe",
    "peculiar",
    "population",
    "recipe",
    "scene",
    "sersic",
    "spectra",
    "surroundings",
    "survey_tables",
    "system",
    "truth",
]
