from dataclasses import replace

import numpy as np
import pytest

from clusterray.simulate import negatives, scene
from clusterray.simulate.lensing import image_positions
from clusterray.simulate.peculiar import Peculiar


def drawn(maker, kind, n=4):
    return [maker.draw(str(k), kind) for k in range(1, n + 1)]


def same(first, second):
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=True)
    return first == second


def test_the_twin_of_a_lens_differs_in_nothing_but_the_path_of_light(demo_maker, lens):
    twin = demo_maker.draw("1", "lens_off")
    made = negatives.lens_off(lens.system)
    for off in (twin.system, made):
        assert (off.kind, off.y, off.background.lensed) == ("lens_off", 0, False)
        assert (off.foreground.members.mag == lens.system.foreground.members.mag).all()
        assert off.foreground.deflector == lens.system.foreground.deflector
        assert (off.background.light.x_arcsec == lens.system.background.light.x_arcsec).all()
        assert (off.background.light.mag == lens.system.background.light.mag).all()
    of_images = {k for k in lens.truth if k.startswith("image_")}
    of_images |= {"kind", "y", "n_multiply_imaged", "arc_snr", "source_mag", "magnification"}
    of_images |= {"share_outside"}
    assert set(lens.truth) - set(twin.truth) <= of_images
    for name in set(lens.truth) - of_images:
        assert same(lens.truth[name], twin.truth[name]), name


def test_the_twins_image_differs_by_the_background_clusters_light_alone(demo_maker, lens):
    twin = demo_maker.draw("1", "lens_off").system
    law, frame = demo_maker.recipe.observation, demo_maker.frame
    exposures = demo_maker.exposures("1")
    images = [noise_free(s, frame, exposures, law) for s in (lens.system, twin)]
    alone = [
        scene.image_of(scene.paint_background(s, frame, n_bands=3), s, frame, exposures, law)
        for s in (lens.system, twin)
    ]
    scale = images[0].max()
    assert np.abs((images[0] - images[1]) - (alone[0] - alone[1])).max() < 3e-6 * scale
    assert np.abs(alone[0] - alone[1]).max() > 1e-3 * scale


def noise_free(system, frame, exposures, law):
    canvas = scene.paint(system, frame, n_bands=3)
    return scene.image_of(canvas, system, frame, exposures, law)


def test_a_projected_double_lies_close_behind_and_is_not_deflected(demo_maker):
    for one in drawn(demo_maker, "projected_double"):
        background = one.system.background
        assert 0.03 <= background.z - one.system.foreground.z_lens <= 0.10
        assert not background.lensed
        members = background.members
        assert np.hypot(members.x_arcsec.mean(), members.y_arcsec.mean()) > 2


def test_a_galaxy_galaxy_lens_splits_one_source_about_one_member(demo_maker):
    for one in drawn(demo_maker, "galaxy_galaxy"):
        system = one.system
        plane = system.foreground.plane(demo_maker.frame)
        source = system.source.take(np.array([0]))
        z = float(source.z[0])
        (at,) = image_positions(plane, z, source.x_arcsec, source.y_arcsec)
        members = system.foreground.members
        distance = np.hypot(at[:, :1] - members.x_arcsec[1:6], at[:, 1:] - members.y_arcsec[1:6])
        assert ((distance < 4).sum(axis=0) >= 2).any()
        assert 0.8 <= one.truth["z_source"] == z <= 1.5
        assert one.truth["n_multiply_imaged"] == 0


def test_edge_on_discs_are_thin_and_tangential(demo_maker):
    offsets = []
    for one in drawn(demo_maker, "edge_on", 12):
        discs = one.system.contaminants
        assert 2 <= len(discs) <= 4
        assert discs.axis_ratio.max() <= 0.2
        radius = np.hypot(discs.x_arcsec, discs.y_arcsec)
        assert (radius >= 5).all() and (radius < 0.85 * 32).all()
        tangent = np.arctan2(discs.y_arcsec, discs.x_arcsec) + np.pi / 2
        offsets.extend((discs.angle_rad - tangent + np.pi / 2) % np.pi - np.pi / 2)
    assert np.std(offsets) == pytest.approx(np.radians(10), rel=0.4)


@pytest.mark.parametrize(
    ("kind", "shape", "numbers"),
    [("ring_galaxy", "ring", {1}), ("spiral", "spiral", {1, 2, 3}), ("merger", "tail", {2})],
)
def test_peculiar_classes_bring_their_shapes_inside_the_field(demo_maker, kind, shape, numbers):
    for one in drawn(demo_maker, kind):
        components = one.system.peculiar
        assert len(components) in numbers
        assert all(isinstance(p, Peculiar) and p.shape == shape for p in components)
        assert all(np.hypot(p.x_arcsec, p.y_arcsec) < 32 for p in components)
        nuclei = one.system.contaminants
        assert nuclei is None or len(nuclei) == len(components)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("star_spikes", "star"),
        ("satellite_trail", "trail"),
        ("cosmic_rays", "cosmic_rays"),
        ("missing_band", "gap"),
        ("misaligned_band", "shift"),
        ("psf_mismatch", "blur"),
    ],
)
def test_faulty_classes_have_their_fault_and_it_shows(demo_maker, kind, fault):
    bands = set()
    for one in drawn(demo_maker, kind):
        artefact = one.system.artefact
        bands.add(artefact.band)
        assert artefact.fault == fault
        seen = demo_maker.observe(one)
        without = replace(one.system, artefact=None)
        plain = demo_maker.observe(replace(one, system=without))
        little = 0.05 * min(e.sigma_njy(0.5) for e in seen.exposures)
        changed = ~np.isclose(seen.image, plain.image, rtol=1e-4, atol=little, equal_nan=True)
        assert changed.any()
        if fault != "star":
            assert set(np.flatnonzero(changed.any(axis=(1, 2)))) == {artefact.band}
        assert np.isnan(seen.image).any() == (fault == "gap")
    assert fault == "star" or len(bands) > 1


def test_a_gap_leaves_the_centre(demo_maker):
    for one in drawn(demo_maker, "missing_band"):
        image = demo_maker.observe(one).image[one.system.artefact.band]
        assert np.isfinite(image[60:68, 60:68]).all()
        assert 0.02 < np.isnan(image).mean() < 0.5
