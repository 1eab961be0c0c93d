"""Segments, arcs, families and matched photometry against closed forms."""

import numpy as np
import pytest
import sep
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.config import CandidateSettings
from clusterray.errors import InputError
from clusterray.features import arcs, families, photometry
from clusterray.features.segment_features import segment_features, segment_rows
from clusterray.features.segment_registry import segment_registry
from clusterray.features.segments import find_segments

BANDS = ("g", "r", "i")
SCALE = 0.5
SIZE = 128
CENTRE = (SIZE - 1) / 2
Y, X = np.indices((SIZE, SIZE)).astype(float)


def blob(x, y, *, peak, sigma=1.5, ratio=1.0, angle=0.0):
    u = (X - x) * np.cos(angle) + (Y - y) * np.sin(angle)
    v = -(X - x) * np.sin(angle) + (Y - y) * np.cos(angle)
    return peak * np.exp(-(u**2 + (v / ratio) ** 2) / (2 * sigma**2))


def ring(radius, *, peak=60.0, width=1.2):
    return peak * np.exp(-((np.hypot(X - CENTRE, Y - CENTRE) - radius) ** 2) / (2 * width**2))


def in_bands(*sources, seed=0):
    """Sources as (image, colours of the bands), with unit noise."""
    noise = np.random.default_rng(seed).normal(size=(len(BANDS), SIZE, SIZE))
    sky = np.zeros((len(BANDS), SIZE, SIZE))
    for image, colours in sources:
        sky += image * np.asarray(colours, float)[:, None, None]
    return (sky + noise).astype(np.float32)


def features(cutout, *, psf=0.7, bands=BANDS):
    matrix, (found,) = segment_features(
        cutout[None],
        noise_sigma=np.ones((1, len(bands))),
        bands=bands,
        pixel_scale_arcsec=SCALE,
        psf_fwhm_arcsec=np.full((1, len(bands)), psf),
        settings=CandidateSettings(),
    )
    return dict(zip(matrix.names, matrix.values[0].astype(float), strict=True)), found


BCG = (blob(CENTRE + 1, CENTRE - 0.5, peak=500, sigma=2.5), (0.4, 0.8, 1.0))


def test_a_drawn_einstein_ring_is_tangential_and_has_the_drawn_radius():
    values, found = features(in_bands(BCG, (ring(24), (1.0, 0.6, 0.4))))
    assert values["seg_alignment"] > 0.95
    assert 1 / values["seg_arc_curvature"] == pytest.approx(24 * SCALE, rel=0.05)
    assert values["seg_arc_length_arcsec"] == pytest.approx(2 * np.pi * 24 * SCALE, rel=0.08)
    assert values["seg_distance_arcsec"] == pytest.approx(24 * SCALE, rel=0.08)
    assert found.bcg is not None


def test_the_barycentre_of_a_ring_without_a_bcg_makes_it_none():
    values, found = features(in_bands((ring(24), (1.0, 1.0, 1.0))))
    assert found.bcg is None
    assert found.flags == ("no_bcg",)
    assert np.isnan(values["seg_bcg_offset_arcsec"])
    assert values["seg_alignment"] > 0.95


def test_radial_spokes_are_anti_aligned():
    spokes = [
        (
            blob(
                CENTRE + 30 * np.cos(a), CENTRE + 30 * np.sin(a), peak=80, sigma=7, ratio=0.15,
                angle=a,
            ),
            (1.0, 1.0, 1.0),
        )
        for a in np.arange(6) * np.pi / 3 + 0.2
    ]  # fmt: skip
    values, _ = features(in_bands(BCG, *spokes))
    assert values["seg_alignment"] < -0.8
    assert values["seg_ellipticity_coherence"] > 0.9
    assert values["seg_number"] >= 6


def test_ellipticity_and_orientation_of_a_closed_form_ellipse():
    cutout = in_bands((blob(40, 80, peak=300, sigma=5, ratio=0.5, angle=0.6), (1.0, 1.0, 1.0)))
    _, found = features(cutout)
    k = int(np.argmax(found.area_px))
    assert found.ellipticity[k] == pytest.approx(0.5, abs=0.05)
    assert found.angle_rad[k] == pytest.approx(0.6, abs=0.05)
    (row,) = [
        r
        for r in segment_rows("a", found, bands=BANDS, pixel_scale_arcsec=SCALE)
        if r["segment"] == k + 1
    ]
    assert row["east_arcsec"] == pytest.approx((CENTRE - 40) * SCALE, abs=0.2)
    assert row["north_arcsec"] == pytest.approx((80 - CENTRE) * SCALE, abs=0.2)
    # 0.6 rad from x (west) towards y (north).
    assert row["position_angle_deg"] == pytest.approx((90 + np.degrees(0.6)) % 180, abs=3)


def test_segments_are_those_of_sep_and_the_bcg_is_the_brightest_near_the_centre():
    cutout = in_bands(
        BCG,
        (blob(CENTRE + 8, CENTRE, peak=90), (1, 1, 1)),
        (blob(20, 20, peak=5000, sigma=3), (1, 1, 1)),
    )
    found = find_segments(
        cutout, noise_sigma=np.ones(3), psf_fwhm_px=np.full(3, 1.4), bcg_radius_px=10
    )
    sky = sep.Background(found.detection, bw=32, bh=32)
    objects = sep.extract(found.detection - sky.back(), 1.5, minarea=5, deblend_cont=0.005)
    assert len(found) == len(objects)
    np.testing.assert_allclose(found.x_px, objects["x"], atol=1e-6)
    assert found.centre_px == pytest.approx((CENTRE + 1, CENTRE - 0.5), abs=0.8)


def test_colours_of_segments_with_errors_are_the_drawn_ones():
    cutout = in_bands((blob(40, 40, peak=400, sigma=3), (0.5, 1.0, 1.3)))
    _, found = features(cutout)
    k = int(np.argmax(found.area_px))
    want = -2.5 * np.log10([0.5 / 1.0, 1.0 / 1.3])
    assert np.abs(found.colour[k] - want).max() < 4 * found.colour_error[k].max()
    assert (found.colour_error[k] < 0.02).all()


def test_one_band_no_psf_and_missing_bands_give_unknown_with_a_flag():
    values, found = features(in_bands(BCG)[:1], bands=("r",))
    assert np.isnan(values["seg_family_consistency"])
    values, found = features(in_bands(BCG), psf=np.nan)
    assert "psf_unknown" in found.flags
    assert np.isnan(values["seg_bcg_colour_g_r"])
    holed = in_bands(BCG, (blob(30, 90, peak=90), (1, 1, 1)))
    holed[1] = np.nan
    values, found = features(holed)
    assert np.isnan(found.colour).all()
    assert np.isnan(values["seg_family_size"])
    assert np.isfinite(values["seg_distance_arcsec"])


def test_noise_alone_has_declared_unknowns_only():
    values, _ = features(in_bands())
    registry = {f.name: f for f in segment_registry(BANDS)}
    for name, value in values.items():
        assert np.isfinite(value) or registry[name].may_be_nan, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_sigma": np.ones(2)}, r"noise_sigma has shape \(2,\)"),
        ({"noise_sigma": np.array([1.0, 0.0, 1.0])}, r"noise_sigma\[1\] is 0.0"),
        ({"cutout_chw": np.full((3, 32, 32), np.nan)}, "every pixel is blank"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"cutout_chw": np.zeros((3, 32, 32)), "noise_sigma": np.ones(3)} | change
    with pytest.raises(InputError, match=message):
        find_segments(**arguments, psf_fwhm_px=np.ones(3), bcg_radius_px=5)


@pytest.mark.parametrize(("radius", "span"), [(20, 2 * np.pi), (20, 1.2), (40, 0.8)])
def test_arc_of_a_circle_has_its_length_width_and_curvature(radius, span):
    angle = np.arctan2(Y - 64, X - 64)
    inside = (np.abs(np.hypot(X - 64, Y - 64) - radius) <= 2) & (np.abs(angle) <= span / 2)
    shape = arcs.arc_shape(X[inside], Y[inside])
    assert shape.length_px == pytest.approx(radius * span, rel=0.08)
    assert shape.width_px == pytest.approx(4, rel=0.15)
    # Short arcs as thick as this one say little of their radius.
    assert 1 / shape.curvature_per_px == pytest.approx(radius, rel=0.2)


@pytest.mark.parametrize(("a", "b"), [(9, 9), (15, 5)])
def test_a_filled_ellipse_is_no_arc(a, b):
    inside = ((X - 60) / a) ** 2 + ((Y - 50) / b) ** 2 <= 1
    shape = arcs.arc_shape(X[inside], Y[inside])
    assert shape.curvature_per_px == 0
    assert shape.length_over_width == pytest.approx(3 * a / (np.pi * b), rel=0.06)


def test_circle_through_points_on_it():
    angle = np.array([0.1, 0.5, 1.0, 2.0])
    x, y, radius, scatter = arcs.fit_circle(3 + 7 * np.cos(angle), -2 + 7 * np.sin(angle))
    assert (x, y, radius) == pytest.approx((3, -2, 7))
    assert scatter == pytest.approx(0, abs=1e-6)
    assert np.isnan(arcs.fit_circle(np.arange(5.0), 2 * np.arange(5.0))[2])


def cloud(seed, m, *, error=0.1):
    rng = np.random.default_rng(seed)
    errors = np.full((m, 3), error)
    return rng.multivariate_normal(
        [0.8, 0.3], families.colour_covariance(errors[:1])[0], m
    ), families.colour_covariance(errors)


def test_one_colour_is_consistent_many_are_not_and_one_segment_is_unknown():
    colours, covariance = cloud(0, 12)
    assert families.consistency(colours, covariance) > 0.7
    spread = colours + np.linspace(-2, 2, 12)[:, None]
    assert families.consistency(spread, covariance) < 0.3
    assert np.isnan(families.consistency(colours[:1], covariance[:1]))
    outlier = colours.copy()
    outlier[0] += 5
    assert families.consistency(outlier, covariance) > 0.6


def test_covariance_of_colours_by_monte_carlo():
    rng = np.random.default_rng(1)
    errors = np.array([[0.1, 0.2, 0.3]])
    magnitudes = rng.normal(0, errors[0], (200_000, 3))
    want = np.cov(np.diff(magnitudes, axis=1).T) + families.INTRINSIC_MAG**2 * np.eye(2)
    np.testing.assert_allclose(families.colour_covariance(errors)[0], want, atol=2e-3)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(2, 9),
    shift=st.floats(-3, 3),
    order=st.randoms(use_true_random=False),
)
def test_families_do_not_depend_on_order_or_zero_points(seed, m, shift, order):
    colours, covariance = cloud(seed, m)
    value = families.consistency(colours, covariance)
    permuted = list(range(m))
    order.shuffle(permuted)
    moved = families.consistency(colours[permuted] + shift, covariance[permuted])
    assert 0 <= value <= 1
    assert moved == pytest.approx(value, abs=1e-4)
    sizes = np.bincount(families.families(colours, covariance))
    assert sorted(sizes, reverse=True) == list(sizes)
    again = np.bincount(families.families(colours[permuted], covariance[permuted]))
    assert list(again) == list(sizes)


def test_two_colours_make_two_families():
    one, covariance = cloud(0, 5)
    other, _ = cloud(4, 3)
    both = np.concatenate([one, other + 3])
    found = families.families(both, np.concatenate([covariance, covariance[:3]]))
    np.testing.assert_array_equal(found, [0] * 5 + [1] * 3)


def test_point_source_has_its_colour_whatever_the_seeing():
    fwhm = np.array([2.0, 3.0, 4.5])
    flux = np.array([100.0, 250.0, 400.0])
    sigma = fwhm / 2.3548
    cutout = np.stack(
        [
            f * blob(60.3, 66.8, peak=1, sigma=s) / (2 * np.pi * s**2)
            for f, s in zip(flux, sigma, strict=True)
        ]
    )
    found = photometry.aperture_colours(
        cutout, noise_sigma=np.full(3, 1e-4), psf_fwhm_px=fwhm, x_px=60.3, y_px=66.8, radius_px=4
    )
    want = -2.5 * np.log10(flux[:-1] / flux[1:])
    np.testing.assert_allclose(found.colour[0], want, atol=0.01)
    inside = 1 - np.exp(-(4**2) / (2 * sigma[-1] ** 2))
    np.testing.assert_allclose(found.flux_njy[0], flux * inside, rtol=0.01)


def test_aperture_errors_are_the_scatter_of_noise():
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(np.arange(20, 240, 24), np.arange(20, 240, 24)), -1).reshape(-1, 2)
    fluxes = []
    for _ in range(12):
        found = photometry.aperture_colours(
            rng.normal(0, [[[2.0]], [[3.0]]], (2, 256, 256)),
            noise_sigma=[2.0, 3.0], psf_fwhm_px=[2.0, 4.0], x_px=grid[:, 0], y_px=grid[:, 1],
            radius_px=3,
        )  # fmt: skip
        fluxes.append(found.flux_njy)
    scatter = np.concatenate(fluxes).std(axis=0)
    np.testing.assert_allclose(found.flux_error_njy[0], scatter, rtol=0.06)


def test_colour_error_is_the_derivative():
    flux, error = np.array([[50.0, 80.0]]), np.array([[2.0, 3.0]])
    _, got = photometry.colours_of(flux, error)
    draws = np.random.default_rng(0).normal(flux, error, (200_000, 2))
    scatter = (-2.5 * np.log10(draws[:, 0] / draws[:, 1])).std()
    assert got[0, 0] == pytest.approx(scatter, rel=0.02)


def test_unusable_pixels_and_edges_make_an_aperture_unknown():
    cutout = np.ones((2, 40, 40))
    cutout[0, 20, 20] = np.nan
    found = photometry.aperture_colours(
        cutout, noise_sigma=[1, 1], psf_fwhm_px=[2, 2], x_px=[20, 10, 1], y_px=[20, 10, 1],
        radius_px=3,
    )  # fmt: skip
    np.testing.assert_array_equal(np.isnan(found.flux_njy), [[1, 0], [0, 0], [1, 1]])
    with pytest.raises(InputError, match="psf_fwhm_px is"):
        photometry.match_psf(cutout, [2.0, np.nan])
    with pytest.raises(InputError, match="radius_px is 0"):
        photometry.aperture_colours(
            cutout, noise_sigma=[1, 1], psf_fwhm_px=[2, 2], x_px=1, y_px=1, radius_px=0
        )
