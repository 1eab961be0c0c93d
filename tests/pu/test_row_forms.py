import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score

from clusterray.errors import ConfigError, InputError
from clusterray.pu import PULightGBM
from clusterray.pu.row_forms import row_form

GRID = [(r, c) for r in range(3) for c in range(3)]
NAMES = (
    *(f"patch_{r}_{c}_{f}" for r, c in GRID for f in ("mean_g", "edges_r")), "richness", "z_lens",
)  # fmt: skip


def bags(n=4000, prior=0.1, seed=0):
    """One patch of a lens is bright, wherever it lies."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    x = rng.normal(size=(n, len(NAMES))).astype(np.float32)
    where = rng.integers(0, 9, n)
    for row in np.flatnonzero(y):
        x[row, 2 * where[row] : 2 * where[row] + 2] += 3.0
    return x, (y & (rng.random(n) < 0.5)).astype(np.int8), y


def test_rows_of_patches_are_those_of_a_slow_loop():
    x, _, _ = bags(n=5)
    form = row_form("patch-top3", NAMES)
    rows = form.rows(x)
    assert form.names == ("patch_edges_r", "patch_mean_g", "richness", "z_lens")
    for i in range(5):
        for k, (r, c) in enumerate(GRID):
            expected = [
                x[i, NAMES.index(f"patch_{r}_{c}_edges_r")],
                x[i, NAMES.index(f"patch_{r}_{c}_mean_g")],
                x[i, -2],
                x[i, -1],
            ]
            np.testing.assert_array_equal(rows[9 * i + k], expected)
    logits = np.random.default_rng(0).normal(size=45)
    best = np.sort(logits.reshape(5, 9), axis=1)
    np.testing.assert_allclose(form.pool(logits), best[:, -3:].mean(axis=1))
    np.testing.assert_array_equal(row_form("patch-max", NAMES).pool(logits), best[:, -1])
    np.testing.assert_array_equal(form.places(np.array([0, 2])), [*range(9), *range(18, 27)])
    np.testing.assert_array_equal(form.spread(np.array([1.0, 2.0])), [1.0] * 9 + [2.0] * 9)


@pytest.mark.parametrize("form", ["patch-max", "patch-top3"])
def test_patches_find_what_may_be_anywhere(form):
    """A ring lies in another patch each time: rows of patches see it nine times as often."""
    x, s, _ = bags()
    fresh, _, y = bags(seed=1)
    options = {"scenario": "single-sample", "prior": 0.1, "params": {"num_iterations": 60}}
    whole = PULightGBM(NAMES, **options).fit(x, s, names=NAMES)
    patches = PULightGBM(NAMES, form=form, **options).fit(x, s, names=NAMES)
    found = patches.decision_function(fresh, NAMES)
    assert average_precision_score(y, found) > 1.1 * average_precision_score(
        y, whole.decision_function(fresh, NAMES)
    )
    # What explains a score sums to it, and speaks of the patch that holds the ring.
    shares = patches.contributions(fresh[:300], NAMES)
    np.testing.assert_allclose(shares.sum(axis=1), found[:300], atol=1e-9)
    lens = np.flatnonzero(y[:300])
    bright = np.argmax(fresh[lens][:, :18].reshape(-1, 9, 2).sum(axis=2), axis=1)
    loudest = np.argmax(shares[lens][:, :18].reshape(-1, 9, 2).sum(axis=2), axis=1)
    assert np.mean(bright == loudest) > 0.8
    # π on rows left out of a fit, and so on fresh ones within the error of 400 lenses.
    assert expit(found).mean() == pytest.approx(0.1, rel=0.15)
    back = PULightGBM.from_text(patches.to_text())
    np.testing.assert_array_equal(back.decision_function(fresh, NAMES), found)
    pieces = [back.decision_function(fresh[i : i + 7], NAMES) for i in range(0, 70, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), found[:70])


def test_forms_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'patch-max'"):
        row_form("patch_max", NAMES)
    with pytest.raises(InputError, match="there are none; use the cutout form"):
        row_form("patch-max", ("richness",))
    with pytest.raises(InputError, match="patch 2, 2 has no feature 'edges_r'"):
        row_form("patch-max", [n for n in NAMES if n != "patch_2_2_edges_r"])
