"""Features of a shard's rows beside `cutout_features` of all of them at once."""

import numpy as np
import pytest

from clusterray.config import FeatureSettings
from clusterray.engine import measuring
from clusterray.engine.measuring import measure
from clusterray.features import cutout_features
from clusterray.schema import BLANK
from clusterray.sky import shards

SETTINGS = FeatureSettings()
BANDS = ("g", "r")
N = 11


def table(**changes):
    rng = np.random.default_rng(4)
    flux = rng.normal(size=(N, 2, 24, 24))
    flux[5, :, :8] = np.nan
    flux[7] = np.nan
    return shards.to_table(
        object_id=[f"c{i}" for i in range(N)],
        ra_deg=np.arange(N),
        dec_deg=np.arange(N),
        cutouts_nchw=flux,
        noise_sigma=np.ones((N, 2)),
        bands=BANDS,
        z_lens=np.where(np.arange(N) % 3 == 0, np.nan, 0.3),
        richness=np.full(N, 50.0),
        survey="demo",
        psf_fwhm_arcsec=(0.8, 0.7),
        **changes,
    )


def plain(rows):
    batch = shards.batch(table(), integers=True)
    return cutout_features(
        batch.cutouts_nchw[rows],
        step=batch.step[rows],
        noise_sigma=batch.noise_sigma[rows],
        bands=BANDS,
        columns={k: v[rows] for k, v in batch.columns.items()},
        settings=SETTINGS,
    ).values


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_features_do_not_depend_on_how_many_are_decoded_at_once(monkeypatch, at_once):
    monkeypatch.setattr(measuring, "_MOST_AT_ONCE", at_once)
    found = measure(table(), SETTINGS)
    assert [i for i, r in enumerate(found.reasons) if r] == [7]
    assert found.reasons[7] == "every pixel is blank"
    good = np.flatnonzero([r is None for r in found.reasons])
    np.testing.assert_array_equal(found.features[good], plain(good))


def test_without_features_rows_are_looked_at_all_the_same():
    found = measure(table(), None)
    assert found.features is None
    assert [i for i, r in enumerate(found.reasons) if r] == [7]


def test_one_row_that_cannot_be_measured_costs_one_row(monkeypatch):
    """A cutout that the features refuse, beside others in the same call."""
    whole = measuring.image_features

    def refusing(pixels, **more):
        if (pixels[:, 0, 0, 0] == pixels_of_3).any():
            raise measuring.InputError("noise_sigma of row 3 is odd")
        return whole(pixels, **more)

    pixels_of_3 = shards.pixels(table())[3, 0, 0, 0]
    others = np.delete(shards.pixels(table())[:, 0, 0, 0], [3, 5, 7])
    assert pixels_of_3 not in (*others, BLANK)
    monkeypatch.setattr(measuring, "image_features", refusing)
    found = measure(table(), SETTINGS)
    assert {i: r for i, r in enumerate(found.reasons) if r} == {
        3: "noise_sigma of row 3 is odd",
        7: "every pixel is blank",
    }
    good = np.flatnonzero([r is None for r in found.reasons])
    np.testing.assert_array_equal(found.features[good], plain(good))
