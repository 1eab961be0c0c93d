"""Pairs share the lens and nothing else."""

import dataclasses

import numpy as np
import pytest

from clusterray.errors import RunError
from clusterray.simulate.pairs import PairMaker
from clusterray.simulate.truth import find_images


@pytest.fixture(scope="module")
def pair_maker(demo_maker):
    return PairMaker(demo_maker, 1.0)


@pytest.fixture(scope="module")
def pair(pair_maker):
    return pair_maker.make(0)


def test_the_lens_is_one_and_the_rest_is_drawn_anew(pair):
    a, b = (c.drawn.system for c in pair)
    assert a.kind == b.kind == "lens"
    assert b.foreground is a.foreground
    assert (a.object_id, b.object_id) == ("pair0a", "pair0b")
    assert a.background.z == b.background.z
    assert not np.array_equal(a.background.members.x_arcsec, b.background.members.x_arcsec)
    assert not np.array_equal(a.field.x_arcsec, b.field.x_arcsec)
    assert not np.array_equal(a.stars[0], b.stars[0])
    for one, other in zip(*(c.exposures for c in pair), strict=True):
        assert one.psf_fwhm_arcsec != other.psf_fwhm_arcsec
        assert one.depth_mag != other.depth_mag


def test_images_share_the_cluster_and_not_the_noise(pair):
    a, b = (np.nan_to_num(c.image.astype(float)) for c in pair)
    middle = slice(44, 84)
    alike = np.corrcoef(a[:, middle, middle].ravel(), b[:, middle, middle].ravel())[0, 1]
    assert alike > 0.3
    quiet = np.abs(a - np.median(a)) < 2 * np.std(a[:, :8, :8])
    assert abs(np.corrcoef(a[quiet], b[quiet])[0, 1]) < 0.2


def test_both_sides_are_lenses(pair_maker, pair):
    maker = pair_maker.maker
    for cutout in pair:
        system = cutout.drawn.system
        images = find_images(
            system.background.members,
            system.foreground.plane(maker.frame),
            maker.frame,
            maker.exposures(system.object_id),
            maker.recipe.criterion,
        )
        assert len(images.multiple) >= 2


def test_a_pair_depends_on_its_index_alone_and_plain_clusters_pair_too(demo_maker):
    plain = PairMaker(demo_maker, 0.0)
    first, again = plain.make(1), plain.make(1)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    a, b = (c.drawn.system for c in first)
    assert a.kind == "cluster"
    assert a.background is None
    assert b.foreground is a.foreground
    assert not np.array_equal(first[0].image, first[1].image)


def test_a_lens_that_cannot_be_paired_is_said(pair_maker, pair):
    recipe = pair_maker.maker.recipe
    hopeless = recipe.criterion.model_copy(update={"max_tries": 2, "min_snr": 1e9})
    maker = dataclasses.replace(
        pair_maker.maker, recipe=recipe.model_copy(update={"criterion": hopeless})
    )
    with pytest.raises(RunError, match=r"object pair9b: none of 2 background clusters"):
        PairMaker(maker, 1.0).partner(pair[0].drawn.system, "pair9b")
