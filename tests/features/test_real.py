"""Features of real survey images."""

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from clusterray.features import image_features
from clusterray.features.image_registry import image_registry

REAL = os.environ.get("CLUSTERRAY_REAL_DATA")
pytestmark = pytest.mark.skipif(not REAL, reason="CLUSTERRAY_REAL_DATA is not set")


def planes(folder, bands):
    found = []
    for band in bands:
        (path,) = (Path(REAL) / folder).glob(f"*_{band}.fits")
        image = fits.getdata(path).astype(np.float32)
        found.append(image - np.nanmedian(image))
    return np.stack(found)


def robust_noise(cutouts):
    return 1.4826 * np.nanmedian(np.abs(cutouts), axis=(-2, -1))


def test_a_lens_galaxy_is_brighter_and_redder_than_its_surroundings():
    image = planes("cfhtls", ("g", "r", "i"))
    centre = 440 // 2
    cutouts = image[None, :, centre - 32 : centre + 64, centre - 48 : centre + 48]
    matrix = image_features(cutouts, noise_sigma=robust_noise(cutouts), bands=("g", "r", "i"))
    values = dict(zip(matrix.names, matrix.values[0], strict=True))
    unknown = {f.name for f in image_registry(("g", "r", "i")) if f.nan_when}
    missing = {n for n, value in values.items() if not np.isfinite(value)}
    assert missing <= unknown
    assert len(missing) < 5
    assert values["annulus_0_mean_i"] > values["annulus_4_mean_i"] + 1
    assert values["patch_1_1_edges_r"] > 0.01


def test_pixels_without_data_are_left_out():
    image = planes("vics82", ("i", "J", "Ks"))
    missing = ~np.isfinite(image)
    assert missing.any()
    matrix = image_features(
        image[None],
        noise_sigma=robust_noise(image[None]),
        bands=("i", "J", "Ks"),
        grid=1,
        max_size_px=374,
    )
    values = dict(zip(matrix.names, matrix.values[0], strict=True))
    for band, label in enumerate(("i", "J", "Ks")):
        whole = values[f"patch_0_0_covered_{label}"]
        assert whole == pytest.approx(1 - missing[band].mean(), abs=1e-6)
        mean = np.nanmean(image[band], dtype=np.float64) / robust_noise(image[band])
        assert values[f"patch_0_0_mean_{label}"] == pytest.approx(mean, rel=1e-4)
