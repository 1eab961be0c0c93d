import numpy as np
import pytest

from clusterray.simulate import halo
from clusterray.simulate.galaxies import Galaxies


@pytest.fixture(scope="session")
def make_galaxies():
    """A maker of galaxies of one shape at the given places."""
    return _galaxies


def _galaxies(x, y, *, r_eff=0.3, n=1.0, q=0.7, angle=0.5, mag=22.0):
    x, y = np.atleast_1d(np.asarray(x, float)), np.atleast_1d(np.asarray(y, float))
    full = np.ones_like(x)
    return Galaxies(
        x, y, r_eff * full, n * full, q * full, angle * full, mag * np.ones((len(x), 3))
    )


@pytest.fixture(scope="session")
def massive_lens():
    """A cluster of θ_E about 15″ with a BCG."""
    shape = {"axis_ratio": 0.75, "angle_rad": 0.6}
    return halo.cluster(
        halo.nfw(0.35, 1.2, m200_msun=1.1e15, concentration=6.0, **shape),
        halo.bcg(0.35, 1.2, sigma_v_km_s=320.0, **shape),
    )
