"""Running the fits of a training run on the cluster, side by side, and showing how they go."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.queue import Queue

from clusterray.engine.epoch_lines import EpochLines
from clusterray.engine.fit_context import FitContext
from clusterray.engine.fit_schedule import plan_fits
from clusterray.engine.fit_task import fit_task
from clusterray.engine.frozen_tokens import encode_sample
from clusterray.engine.sample_rows import SampleRows, share
from clusterray.engine.session import cluster_shape
from clusterray.engine.work import cpu_share, unwrap

__all__ = ["run_fits"]

_LOOK_SECONDS = 0.5


def run_fits(context: FitContext, fits: Sequence[tuple[str, int]]) -> Iterator[tuple[str, float]]:
    """Run these fits, (model, fold left out); yield (model, seconds) as they end.

    A network's fit in one process is a Ray task, one in several a Ray Train worker group (see
    `plan_fits`); either is taken up where it was if processes die. LightGBM fits are tasks beside
    them. Ray must be joined.

    Raises
    ------
    ClusterrayError : the one a fit raised, without Ray's wrapping.
    """
    if not fits:
        return
    board = Queue(actor_options={"num_cpus": 0})
    try:
        yield from _Fits(context, fits, board).run()
    finally:
        board.shutdown(force=True)


class _Fits:
    def __init__(self, context: FitContext, fits: Sequence[tuple[str, int]], board: Any) -> None:
        self.config, self.board = context.config, board
        self.networks = [f for f in fits if f[0] != "lightgbm"]
        self.others = [f for f in fits if f[0] == "lightgbm"]
        self.settings = {name: self.config.network(name) for name, _ in self.networks}
        self.cpus, gpus = cluster_shape()
        self.plans = {
            name: plan_fits(
                self.cpus,
                gpus,
                n_fits=len(self.networks),
                batch_size=settings.batch_size,
                workers=settings.workers,
            )
            for name, settings in self.settings.items()
        }
        if self.networks:
            context = self._shared(context)
        self.context = ray.put(context)

    def _shared(self, context: FitContext) -> FitContext:
        made = {name: encode_sample(context, name) for name in self.settings}
        tokens: dict[str, SampleRows] = {}
        held = 0
        # Cutouts come last: where there are tokens, those are gone through at every epoch.
        for name, rows in made.items():
            if rows is not None:
                tokens[name] = share(rows, beside=held)
                held += 0 if tokens[name].streamed else rows.nbytes
        return replace(context, rows=share(context.sample_rows(), beside=held), tokens=tokens)

    def run(self) -> Iterator[tuple[str, float]]:
        lines = EpochLines({name: s.epochs for name, s in self.settings.items()})
        # As many as there is room for whichever of the networks they are; the longest first, so
        # that none is left alone at the end.
        at_a_time = min((plan.at_a_time for plan in self.plans.values()), default=0)
        pending = [self._begin(*fit) for fit in self.networks[:at_a_time]]
        waiting = self.networks[at_a_time:]
        pending += [self._begin(*other) for other in self.others]
        while pending:
            ready, pending = ray.wait(pending, timeout=_LOOK_SECONDS)
            lines.show(self.board)
            for ref in ready:
                try:
                    model, seconds = ray.get(ref)
                except Exception as error:
                    raise unwrap(error) from error
                if model != "lightgbm" and waiting:
                    pending.append(self._begin(*waiting.pop(0)))
                yield model, seconds
        lines.show(self.board)

    def _begin(self, model: str, leave_out: int) -> Any:
        cpus, gpus = cpu_share(self.cpus, max(1, int(self.cpus))), 0.0
        plan, settings = self.plans.get(model), self.settings.get(model, self.config.vision)
        if plan is not None:
            # The processes of a group reserve for themselves.
            cpus, gpus = (0.0, 0.0) if plan.grouped else (plan.num_cpus, plan.num_gpus)
        return fit_task.options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=settings.max_failures,
            name=f"fit {model} without fold {leave_out}",
        ).remote(self.context, model, leave_out, self.board, plan)
