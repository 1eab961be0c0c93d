import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from clusterray.errors import InputError
from clusterray.pu import nnpu_risk, odds_correction, two_stream_batches


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def slow_risk(f, s, *, prior, loss, beta, gamma, target_prior, negative_weight=1.0):
    """Kiryo et al. 2017, algorithm 1, and Su et al. 2021, row by row with gradients in f."""
    target = prior if target_prior is None else target_prior

    def ell(margin):
        return 1 / (1 + np.exp(margin)) if loss == "sigmoid" else np.log(1 + np.exp(-margin))

    def slope(margin):
        q = 1 / (1 + np.exp(margin))
        return -q * (1 - q) if loss == "sigmoid" else -q

    n_p, n_u, n_n = (int(np.sum(s == k)) for k in (1, 0, -1))
    share = negative_weight * n_n / (n_u + negative_weight * n_n)
    scale = (1 - target) / (1 - prior)
    positive = negative = known = 0.0
    d_pos, d_neg, d_known = np.zeros(len(f)), np.zeros(len(f)), np.zeros(len(f))
    for i in range(len(f)):
        if s[i] == 1:
            positive += target * ell(f[i]) / n_p
            d_pos[i] = target * slope(f[i]) / n_p
            negative -= prior * ell(-f[i]) / n_p
            d_neg[i] = prior * slope(-f[i]) / n_p
        elif s[i] == 0:
            negative += ell(-f[i]) / n_u
            d_neg[i] = -slope(-f[i]) / n_u
        else:
            known += (1 - prior) * ell(-f[i]) / n_n
            d_known[i] = -(1 - prior) * slope(-f[i]) / n_n
    reported = positive + scale * ((1 - share) * max(negative, -beta) + share * known)
    if negative < -beta:
        return -gamma * scale * negative, reported, -gamma * scale * d_neg
    mixed, d_mixed = (1 - share) * negative + share * known, (1 - share) * d_neg + share * d_known
    return positive + scale * mixed, reported, d_pos + scale * d_mixed


@pytest.mark.parametrize("loss", ["sigmoid", "logistic"])
@pytest.mark.parametrize("target_prior", [None, 0.5])
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.0, 0.3), (0.05, 1.0), (0.05, 0.3)])
@pytest.mark.parametrize(("known_negatives", "negative_weight"), [(0, 1.0), (5, 1.0), (5, 0.2)])
def test_value_and_gradient_equal_the_papers(
    loss, target_prior, beta, gamma, known_negatives, negative_weight
):
    rng = np.random.default_rng(1)
    fired = set()
    for shift in (0.0, -6.0):
        s = np.array([1] * 6 + [0] * 20 + [-1] * known_negatives)
        f = rng.normal(size=len(s))
        f[s == 0] += shift
        f[s == 1] += 1.0
        options = {"loss": loss, "beta": beta, "gamma": gamma, "target_prior": target_prior}
        options["negative_weight"] = negative_weight
        objective, reported, gradient = slow_risk(f, s, prior=0.4, **options)
        logits = torch.tensor(f, requires_grad=True)
        risk = nnpu_risk(logits, torch.tensor(s), prior=0.4, **options)
        risk.objective.backward()
        assert risk.objective.item() == pytest.approx(objective, abs=1e-12)
        assert risk.risk.item() == pytest.approx(reported, abs=1e-12)
        assert not risk.risk.requires_grad
        np.testing.assert_allclose(logits.grad.numpy(), gradient, atol=1e-12)
        fired.add(objective != pytest.approx(reported))
    assert fired == {True, False}, "both branches must be met"


def _step(f, s, *, group=None):
    """Gradient, objective and risk of a linear network on one batch."""
    theta = torch.tensor([1.0, -0.3], requires_grad=True)
    risk = nnpu_risk(
        theta[0] * f + theta[1], s, prior=0.3, loss="logistic", target_prior=0.5, group=group
    )
    risk.objective.backward()
    return torch.cat([theta.grad, risk.objective.detach()[None], risk.risk[None]])


def _rank(rank, folder, batches, s, answers):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    half = len(s) // 2
    mine = slice(rank * half, (rank + 1) * half)
    for k, f in enumerate(batches):
        answer = _step(f[mine], s[mine], group=distributed.group.WORLD)
        # What DistributedDataParallel does with the gradients.
        distributed.all_reduce(answer[:2])
        answer[:2] /= 2
        answers[rank, k] = answer
    distributed.destroy_process_group()


def test_two_ranks_of_half_a_batch_are_one_rank_of_the_whole(tmp_path):
    """Unequal halves: all lenses but one on one rank, all known non-lenses on the other."""
    rng = np.random.default_rng(4)
    s = torch.tensor([1] * 5 + [0] * 19 + [1] + [-1] * 4 + [0] * 19)
    plain = torch.tensor(rng.normal(size=48), dtype=torch.float32)
    batches = torch.stack([plain, plain - 6.0 * (s == 0)])
    answers = torch.zeros(2, 2, 4).share_memory_()
    multiprocessing.spawn(_rank, (str(tmp_path), batches, s, answers), nprocs=2)
    expected = [_step(f, s) for f in batches]
    fired = [bool(e[2] != pytest.approx(e[3].item())) for e in expected]
    assert fired == [False, True]
    for rank in answers:
        for answer, whole in zip(rank, expected, strict=True):
            np.testing.assert_allclose(answer.numpy(), whole.numpy(), atol=1e-6)


def test_imbalanced_form_finds_what_plain_nnpu_gives_up():
    rng = np.random.default_rng(0)
    prior, n_u = 1e-4, 4_000
    x = np.concatenate([rng.normal(4.0, 1, 100), rng.normal(0, 1, n_u)])
    s = torch.tensor([1] * 100 + [0] * n_u)
    z = torch.tensor(x)

    def fitted(**options):
        theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([theta], lr=0.05)
        for _ in range(250):
            optimiser.zero_grad()
            nnpu_risk(theta[0] * z + theta[1], s, prior=prior, **options).objective.backward()
            optimiser.step()
        return theta.detach()

    slope, offset = fitted(loss="logistic", target_prior=0.5).tolist()
    # With equal classes the best threshold is half-way between them.
    assert -offset / slope == pytest.approx(2.0, abs=0.3)
    slope, offset = fitted().tolist()
    assert not np.any(slope * x + offset > 0)


def test_odds_correction_is_bayes_rule():
    x = np.linspace(-3, 3, 7)

    def log_odds(prior):
        return np.log(prior / (1 - prior)) + 2 * x - 2

    np.testing.assert_allclose(
        odds_correction(log_odds(0.5), prior=1e-3, target_prior=0.5), log_odds(1e-3)
    )
    corrected = odds_correction(torch.tensor(log_odds(0.2)), prior=0.01, target_prior=0.2)
    np.testing.assert_allclose(corrected.numpy(), log_odds(0.01))
    with pytest.raises(InputError, match="'sigmoid' loss are ranks"):
        odds_correction(x, prior=0.1, target_prior=0.5, loss="sigmoid")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prior": 0.0}, "prior is 0.0"),
        ({"prior": 1.0}, "prior is 1.0"),
        ({"target_prior": 1.5}, "target_prior is 1.5"),
        ({"loss": "sigmod"}, "did you mean 'sigmoid'"),
        ({"beta": -1.0}, "beta ≥ 0"),
        ({"gamma": 0.0}, r"gamma in \(0, 1\]"),
        ({"labels": torch.tensor([0, 0, 0])}, "0 known lenses"),
        ({"labels": torch.tensor([1, 1, 1])}, "0 unlabelled rows"),
        ({"labels": torch.tensor([1, 0, 2])}, "labels other than"),
        ({"labels": torch.tensor([1, 0])}, r"logits \(3,\) and labels \(2,\)"),
    ],
)
def test_bad_input_is_refused(change, match):
    arguments = {"logits": torch.zeros(3), "labels": torch.tensor([1, 0, 0]), "prior": 0.1}
    arguments |= change
    with pytest.raises(InputError, match=match):
        nnpu_risk(arguments.pop("logits"), arguments.pop("labels"), **arguments)


@given(
    n_positive=st.integers(1, 12),
    n_other=st.integers(1, 60),
    batch_size=st.integers(2, 20),
    wanted=st.integers(1, 19),
    seed=st.integers(0, 2**32),
)
def test_every_batch_holds_lenses_and_every_row_comes_once(
    n_positive, n_other, batch_size, wanted, seed
):
    wanted = min(wanted, batch_size - 1)
    s = np.random.default_rng(seed).permutation([1] * n_positive + [0] * n_other)
    draw = {"batch_size": batch_size, "positives_per_batch": wanted, "seed": seed}
    batches = list(two_stream_batches(s, **draw, epoch=0))
    for batch in batches:
        assert len(batch) <= batch_size
        assert np.sum(s[batch] == 1) == min(wanted, n_positive)
        assert len(np.unique(batch)) == len(batch)
        assert np.any(s[batch] != 1)
    others = np.concatenate([b[s[b] != 1] for b in batches])
    np.testing.assert_array_equal(np.sort(others), np.flatnonzero(s != 1))
    # Lenses come round evenly.
    times = np.bincount(np.concatenate([b[s[b] == 1] for b in batches]), minlength=len(s))[s == 1]
    assert times.max() - times.min() <= 1
    for a, b in zip(batches, two_stream_batches(s, **draw, epoch=0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_epochs_differ_and_bad_batches_are_refused():
    s = [1] * 5 + [0] * 50 + [-1] * 5
    draw = {"batch_size": 10, "positives_per_batch": 2, "seed": 3}
    first, second = (np.concatenate(list(two_stream_batches(s, **draw, epoch=e))) for e in (0, 1))
    assert not np.array_equal(first, second)
    with pytest.raises(InputError, match="positives_per_batch 10"):
        two_stream_batches(s, **{**draw, "positives_per_batch": 10}, epoch=0)
    with pytest.raises(InputError, match="no known lenses"):
        two_stream_batches([0, 0], **draw, epoch=0)
