import numpy as np
import pytest

from clusterray.config import SurveySettings
from clusterray.simulate import halo
from clusterray.simulate.cutouts import CutoutMaker
from clusterray.simulate.galaxies import Galaxies
from clusterray.simulate.observe import completed
from clusterray.simulate.recipe import load
from clusterray.sky.surveys import resolve


@pytest.fixture(scope="session")
def make_galaxies():
    """A maker of galaxies of one shape at the given places."""
    return _galaxies


def _galaxies(x, y, *, r_eff=0.3, n=1.0, q=0.7, angle=0.5, z=1.2, mag=22.0, bands=3):
    x, y = (np.array(v) for v in np.broadcast_arrays(*np.atleast_1d(x, y)))
    x, y = x.astype(float), y.astype(float)
    full = np.ones_like(x)
    return Galaxies(
        x_arcsec=x,
        y_arcsec=y,
        r_eff_arcsec=r_eff * full,
        n_sersic=n * full,
        axis_ratio=q * full,
        angle_rad=angle * full,
        z=z * full,
        young_share=0.8 * full,
        mag=np.broadcast_to(mag, (len(x), bands)).astype(float),
    )


@pytest.fixture(scope="session")
def massive_lens():
    """A cluster of θ_E about 15″ with a BCG, for sources at z 1.2."""
    shape = {"axis_ratio": 0.75, "angle_rad": 0.6}
    return halo.cluster(
        halo.nfw(0.35, 1.2, m200_msun=1.1e15, concentration=6.0, **shape),
        halo.bcg(0.35, 1.2, sigma_v_km_s=320.0, **shape),
    )


@pytest.fixture(scope="session")
def survey_of():
    """A survey by its preset's name, ready to be simulated."""
    return lambda name: completed(resolve(SurveySettings(name=name)))


@pytest.fixture(scope="session")
def demo_maker(survey_of):
    """The demo under the built-in recipe."""
    return CutoutMaker(survey_of("demo"), load(), 11)


@pytest.fixture(scope="session")
def lens(demo_maker):
    """A drawn lens of the demo."""
    return demo_maker.draw("1", "lens")


@pytest.fixture(scope="session")
def photometry(demo_maker):
    """Colours in the demo's bands."""
    return demo_maker.photometry
