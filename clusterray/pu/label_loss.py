"""How well log-odds of p(y=1|x) explain labels, at a known prevalence."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from clusterray.pu.labelling import Labelling

__all__ = ["LabelLoss"]


class LabelLoss:
    """−log likelihood of labels given log-odds of p(y=1|x), with π as an observed count.

    Two terms: −log P(s|η) of each row (`LabelModel`), and that of counting nπ lenses among n survey
    rows where Σ σ(η) are expected, Poisson: nπ (r − log r), r = mean σ(η) / π. The second keeps
    mean(p) at π within the scatter that n rows have, however few of them are labelled.

    Parameters
    ----------
    s : (n,) 1 or 0.
    weight : (n,) times each row counts (bootstrap).
    """

    def __init__(
        self, s: NDArray[np.int8], *, labelling: Labelling, weight: NDArray[np.float64]
    ) -> None:
        self._labelled = s == 1
        self.model = labelling.model(s, weight)
        self._weight = weight
        self.prior = labelling.prior
        single = labelling.scenario == "single-sample"
        of_unlabelled = 1.0 / labelling.unlabelled_fraction if single else 1.0
        survey = weight * np.where(self._labelled, float(single), of_unlabelled)
        self.n_survey = float(weight[survey > 0].sum())
        self._survey = survey / max(float(survey.sum()), 1e-300)

    def __call__(self, eta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The loss, and its derivative in η (n,)."""
        value, gradient = self.model.negative_log_likelihood(eta, self._labelled)
        p = expit(eta)
        mean = max(float(self._survey @ p), 1e-300)
        ratio, count = mean / self.prior, self.n_survey * self.prior
        pull = count * (1.0 / self.prior - 1.0 / mean)
        total = float(self._weight @ value)
        slope = self._weight * gradient + pull * self._survey * p * expit(-eta)
        return total + count * (ratio - float(np.log(ratio))), slope

    def mean_probability(self, eta: NDArray[np.float64]) -> float:
        """Mean of σ(η) over the survey's rows."""
        return float(self._survey @ expit(eta))
