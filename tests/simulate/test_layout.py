import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix

from clusterray.config import SimulateSettings
from clusterray.errors import ConfigError
from clusterray.simulate import layout

SEED = 5


def test_pointings_keep_apart_and_in_cells_of_their_own(demo_maker):
    settings = SimulateSettings(n_clusters=3000, clusters_per_tile=30)
    specs = layout.plan(settings, demo_maker.survey, seed=SEED)
    sky = SkyCoord([s.ra_deg for s in specs], [s.dec_deg for s in specs], unit="deg")
    assert sky.match_to_catalog_sky(sky, nthneighbor=2)[1].deg.min() > 1.5
    assert np.abs(sky.dec.deg).max() <= 50
    healpix = HEALPix(nside=64, order="nested")
    cells = healpix.lonlat_to_healpix(sky.ra, sky.dec)
    assert len(set(cells)) == len(specs) == 100
    reach = np.hypot(*specs[0].shape_px) * 0.336 / 2 * u.arcsec
    for corner in range(4):
        edge = sky.directional_offset_by((45 + 90 * corner) * u.deg, reach)
        assert (healpix.lonlat_to_healpix(edge.ra, edge.dec) == cells).all()
    assert [i for s in specs for i in s.index] == list(range(3000))


@pytest.mark.parametrize("name", ["demo", "hsc"])
def test_clusters_keep_apart_and_their_cutouts_on_the_tile(survey_of, name):
    survey = survey_of(name)
    field = survey.size_px * survey.pixel_scale_arcsec
    for spec in layout.plan(SimulateSettings(n_clusters=90), survey, seed=SEED):
        x, y = ((np.array(v) + spec.box_px / 2) * 0.336 for v in (spec.column, spec.row))
        apart = np.maximum(np.abs(x[:, None] - x), np.abs(y[:, None] - y))
        assert apart[~np.eye(len(x), dtype=bool)].min() >= spec.box_px * 0.336 - 1e-6
        # A cutout, north up on a tile turned by 5°, needs this much to each side.
        margin = field / 2 * (np.cos(np.radians(5)) + np.sin(np.radians(5)))
        assert spec.box_px * 0.336 / 2 >= margin
        assert min(x.min(), y.min()) > margin
        assert x.max() < spec.shape_px[1] * 0.336 - margin
        assert y.max() < spec.shape_px[0] * 0.336 - margin


def test_the_plan_follows_the_seed(demo_maker):
    settings = SimulateSettings(n_clusters=60)
    plans = [layout.plan(settings, demo_maker.survey, seed=s) for s in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_a_tile_is_turned_about_its_middle(demo_maker):
    (spec,) = layout.plan(SimulateSettings(n_clusters=4), demo_maker.survey, seed=SEED)
    wcs = spec.wcs()
    middle = (np.array(spec.shape_px[::-1]) - 1) / 2
    centre = SkyCoord(spec.ra_deg, spec.dec_deg, unit="deg")
    assert wcs.pixel_to_world(*middle).separation(centre).arcsec < 1e-3
    up = wcs.pixel_to_world(middle[0], middle[1] + 100)
    assert centre.separation(up).arcsec == pytest.approx(33.6, rel=1e-4)
    # Columns point west of north by the rotation.
    east = (centre.position_angle(up).deg + 180) % 360 - 180
    assert east == pytest.approx(spec.rotation_deg, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clusters_per_tile": 900}, "clusters_per_tile is 900, expected at most \\d+, so that"),
        ({"n_clusters": 200_000, "clusters_per_tile": 10}, "20000 tiles are needed but \\d+ fit"),
    ],
)
def test_impossible_layouts_fail_before_any_work(demo_maker, changes, message):
    with pytest.raises(ConfigError, match=message):
        layout.plan(SimulateSettings(**changes), demo_maker.survey, seed=SEED)
