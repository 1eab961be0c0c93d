"""Two unit Gaussians a distance apart: the posterior is a straight line in log-odds."""

import numpy as np
from scipy.special import expit, logit


def world(scenario, *, prior, c, distance, n, n_known=None, seed=0):
    """x (n, 1), s, true log-odds, and which rows are the survey's.

    Case-control, `n_known` lenses from elsewhere come on top of the n rows.
    """
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prior
    s = (y & (rng.random(n) < c)) if scenario == "single-sample" else np.zeros(n, bool)
    if scenario == "case-control":
        extra = np.ones(n_known or n // 20, bool)
        y, s = np.append(y, extra), np.append(s, extra)
    x = rng.normal(size=len(y)) + distance * y
    true = logit(prior) + distance * x - distance**2 / 2
    return x[:, None], s.astype(int), true, np.arange(len(x)) < n


def slope_and_mean(log_odds, true, survey, prior):
    """Slope of log-odds on the true ones where both classes occur, and mean(p)/π."""
    both = survey & (np.abs(true) < 5)
    p = expit(log_odds[survey])
    return np.polyfit(true[both], log_odds[both], 1)[0], p.mean() / prior


def prior_world(prior, *, n_unlabelled, n_positive, distance, seed):
    """Scores of known lenses, and of unlabelled rows with a share π of hidden ones."""
    rng = np.random.default_rng(seed)
    k = rng.binomial(n_unlabelled, prior)
    hidden = rng.normal(distance, 1, k)
    return (
        rng.normal(distance, 1, n_positive),
        np.concatenate([rng.normal(size=n_unlabelled - k), hidden]),
    )
