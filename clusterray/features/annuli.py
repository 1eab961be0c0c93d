"""What is said of the annuli about the centre: where the light and the blue light are."""

import numpy as np
from numpy.typing import NDArray

from clusterray.features.colour import asinh_colour
from clusterray.features.geometry import N_ANNULI
from clusterray.features.measurement import Measurement

__all__ = ["annulus_values"]

Floats = NDArray[np.float64]


def annulus_values(found: Measurement) -> Floats:
    """(n, features) in the order of `image_registry.annulus_features`, annulus after annulus.

    NaN where the registry says so.
    """
    n = len(found.ring)
    number, total, square, bright = (found.ring[:, :, k] for k in range(4))
    count = np.where(number > 0, number, np.nan)
    mean = total / count
    moments = [mean, np.sqrt(np.maximum(square / count - mean**2, 0.0)), bright / count]
    colours = _colours(found)
    excess = colours - colours[:, :, :1]
    blue = _blue(found)
    rings = [
        np.concatenate(
            [
                *(m[:, :, ring] for m in moments),
                colours[:, :, ring],
                excess[:, :, ring] if ring else np.empty((n, 0)),
                blue[:, :, ring],
            ],
            axis=1,
        )
        for ring in range(N_ANNULI)
    ]
    return np.concatenate(rings, axis=1)


def _colours(found: Measurement) -> Floats:
    number = found.ring_pair[:, :, 0]
    count = np.where(number > 0, number, np.nan)
    blue, red = found.noise[:, :-1, None], found.noise[:, 1:, None]
    return asinh_colour(
        number,
        found.ring_pair[:, :, 1] / count * blue,
        found.ring_pair[:, :, 2] / count * red,
        blue_sigma=blue,
        red_sigma=red,
    )


def _blue(found: Measurement) -> Floats:
    """(n, 4, annuli), or (n, 0, annuli) where there is one band."""
    if found.noise.shape[1] < 2:
        return np.empty((len(found.ring), 0, N_ANNULI))
    number, bright, strength, radial, above, below = (found.residual[:, k] for k in range(6))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (bright / number, radial / strength, above / number, below / number)
        return np.stack(shares, axis=1)
