from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.simulate import scene
from clusterray.simulate.artefacts import Artefact
from clusterray.simulate.observe import flux_njy


@settings(deadline=None)
@given(x=st.floats(2.0, 8.0), y=st.floats(2.0, 8.0))
def test_points_keep_flux_and_centroid(x, y):
    canvas = np.zeros((1, 60, 60), np.float32)
    scene.add_points(canvas, np.array([x]), np.array([y]), np.array([[7.0]]), step_arcsec=0.168)
    at = (np.arange(60) + 0.5) * 0.168
    assert canvas.sum() == pytest.approx(7.0, rel=1e-5)
    assert (canvas[0].sum(axis=0) * at).sum() / 7 == pytest.approx(x, abs=1e-4)
    assert (canvas[0].sum(axis=1) * at).sum() / 7 == pytest.approx(y, abs=1e-4)


def test_points_outside_are_lost():
    canvas = np.zeros((1, 20, 20), np.float32)
    far = np.array([-5.0, 30.0, 5.0]), np.array([5.0, 5.0, 50.0])
    scene.add_points(canvas, *far, np.ones((3, 1)), step_arcsec=0.5)
    assert not canvas.any()


def test_a_scene_is_the_sum_of_its_parts(lens, demo_maker):
    system, frame = lens.system, demo_maker.frame
    whole = scene.paint(system, frame, n_bands=3)
    without = scene.paint(replace(system, background=None), frame, n_bands=3)
    background = scene.paint_background(system, frame, n_bands=3)
    assert background.sum() > 0
    assert np.abs(whole - without - background).max() < 1e-5 * whole.max()
    lit = scene.paint(replace(system, stars=None), frame, n_bands=3)
    x, y, mag = system.stars
    inside = np.maximum(np.abs(x), np.abs(y)) < frame.centre_arcsec - 0.5
    stars = (whole - lit).sum(axis=(1, 2), dtype=float)
    assert stars == pytest.approx(flux_njy(mag)[inside].sum(axis=0), rel=0.02)


def test_the_cluster_stands_in_the_middle(lens, demo_maker):
    frame = demo_maker.frame
    bare = replace(lens.system, background=None, field=None, stars=None)
    canvas = scene.paint(bare, frame, n_bands=3)
    members = bare.foreground.members
    alone = replace(bare.foreground, members=members.take(np.array([0])))
    bcg = scene.paint(replace(bare, foreground=alone), frame, n_bands=3)[2]
    peak = np.unravel_index(bcg.argmax(), bcg.shape)
    assert np.abs(frame.axis_arcsec[list(peak)]).max() <= frame.step_arcsec
    expected = flux_njy(members.mag).sum(axis=0) + flux_njy(bare.foreground.icl.mag)[0]
    # Some of the outer members and of the light between them lie outside.
    share = canvas.sum(axis=(1, 2), dtype=float) / expected
    assert (share < 1).all()
    assert (share > 0.7).all()


def test_what_lies_in_front_is_not_deflected(lens, demo_maker):
    system, frame = lens.system, demo_maker.frame
    front = system.field.take(system.field.z <= system.foreground.z_lens)
    only = replace(system, background=None, stars=None)
    difference = scene.paint(replace(only, field=front), frame, n_bands=3) - scene.paint(
        replace(only, field=None), frame, n_bands=3
    )
    bright = front.take(np.argsort(front.mag[:, 2])[:3])
    for x, y in zip(bright.x_arcsec, bright.y_arcsec, strict=True):
        j, i = (int((v + frame.centre_arcsec) / frame.step_arcsec) for v in (y, x))
        assert difference[2, j, i] > 10 * np.median(np.abs(difference[2]))


def test_an_image_is_the_scene_through_the_psf(lens, demo_maker):
    system, frame = lens.system, demo_maker.frame
    canvas = scene.paint(system, frame, n_bands=3)
    exposures, law = demo_maker.exposures("1"), demo_maker.recipe.observation
    image = scene.image_of(canvas, system, frame, exposures, law)
    assert image.shape == (3, 128, 128)
    binned = canvas.reshape(3, 136, 2, 136, 2).sum(axis=(2, 4))[:, frame.kept(), frame.kept()]
    assert image.sum(axis=(1, 2)) == pytest.approx(binned.sum(axis=(1, 2)), rel=0.01)
    assert (image.max(axis=(1, 2)) < binned.max(axis=(1, 2))).all()
    star = Artefact("star", n_spikes=4, mag=np.full(3, 15.0))
    spoilt = scene.image_of(canvas, replace(system, artefact=star), frame, exposures, law)
    assert spoilt.sum() - image.sum() == pytest.approx(3 * flux_njy(15.0), rel=0.1)
