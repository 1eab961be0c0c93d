"""What looks like a cluster–cluster lens and is none."""

from dataclasses import replace

import numpy as np

from clusterray.simulate import halo
from clusterray.simulate.system import Foreground, Recipe, System, draw_background

__all__ = ["lens_off", "projected_double"]


def lens_off(system: System) -> System:
    """Make the twin of a system: same clusters, same places, but the light goes straight."""
    return replace(system, kind="lens_off", lensed=False, n_multiply_imaged=0)


def projected_double(
    object_id: str, foreground: Foreground, *, recipe: Recipe, rng: np.random.Generator
) -> System:
    """Put a second cluster close behind the first: D_ls/D_s of a few per cent, taken as none."""
    z = foreground.z_lens + float(rng.uniform(0.03, 0.10))
    return System(
        object_id=object_id,
        kind="double",
        foreground=foreground,
        background=draw_background(
            z, offset_arcsec=float(rng.uniform(5, 25)), red_fraction=0.8, rng=rng
        ),
        z_background=z,
        lensed=False,
        theta_e_arcsec=halo.einstein_radius_arcsec(foreground.deflector(recipe.reference_z_source)),
        n_multiply_imaged=0,
    )
