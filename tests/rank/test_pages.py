"""Pages of the report that say what training measured of itself."""

import numpy as np
import pytest

from clusterray.config import RankSettings
from clusterray.rank import render
from clusterray.rank.pages import calibration, folds, prior, scar

PRIOR = {
    "value": 2.5e-4,
    "interval": [1.5e-4, 4e-4],
    "estimates": {"elkan_noto": None, "mixture": 2.4e-4, "bbe": 2.7e-4, "dedpul": None},
    "consistent": True,
    "source": "estimate",
    "notes": [
        "elkan_noto ignored: positives are not certain",
        "dedpul ignored: 3 unlabelled rows and 5 lenses score as if they were certain",
    ],
}
DIAGNOSTICS = {
    "scenario": "single-sample",
    "prior": 2.5e-4,
    "unlabelled_prior": 2e-4,
    "calibration": {
        "kind": "beta",
        "loss": {"platt": 6.1, "beta": 6.0, "isotonic": 6.3, "temperature": 6.2},
        "scatter": {"platt": 0.0, "beta": 0.05, "isotonic": 0.1, "temperature": 0.07},
        "note": "",
    },
    "reliability": {
        "first": [1, 11], "last": [10, 60], "expected": [3.2, 1.1], "observed": [4, 0],
        "low": [1.2, 0.0], "high": [7.4, 3.1], "mean_p": [0.4, 0.02],
    },
    "venn_abers": {"logit_stack": [-4.0, 0.0, 3.0], "p0": [0.0, 0.1, 0.6], "p1": [0.01, 0.3, 0.9]},
    "pu_metrics": {
        "tpr_at_fpr_1e-2": [0.8, 0.7, 0.9], "recall_at_3": [0.4, 0.2, 0.6],
        "precision_at_3": [0.5, None, None], "average_precision": [0.3, 0.2, 0.4],
        "auroc": [0.98, 0.97, 0.99],
    },
    "pu_curve": {"tpr": [0.5, 1.0], "fpr": [0.001, 0.2], "precision": [0.6, 0.01]},
    "pu_budgets": {"5": 3},
    "folds": {
        "edges": np.linspace(-6, 3, 11).tolist(),
        "each": [
            {"fold": k, "unlabelled": [5, 9, 3, 1, 0, 0, 0, 0, 0, 0], "known": [1.0, 2.0]}
            for k in (-1, 0, 1)
        ],
    },
    "scar": {
        "test": {
            "brightness": {
                "difference": 0.4, "p_value": 0.002, "p_adjusted": 0.004, "n_labelled": 12.0,
            }
        },
        "covariate": "brightness",
        "sensitivity": {
            "factor": [1.0, 2.0], "budget": [10, 100], "purity": [[0.5, 0.1], [0.4, 0.05]],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def text(made_scores, ranked):
    scores = made_scores(60, anomaly_score=np.linspace(1, 30, 60))
    return render(
        ranked(scores),
        thumbnails={},
        bands=("g", "r", "i"),
        provenance={"prior": PRIOR},
        settings=RankSettings(
            budgets=(5, 10), report_top=4, unlike_top=3, years=2.0, minutes_per_candidate=30,
            shortlist_by="fdr", shortlist_at=0.4,
        ),
        diagnostics=DIAGNOSTICS,
        finds={5: (2.0, 4.0), 10: (4.0, 8.0)},
    )  # fmt: skip


@pytest.mark.parametrize(
    "told",
    [
        "beta (used)",
        "-0.1000 ± 0.0500",
        "ranks 1–10: expected 3.2, observed 4",
        "at most 0.3 apart",
        "at a prevalence of 0.0002 among unlabelled rows",
        "share of lenses among the first 5 of the survey",
        "0.400 (0.200–0.600)",
        "π = 0.00025 (0.00015 to 0.0004), from the estimators",
        "positives are not certain",
        "mixture of two normals",
        "6 known lenses in 3 folds",
        "+0.40 σ",
        "falls from 50 to 40 % if lenses are labelled 2 times as often per σ of brightness",
        "Unlike anything known",
        "d = 30",
        "as many rows as keep the expected share of others at or below 0.4",
        "the list is that of 2 years",
        "4–8",
        "40–80 %",
    ],
)
def test_every_page_says_its_piece(text, told):
    assert told in text


def test_figures_have_names_of_their_own(text):
    names = ("label-reliability", "venn-abers", "precision-recall", "roc", "discovery", "prior",
             "folds", "scar")  # fmt: skip
    for name in names:
        assert text.count(f'<title id="{name}-title">') == 1
    assert "://" not in text and "#010203" not in text


@pytest.mark.parametrize("page", [calibration, folds, scar, prior])
def test_pages_without_anything_to_say_are_left_out(page):
    assert page.section({}) == ""
