"""From survey tiles and a cluster catalogue to cutout shards."""

__all__ = [
    "astrometry",
    "byte_planes",
    "catalogue",
    "cutout_table",
    "cutouts",
    "export",
    "fitsfile",
    "image_plane",
    "noise",
    "photometry",
    "resample",
    "shards",
    "surveys",
    "tabular",
    "tiles",
]
