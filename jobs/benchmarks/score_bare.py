"""The network alone, on data already on its device, and fed by a plain PyTorch loop.

A part of the score benchmark: ``python -m jobs.benchmarks.score_bare JSON ANSWER``.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clusterray.engine.network import ScoringNetwork, keep_compiled
from clusterray.ensemble import bundle as bundles
from clusterray.sky import shards
from jobs.benchmarks.score_world import score_settings, world

__all__ = ["measure"]

_SECONDS = 5.0


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Rates in cutouts/s; each over some seconds, after a first call that compiles."""
    keep_compiled()
    made = world(asked, features=False, rows=asked["rows_per_shard"])
    settings, device = score_settings(asked), _device()
    bundle = bundles.load(made.bundle)
    table = shards.read_row_group(made.first_shard, 0, raw=True)
    planes = np.array(shards.planes(table))
    step, sigma = (np.ascontiguousarray(shards.numbers(table.column(n))) for n in _SCALES)
    network = ScoringNetwork(
        bundle.vit(), anomaly=None, size_px=asked["size"], settings=settings, device=device
    )
    start = time.monotonic()
    network.warm_up()
    answer: dict[str, Any] = {"device": _name(device), "compile_s": time.monotonic() - start}
    model, side = bundle.vit().to(device), asked["image_size"]
    forward = torch.compile(model, dynamic=False) if settings.compile else model
    n = settings.micro_batch
    images = torch.randn((n, asked["bands"], side, side), device=device)
    half = settings.dtype == "bfloat16"

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
            forward(images)

    def bare_from_planes() -> None:
        with torch.inference_mode():
            network._forward(raw, *scale)

    rows = np.arange(n) % len(planes)
    raw = torch.from_numpy(planes[rows]).to(device)
    scale = [torch.from_numpy(v[rows]).to(device) for v in (step, sigma)]
    answer["bare_per_s"] = _rate(bare, n)
    print(f"  bare network: {answer['bare_per_s']:,.0f}/s", flush=True)
    if device == "cuda":
        answer["timm_bfloat16_per_s"] = _plain_timm(asked, images)
    answer["bare_from_planes_per_s"] = _rate(bare_from_planes, n)
    loop = _Loop(network, planes[rows], scale)
    answer["loop_per_s"] = _rate(loop.turn, n)
    print(f"  plain loop: {answer['loop_per_s']:,.0f}/s", flush=True)
    return answer


def _plain_timm(asked: dict[str, Any], images: torch.Tensor) -> float:
    """The same trunk as timm makes it: bfloat16 weights, one class token, no attention pooling."""
    import timm

    model = timm.create_model(
        asked["model"],
        in_chans=asked["bands"],
        num_classes=1,
        img_size=asked["image_size"],
        **asked["model_options"],
    )
    forward = torch.compile(model.eval().to(images.device, torch.bfloat16), dynamic=False)
    half = images.bfloat16()

    def work() -> None:
        with torch.inference_mode():
            forward(half)

    return _rate(work, len(images))


_SCALES = ("step", "noise_sigma")


class _Loop:
    """What one writes without an engine: decoded batches in memory, one after the other."""

    def __init__(
        self, network: ScoringNetwork, planes: np.ndarray, scale: list[torch.Tensor]
    ) -> None:
        # Several, as a survey has: one alone would lie in the processor's cache.
        self.batches = [torch.from_numpy(planes.copy()) for _ in range(4)]
        self.network, self.scale, self.turns = network, scale, 0

    def turn(self) -> None:
        batch = self.batches[self.turns % len(self.batches)]
        self.turns += 1
        if self.network.device == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode():
            raw = batch.to(self.network.device, non_blocking=True)
            self.network._forward(raw, *self.scale)[0].cpu()


def _rate(work: Callable[[], None], rows: int) -> float:
    for _ in range(3):
        work()
    _wait()
    calls, start = 0, time.monotonic()
    while time.monotonic() - start < _SECONDS:
        for _ in range(4):
            work()
        calls += 4
        _wait()
    return calls * rows / (time.monotonic() - start)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _name(device: str) -> str:
    return torch.cuda.get_device_name(0) if device == "cuda" else f"{torch.get_num_threads()} cores"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))))
