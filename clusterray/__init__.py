"""clusterray: survey-scale search for cluster-cluster gravitational lenses on Ray.

The way of the data is the order of the packages: `sky` → `simulate` → `features` → `vision` →
`pu` → `ensemble` → `rank`, driven by `engine` (the only package that imports Ray) and `cli`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
