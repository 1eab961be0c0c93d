"""The loop of a fit: epochs, steps, early stopping, memory that runs out, losses that are NaN."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from clusterray.config import VisionSettings
from clusterray.errors import InputError, RunError
from clusterray.provenance import seed_for
from clusterray.vision.checkpoint import Checkpoints, EpochLog, TrainingState
from clusterray.vision.feeding import Ahead, Batch, Feed
from clusterray.vision.learner import Learner
from clusterray.vision.optimisation import learning_rate, set_rate
from clusterray.vision.sources import Windowed

__all__ = ["Data", "Loop", "Ranks", "Risk", "TrainingLog"]

_MAX_GRADIENT_NORM = 1.0
_MAX_SAVING_SHARE = 0.1
_STEPS_AHEAD = {"cpu": 0, "cuda": 1}
"""How many steps are begun before it is read whether one was finite."""

Rows = NDArray[np.int64]


class Risk(Protocol):
    """What a risk function returns: a scalar to step on, and the scalar to report."""

    @property
    def objective(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def risk(self) -> torch.Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class TrainingLog:
    """The loss curve of one fit, and what there is to say about it."""

    epochs: tuple[EpochLog, ...]
    notes: tuple[str, ...] = ()
    best_epoch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "epochs": [asdict(e) for e in self.epochs],
            "notes": list(self.notes),
            "best_epoch": self.best_epoch,
        }


@dataclass(frozen=True)
class Data:
    """What a fit learns from.

    Parameters
    ----------
    source : rows of a sample.
    labels : (n,) integers of all rows of the source, handed to the risk as they are.
    plan : epoch → windows of batches of row numbers, the same number of batches in every epoch. A
        batch is the global one: each process takes its part of it.
    validation : rows that early stopping is judged on; None trains all epochs.
    names : (n,) what each row is called, which its augmentation depends on; None: its number.
    """

    source: Windowed
    labels: NDArray[Any]
    plan: Callable[[int], Sequence[Sequence[Rows]]]
    validation: Rows | None = None
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is; `group` is None where it is the only one."""

    rank: int = 0
    world: int = 1
    group: distributed.ProcessGroup | None = None

    def part(self, rows: Rows) -> Rows:
        """The rows of a global batch that are this process's."""
        return rows[self.rank :: self.world]


@dataclass(frozen=True)
class _Verdict:
    """Whether a step was finite, on its way to the host.

    On a GPU it is read one step later: Python, which launches kernels as slowly as the GPU works
    them off, would wait for nothing else.
    """

    batch: int
    finite: torch.Tensor
    """Of each row's logit."""
    fine: torch.Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, batch: int, finite: torch.Tensor, fine: torch.Tensor) -> "_Verdict":
        if not fine.is_cuda:
            return cls(batch, finite, fine, None)
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(fine, non_blocking=True)
        return cls(batch, finite, host, torch.cuda.current_stream(fine.device).record_event())

    def __bool__(self) -> bool:
        if self.arrived is not None:
            self.arrived.synchronize()
        return bool(self.fine)


class Loop:
    """A fit under way; see `training.run` for what its parts are."""

    def __init__(
        self,
        learner: Learner,
        data: Data,
        risk: Callable[[torch.Tensor, torch.Tensor], Risk],
        settings: VisionSettings,
        seed: int,
        ranks: Ranks,
        checkpoints: Checkpoints | None,
        device: torch.device,
    ) -> None:
        self.learner, self.data, self.risk, self.settings = learner, data, risk, settings
        self.seed, self.ranks, self.checkpoints, self.device = seed, ranks, checkpoints, device
        learner.model.to(device)
        self.state = TrainingState.begin(learner.model, settings)
        self._resume()
        self.feed = Feed(data.source, device)
        self.ahead = Ahead(self._prepare_whole, device)
        self.forward = _parallel(learner, ranks, device)
        on_gpu = device.type == "cuda"
        self.half = settings.dtype == "bfloat16" or (settings.dtype == "auto" and on_gpu)
        self.labels = torch.as_tensor(data.labels, device=device)
        names = data.names if data.names is not None else range(len(data.labels))
        keys = [seed_for(seed, purpose="augmentation", row=name) for name in names]
        self.row_keys = np.array(keys, np.uint64)
        self.seeds = self.row_keys
        self.verdicts: deque[_Verdict] = deque()
        self.saved, self.saving = 0.0, 0.0

    def _resume(self) -> None:
        if self.checkpoints is None:
            return
        found = self.checkpoints.load()
        if found is not None:
            self.state.load(found, where=self.checkpoints.url)
        if self.state.parts == 1 and self.checkpoints.split():
            self._split()
        if self.ranks.group is not None:
            begun = len(self.state.history)
            extremes = torch.tensor([begun, -begun], device=self.device)
            distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=self.ranks.group)
            if extremes.sum():
                # Nothing to tell a user: the group is started again.
                raise RuntimeError(f"processes took up epochs {extremes.tolist()}")

    def run(self, progress: Callable[[EpochLog], None] | None) -> TrainingLog:
        """Go through the epochs that are left."""
        state = self.state
        try:
            while len(state.history) < self.settings.epochs and not self._stopped():
                self._epoch(len(state.history))
                self._save()
                if progress is not None:
                    progress(state.history[-1])
        finally:
            if self.checkpoints is not None:
                self.checkpoints.wait()
        notes = list(state.notes)
        if state.best_epoch is not None and len(state.history) < self.settings.epochs:
            notes.append(f"stopped after epoch {len(state.history) - 1}: best {state.best_epoch}")
        state.finish()
        return TrainingLog(tuple(state.history), tuple(notes), state.best_epoch)

    def _save(self) -> None:
        """Keep the state, but not so often that it costs more than a tenth of the time."""
        started = time.perf_counter()
        if self.checkpoints is None or self.ranks.rank:
            return
        if started - self.saved < self.saving / _MAX_SAVING_SHARE:
            return
        self.checkpoints.save(self.state.snapshot())
        self.saved = time.perf_counter()
        self.saving = self.saved - started

    def _stopped(self) -> bool:
        best, patience = self.state.best_epoch, self.settings.patience
        if best is None or patience is None:
            return False
        return len(self.state.history) - 1 - best >= patience

    def _epoch(self, epoch: int) -> None:
        started = time.perf_counter()
        windows = [list(w) for w in self.data.plan(epoch)]
        batches = [rows for window in windows for rows in window]
        if not batches:
            raise InputError(f"epoch {epoch}: no batches; the sampler needs at least one")
        mine = [[self.ranks.part(rows) for rows in window] for window in windows]
        good = {k: v.clone() for k, v in self.learner.model.state_dict().items()}
        self.forward.train()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        mixed = np.uint64(seed_for(self.seed, purpose="augmentation", epoch=epoch))
        self.seeds = self.row_keys ^ mixed
        self.ahead.begin(self.feed(mine))
        for i in range(len(batches)):
            done = (epoch + (i + 1) / len(batches)) / self.settings.epochs
            rate = learning_rate(self.settings, done)
            set_rate(self.state.optimizer, rate)
            batch = self.ahead.take()
            assert batch is not None
            loss = self._attempt(epoch, i, batch)
            sums += torch.stack([loss.objective.detach(), loss.risk.detach()]).double()
            ahead = _STEPS_AHEAD[self.device.type] if i < len(batches) - 1 else 0
            while len(self.verdicts) > ahead:
                verdict = self.verdicts.popleft()
                if not verdict:
                    self.learner.model.load_state_dict(good)
                    self.learner.model.eval()
                    raise RunError(self._not_finite(epoch, verdict, batches[verdict.batch]))
        objective, mean_risk = (sums / len(batches)).tolist()
        # Before that the rate is high, and the least risk is that of weights that hardly learnt.
        criterion = self._criterion() if epoch >= self.settings.epochs // 2 else None
        seconds = time.perf_counter() - started
        n = sum(len(rows) for rows in batches)
        log = EpochLog(epoch, objective, mean_risk, rate, seconds, n, criterion)
        self.state.history.append(log)
        self.state.keep_if_best()

    def _attempt(self, epoch: int, number: int, batch: Batch) -> Risk:
        """One step, in halves where memory runs out."""
        try:
            return self._step(epoch, number, batch)
        except torch.OutOfMemoryError as error:
            self._out_of_memory(epoch, number, batch.rows, error)
        batch.inputs = None
        return self._attempt(epoch, number, batch)

    def _out_of_memory(self, epoch: int, batch: int, rows: Rows, error: Exception) -> None:
        where = f"out of memory in epoch {epoch}, batch {batch} ({len(rows)} rows a process)"
        if self.state.parts > 1:
            raise RunError(
                f"training stopped: {where}, in halves as well; lower vision.batch_size, or choose "
                "a smaller vision.model or vision.image_size_px"
            ) from error
        if self.ranks.world > 1:
            # The others wait in a collective operation: all begin again at the last epoch.
            if self.checkpoints is not None:
                self.checkpoints.remember_split()
            raise error
        self._split()
        self.state.notes[-1] += f": {where}"
        self.state.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _split(self) -> None:
        self.state.parts = 2
        self.state.notes.append("memory ran out: batches go through the network in halves")

    def _step(self, epoch: int, number: int, batch: Batch) -> Risk:
        optimizer, model = self.state.optimizer, self.learner.model
        optimizer.zero_grad()
        dropout = seed_for(self.seed, purpose="dropout", epoch=epoch, batch=number,
                           rank=self.ranks.rank)  # fmt: skip
        loss, finite = self._backward(batch, dropout)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        fine = torch.isfinite(loss.objective.detach()) & torch.isfinite(norm)
        self.verdicts.append(_Verdict.of(number, finite, fine))
        optimizer.step()
        self.state.steps += 1
        self.state.average.update(model, step=self.state.steps)
        return loss

    def _backward(self, batch: Batch, dropout: int) -> tuple[Risk, torch.Tensor]:
        """Gradients of the whole batch's objective, in as many parts as memory asks for.

        Returns
        -------
        The risk, and which rows' logits are finite.
        """
        target = self.labels[torch.from_numpy(batch.rows).to(self.device, non_blocking=True)]
        if self.state.parts == 1:
            torch.manual_seed(dropout)
            inputs = batch.inputs
            if inputs is None:
                inputs = self._prepare(batch.rows, batch.arrays)
            logits = self._logits(inputs)
            self.ahead.look()
            loss = self.risk(logits, target)
            loss.objective.backward()
            return loss, torch.isfinite(logits.detach())
        cuts = np.array_split(np.arange(len(batch.rows)), self.state.parts)
        parts = [slice(int(c[0]), int(c[-1]) + 1) for c in cuts if len(c)]

        def logits_of(k: int) -> torch.Tensor:
            # The same dropout in both passes.
            torch.manual_seed(dropout + k)
            arrays = tuple(a[parts[k]] for a in batch.arrays)
            return self._logits(self._prepare(batch.rows[parts[k]], arrays))

        with torch.no_grad():
            logits = torch.cat([logits_of(k) for k in range(len(parts))])
        loss = self.risk(logits.requires_grad_(), target)
        loss.objective.backward()
        assert logits.grad is not None
        for k, part in enumerate(parts):
            last = k == len(parts) - 1
            with self.forward.no_sync() if self.ranks.world > 1 and not last else nullcontext():
                logits_of(k).backward(logits.grad[part])
        return loss, torch.isfinite(logits.detach())

    def _prepare(self, rows: Rows, arrays: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self.learner.prepare(arrays, self.seeds[rows])

    def _prepare_whole(self, rows: Rows, arrays: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
        """The input of a whole batch, where it goes through the network as one."""
        return self._prepare(rows, arrays) if self.state.parts == 1 else None

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits: torch.Tensor = self.forward(inputs)
        return logits

    def _criterion(self) -> float | None:
        """The risk of the averaged weights on the validation slice, over all processes."""
        rows = self.data.validation
        if rows is None or self.settings.patience is None:
            return None
        judge = self.learner.twin(self.state.average.module)
        mine, size = self.ranks.part(rows), max(1, self.settings.batch_size // self.ranks.world)
        pieces = [mine[i : i + size] for i in range(0, len(mine), size)]
        logits = []
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            for _, arrays in self.feed([pieces] if pieces else []):
                logits.append(judge(judge.prepare(arrays, None)).float())
        target = self.labels[torch.from_numpy(mine).to(self.device)]
        found = torch.cat(logits) if logits else torch.zeros(0, device=self.device)
        return float(self.risk(found, target).risk)

    def _not_finite(self, epoch: int, verdict: _Verdict, rows: Rows) -> str:
        n_good = len(self.state.history)
        kept = f"the weights after epoch {n_good - 1}" if n_good else "the weights it began with"
        names = self.data.names
        worst = self.ranks.part(rows)[~verdict.finite.cpu().numpy()]
        rows = worst if len(worst) else rows
        called = rows if names is None else [names[k] for k in rows]
        word = "rows" if names is None else "objects"
        shown = ", ".join(map(str, called[:5]))
        return (
            f"training stopped: the objective or its gradient is not finite (NaN) in epoch "
            f"{epoch}, batch {verdict.batch} ({word} {shown}, …); the model keeps {kept}: lower "
            "vision.learning_rate, or look at these cutouts"
        )


def _parallel(learner: Learner, ranks: Ranks, device: torch.device) -> Any:
    """The learner as it is, or one whose gradients are averaged over the processes."""
    if ranks.world == 1:
        return learner
    module: Any = learner
    if device.type == "cuda":
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    # Heads that a trunk carries but does not use get no gradients.
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        process_group=ranks.group,
        find_unused_parameters=True,
    )
