import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterray.errors import InputError
from clusterray.features import proxies
from clusterray.simulate import halo

Z_LENS, Z_SOURCE = 0.4, 1.2
NAN = float("nan")


@settings(deadline=None)
@given(z=st.floats(0.02, 3.0), behind=st.floats(0.01, 1.5))
def test_distances_are_astropys(z, behind):
    cosmo = halo.COSMOLOGY
    d_ls = cosmo.angular_diameter_distance(z, z + behind)
    ratio = float(d_ls / cosmo.angular_diameter_distance(z + behind))
    assert halo.distance_ratio(z, z + behind) == pytest.approx(ratio, rel=1e-6)
    scale = 1 / cosmo.arcsec_per_kpc_proper(z).value
    assert halo.kpc_per_arcsec(z) == pytest.approx(scale, rel=1e-6)


def test_members_bend_like_isothermal_spheres_inside_and_point_masses_outside_their_cut():
    sigma, cut_kpc = 220.0, 40.0
    member = halo.members(
        Z_LENS,
        Z_SOURCE,
        x_arcsec=np.array([3.0]),
        y_arcsec=np.array([-1.0]),
        sigma_v_km_s=np.array([sigma]),
        r_cut_kpc=np.array([cut_kpc]),
    )
    theta_e = halo.isothermal_radius_arcsec(sigma, halo.distance_ratio(Z_LENS, Z_SOURCE))
    # Elíasdóttir et al. 2007, appendix A, with the isothermal sphere's normalisation.
    core, cut = 0.05, cut_kpc / halo.kpc_per_arcsec(Z_LENS)
    for r in (0.1, 0.7, 5.0):
        expected = theta_e / r * (np.hypot(core, r) - core - np.hypot(cut, r) + cut)
        assert member.deflection(3.0 + r, -1.0)[0] == pytest.approx(expected, rel=1e-3)
    far = member.deflection(np.array([3.0 + 400.0, 3.0 + 800.0]), np.array([-1.0, -1.0]))[0]
    assert far[0] / far[1] == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize("cut_kpc", [15.0, 40.0, 80.0])
def test_a_members_mass_is_that_of_its_cut_isothermal_sphere(cut_kpc):
    """Total mass π σ² r_cut/G of a truncated isothermal sphere (Elíasdóttir et al. 2007, A3)."""
    member = halo.members(
        Z_LENS,
        Z_SOURCE,
        x_arcsec=np.zeros(1),
        y_arcsec=np.zeros(1),
        sigma_v_km_s=np.array([200.0]),
        r_cut_kpc=np.array([cut_kpc]),
    )
    r = 3000.0
    cosmo, g = halo.COSMOLOGY, 4.30091e-6
    d_l, d_s = (cosmo.angular_diameter_distance(z).to_value("kpc") for z in (Z_LENS, Z_SOURCE))
    d_ls = cosmo.angular_diameter_distance(Z_LENS, Z_SOURCE).to_value("kpc")
    b = np.radians(r / 3600)
    mass = float(np.radians(member.deflection(r, 0.0)[0] / 3600)) * b * 299792.458**2 / (4 * g)
    mass *= d_l * d_s / d_ls
    assert mass == pytest.approx(np.pi * 200.0**2 * cut_kpc / g, rel=0.03)


def test_no_mass_bends_nothing():
    assert not halo.Deflector(0.4, 1.2, (), ()).deflection(np.ones((2, 3)), 0.0).any()


@pytest.mark.parametrize("z_source", [0.4, 0.3])
def test_a_source_in_front_is_refused(z_source):
    with pytest.raises(InputError, match="must lie behind the lens"):
        halo.nfw(0.4, z_source, m200_msun=1e15, concentration=5.0, axis_ratio=1.0, angle_rad=0.0)
    with pytest.raises(InputError, match="must lie behind the lens"):
        halo.distance_ratio(0.4, z_source)


def test_deflectors_of_other_redshifts_do_not_add():
    one, other = (
        halo.bcg(0.4, z, sigma_v_km_s=300.0, axis_ratio=1.0, angle_rad=0.0) for z in (1.2, 1.3)
    )
    assert halo.cluster(one, one).profiles == ("SIE", "SIE")
    with pytest.raises(InputError, match="2 \\(z_lens, z_source\\) pairs"):
        halo.cluster(one, other)


@settings(deadline=None)
@given(mass=st.floats(1e14, 3e15), z=st.floats(0.1, 1.0))
def test_the_mass_of_a_catalogue_inverts_each_observable(mass, z):
    sigma, l_x = halo.dispersion_km_s(mass, z), halo.luminosity_erg_s(mass, z)
    richness = halo.richness(mass)
    for known in (
        {"richness": richness, "sigma_v_km_s": NAN, "l_x_erg_s": NAN},
        {"richness": NAN, "sigma_v_km_s": sigma, "l_x_erg_s": NAN},
        {"richness": NAN, "sigma_v_km_s": NAN, "l_x_erg_s": l_x},
        # The most direct goes first.
        {"richness": 1.0, "sigma_v_km_s": sigma, "l_x_erg_s": 1e40},
        {"richness": 1.0, "sigma_v_km_s": NAN, "l_x_erg_s": l_x},
    ):
        assert halo.mass_from_catalogue(z=z, **known) == pytest.approx(mass, rel=1e-9)


@pytest.mark.parametrize("unknown", [NAN, 0.0, -1.0])
def test_a_catalogue_that_knows_nothing_gives_no_mass(unknown):
    known = dict.fromkeys(("richness", "sigma_v_km_s", "l_x_erg_s"), unknown)
    assert halo.mass_from_catalogue(z=0.3, **known) is None


@settings(deadline=None)
@given(mass=st.floats(1e14, 3e15), z=st.floats(0.1, 0.9))
def test_observables_are_those_that_the_features_read(mass, z):
    l_x = np.array([halo.luminosity_erg_s(mass, z)])
    m500 = proxies.m500_from_luminosity(l_x, np.array([z]))
    # Here M200/M500 is rounded to 1.45.
    assert m500[0] * proxies.nfw_m200_over_m500() == pytest.approx(mass, rel=0.01)
    sigma = proxies.dispersion_from_m500(m500, np.array([z]))
    assert sigma[0] == pytest.approx(halo.dispersion_km_s(mass, z), rel=0.01)
    ratio = proxies.distance_ratio(np.array([z]), source_redshift=1.2)[0]
    assert halo.distance_ratio(z, 1.2) == pytest.approx(ratio, rel=1e-6)
    theta = proxies.theta_e_from_dispersion(sigma, np.array([z]), source_redshift=1.2)[0]
    assert halo.isothermal_radius_arcsec(float(sigma[0]), ratio) == pytest.approx(theta, rel=1e-6)


def test_richness_of_the_pivot_mass():
    # McClintock et al. 2019: M200m = 3.081e14 M_sun at λ = 40, slope 1.356.
    assert halo.richness(3.08e14) == pytest.approx(40)
    assert halo.richness(2 * 3.08e14) == pytest.approx(40 * 2 ** (1 / 1.356))
