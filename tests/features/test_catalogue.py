"""Catalogue proxies against closed forms and numerical integration, and the registry."""

import numpy as np
import pyarrow as pa
import pytest
from astropy.cosmology import FlatLambdaCDM
from scipy.integrate import quad

from clusterray import schema
from clusterray.config import FeatureSettings
from clusterray.errors import InputError
from clusterray.features import (
    CATEGORICAL,
    FeatureMatrix,
    catalogue_features,
    cutout_features,
    feature_names,
    proxies,
    registry,
)
from clusterray.features.registry import describe
from clusterray.sky.surveys import PRESETS


def table(columns, source_redshift=1.2, **options):
    matrix = catalogue_features(columns, source_redshift=source_redshift, **options)
    return dict(zip(matrix.names, matrix.values.T, strict=True))


def test_richness_rule():
    values = table({"richness": np.array([50.0, 100.0, 50.0]), "z_lens": np.array([0.4, 0.4, 0.7])})
    want = [10.0, 10 * 2**0.4, 10 * np.sqrt(1.7 / 1.4)]
    np.testing.assert_allclose(values["theta_e_richness_arcsec"], want, rtol=1e-6)
    np.testing.assert_array_equal(values["theta_e_source"], proxies.SOURCE_RICHNESS)


def test_isothermal_sphere_and_distances_by_integration():
    def chi(z):
        return quad(lambda t: 1 / np.sqrt(0.3 * (1 + t) ** 3 + 0.7), 0, z)[0]

    ratio = (chi(1.2) - chi(0.3)) / chi(1.2)
    want = 4 * np.pi * (1000 / 299792.458) ** 2 * ratio * 180 * 3600 / np.pi
    values = table({"sigma_v_km_s": [1000.0], "z_lens": [0.3]})
    assert values["theta_e_dispersion_arcsec"][0] == pytest.approx(want, rel=1e-5)
    assert values["theta_e_source"][0] == proxies.SOURCE_DISPERSION


def test_nfw_mass_ratio_by_integration():
    def mass(x):
        return quad(lambda t: t / (1 + t) ** 2, 0, x)[0]

    ratio = proxies.nfw_m200_over_m500(5.0)
    radii = np.linspace(1.0, 5.0, 40001)
    density = np.array([mass(r) for r in radii[::400]]) / radii[::400] ** 3
    x500 = np.interp(-2.5 * mass(5.0) / 125, -density, radii[::400])
    assert ratio == pytest.approx(mass(5.0) / mass(x500), rel=1e-3)


def test_xray_chain_at_its_pivots():
    z = np.array([0.2])
    expansion = FlatLambdaCDM(H0=70, Om0=0.3).efunc(0.2)
    luminosity = np.array([1e44 * 10**0.274 * expansion ** (7 / 3)])
    np.testing.assert_allclose(proxies.m500_from_luminosity(luminosity, z), 3e14)
    pivot = 1e15 / (0.7 * expansion) / proxies.nfw_m200_over_m500()
    np.testing.assert_allclose(proxies.dispersion_from_m500(np.array([pivot]), z), 1082.9)


def test_xray_chain_follows_its_power_laws():
    z = np.array([0.2, 0.2])
    masses = proxies.m500_from_luminosity(np.array([1e44, 1e44 * 2**1.64]), z)
    assert masses[1] / masses[0] == pytest.approx(2.0)
    sigma = proxies.dispersion_from_m500(np.array([1e14, 1e15]), z)
    assert sigma[1] / sigma[0] == pytest.approx(10**0.3361)


def test_the_most_direct_proxy_is_taken_and_named():
    values = table(
        {
            "z_lens": np.full(4, 0.3),
            "richness": np.array([40.0, 40.0, 40.0, np.nan]),
            "l_x_erg_s": np.array([4e44, 4e44, np.nan, np.nan]),
            "sigma_v_km_s": np.array([900.0, np.nan, np.nan, np.nan]),
        }
    )
    np.testing.assert_array_equal(values["theta_e_source"], [3, 2, 1, 0])
    assert values["theta_e_arcsec"][0] == values["theta_e_dispersion_arcsec"][0]
    assert values["theta_e_arcsec"][1] == values["theta_e_xray_arcsec"][1]
    assert values["theta_e_arcsec"][2] == values["theta_e_richness_arcsec"][2]
    assert np.isnan(values["theta_e_arcsec"][3])


@pytest.mark.parametrize("unknown", [np.nan, 0.0, -1.0, np.inf])
@pytest.mark.parametrize("name", ["z_lens", "richness"])
def test_missing_inputs_are_unknown_never_a_default(name, unknown):
    columns = {"z_lens": np.array([0.3]), "richness": np.array([40.0])}
    columns[name] = np.array([unknown])
    values = table(columns)
    assert np.isnan(values[name][0])
    assert np.isnan(values["theta_e_arcsec"][0])
    assert values["theta_e_source"][0] == proxies.SOURCE_UNKNOWN


def test_a_cluster_behind_the_sources_has_no_einstein_radius():
    columns = {
        "z_lens": [1.2, 1.3, 1.1],
        "richness": [40.0] * 3,
        "sigma_v_km_s": [900.0] * 3,
        "l_x_erg_s": [4e44] * 3,
    }
    values = table(columns)
    for name in ("theta_e_richness_arcsec", "theta_e_dispersion_arcsec", "theta_e_xray_arcsec"):
        np.testing.assert_array_equal(np.isnan(values[name]), [True, True, False])


def test_context_columns_per_band_in_every_form_a_table_gives():
    cells = [[0.7, 0.6], None, [np.nan, 0.5]]
    want = np.array([[0.7, 0.6], [np.nan, np.nan], [np.nan, 0.5]], np.float32)
    forms = [
        cells,
        pa.array([[0.7, 0.6], None, [None, 0.5]], pa.list_(pa.float32(), 2)).to_pylist(),
        want,
        np.ma.masked_invalid(want),
    ]
    for form in forms:
        values = table({"psf_fwhm_arcsec": form, "z_lens": [None, 0.2, 0.3]}, bands=("g", "r"))
        got = np.column_stack([values["psf_fwhm_arcsec_g"], values["psf_fwhm_arcsec_r"]])
        np.testing.assert_array_equal(got, want)
        assert np.isnan(values["z_lens"][0])
        assert np.isnan(values["depth_mag_r"]).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no columns"),
        ({"z_lens": ["high"]}, "'z_lens' is not made of numbers"),
        (
            {"z_lens": [0.3], "richness": [1.0, 2.0]},
            r"'richness' has shape \(2,\), expected \(1,\)",
        ),
        ({"z_lens": [0.3], "depth_mag": [[24.0]]}, r"'depth_mag' has shape \(1, 1\), expected"),
    ],
)
def test_bad_columns_are_named(columns, message):
    with pytest.raises(InputError, match=message):
        table(columns, bands=("g", "r"))


def test_cutout_features_always_have_the_registry_columns():
    rng = np.random.default_rng(0)
    settings = FeatureSettings(grid=2, source_redshift=1.5)
    cutouts = rng.normal(size=(3, 2, 16, 16)).astype(np.float32)
    rest = {"noise_sigma": np.ones((3, 2)), "bands": ("g", "r"), "settings": settings}
    bare = cutout_features(cutouts, columns={}, **rest)
    full = cutout_features(
        cutouts,
        columns={"z_lens": np.full(3, 1.3), "richness": np.full(3, 40.0), "survey": ["x"] * 3},
        **rest,
    )
    assert bare.names == full.names == feature_names(("g", "r"), settings)
    assert np.isnan(bare.values[:, bare.names.index("theta_e_arcsec")]).all()
    assert np.isfinite(full.values[:, full.names.index("theta_e_arcsec")]).all()
    pa.table({n: full.values[:, i] for i, n in enumerate(full.names)}).cast(
        pa.schema(list(schema.features(full.names))[1:])
    )


def test_every_feature_is_described_once():
    features = registry(("g", "r", "i"), FeatureSettings())
    names = [f.name for f in features]
    assert len(set(names)) == len(names)
    assert all(f.unit and f.definition for f in features)
    assert len({f.definition for f in features}) == len(features)


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (np.zeros((2, 2), np.float32), ("a",), r"\(2, 2\), expected \(n, 1\)"),
        (np.zeros((2, 2), np.float32), ("a", "a"), "stands twice"),
    ],
)
def test_feature_matrix_refuses_names_that_do_not_fit(values, names, message):
    with pytest.raises(InputError, match=message):
        FeatureMatrix(values, names)


def test_every_survey_preset_has_a_code_of_its_own():
    assert set(PRESETS) <= set(proxies.SURVEYS)
    values = table({"survey": ["hsc", None, "of my own", "lsst"], "z_lens": [0.3] * 4})
    np.testing.assert_array_equal(values["survey"], [1, np.nan, np.nan, 2])
    with pytest.raises(InputError, match="column 'survey' has 1 values, expected 2"):
        table({"z_lens": [0.1, 0.2], "survey": ["hsc"]})


def test_kinds_are_told_apart_from_quantities():
    features = {f.name: f for f in registry(("g", "r"), FeatureSettings())}
    assert {n for n, f in features.items() if f.categories} == set(CATEGORICAL)
    text = describe(tuple(features.values()))
    assert "0 unknown, 1 richness, 2 X-ray, 3 dispersion" in text
    assert all(name in text for name in features)
