"""The state of a fit between epochs: one safetensors file, with its history as JSON inside.

Nothing is pickled. A file is written whole or not at all, so the newest is always a good one.
"""

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from clusterray import storage
from clusterray.config import VisionSettings
from clusterray.errors import InputError
from clusterray.vision.optimisation import averaged, make_optimizer
from clusterray.vision.vit import LensViT

__all__ = ["Checkpoints", "EpochLog", "Snapshot", "TrainingState"]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class EpochLog:
    """Means over the batches of one epoch, and the learning rate at its end.

    `criterion` is the risk of the averaged weights on the validation slice, None where there is
    none; `rows` the cutouts that all processes went through.
    """

    epoch: int
    objective: float
    risk: float
    learning_rate: float
    seconds: float
    rows: int = 0
    criterion: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state: tensors on the CPU, and the rest as JSON."""

    tensors: Mapping[str, torch.Tensor]
    about: str

    def to_bytes(self) -> bytes:
        """One safetensors file."""
        return safetensors.torch.save(dict(self.tensors), metadata={"state": self.about})


@dataclass
class TrainingState:
    """Everything that a fit needs to go on as if it had never stopped.

    `parts` is how many pieces a batch goes through the network in: 2 after memory ran out once.
    """

    model: LensViT
    average: Any
    optimizer: torch.optim.Optimizer
    steps: int = 0
    parts: int = 1
    history: list[EpochLog] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, model: LensViT, settings: VisionSettings) -> "TrainingState":
        """The state before the first step; the model is on its device already."""
        return cls(model, averaged(model, settings), make_optimizer(model, settings))

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose averaged weights had the least criterion; None where none has one."""
        judged = [(e.criterion, e.epoch) for e in self.history if e.criterion is not None]
        return min(judged)[1] if judged else None

    def keep_if_best(self) -> None:
        """Keep the averaged weights if the last epoch is the best so far."""
        if self.history and self.best_epoch == self.history[-1].epoch:
            self.best = {k: v.detach().clone() for k, v in _learned(self.average.module).items()}

    def finish(self) -> None:
        """Give the model the weights to score with: the best, or else the averaged ones."""
        self.model.load_state_dict(self.average.module.state_dict())
        self.model.load_state_dict(self.best, strict=False)
        self.model.eval()

    def snapshot(self) -> "Snapshot":
        """Copy the state as it is now, to be written while the fit goes on.

        Tensors are `model.…`, `average.…`, `best.…` and `optimizer.<moment>.…`; frozen weights are
        left out, for they are where they came from.
        """
        tensors = {f"model.{k}": v for k, v in _learned(self.model).items()}
        tensors |= {f"average.{k}": v for k, v in _learned(self.average.module).items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name, moments in self._moments().items():
            tensors |= {f"optimizer.{m}.{name}": moments[m] for m in _MOMENTS if m in moments}
        about = {
            "architecture": self.model.architecture(),
            "steps": self.steps,
            "parts": self.parts,
            "history": [asdict(e) for e in self.history],
            "notes": self.notes,
        }
        copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        return Snapshot(copies, json.dumps(about))

    def load(self, data: bytes, *, where: str) -> None:
        """Take up the bytes of a snapshot.

        Raises
        ------
        InputError : no checkpoint, or one of another network.
        """
        about, tensors = _read(data, where)
        found, wanted = about["architecture"], self.model.architecture()
        if found != wanted:
            differing = ", ".join(
                f"{k} {found.get(k)!r} there, {wanted.get(k)!r} now"
                for k in sorted({*found, *wanted})
                if found.get(k) != wanted.get(k)
            )
            raise InputError(
                f"checkpoint '{storage.redact(where)}' is of another network ({differing}); "
                "remove it to begin anew, or train into another paths.training"
            )
        try:
            _give(self.model, _under("model.", tensors))
            _give(self.average.module, _under("average.", tensors))
            self._take_moments(tensors)
        except (RuntimeError, KeyError) as error:
            raise InputError(
                f"checkpoint '{storage.redact(where)}' does not fit this fit: {error}; was "
                "another number of blocks frozen? remove it to begin anew"
            ) from error
        device = next(self.model.parameters()).device
        self.best = {k: v.to(device) for k, v in _under("best.", tensors).items()}
        self.steps, self.parts = int(about["steps"]), int(about["parts"])
        self.history = [EpochLog(**e) for e in about["history"]]
        self.notes = list(about["notes"])

    def _names(self) -> list[str]:
        """The optimizer's parameters, in its order."""
        names = {id(p): n for n, p in self.model.named_parameters()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        state = self.optimizer.state_dict()["state"]
        return {name: state[i] for i, name in enumerate(self._names()) if i in state}

    def _take_moments(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if not any(k.startswith("optimizer.") for k in tensors):
            return
        values = self.optimizer.state_dict()
        values["state"] = {
            i: {m: tensors[f"optimizer.{m}.{name}"] for m in _MOMENTS}
            for i, name in enumerate(self._names())
        }
        self.optimizer.load_state_dict(values)


def _learned(model: LensViT) -> dict[str, torch.Tensor]:
    """What training changes: parameters that are not frozen, and buffers."""
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    return {k: v for k, v in model.state_dict().items() if k not in frozen}


def _give(model: LensViT, tensors: Mapping[str, torch.Tensor]) -> None:
    missing = _learned(model).keys() ^ tensors.keys()
    if missing:
        raise KeyError(f"weights that only one of them has: {', '.join(sorted(missing)[:3])}")
    model.load_state_dict(dict(tensors), strict=False)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _read(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        tensors = safetensors.torch.load(data)
        # The header is JSON behind its length, eight bytes, little-endian.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"]["state"]), tensors
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"'{storage.redact(where)}' is no checkpoint of a fit: {error}; remove it to begin anew"
        ) from error


class Checkpoints:
    """Where one fit keeps its newest state; written in the background, one at a time.

    Parameters
    ----------
    url : folder, on disk or in a bucket.
    """

    def __init__(self, url: str) -> None:
        self.folder = url
        self.url = storage.join(url, "state.safetensors")
        self._split_url = storage.join(url, "split.json")
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def load(self) -> bytes | None:
        """The newest state; None where there is none."""
        return storage.read_bytes(self.url) if storage.exists(self.url) else None

    def save(self, snapshot: Snapshot) -> None:
        """Write a state once the one before is written; an error of that one is raised here."""
        self.wait()
        self._writing = self._pool.submit(
            lambda: storage.write_bytes(self.url, snapshot.to_bytes())
        )

    def wait(self) -> None:
        """Until everything is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def split(self) -> bool:
        """Whether memory ran out before, in any of the fit's processes."""
        return storage.exists(self._split_url)

    def remember_split(self) -> None:
        """Let every process split its batches when the fit is taken up again."""
        storage.write_json(self._split_url, {"parts": 2})
