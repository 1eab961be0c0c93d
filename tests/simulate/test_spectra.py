import numpy as np
import pytest
from scipy import constants
from scipy.integrate import trapezoid
from skypy.galaxies.spectrum import kcorrect
from speclite import filters

from clusterray.errors import ConfigError
from clusterray.simulate.spectra import SURVEYS, photometry

WAVELENGTH = kcorrect.wavelength.to_value("AA")
TEMPLATES = kcorrect.templates.value


def ab_mag(name, f_lambda, angstrom):
    """AB magnitude up to a constant, by the definition, photon-counting."""
    curve = filters.load_filter(name)
    at, response = curve.wavelength, curve.response
    photons = trapezoid(np.interp(at, angstrom, f_lambda) * response * at, at)
    return -2.5 * np.log10(photons / trapezoid(response / at, at))


def colours(survey, f_lambda, angstrom):
    reference = ab_mag("sdss2010-i", f_lambda, angstrom)
    return [ab_mag(n, f_lambda, angstrom) - reference for n in SURVEYS[survey].values()]


@pytest.mark.parametrize("survey", SURVEYS)
def test_galaxies_have_the_colours_of_their_redshifted_templates(survey):
    made = photometry(survey, tuple(SURVEYS[survey]))
    normal = TEMPLATES / TEMPLATES[:, [int(np.searchsorted(WAVELENGTH, 4500.0))]]
    young = 0.75 * normal[4] + 0.25 * normal[1]
    for z in (0.32, 1.22):
        for share, template in ((0.0, normal[3]), (1.0, young)):
            found = made.magnitudes(22.0, z=z, young_share=share)[0] - 22.0
            expected = colours(survey, template, WAVELENGTH * (1 + z))
            assert found == pytest.approx(expected, abs=0.02)


def test_shares_of_light_add_as_fluxes(photometry):
    old, young, mixed = (
        10 ** (-0.4 * photometry.magnitudes(20.0, z=0.5, young_share=s)) for s in (0.0, 1.0, 0.3)
    )
    assert mixed == pytest.approx(0.7 * old + 0.3 * young)


def test_old_galaxies_redden_and_young_ones_are_bluer(photometry):
    z = np.array([0.2, 0.35, 0.5, 0.6])
    old, young = (photometry.magnitudes(np.full(4, 20.0), z=z, young_share=s) for s in (0.0, 1.0))
    r_i = old[:, 1] - old[:, 2]
    assert (np.diff(r_i) > 0).all()
    assert ((old[:, 0] - old[:, 2]) > (young[:, 0] - young[:, 2]) + 0.5).all()


@pytest.mark.parametrize("kelvin", [3400.0, 5800.0, 9000.0])
def test_stars_are_black_bodies(kelvin):
    made = photometry("lsst", tuple("ugrizy"))
    angstrom = np.linspace(2500, 12000, 4000)
    exponent = constants.h * constants.c / (angstrom * 1e-10 * constants.k * kelvin)
    planck = angstrom**-5.0 / np.expm1(exponent)
    found = made.star_magnitudes([20.0], temperature_k=[kelvin])[0] - 20.0
    assert found == pytest.approx(colours("lsst", planck, angstrom), abs=0.02)


def test_magnitudes_have_a_row_each(photometry):
    assert photometry.magnitudes([20.0, 21.0], z=0.4, young_share=[0.1, 0.9]).shape == (2, 3)
    assert photometry.star_magnitudes([17.0, 18.0], temperature_k=[4e3, 5e3]).shape == (2, 3)
    one, two = photometry.magnitudes([20.0, 21.5], z=0.4, young_share=0.5)
    assert two - one == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("survey", "bands", "message"),
    [
        ("cfhtls", ("g",), "survey.name is 'cfhtls', which cannot be simulated; known: demo"),
        ("hcs", ("g",), "did you mean 'hsc'"),
        ("demo", ("g", "z"), "survey.bands: 'demo' has no band 'z' to simulate, known: g, i, r"),
        ("euclid", ("vis",), "'euclid' has no band 'vis' to simulate"),
    ],
)
def test_what_has_no_filters_is_named(survey, bands, message):
    with pytest.raises(ConfigError, match=message):
        photometry(survey, bands)
