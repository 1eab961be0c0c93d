from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from clusterray.config import SimulateSettings
from clusterray.simulate import delivery, layout
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.sky.photometry import NJY_ZERO_POINT

SETTINGS = SimulateSettings(n_clusters=3, clusters_per_tile=3)


@pytest.fixture(scope="module")
def spec(demo_maker):
    (one,) = layout.plan(SETTINGS, demo_maker.survey, seed=demo_maker.seed)
    # Far enough turned that the wrong sense would show.
    return replace(one, rotation_deg=5.0)


def maker_of(demo_maker, kind):
    """All systems of one class; PSF and depth are the same for both."""
    recipe = demo_maker.recipe.model_copy(update={"classes": {kind: 1.0}})
    return CutoutMaker(demo_maker.survey, recipe, demo_maker.seed)


@pytest.fixture(scope="module")
def tiles(demo_maker, spec, tmp_path_factory):
    """The same tile with its background clusters lensed, and with lensing off."""
    made = {}
    for kind in ("lens", "lens_off"):
        folder = tmp_path_factory.mktemp(kind)
        maker = maker_of(demo_maker, kind)
        made[kind] = folder, delivery.render_tile(spec, maker, out_url=str(folder), shown={"2"})
    return made


def read(folder, spec, band="i"):
    with fits.open(Path(folder) / f"{spec.name}_{band}.fits") as hdus:
        return hdus[0].data, hdus[0].header


@pytest.fixture(scope="module")
def arcs(tiles, spec):
    """Lensed minus straight light on the tile, in σ of the noise, and the tile's WCS."""
    (data, header), (off, _) = (read(tiles[k][0], spec) for k in ("lens", "lens_off"))
    sigma = np.median(np.abs(data - np.median(data))) * 1.4826
    return (data - off) / sigma, WCS(header)


def test_tiles_say_what_a_survey_says(tiles, spec, demo_maker):
    folder, made = tiles["lens"]
    assert made.files == tuple(f"{spec.name}_{b}.fits" for b in "gri")
    exposures = delivery.conditions(
        demo_maker.survey, demo_maker.recipe.observation, seed=demo_maker.seed, name=spec.name
    )
    for one in exposures:
        image, header = read(folder, spec, one.band)
        assert image.shape == spec.shape_px
        assert image.dtype.newbyteorder("=") == np.float32
        assert np.isfinite(image).all()
        assert (header["FILTER"], header["BUNIT"]) == (one.band, "adu")
        assert header["MAGZERO"] == delivery.ZERO_POINT["demo"][one.band] != NJY_ZERO_POINT
        assert header["PSF_FWHM"] == pytest.approx(one.psf_fwhm_arcsec, abs=1e-4)
        assert header["DEPTH"] == pytest.approx(one.depth_mag, abs=1e-3)
        assert "DATE" not in header
        matrix = WCS(header).pixel_scale_matrix
        assert np.linalg.det(matrix) == pytest.approx(-((0.336 / 3600) ** 2)), "east on the left"
        # The dark half of the tile's edge is sky.
        border = np.concatenate([image[:20].ravel(), image[-20:].ravel()])
        per_njy = 10 ** (0.4 * (header["MAGZERO"] - NJY_ZERO_POINT))
        dark = np.quantile(border, 0.5) - np.quantile(border, 0.1587)
        assert dark / per_njy == pytest.approx(one.sigma_njy(0.336), rel=0.15)


def test_systems_stand_at_their_positions(tiles, spec):
    folder, made = tiles["lens"]
    image, header = read(folder, spec)
    assert [s.object_id for s in made.systems] == [r["object_id"] for r in made.truth]
    at = SkyCoord(*made.sky_deg.T, unit="deg")
    x, y = WCS(header).world_to_pixel(at)
    for k in range(3):
        i, j = round(float(x[k])), round(float(y[k]))
        box = image[j - 3 : j + 4, i - 3 : i + 4].clip(0)
        grid = np.arange(-3, 4)
        assert abs((box.sum(axis=0) * grid).sum() / box.sum()) < 1
        assert abs((box.sum(axis=1) * grid).sum() / box.sum()) < 1
        assert box[2:5, 2:5].mean() > 5 * np.median(np.abs(image))


def brightness_at(arcs, sky, x_arcsec, y_arcsec):
    """Mean of 3 × 3 pixels of the tile at offsets from a position, north up and east left."""
    image, wcs = arcs
    places = sky.spherical_offsets_by(-x_arcsec * sky.ra.unit / 3600, y_arcsec * sky.ra.unit / 3600)
    i, j = (np.rint(v).astype(int) for v in wcs.world_to_pixel(places))
    around = range(-1, 2)
    return np.mean([image[j + b, i + a] for a in around for b in around], axis=0)


def test_images_land_on_the_arcs_of_the_turned_tile(tiles, arcs):
    made = tiles["lens"][1]
    right, wrong = [], []
    for row, (ra, dec) in zip(made.truth, made.sky_deg, strict=True):
        sky = SkyCoord(ra, dec, unit="deg")
        seen = row["image_snr"] > 15
        x, y = row["image_x_arcsec"][seen], row["image_y_arcsec"][seen]
        far = np.hypot(x, y) > 5
        right.extend(brightness_at(arcs, sky, x[far], y[far]))
        turned = delivery._turn(x[far], y[far], -10.0)
        wrong.extend(brightness_at(arcs, sky, *turned))
    assert len(right) >= 4
    assert np.median(right) > 1.0
    assert np.median(right) > 1.5 * np.median(wrong)


def test_the_arc_mask_lies_on_the_arcs_of_the_turned_tile(tiles, arcs):
    made = tiles["lens"][1]
    axis = (np.arange(128) - 63.5) * 0.5
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    for row, (ra, dec) in zip(made.truth, made.sky_deg, strict=True):
        mask = np.unpackbits(np.frombuffer(row["arc_mask"], np.uint8)) > 0
        light = brightness_at(arcs, SkyCoord(ra, dec, unit="deg"), x, y)
        assert 0.001 < mask.mean() < 0.3
        # Straight images of the same galaxies stand in the middle, and count as negative.
        outer = np.hypot(x, y) > 8
        assert np.mean(light[mask & outer]) > 1.0
        assert abs(np.mean(light[~mask & outer])) < 0.2
    assert all(row.get("arc_mask") is None for row in tiles["lens_off"][1].truth)


def test_the_bytes_depend_on_the_specification_alone(tiles, spec, demo_maker, tmp_path):
    fresh = CutoutMaker(demo_maker.survey, maker_of(demo_maker, "lens").recipe, demo_maker.seed)
    delivery.render_tile(spec, fresh, out_url=str(tmp_path))
    for name in tiles["lens"][1].files:
        assert (tmp_path / name).read_bytes() == (tiles["lens"][0] / name).read_bytes()


def test_the_gallery_shows_the_systems_it_asked_for(tiles):
    (one,) = tiles["lens"][1].cards
    assert (one["object_id"], one["kind"]) == ("2", "lens")
    assert one["half_arcsec"] == pytest.approx(32, abs=0.5)
