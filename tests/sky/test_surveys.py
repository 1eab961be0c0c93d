import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterray.config import SurveySettings
from clusterray.errors import ConfigError
from clusterray.sky import surveys


@pytest.mark.parametrize(
    ("survey", "label", "band"),
    [
        ("hsc", "HSC-G", "g"),
        ("hsc", "HSC-R2", "r"),
        ("hsc", "HSC-Y", "y"),
        ("hsc", "NB0921", None),
        ("cfhtls", "g.MP9402", "g"),
        ("cfhtls", "u.MP9301", None),
        ("demo", "r SDSS c6602", "r"),
        ("des", "i DECam SDSS c0003 7835.0 1470.0", "i"),
        ("des", "Y DECam c0005 10095.0 1130.0", "Y"),
        ("lsst", "lsst_y", "y"),
        ("euclid", "VIS", "VIS"),
        ("euclid", "NISP-Y", "Y"),
        ("euclid", "NIR_H", "H"),
        ("euclid", "VIS_FLUX", "VIS"),
        ("demo", "g'", "g"),
        ("demo", "g+r", None),
        ("demo", "VIS", None),
        ("demo", "", None),
    ],
)
def test_band_of_filter_labels(survey, label, band):
    assert surveys.PRESETS[survey].band_of(label) == band


@given(
    band=st.sampled_from("grizy"),
    before=st.sampled_from(["", "HSC-", "sdss ", "LSST_"]),
    after=st.sampled_from(["", ".MP9401", " DECam c0003 12.0", "_FLUX"]),
    upper=st.booleans(),
)
def test_band_of_does_not_depend_on_case_or_decoration(band, before, after, upper):
    label = before + band + after
    assert surveys.PRESETS["lsst"].band_of(label.upper() if upper else label) == band


def test_known_filters_go_beyond_the_survey():
    assert surveys.is_known_filter("u.MP9301")
    assert surveys.is_known_filter("Ks")
    assert not surveys.is_known_filter("clear")


def test_presets_hold_an_image_and_its_counter_image():
    for survey in surveys.PRESETS.values():
        assert 60 <= survey.size_px * survey.pixel_scale_arcsec <= 80
        assert len(set(survey.band_names)) == len(survey.bands)
    assert surveys.PRESETS["demo"].band_names == ("g", "r", "i")
    assert surveys.PRESETS["euclid"].band_names == ("VIS", "Y", "J", "H")


def test_resolve_replaces_values():
    survey = surveys.resolve(
        SurveySettings(
            name="hsc",
            bands=("r", "i"),
            pixel_scale_arcsec=0.5,
            size_px=128,
            zero_point={"r": 25.5},
            psf_fwhm_arcsec={"i": 0.55},
        )
    )
    assert survey.band_names == ("r", "i")
    assert (survey.pixel_scale_arcsec, survey.size_px) == (0.5, 128)
    assert survey.band("r").zero_point == 25.5
    assert survey.band("i").zero_point == 27.0
    assert survey.band("i").psf_fwhm_arcsec == 0.55
    assert survey.band("r").depth_mag == 26.5


def test_resolve_takes_a_survey_of_ones_own():
    survey = surveys.resolve(
        SurveySettings(name="vics82", bands=("i", "J", "Ks"), pixel_scale_arcsec=0.4, size_px=180)
    )
    assert survey.band_names == ("i", "J", "Ks")
    assert survey.band_of("K") == "Ks"
    assert survey.half_diagonal_arcsec == pytest.approx(36 * 2**0.5)


def test_resolve_lets_a_preset_take_another_common_filter():
    survey = surveys.resolve(SurveySettings(name="cfhtls", bands=("g", "r", "i", "z")))
    assert survey.band("g").zero_point == 30.0
    assert survey.band("z").zero_point is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "hcs"}, "did you mean 'hsc'"),
        ({"name": "mine", "bands": ("g",), "size_px": 64}, "survey.pixel_scale_arcsec"),
        ({"name": "hsc", "bands": ("g", "q")}, "has no band 'q'"),
        ({"name": "hsc", "bands": ("g", "Y")}, "has no band 'Y'"),
        ({"name": "demo", "bands": ("g", "g")}, "different bands"),
        ({"name": "demo", "bands": ()}, "one or more different bands"),
        ({"name": "demo", "zero_point": {"z": 30.0}}, "survey.zero_point.z"),
        ({"name": "demo", "depth_mag": {"R": 25.0}}, "survey.depth_mag.R"),
    ],
)
def test_resolve_refuses(settings, message):
    with pytest.raises(ConfigError, match=message):
        surveys.resolve(SurveySettings(**settings))


def test_band_names_the_nearest():
    with pytest.raises(ConfigError, match="no band 'NIS', did you mean 'VIS'"):
        surveys.PRESETS["euclid"].band("NIS")
