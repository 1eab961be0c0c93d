import numpy as np
import pytest

from clusterray.pu import Labelling
from clusterray.pu.label_loss import LabelLoss


@pytest.mark.parametrize(
    "labelling",
    [
        Labelling("single-sample", 0.2, labelled_fraction=0.1, unlabelled_fraction=0.3),
        Labelling("single-sample", 0.2, labelled_fraction=0.2),
        Labelling("case-control", 0.2),
    ],
)
def test_loss_gradient(labelling):
    rng = np.random.default_rng(0)
    s = (rng.random(30) < 0.4).astype(np.int8)
    loss = LabelLoss(s, labelling=labelling, weight=rng.uniform(0.5, 2, 30))
    eta = 3 * rng.normal(size=30)
    steps = 1e-5 * np.eye(30)
    numeric = [(loss(eta + d)[0] - loss(eta - d)[0]) / 2e-5 for d in steps]
    np.testing.assert_allclose(loss(eta)[1], numeric, atol=1e-7)
