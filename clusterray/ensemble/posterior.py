"""From base logits to a probability with its interval, and to the finds that a list promises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from clusterray.ensemble.calibration import Calibrator, Choice
from clusterray.ensemble.calibration_curves import evaluate
from clusterray.ensemble.stacking import LOGIT_LIMIT, Stacker
from clusterray.errors import BundleError, InputError
from clusterray.provenance import seed_for
from clusterray.pu.labelling import check_finite, check_fraction

__all__ = ["PosteriorEnsemble"]

_CHUNK_VALUES = 2_000_000
_NUMBERS = ("coef", "intercept", "prior")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PosteriorEnsemble:
    """The stacker and calibrator that score, and their refits on resampled sky cells.

    Member i has log-odds η_i(z · coef_i + intercept_i) at π = prior_i, η_i a curve of the
    calibrator's kind; what context features add to the stack is the stacker's in all of them.
    """

    stacker: Stacker
    calibrator: Calibrator
    coef: Floats
    intercept: Floats
    curves: tuple[Floats, ...]
    prior: Floats
    choice: Choice
    log_odds_shift: float = 0.0
    """Added to all log-odds, see `at_prior`."""

    def at_prior(self, prior: float) -> "PosteriorEnsemble":
        """The same for a survey in which a share `prior` of the rows are lenses.

        Raises
        ------
        InputError : a prevalence outside (0, 1).
        """
        check_fraction(prior, name="survey prior")
        own = self.calibrator.labelling_.prior
        return replace(self, log_odds_shift=float(logit(prior) - logit(own)))

    def interval(
        self,
        base_logits: ArrayLike,
        *,
        level: float = 0.9,
        logit_stack: ArrayLike | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        """(p, low, high), each (n,), of rows with base logits (n, m).

        p is the calibrator's; low and high are the outer order statistics of the members at
        (1 ∓ level)/2, widened to hold p where the members leave it out. All three rise with every
        base logit, and a row's values do not depend on the rows beside it.

        Parameters
        ----------
        logit_stack : (n,) stack logits to use in place of the stacker's, for training rows
            (`cross_fitted`) and where the stacker has context features; the members are shifted by
            the same amount.

        Raises
        ------
        InputError : logits that are not finite, a level outside (0, 1), or no stack logits for a
            stacker with context features.
        """
        check_fraction(level, name="level")
        z, stack, shift = self._stacked(base_logits, logit_stack)
        center = self.calibrator.decision_function(stack) + self.log_odds_shift
        low, high = np.empty(len(z)), np.empty(len(z))
        step = max(1, _CHUNK_VALUES // len(self.curves))
        for start in range(0, len(z), step):
            rows = slice(start, start + step)
            eta = self._members(z[rows], shift[rows])
            ends = _ends(eta.shape[1], level)
            eta.partition(ends, axis=1)
            low[rows], high[rows] = eta[:, ends[0]], eta[:, ends[1]]
        return (
            expit(center),
            expit(np.minimum(low, center)),
            expit(np.maximum(high, center)),
        )

    def expected_finds(
        self,
        base_logits: ArrayLike,
        budgets: Sequence[int],
        *,
        level: float = 0.9,
        logit_stack: ArrayLike | None = None,
        seed: int = 0,
    ) -> tuple[Floats, Floats, Floats]:
        """(finds, low, high), each (budgets,): lenses among the first rows of a list.

        Rows come best first. finds is the sum of p; low and high hold the number that is there
        with probability `level`: members differ by what is not known of the probabilities, and
        around each of them as many lenses are drawn as chance allows.

        Parameters
        ----------
        budgets : numbers of rows, each from 1 to n.
        base_logits, logit_stack : as `interval`.
        seed : of the draws.

        Raises
        ------
        InputError : as `interval`; a budget outside the list.
        """
        check_fraction(level, name="level")
        z, stack, shift = self._stacked(base_logits, logit_stack)
        wrong = [b for b in budgets if not 1 <= b <= len(z)]
        if wrong:
            raise InputError(f"budget {wrong[0]}: expected 1 to {len(z)}, the rows of the list")
        p = np.cumsum(expit(self.calibrator.decision_function(stack) + self.log_odds_shift))
        top = max(budgets, default=0)
        draws = np.zeros((len(self.curves), len(budgets)))
        step = max(1, _CHUNK_VALUES // len(self.curves))
        rng = np.random.default_rng(seed_for(seed, purpose="expected finds"))
        at = np.array(budgets, dtype=np.int64)
        for start in range(0, top, step):
            rows = slice(start, min(start + step, top))
            probability = expit(self._members(z[rows], shift[rows]))
            found = np.cumsum(rng.random(probability.shape) < probability, axis=0)
            # Rows of this chunk that lie within each budget.
            within = np.clip(at - start, 0, len(found))
            draws += np.vstack([np.zeros(len(self.curves)), found])[within].T
        ends = _ends(len(draws), level)
        ordered = np.sort(draws, axis=0)
        mean = p[at - 1]
        return mean, np.minimum(ordered[ends[0]], mean), np.maximum(ordered[ends[1]], mean)

    def _stacked(
        self, base_logits: ArrayLike, logit_stack: ArrayLike | None
    ) -> tuple[Floats, Floats, Floats]:
        """Base logits, stack logits, and what the latter have beyond the base logits' part."""
        z = check_finite(base_logits, shape=(None, len(self.stacker.models)), where="base logits")
        if logit_stack is None:
            return z, self.stacker.decision_function(z), np.zeros(len(z))
        given = check_finite(logit_stack, shape=(len(z),), where="stack logits")
        return z, given, given - self.stacker.of_models(z)

    def _members(self, z: Floats, shift: Floats) -> Floats:
        """Log-odds (n, members)."""
        clipped = np.clip(z, -LOGIT_LIMIT, LOGIT_LIMIT)
        stack = shift[:, None] + self.intercept
        # Column by column: a matrix product may round a row by how many stand beside it.
        for column, coef in zip(clipped.T, self.coef.T, strict=True):
            stack += column[:, None] * coef
        for i, curve in enumerate(self.curves):
            stack[:, i] = evaluate(self.calibrator.kind, curve, stack[:, i])
        return stack + self.log_odds_shift

    def to_json(self) -> dict[str, Any]:
        """Plain values for the bundle."""
        return {
            "stacker": self.stacker.to_json(),
            "calibrator": self.calibrator.to_json(),
            **{name: getattr(self, name).tolist() for name in _NUMBERS},
            "curves": [curve.tolist() for curve in self.curves],
            "choice": self.choice.to_json(),
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Self:
        """Back from `to_json`.

        Raises
        ------
        BundleError : members whose arrays differ in length or do not fit the stacker.
        """
        arrays = {n: np.asarray(state.get(n, []), dtype=np.float64) for n in _NUMBERS}
        curves = tuple(np.asarray(c, dtype=np.float64) for c in state.get("curves", []))
        stacker = Stacker.from_json(state.get("stacker", {}))
        shapes: dict[str, tuple[int, ...]] = {name: array.shape for name, array in arrays.items()}
        n = len(curves)
        if not n or any(
            shape != ((n, len(stacker.models)) if name == "coef" else (n,))
            for name, shape in shapes.items()
        ):
            raise BundleError(
                f"posterior members have shapes {shapes} and {n} curves, expected as many of each "
                f"and coef (n, {len(stacker.models)}); make the bundle again"
            )
        calibrator = Calibrator.from_json(state.get("calibrator", {}))
        for curve in curves:
            Calibrator.from_json({**calibrator.to_json(), "parameters": curve.tolist()})
        return cls(
            stacker,
            calibrator,
            coef=arrays["coef"],
            intercept=arrays["intercept"],
            curves=curves,
            prior=arrays["prior"],
            choice=Choice(**state["choice"]),
        )


def _ends(n_members: int, level: float) -> list[int]:
    last = n_members - 1
    return [int(np.floor(last * (1 - level) / 2)), int(np.ceil(last * (1 + level) / 2))]
