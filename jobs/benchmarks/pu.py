"""Learning from positives and unlabelled rows: ours, pulearn's, LightGBM on s, and true labels.

Every method boosts the same trees on the same rows. Probabilities are judged on fresh rows against
the known posterior, and every figure is the mean over several draws of each world; differences come
with the standard error of a bootstrap over the fresh rows, the same resamples for all.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score

from clusterray.pu import ElkanNotoClassifier, PULightGBM, estimate_prior
from clusterray.pu.boosting import DEFAULTS
from jobs.benchmarks.pu_worlds import WORLDS, World, draw
from jobs.benchmarks.result import Result, seconds_each

__all__ = ["add_arguments", "measure"]

Floats = NDArray[np.float64]
Scores = dict[str, Floats]

_ACCURACY = ("average_precision", "tpr_at_fpr_1e-3", "log_loss")
_FEW = "true, as few lenses"
_METHODS = ("ours", "two copies, once", "pulearn", "LightGBM on s", "true labels", _FEW)
_N_BOOTSTRAP = 100
_MEMORY_GB = 6.0
_FIT_ALLOWANCE = (5 - 1) + 2.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what can be chosen."""
    parser.add_argument("--rows", type=int, default=40_000, help="training rows, and test rows")
    parser.add_argument("--prior", type=float, default=0.05)
    parser.add_argument("--labelled", type=float, nargs="+", default=[0.3, 0.6], help="c")
    parser.add_argument("--draws", type=int, default=3, help="training and test sets of a world")
    parser.add_argument("--seed", type=int, default=7001, help="of the first draw")
    parser.add_argument("--memory-rows", type=int, default=1_000_000, help="0 leaves memory out")


def measure(options: argparse.Namespace) -> Result:
    """Fit every method in every world; print a table for each."""
    tables: dict[str, Any] = {}
    goals: dict[str, bool] = {}
    for kind in WORLDS:
        for c in options.labelled:
            name = f"{kind}, c = {c:g}"
            tables[name] = _compare(kind, c, name, options)
            goals |= _goals(name, tables[name], c)
    off = {
        n: float(np.mean([np.abs(t["priors"][n]) for t in tables.values()]))
        for n in next(iter(tables.values()))["priors"]
    }
    print("\nmean |log(π̂/π)|: " + ", ".join(f"{n} {v:.3f}" for n, v in off.items()))
    for n, v in off.items():
        if n != "ours":
            goals[f"prior nearer than {n}'s, all worlds"] = off["ours"] < v
    speed = _speed(options)
    goals[f"fit ≤ {_FIT_ALLOWANCE} plain fits"] = speed["fits"] <= _FIT_ALLOWANCE
    goals["scoring overhead ≤ 10 %"] = speed["scoring"] <= 1.10
    if options.memory_rows:
        speed["memory_gb"] = _memory(options.memory_rows)
        goals[f"10⁶ × 200 fit in ≤ {_MEMORY_GB:g} GB"] = speed["memory_gb"] <= _MEMORY_GB
    print({k: round(v, 3) for k, v in speed.items()})
    for goal, met in goals.items():
        print(f"{'met   ' if met else 'MISSED'} {goal}")
    name = f"features, c = {options.labelled[0]:g}"
    ours, theirs = (tables[name][m]["average_precision"] for m in ("ours", "pulearn"))
    detail = {"tables": tables, "prior_error": off, "speed": speed, "goals": goals}
    return Result(value=ours, baseline=theirs, unit="average precision", detail=detail)


def _sklearn() -> LGBMClassifier:
    named = {k: v for k, v in DEFAULTS.items() if k not in ("num_iterations", "max_bin")}
    return LGBMClassifier(
        n_estimators=int(DEFAULTS["num_iterations"]),
        n_jobs=1,
        verbosity=-1,
        random_state=1,
        **named,
    )


def _ours(train: World, prior: float, **params: Any) -> PULightGBM:
    names = [f"x{i}" for i in range(train.x.shape[1])]
    model = PULightGBM(names, scenario="single-sample", prior=prior, seed=1, params=params)
    return model.fit(train.x, train.s, names=names)


def _fits(train: World, test: World, prior: float) -> tuple[Scores, dict[str, float]]:
    """Probability of every test row by every method, and the seconds (CPU) of its fit."""
    from pulearn import ElkanotoPuClassifier

    def ours() -> Floats:
        model = _ours(train, prior)
        return np.asarray(expit(model.decision_function(test.x, model.feature_names)))

    def two_copies() -> Floats:
        model = ElkanNotoClassifier(_sklearn(), scenario="single-sample", prior=prior)
        return np.asarray(model.fit(train.x, train.s).predict_proba(test.x))[:, 1]

    def pulearn() -> Floats:
        model = ElkanotoPuClassifier(_sklearn(), hold_out_ratio=0.2, random_state=1)
        found = model.fit(train.x, np.where(train.s == 1, 1, -1)).predict_proba(test.x)
        # g/c may exceed 1, and does: its order counts as it is, and it is held to 1 for the loss.
        return np.asarray(found)[:, 1]

    def plain() -> Floats:
        return np.asarray(_sklearn().fit(train.x, train.s).predict_proba(test.x))[:, 1]

    def oracle() -> Floats:
        return np.asarray(_sklearn().fit(train.x, train.y).predict_proba(test.x))[:, 1]

    def oracle_of_few() -> Floats:
        """True labels, but of lenses only those that are labelled; odds set back by 1/c."""
        rows = (train.s == 1) | ~train.y
        found = _sklearn().fit(train.x[rows], train.y[rows]).predict_proba(test.x)
        odds = np.asarray(found)[:, 1] / np.asarray(found)[:, 0] * train.y.sum() / train.s.sum()
        return odds / (1.0 + odds)

    methods: tuple[Callable[[], Floats], ...] = (
        ours, two_copies, pulearn, plain, oracle, oracle_of_few,
    )  # fmt: skip
    scores, seconds = {}, {}
    for name, method in zip(_METHODS, methods, strict=True):
        start = process_time()
        scores[name] = method()
        seconds[name] = process_time() - start
    return scores, seconds


def _compare(kind: str, c: float, title: str, options: argparse.Namespace) -> dict[str, Any]:
    """Means over draws of a world; of `priors`, each draw's."""
    drawn, resampled, priors = [], [], []
    for seed in range(options.seed, options.seed + 2 * options.draws, 2):
        train, test = (
            draw(kind, n=options.rows, prior=options.prior, c=c, seed=s) for s in (seed, seed + 1)
        )
        rows, again = _judged(train, test, options.prior, seed)
        drawn.append(rows)
        resampled.append(again)
        priors.append(_priors(train, options.prior))
    table: dict[str, Any] = {}
    for method in _METHODS:
        row = {k: float(np.mean([d[method][k] for d in drawn])) for k in drawn[0][method]}
        gaps = np.mean([r["ours"] - r[method] for r in resampled], axis=0)
        for column, found in zip(_ACCURACY, gaps.T, strict=True):
            row[f"ours − this, {column}"] = float(found[0])
            row[f"error of that, {column}"] = float(found[1:].std())
        table[method] = row
    table["priors"] = {n: [p[n] for p in priors] for n in priors[0]}
    _show(title, table)
    return table


def _judged(
    train: World, test: World, prior: float, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, Floats]]:
    """Figures of every method, and its accuracy (1 + resamples, columns) as is and resampled."""
    scores, seconds = _fits(train, test, prior)
    truth = expit(test.log_odds)
    rng = np.random.default_rng(seed)
    draws = [np.arange(len(test.y))]
    draws += [rng.integers(0, len(test.y), len(test.y)) for _ in range(_N_BOOTSTRAP)]
    every = {m: [_accuracy(p[d], test.y[d], truth[d]) for d in draws] for m, p in scores.items()}
    rows = {
        method: {
            **values[0],
            "slope": _slope(scores[method], test.log_odds),
            "mean_p_over_prior": float(scores[method].mean() / prior),
            "seconds": seconds[method],
        }
        for method, values in every.items()
    }
    return rows, {m: np.array([[v[k] for k in _ACCURACY] for v in vs]) for m, vs in every.items()}


def _accuracy(p: Floats, y: NDArray[np.bool_], truth: Floats) -> dict[str, float]:
    order = np.sort(p[~y])[::-1]
    held = np.clip(p, 1e-9, 1 - 1e-9)
    loss = -(truth * np.log(held) + (1 - truth) * np.log(1 - held))
    return {
        "average_precision": float(average_precision_score(y, p)),
        "tpr_at_fpr_1e-3": float(np.mean(p[y] > order[len(order) // 1000])),
        "log_loss": float(loss.mean()),
    }


def _slope(p: Floats, log_odds: Floats) -> float:
    """Of the found log-odds on the true ones, where both classes occur."""
    both = np.abs(log_odds) < 4
    found = logit(np.clip(p[both], 1e-6, 1 - 1e-6))
    return float(np.polyfit(log_odds[both], found, 1)[0])


def _priors(train: World, prior: float) -> dict[str, float]:
    """log(π̂/π) of each estimate, all from the same features and labels."""
    from pulearn import (
        HistogramMatchPriorEstimator,
        LabelFrequencyPriorEstimator,
        ScarEMPriorEstimator,
    )

    names = [f"x{i}" for i in range(train.x.shape[1])]
    scores = PULightGBM(names, scenario="single-sample", prior=prior, seed=1).label_scores(
        train.x, train.s, names=names
    )
    ours = estimate_prior(
        scores[train.s == 1],
        scores[train.s == 0],
        scenario="single-sample",
        seed=1,
        n_bootstrap=50,
        fallback=0.5,
    )
    found = {"ours": ours.value}
    theirs = {
        "pulearn label frequency": LabelFrequencyPriorEstimator(),
        "pulearn histogram": HistogramMatchPriorEstimator(_sklearn()),
        # Each step is a fit of its own; it has settled long before its default of fifty.
        "pulearn EM": ScarEMPriorEstimator(_sklearn(), max_iter=10),
    }
    labels = np.where(train.s == 1, 1, -1)
    for name, estimator in theirs.items():
        found[name] = float(estimator.estimate(train.x, labels).pi)
    return {name: float(np.log(value / prior)) for name, value in found.items()}


def _goals(name: str, table: dict[str, Any], c: float) -> dict[str, bool]:
    goals: dict[str, bool] = {}
    for other in ("pulearn", "LightGBM on s"):
        for column in _ACCURACY:
            gap, error = (table[other][f"{w}, {column}"] for w in ("ours − this", "error of that"))
            worse = gap if column == "log_loss" else -gap
            goals[f"{name}: {column} not below {other}'s"] = worse <= 2 * error
        ours, theirs = (abs(np.log(max(table[m]["slope"], 1e-3))) for m in ("ours", other))
        goals[f"{name}: slope nearer 1 than {other}'s"] = bool(ours < theirs)
    ap = {m: table[m]["average_precision"] for m in ("ours", "true labels", _FEW)}
    if c >= 0.3:
        goals[f"{name}: within 2 % of true labels"] = ap["ours"] >= 0.98 * ap["true labels"]
        goals[f"{name}: within 2 % of {_FEW}"] = ap["ours"] >= 0.98 * ap[_FEW]
    return goals


def _speed(options: argparse.Namespace) -> dict[str, float]:
    """Our fit in fits of LightGBM on s, and our scoring over LightGBM's, by CPU time."""
    train = draw("features", n=options.rows, prior=options.prior, c=0.5, seed=3)
    start = process_time()
    model = _ours(train, options.prior)
    middle = process_time()
    plain = _sklearn().fit(train.x, train.s)
    end = process_time()
    booster = model.booster_
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: model.decision_function(train.x, model.feature_names),
        "LightGBM": lambda: booster.predict(train.x, raw_score=True, num_threads=1),
    }
    seconds = seconds_each(works, repeats=7)
    return {
        "fits": (middle - start) / (end - middle),
        "iterations": float(model.num_iterations_),
        "plain_iterations": float(plain.n_estimators),
        "scoring": seconds["ours"] / seconds["LightGBM"],
    }


def _memory(rows: int) -> float:
    """Peak resident memory, GB, of a process that fits rows × 200 features.

    Twenty iterations: more of them take time, not memory.
    """
    code = (
        "import numpy as np, resource\n"
        "from clusterray.pu import PULightGBM\n"
        f"n = {rows}\n"
        "x = np.random.default_rng(0).normal(size=(n, 200)).astype(np.float32)\n"
        "s = (np.arange(n) % 1000 == 0).astype(np.int8)\n"
        "x[s == 1, :3] += 2\n"
        "names = [str(i) for i in range(200)]\n"
        "PULightGBM(names, scenario='single-sample', prior=0.003, "
        "params={'num_iterations': 20}).fit(x, s, names=names)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Kibibytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return int(run.stdout.split()[-1]) * unit / 1e9


def _show(title: str, table: dict[str, Any]) -> None:
    columns = (*_ACCURACY, "slope", "mean_p_over_prior", "seconds")
    print(f"\n{title:24}" + "".join(f"{c:>19}" for c in columns))
    for method in _METHODS:
        print(f"{method:24}" + "".join(f"{table[method][c]:19.4f}" for c in columns))
    said = ", ".join(f"{n} {np.mean(v):+.3f}" for n, v in table["priors"].items())
    print(f"log(π̂/π): {said}", flush=True)
