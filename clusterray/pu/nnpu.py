"""Non-negative PU risk for networks (Kiryo et al. 2017; imbalanced form Su et al. 2021)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from clusterray.errors import InputError, did_you_mean
from clusterray.provenance import seed_for
from clusterray.pu.labelling import check_fraction, check_labels

__all__ = ["NnpuRisk", "nnpu_risk", "odds_correction", "two_stream_batches"]

_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda margin: (-margin).sigmoid(),
    "logistic": lambda margin: functional.softplus(-margin),
}
"""Loss ℓ as a function of the margin (the logit times the label ±1)."""

_PROPER = ("logistic",)

Logits = TypeVar("Logits", Tensor, NDArray[np.float32], NDArray[np.float64], float)


@dataclass(frozen=True)
class NnpuRisk:
    """`objective` is what to step on; `risk` (detached) is what to report."""

    objective: Tensor
    risk: Tensor


def nnpu_risk(
    logits: Tensor,
    labels: Tensor,
    *,
    prior: float,
    loss: str = "sigmoid",
    beta: float = 0.0,
    gamma: float = 1.0,
    target_prior: float | None = None,
) -> NnpuRisk:
    """Non-negative PU risk of one (global) batch.

    R⁺ = π mean_P ℓ(f) and N = mean_U ℓ(−f) − π mean_P ℓ(−f). If N ≥ −β the objective is R⁺ + N,
    otherwise −γN alone, and the reported risk is R⁺ + max(N, −β) (Kiryo et al. 2017, eq. 6 and
    algorithm 1). With `target_prior` π′ both terms are rescaled as if a share π′ of the rows were
    positive, π′ mean_P ℓ(f) and (1−π′)/(1−π) N, with the same rule on N (Su et al. 2021, eq. 10).

    Known negatives join N after the non-negative rule's own estimate as in PNU learning (Sakai et
    al. 2017, eq. 7): N′ = (1−ν) N + ν (1−π) mean_N ℓ(−f), ν = n_N / (n_U + n_N), so that each
    weighs as much as one unlabelled row. The rule looks at the PU part alone, the only one that
    can be negative in error.

    Parameters
    ----------
    logits : (n,) network outputs.
    labels : (n,) 1 known lens, 0 unlabelled, −1 known non-lens.
    prior : π_U, the prevalence among the unlabelled rows.
    loss : "sigmoid" (bounded, not proper) or "logistic" (proper).
    beta, gamma : tolerance ≥ 0 and step size in (0, 1] of the non-negative rule.

    Raises
    ------
    InputError : shapes differ, a prior outside (0, 1), an unknown loss, or a batch without known
        lenses or without unlabelled rows.
    """
    check_fraction(prior, name="prior")
    target = prior if target_prior is None else check_fraction(target_prior, name="target_prior")
    if loss not in _LOSSES:
        raise InputError(f"unknown loss '{loss}': {did_you_mean(loss, _LOSSES)}")
    if not (beta >= 0.0 and 0.0 < gamma <= 1.0):
        raise InputError(f"beta {beta}, gamma {gamma}: expected beta ≥ 0 and gamma in (0, 1]")
    of_positive, of_unlabelled, of_negative = _streams(logits, labels)
    ell = _LOSSES[loss]
    positive = target * ell(of_positive).mean()
    negative = ell(-of_unlabelled).mean() - prior * ell(-of_positive).mean()
    # Where the rule fires, known negatives have no part in the step: it only undoes overfitting.
    fires = bool(negative.detach() < -beta)
    scale = (1.0 - target) / (1.0 - prior)
    floored = negative.detach().clamp(min=-beta)
    if len(of_negative):
        share = len(of_negative) / (len(of_unlabelled) + len(of_negative))
        known = (1.0 - prior) * ell(-of_negative).mean()
        mixed = (1.0 - share) * negative + share * known
        floored = (1.0 - share) * floored + share * known.detach()
    else:
        mixed = negative
    objective = -gamma * scale * negative if fires else positive + scale * mixed
    return NnpuRisk(objective=objective, risk=positive.detach() + scale * floored)


def _streams(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if logits.ndim != 1 or logits.shape != labels.shape:
        raise InputError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (n,) both"
        )
    streams = logits[labels == 1], logits[labels == 0], logits[labels == -1]
    counts = [len(x) for x in streams]
    if sum(counts) != len(logits):
        raise InputError("labels other than 1 (known lens), 0 (unlabelled), −1 (known non-lens)")
    if not (counts[0] and counts[1]):
        raise InputError(
            f"a batch of {len(logits)} rows holds {counts[0]} known lenses and {counts[1]} "
            "unlabelled rows; nnPU needs both in every batch: draw it with two_stream_batches"
        )
    return streams


def odds_correction(
    logits: Logits, *, prior: float, target_prior: float, loss: str = "logistic"
) -> Logits:
    """Log-odds at prevalence π from a network trained as if it were π′.

    logit + log(π(1−π′) / ((1−π)π′)): only the prior odds differ (Elkan 2001, theorem 2).

    Raises
    ------
    InputError : a prior outside (0, 1), or a loss that is not proper, whose outputs are no
        log-odds: calibrate those instead.
    """
    check_fraction(prior, name="prior")
    check_fraction(target_prior, name="target_prior")
    if loss not in _PROPER:
        raise InputError(
            f"outputs trained with the '{loss}' loss are ranks, not log-odds, and cannot be "
            f"corrected: train with {' or '.join(_PROPER)}, or calibrate them"
        )
    return logits + (math.log(prior / (1 - prior)) - math.log(target_prior / (1 - target_prior)))


def two_stream_batches(
    labels: ArrayLike, *, batch_size: int, positives_per_batch: int, seed: int, epoch: int
) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each batch of one epoch, known lenses in every batch.

    Every row that is not a known lens comes once, in shuffled order and nearly equal shares; known
    lenses come round in shuffled cycles, `positives_per_batch` in each batch (or all of them where
    they are fewer). The order depends on (seed, epoch) alone.

    Raises
    ------
    InputError : labels without both kinds, or `positives_per_batch` outside [1, batch_size).
    """
    if not 0 < positives_per_batch < batch_size:
        raise InputError(
            f"positives_per_batch {positives_per_batch}: expected at least 1 and fewer than "
            f"batch_size {batch_size}"
        )
    s = check_labels(labels, n_rows=np.size(labels), where="two_stream_batches")
    return _batches(s, batch_size, min(positives_per_batch, int(np.sum(s == 1))), seed, epoch)


def _batches(
    s: NDArray[np.int8], batch_size: int, n_positive: int, seed: int, epoch: int
) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed_for(seed, purpose="two-stream", epoch=epoch))
    positive, other = np.flatnonzero(s == 1), rng.permutation(np.flatnonzero(s != 1))
    n_batches = math.ceil(len(other) / (batch_size - n_positive))
    cycle: NDArray[np.int64] = np.empty(0, np.int64)
    for rows in np.array_split(other, n_batches):
        if len(cycle) < n_positive:
            # A new cycle begins with the lenses that are not among the leftovers of the old one.
            fresh = rng.permutation(np.setdiff1d(positive, cycle))
            cycle = np.concatenate([cycle, fresh, rng.permutation(cycle)])
        batch = np.concatenate([cycle[:n_positive], rows])
        cycle = cycle[n_positive:]
        yield rng.permutation(batch)
