"""The Ray task of one fit, apart, so that its process imports no more than the fit needs."""

import time
from typing import Any

import ray

from clusterray.engine.fit_context import FitContext
from clusterray.engine.fit_schedule import FitPlan
from clusterray.engine.fits import fit

__all__ = ["fit_task"]


@ray.remote
def fit_task(
    context: FitContext, model: str, leave_out: int, board: Any, plan: FitPlan | None
) -> tuple[str, float]:
    """Fit `model` without fold `leave_out`; (model, seconds).

    Parameters
    ----------
    board : queue that takes (model, leave_out, EpochLog) after each epoch.
    plan : how a network is fitted; None for LightGBM.
    """
    start = time.monotonic()
    if plan is not None and plan.grouped:
        from clusterray.engine.worker_group import fit_in_group

        fit_in_group(context, model, leave_out, plan=plan, board=board)
    else:
        fit(
            context,
            model,
            leave_out,
            progress=lambda log: board.put_nowait((model, leave_out, log)),
        )
    return model, time.monotonic() - start
