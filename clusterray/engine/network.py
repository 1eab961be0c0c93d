"""A lens network as a scoring actor holds it: on its device, compiled, fed with byte planes.

What it computes is what `vision.prediction.predict` computes, with the same micro-batches: cut
from the start of the row group, all of one size, the last one padded with empty cutouts. Pixels go
to the device as they are stored, everything after that happens there, and only the wanted columns
come back, in one copy.
"""

import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from clusterray.config import ScoreSettings
from clusterray.engine.host_memory import RegisteredStore
from clusterray.errors import InputError, RunError
from clusterray.vision.anomaly import AnomalyModel
from clusterray.vision.prediction import all_views
from clusterray.vision.preprocess import BLANK_BYTE, to_input, unshuffle
from clusterray.vision.training import cpu_threads
from clusterray.vision.vit import LensViT

__all__ = ["NetworkScores", "ScoringNetwork", "keep_compiled", "register_store"]

_CACHE_ENV: Final = "TORCHINDUCTOR_CACHE_DIR"
_CACHE: Final = Path.home() / ".cache" / "clusterray" / "inductor"


@dataclass(frozen=True)
class NetworkScores:
    """Of one row group: logit (n,), and what was asked for besides, else None; float32.

    `anomaly` (n,), `embedding` (n, d), `attention` over patches (n, tokens).
    """

    logit: np.ndarray
    anomaly: np.ndarray | None = None
    embedding: np.ndarray | None = None
    attention: np.ndarray | None = None


class _FromPlanes(torch.nn.Module):
    """Byte planes in, scores out: one graph, so that a compiler can join what lies between."""

    def __init__(self, model: LensViT, *, size_px: int, settings: ScoreSettings) -> None:
        super().__init__()
        self.model, self.size_px = model, size_px
        self.mixed, self.views = settings.dtype == "bfloat16", settings.views

    def forward(
        self, raw: torch.Tensor, step: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        settings, side = self.model.settings, self.size_px
        images = to_input(
            unshuffle(raw, n_bands=settings.n_bands, height_px=side, width_px=side),
            step,
            noise_sigma=sigma,
            softening=settings.asinh_softening,
            size_px=settings.image_size_px,
        )
        with torch.autocast(raw.device.type, torch.bfloat16, enabled=self.mixed):
            output = self.model(images) if self.views == 1 else all_views(self.model, images)
        return tuple(t.float() for t in output)


class ScoringNetwork:
    """A network ready to score row groups of byte planes; several threads may call it at once.

    On a GPU each thread works on a stream of its own, so that the copies of one row group run
    beside the kernels of another.

    Parameters
    ----------
    model : in eval mode; moved to `device`.
    anomaly : of embeddings, computed on the device; None where there is none.
    size_px : side of the cutouts.
    settings : micro-batch, dtype, compiler, and whether embeddings and attention are kept.
    device : "cpu" or "cuda".

    Raises
    ------
    RunError : "cuda" is asked for and this process has no GPU that torch can use.
    """

    def __init__(
        self,
        model: LensViT,
        *,
        anomaly: AnomalyModel | None,
        size_px: int,
        settings: ScoreSettings,
        device: str,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise RunError(
                "this run scores on GPUs, but torch cannot use one here; install the CUDA build of "
                "torch, or a driver that fits it ('clusterray doctor' looks)"
            )
        # Pixels are looked at where they lie, in memory that torch cannot know to be read-only.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self.device, self.settings, self.n_bands = device, settings, model.settings.n_bands
        self.width = 2 * self.n_bands * size_px * size_px
        self.columns = _columns(model, anomaly is not None, settings)
        network = _FromPlanes(model, size_px=size_px, settings=settings).eval().to(device)
        self._forward: Callable[..., tuple[torch.Tensor, ...]] = network
        if settings.compile:
            self._forward = torch.compile(network, dynamic=False)
        self._anomaly = [
            torch.from_numpy(np.array(values)).to(device)
            for values in ((anomaly.mean, anomaly.whitening) if anomaly else ())
        ]
        self._store = _store() if device == "cuda" else None
        self._streams = threading.local()

    def warm_up(self) -> None:
        """Compile, and allocate, before the first row group waits for it.

        Raises
        ------
        RunError : this machine's compiler cannot compile the network.
        """
        blank = np.full((1, self.width), BLANK_BYTE, np.uint8)
        ones = np.ones((1, self.n_bands), np.float32)
        try:
            self.score(blank, step=ones, noise_sigma=ones)
        except torch._dynamo.exc.TorchDynamoException as error:  # type: ignore[attr-defined]
            raise RunError(
                f"the network cannot be compiled here: {str(error).splitlines()[0]}; set "
                "score.compile=false, or install a compiler (a GPU wants triton, a CPU g++)"
            ) from error

    def score(
        self, planes: np.ndarray, *, step: np.ndarray, noise_sigma: np.ndarray
    ) -> NetworkScores:
        """Score the cutouts of one row group.

        Parameters
        ----------
        planes : (n, 2·b·h·w) uint8, as `sky.shards.planes` gives them; read where they lie.
        step, noise_sigma : (n, b) float32, nJy.

        Raises
        ------
        InputError : planes of another layout than the network was trained on.
        """
        n = len(planes)
        if n == 0:
            return self._split(np.empty((0, sum(self.columns.values())), np.float32))
        if planes.dtype != np.uint8 or planes.shape != (n, self.width):
            raise InputError(
                f"byte planes are {planes.dtype}{list(planes.shape)}, expected uint8[n, "
                f"{self.width}]: the network was trained on {self.n_bands} bands of another size; "
                "score with the bundle of this survey"
            )
        size = self.settings.micro_batch
        # One thread on a GPU too: what is compiled is compiled for a number of threads.
        with torch.inference_mode(), cpu_threads(1), self._stream():
            parts = [
                self._micro_batch(planes[rows], step[rows], noise_sigma[rows])
                for rows in (slice(k, k + size) for k in range(0, n, size))
            ]
            return self._split(self._fetched(torch.cat(parts)))

    def _micro_batch(
        self, planes: np.ndarray, step: np.ndarray, noise_sigma: np.ndarray
    ) -> torch.Tensor:
        """The wanted columns (n, …) of at most one micro-batch, on the device."""
        n, size = len(planes), self.settings.micro_batch
        raw = torch.empty((size, self.width), dtype=torch.uint8, device=self.device)
        scale = torch.ones((2, size, self.n_bands), device=self.device)
        raw[:n].copy_(self._source(planes), non_blocking=True)
        raw[n:] = BLANK_BYTE
        both = np.stack([step, noise_sigma]).astype(np.float32)
        scale[:, :n].copy_(torch.from_numpy(both), non_blocking=True)
        logit, embedding, attention = self._forward(raw, scale[0], scale[1])
        made = {"logit": logit[:, None], "embedding": embedding, "attention": attention}
        if self._anomaly:
            mean, whitening = self._anomaly
            offset = (embedding.double() - mean) @ whitening.T
            made["anomaly"] = torch.linalg.vector_norm(offset, dim=1, keepdim=True).float()
        return torch.cat([made[name] for name in self.columns], dim=1)[:n]

    def _source(self, planes: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(planes)
        if self._store is None or self._store.holds(planes):
            return tensor
        return tensor.pin_memory()

    def _fetched(self, values: torch.Tensor) -> np.ndarray:
        if self.device == "cpu":
            return values.numpy()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        # Blocking: a thread that spins for its results takes a core from the readers.
        done = torch.cuda.Event(blocking=True)
        done.record()
        done.synchronize()
        return host.numpy().copy()

    def _split(self, values: np.ndarray) -> NetworkScores:
        ends = np.cumsum(list(self.columns.values()))[:-1]
        found = dict(zip(self.columns, np.split(values, ends, axis=1), strict=True))
        found |= {name: found[name][:, 0] for name in ("logit", "anomaly") if name in found}
        return NetworkScores(**found)

    def _stream(self) -> AbstractContextManager[Any]:
        if self.device == "cpu":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream()
        return torch.cuda.stream(self._streams.own)


@cache
def _store() -> RegisteredStore:
    """One for all networks of this process: CUDA takes a mapping once."""
    return RegisteredStore(_register)


def register_store(populating: threading.Thread) -> None:
    """Register Ray's object store with CUDA as soon as it is populated; no network waits for it."""
    torch.cuda.init()
    _store().begin(populating)


def _register(start: int, length: int, flags: int) -> bool:
    """Whether CUDA takes a mapping of host memory as pinned."""
    if int(torch.cuda.cudart().cudaHostRegister(start, length, flags)) == 0:
        return True
    # The next kernel would find the error and take it for its own.
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    return False


def _columns(model: LensViT, anomaly: bool, settings: ScoreSettings) -> dict[str, int]:
    """Names and widths of what leaves the device."""
    every: Sequence[tuple[str, int, bool]] = (
        ("logit", 1, True),
        ("anomaly", 1, anomaly),
        ("embedding", model.head.in_features, settings.keep_embedding),
        ("attention", model.n_tokens, settings.keep_attention),
    )
    return {name: width for name, width, wanted in every if wanted}


def keep_compiled() -> None:
    """Have torch keep what it compiles in the home folder, for later actors and runs.

    To be called before timm is imported, which settles the place. A `TORCHINDUCTOR_CACHE_DIR` in
    the environment stands, unless it is torch's own choice among temporary files: a driver that
    imported its compiler hands that on to the workers.
    """
    given = os.environ.get(_CACHE_ENV)
    if given and not given.startswith(os.path.join(tempfile.gettempdir(), "torchinductor_")):
        return
    with suppress(OSError):
        _CACHE.mkdir(parents=True, exist_ok=True)
        os.environ[_CACHE_ENV] = str(_CACHE)
