"""Score tables to rank, and probabilities for them."""

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from clusterray import schema
from clusterray.rank import build

MODELS = ("lightgbm", "vit")


@pytest.fixture(autouse=True)
def _one_thread():
    # On small problems threads only wait for one another.
    with threadpool_limits(1):
        yield


def _made_scores(n, *, seed=0, **columns):
    rng = np.random.default_rng(seed)
    logit = rng.normal(-3, 2, n)
    values = {
        "object_id": [f"CL{i:03d}" for i in range(n)],
        "ra_deg": rng.uniform(0, 360, n),
        "dec_deg": rng.uniform(-40, 40, n),
        "shard": ["shard-0"] * n,
        "fold": [None] * n,
        "logit_lightgbm": logit + rng.normal(size=n),
        "logit_vit": logit - rng.normal(size=n),
        "logit_stack": logit,
        "anomaly_score": [None] * n,
        "coverage": np.ones(n),
        "clipped_fraction": np.zeros(n),
    }
    wanted = schema.scores(MODELS)
    merged = {**values, **columns}
    return pa.table({f.name: pa.array(merged[f.name]).cast(f.type) for f in wanted}, schema=wanted)


def _probabilities(scores, *, width=0.3):
    p = 1 / (1 + np.exp(-scores["logit_stack"].to_numpy()))
    return {"p_lens": p, "p_low": p * (1 - width), "p_high": p + width * (1 - p)}


@pytest.fixture(scope="session")
def made_scores():
    """Make a score table of n rows; keywords replace columns."""
    return _made_scores


@pytest.fixture(scope="session")
def probabilities():
    """Arguments of `build` for a score table: the logistic of its stack logit."""
    return _probabilities


@pytest.fixture(scope="session")
def ranked():
    """Rank a score table by those probabilities; keywords replace arguments of `build`."""

    def rank(scores, **options):
        return build(scores, **{"models": MODELS, **_probabilities(scores), **options})

    return rank
