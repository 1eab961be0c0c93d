import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy_healpix import HEALPix
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from clusterray.ensemble.folds import HELD_OUT, assign, sky_groups
from clusterray.errors import InputError

NSIDE = 64


def test_groups_are_healpix_cells():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    groups = sky_groups(ra, dec, nside=NSIDE)
    grid = HEALPix(nside=NSIDE, order="nested")
    np.testing.assert_array_equal(groups, grid.lonlat_to_healpix(ra * u.deg, dec * u.deg))


def astride(separation_arcsec):
    """Two positions this far apart on either side of a cell border, found by bisection."""
    grid = HEALPix(nside=NSIDE, order="nested")
    ends = [SkyCoord(*grid.healpix_to_lonlat(i)) for i in (5000, grid.neighbours(5000)[0])]
    angle, length = ends[0].position_angle(ends[1]), ends[0].separation(ends[1])

    def along(distance):
        return ends[0].directional_offset_by(angle, distance)

    near, far = 0 * u.deg, length
    while far - near > 0.001 * u.arcsec:
        middle = (near + far) / 2
        here = along(middle)
        near, far = (
            (middle, far) if grid.lonlat_to_healpix(here.ra, here.dec) == 5000 else (near, middle)
        )
    pair = [along(near + sign * separation_arcsec / 2 * u.arcsec) for sign in (-1, 1)]
    return np.array([p.ra.deg for p in pair]), np.array([p.dec.deg for p in pair])


def test_duplicates_share_a_group_across_a_border_and_cells_stay_apart():
    ra, dec = astride(1.5)
    inside_ra, inside_dec = astride(2000.0)
    first, second, left, right = sky_groups(
        np.append(ra, inside_ra), np.append(dec, inside_dec), nside=NSIDE
    )
    assert left != right, "the border is between them"
    assert first == second == min(left, right)
    assert len(set(sky_groups(*astride(2.5), nside=NSIDE))) == 2
    assert len(set(sky_groups(*astride(2.5), nside=NSIDE, duplicate_arcsec=3.0))) == 1


def test_duplicates_are_found_over_ra_zero_and_at_the_pole():
    groups = sky_groups([0.0, 360.0 - 1e-4], [0.0, 0.0], nside=NSIDE)
    assert groups[0] == groups[1]
    groups = sky_groups([10.0, 190.0], [90 - 1e-4, 90 - 1e-4], nside=NSIDE)
    assert groups[0] == groups[1]


@st.composite
def surveys(draw):
    n = draw(st.integers(30, 120))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, draw(st.integers(12, 40)), n)
    s = np.zeros(n, np.int8)
    s[rng.choice(n, draw(st.integers(8, 20)), replace=False)] = 1
    s[rng.choice(n, draw(st.integers(0, 5)), replace=False)] = -1
    return [f"o{i}" for i in range(n)], groups, s


@settings(max_examples=60, deadline=None)
@given(survey=surveys(), n_folds=st.integers(2, 5), seed=st.integers(0, 1000))
def test_laws_of_folds(survey, n_folds, seed):
    names, groups, s = survey
    if len(np.unique(groups[s == 1])) < 3:
        return
    options = {"n_folds": n_folds, "holdout_fraction": 0.2, "seed": seed}
    found = assign(names, groups, s, **options)
    assert found.fold.dtype == np.int8
    assert set(found.fold) == {HELD_OUT, *range(found.n_folds)}
    # Groups are whole.
    assert len(np.unique(np.stack([groups, found.fold]), axis=1).T) == len(np.unique(groups))
    # Every set has a known lens, and fewer folds than asked for are explained.
    assert all(np.any(s[found.fold == k] == 1) for k in range(-1, found.n_folds))
    assert (found.n_folds < n_folds) == bool(found.notes)
    # The order of the rows does not matter.
    order = np.random.default_rng(seed).permutation(len(names))
    again = assign([names[i] for i in order], groups[order], s[order], **options)
    np.testing.assert_array_equal(again.fold, found.fold[order])


def test_shares_are_kept_in_rows_and_in_lenses():
    rng = np.random.default_rng(0)
    n = 6000
    groups, s = rng.integers(0, 900, n), (rng.random(n) < 0.03).astype(np.int8)
    s[rng.random(n) < 0.02] = -1
    names = [str(i) for i in range(n)]
    found = assign(names, groups, s, n_folds=4, holdout_fraction=0.2, seed=1)
    for label in (1, -1, 0):
        counts = np.bincount(found.fold[s == label] + 1, minlength=5) / np.sum(s == label)
        np.testing.assert_allclose(counts, [0.2] * 5, atol=0.02)
    assert not found.notes
    other = assign(names, groups, s, n_folds=4, holdout_fraction=0.2, seed=2)
    assert np.mean(other.fold == found.fold) < 0.5


def test_few_lenses_mean_fewer_folds_said_so():
    s = np.array([1, 1, 1, 1] + [0] * 36)
    groups = np.arange(40) % 20
    found = assign([str(i) for i in range(40)], groups, s, n_folds=5, holdout_fraction=0.1, seed=0)
    assert found.n_folds == 3
    assert found.notes == ("3 folds instead of 5: 4 known lenses lie in 4 sky groups",)


def mean_oof_auc(grouped):
    """Labels drawn per group of near-duplicates, with no relation to the features."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(240), 5)
        x = rng.normal(size=(240, 6))[groups] + 0.01 * rng.normal(size=(1200, 6))
        s = (rng.permutation(240) < 36).astype(np.int8)[groups]
        rows = np.arange(1200)
        keys = groups if grouped else rows
        names = [str(i) for i in rows]
        fold = assign(names, keys, s, n_folds=3, holdout_fraction=0.1, seed=seed).fold
        for k in range(3):
            train, test = (fold >= 0) & (fold != k), fold == k
            forest = RandomForestClassifier(15, max_depth=8, random_state=seed)
            score = forest.fit(x[train], s[train]).predict_proba(x[test])[:, 1]
            found.append(roc_auc_score(s[test], score))
    return np.mean(found)


def test_shuffled_labels_teach_nothing_through_grouped_folds():
    assert mean_oof_auc(grouped=True) == pytest.approx(0.5, abs=0.05)
    assert mean_oof_auc(grouped=False) > 0.95, "the test must be able to fail"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"object_id": ["a", "a", *"bcdefg"]}, "object_id 'a' stands 2 times"),
        ({"groups": np.zeros(8)}, "3 known lenses lie in 1 sky groups"),
        ({"groups": np.arange(3)}, r"groups have shape \(3,\)"),
        ({"s": [0] * 8}, "no known lenses"),
        ({"s": [3] * 8}, "label 3 found"),
        ({"n_folds": 1}, "n_folds is 1"),
        ({"holdout_fraction": 0.0}, "holdout_fraction is 0.0"),
    ],
)
def test_bad_assignments_are_refused(change, match):
    arguments = {
        "object_id": list("abcdefgh"), "groups": np.arange(8), "s": [1, 1, 1, 0, 0, 0, 0, 0],
        "n_folds": 2, "holdout_fraction": 0.2, "seed": 0, **change,
    }  # fmt: skip
    columns = [arguments.pop(n) for n in ("object_id", "groups", "s")]
    with pytest.raises(InputError, match=match):
        assign(*columns, **arguments)


@pytest.mark.parametrize(
    ("ra", "dec", "nside", "match"),
    [
        ([1.0], [91.0], 64, "dec_deg reaches 91"),
        ([np.nan], [0.0], 64, "ra_deg: 1 values are not finite"),
        ([1.0, 2.0], [0.0], 64, r"dec_deg: array of shape \(1,\)"),
        ([1.0], [0.0], 48, "nside is 48"),
    ],
)
def test_bad_positions_are_refused(ra, dec, nside, match):
    with pytest.raises(InputError, match=match):
        sky_groups(ra, dec, nside=nside)
