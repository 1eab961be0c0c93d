"""From survey tiles and a cluster catalogue to cutout shards."""

__all__ = [
    "astrometry",
    "catalogue",
    "cutout_table",
    "cutouts",
    "export",
    "fitsfile",
    "image_plane",
    "noise",
    "photometry",
    "planes",
    "resample",
    "shards",
    "surveys",
    "tabular",
    "tiles",
]
