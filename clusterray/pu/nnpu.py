"""Non-negative PU risk for networks (Kiryo et al. 2017; imbalanced form Su et al. 2021)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
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
    negative_weight: float = 1.0,
    group: ProcessGroup | None = None,
) -> NnpuRisk:
    """Non-negative PU risk of one (global) batch.

    R⁺ = π mean_P ℓ(f) and N = mean_U ℓ(−f) − π mean_P ℓ(−f). If N ≥ −β the objective is R⁺ + N,
    otherwise −γN alone, and the reported risk is R⁺ + max(N, −β) (Kiryo et al. 2017, eq. 6 and
    algorithm 1). With `target_prior` π′ both terms are rescaled as if a share π′ of the rows were
    positive, π′ mean_P ℓ(f) and (1−π′)/(1−π) N, with the same rule on N (Su et al. 2021).

    Known negatives join N after the rule's own estimate, as PNU learning mixes the two (Sakai et
    al. 2017): N′ = (1−ν) N + ν (1−π) mean_N ℓ(−f), ν = k n_N / (n_U + k n_N), so that each weighs
    as much as k unlabelled rows. The rule looks at the PU part alone, the only one that can be
    negative in error.

    Under data parallelism means and the rule are formed over the batches of all processes of
    `group`: the value is that of the global batch, and gradients that are averaged over the
    processes (as DistributedDataParallel does) are its gradients.

    Parameters
    ----------
    logits : (n,) network outputs.
    labels : (n,) 1 known lens, 0 unlabelled, −1 known non-lens.
    prior : π_U, the prevalence among the unlabelled rows.
    loss : "sigmoid" (bounded, not proper) or "logistic" (proper).
    beta, gamma : tolerance ≥ 0 and step size in (0, 1] of the non-negative rule.
    negative_weight : k; f where only a fraction f of the survey's unlabelled rows is trained on.
    group : processes that hold the other parts of the batch; None where this is all of it.

    Raises
    ------
    InputError : shapes differ, a prior outside (0, 1), an unknown loss, or a batch without known
        lenses or without unlabelled rows.
    """
    check_fraction(prior, name="prior")
    target = prior if target_prior is None else check_fraction(target_prior, name="target_prior")
    if loss not in _LOSSES:
        raise InputError(f"unknown loss '{loss}': {did_you_mean(loss, _LOSSES)}")
    if not (beta >= 0.0 and 0.0 < gamma <= 1.0 and negative_weight > 0.0):
        raise InputError(
            f"beta {beta}, gamma {gamma}, negative_weight {negative_weight}: expected beta ≥ 0, "
            "gamma in (0, 1] and negative_weight > 0"
        )
    sums, whole, counts, n_ranks = _batch(logits, labels, _LOSSES[loss], group)
    n_positive, n_unlabelled, n_negative = counts
    share = negative_weight * n_negative / (n_unlabelled + negative_weight * n_negative)
    scale = (1.0 - target) / (1.0 - prior)
    # Of the sums of a batch, in the order of `_batch`.
    as_negative = np.array([0.0, -prior / n_positive, 1.0 / n_unlabelled, 0.0])
    known = np.array([0.0, 0.0, 0.0, (1.0 - prior) / max(n_negative, 1.0)])
    as_positive = np.array([target / n_positive, 0.0, 0.0, 0.0])
    negative = float(as_negative @ whole)
    # Where the rule fires, known negatives have no part in the step: it only undoes overfitting.
    if negative < -beta:
        weights = -gamma * scale * as_negative
    else:
        weights = as_positive + scale * ((1.0 - share) * as_negative + share * known)
    part = n_ranks * sum(w * s for w, s in zip(weights.tolist(), sums.unbind(), strict=True))
    floored = (1.0 - share) * max(negative, -beta) + share * float(known @ whole)
    return NnpuRisk(
        objective=part - part.detach() + float(weights @ whole),
        risk=torch.full_like(sums[0].detach(), float(as_positive @ whole) + scale * floored),
    )


def _batch(
    logits: Tensor, labels: Tensor, ell: Callable[[Tensor], Tensor], group: ProcessGroup | None
) -> tuple[Tensor, NDArray[np.float64], list[float], int]:
    """Sums of ℓ(f) and ℓ(−f) over lenses, ℓ(−f) over unlabelled and over known non-lenses.

    Here (with gradients) and over all processes; counts of the three kinds, and of processes. A
    GPU is waited for once.
    """
    if logits.ndim != 1 or logits.shape != labels.shape:
        raise InputError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (n,) both"
        )
    positive, unlabelled, negative = labels == 1, labels == 0, labels == -1
    kinds = torch.stack([positive, positive, unlabelled, negative])
    # Half precision would lose the small difference N of two large sums.
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    up, down = ell(precise), ell(-precise)
    sums = torch.where(kinds, torch.stack([up, down, down, down]), 0.0).sum(1)
    counted = torch.cat([kinds[1:], ~kinds.any(0, keepdim=True)]).sum(1)
    whole = torch.cat([sums.detach(), counted.to(sums)])
    n_ranks = 1
    if group is not None:
        distributed.all_reduce(whole, group=group)
        n_ranks = distributed.get_world_size(group)
    found = whole.tolist()
    values, counts, foreign = np.array(found[:4]), found[4:7], found[7]
    if foreign:
        raise InputError("labels other than 1 (known lens), 0 (unlabelled), −1 (known non-lens)")
    if not (counts[0] and counts[1]):
        raise InputError(
            f"a batch of {int(sum(counts))} rows holds {int(counts[0])} known lenses and "
            f"{int(counts[1])} unlabelled rows; nnPU needs both in every batch: draw it with "
            "two_stream_batches"
        )
    return sums, values, counts, n_ranks


def odds_correction(
    logits: Logits, *, prior: float, target_prior: float, loss: str = "logistic"
) -> Logits:
    """Log-odds at prevalence π from a network trained as if it were π′.

    logit + log(π(1−π′) / ((1−π)π′)): only the prior odds differ (Elkan 2001).

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
