"""Contributions, what they sum to, and how they are shown."""

import numpy as np
import pyarrow as pa
import pytest

from clusterray import schema
from clusterray.errors import ContractError, InputError
from clusterray.pu.lightgbm_pu import PULightGBM
from clusterray.rank import explanations

NAMES = ("strong", "weak", "survey")


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)).astype(np.float32)
    x[:, 2] = rng.integers(0, 3, 600)
    s = ((x[:, 0] > 0.8) & (rng.random(600) < 0.5)).astype(np.int8)
    model = PULightGBM(
        NAMES,
        scenario="single-sample",
        prior=0.3,
        params={"num_iterations": 40},
        categorical=["survey"],
    )
    return model.fit(x, s, names=NAMES), x


def test_contributions_sum_to_the_log_odds(fitted):
    model, x = fitted
    x = x.copy()
    x[:5, 1] = np.nan
    found = model.contributions(x, NAMES)
    np.testing.assert_allclose(found.sum(axis=1), model.decision_function(x, NAMES), atol=1e-6)
    assert model.contributions(x[:0], NAMES).shape == (0, 4)
    with pytest.raises(InputError, match="another order"):
        model.contributions(x, NAMES[::-1])
    with pytest.raises(InputError, match="not fitted"):
        PULightGBM(NAMES, scenario="single-sample", prior=0.3).contributions(x, NAMES)


def test_a_kind_is_learned_as_a_kind(fitted):
    model, _ = fitted
    again = PULightGBM.from_text(model.to_text())
    tree = again.booster_.dump_model()
    # −1 stands for what is not known.
    assert tree["feature_infos"]["survey"]["values"] == [-1, 0, 1, 2]


def test_the_table_ranks_the_strong_feature_first_and_gives_reasons(fitted):
    model, x = fitted
    table = explanations.contribution_table([str(i) for i in range(50)], x[:50], model)
    assert table.schema.equals(schema.contributions(NAMES), check_metadata=True)
    ranked = explanations.importance(table)
    assert ranked[0][0] == "strong"
    found = model.contributions(x[:50], NAMES)[:, :-1]
    assert ranked[0][1] == pytest.approx(np.abs(found[:, 0]).mean(), rel=1e-5)
    values = x[:50].copy()
    values[0, 0] = np.nan
    texts = explanations.reasons(table, values)
    assert texts[0].startswith("strong unknown (")
    assert all(text.count(";") == 2 for text in texts)


def test_the_section_sums_over_groups_and_escapes(fitted):
    model, x = fitted
    table = explanations.contribution_table([str(i) for i in range(50)], x[:50], model)
    html = explanations.section(table, {"strong": "<all>", "weak": "<all>"})
    assert "&lt;all&gt;" in html
    assert "<all>" not in html
    assert "What moves the scores" in html
    assert html == explanations.section(table, {"strong": "<all>", "weak": "<all>"})


def test_a_table_that_is_none_is_refused():
    with pytest.raises(ContractError, match="no object_id, or no features"):
        explanations.importance(pa.table({"object_id": ["a"]}))
