"""The output of a frozen trunk, computed once for a sample and kept in files for all fits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from clusterray import storage
from clusterray.config import VisionSettings
from clusterray.engine import work
from clusterray.engine.fit_context import FitContext
from clusterray.engine.row_files import read_rows, write_tokens
from clusterray.engine.sample_rows import SampleRows
from clusterray.engine.session import cluster_shape
from clusterray.engine.telemetry import Progress
from clusterray.errors import RunError
from clusterray.vision import vit
from clusterray.vision.frozen import encode, frozen_blocks, frozen_digest, token_shape
from clusterray.vision.training import cpu_threads

__all__ = ["encode_sample"]

_AT_ONCE = 64


def encode_sample(context: FitContext, model: str) -> SampleRows | None:
    """Tokens of every row behind a network's frozen blocks; None without any that can be kept.

    The files lie in a folder named by the digest of the frozen weights, the stretch, the input
    size and the number of views; what is there is not made again. Ray must be joined.

    Raises
    ------
    RunError : activations that float16 cannot hold.
    """
    settings, rows = context.config.network(model), context.sample_rows()
    if not settings.freeze_blocks:
        return None
    network = vit.build(
        settings, n_bands=len(context.bands), size_px=context.size_px, bands=context.bands
    )
    if not frozen_blocks(network):
        return None
    n_views = settings.cached_views
    digest = frozen_digest(network, n_views=n_views)
    folder = storage.join(context.folder, "tokens", digest[:16])
    names = [storage.name_of(url) for url in rows.urls]
    urls = [storage.join(folder, name) for name in names]
    there = {storage.name_of(e.url) for e in storage.list_files(folder, suffix=".parquet")}
    units = [
        (source, target)
        for source, target, name in zip(rows.urls, urls, names, strict=True)
        if name not in there
    ]
    if units:
        _encode(context, model, rows, units)
    return replace(
        rows,
        urls=tuple(urls),
        shape=token_shape(network, n_views=n_views),
        kind="tokens",
        refs=(),
        streamed=False,
    )


def _encode(
    context: FitContext, model: str, rows: SampleRows, units: Sequence[tuple[str, str]]
) -> None:
    cpus, gpus = cluster_shape()
    wanted = int(gpus) or context.config.cluster.workers or max(1, int(cpus))
    actors = min(len(units), wanted)
    stage = work.Stage(
        "encode",
        _Encoder,
        {
            "units": list(units),
            "settings": context.config.network(model),
            "shape": rows.shape,
            "size_px": context.size_px,
            "bands": context.bands,
            "half": context.config.score.dtype == "bfloat16" or gpus >= 1,
        },
        actors=actors,
        num_cpus=work.cpu_share(cpus, actors),
        num_gpus=1.0 if gpus >= 1 else 0.0,
    )
    progress = Progress(f"train: frozen trunk of {model}", len(units), unit="files")
    for table in work.run(len(units), [stage], verb="train"):
        progress.advance(table.num_rows, rows=sum(table.column("rows").to_pylist()))


@dataclass
class _Encoder:
    """Actor: the tokens of a file of cutouts, as a file of their own."""

    units: Sequence[tuple[str, str]]
    settings: VisionSettings
    shape: tuple[int, int, int]
    size_px: int
    bands: tuple[str, ...]
    half: bool

    def __post_init__(self) -> None:
        pa.set_cpu_count(1)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = vit.build(
            self.settings, n_bands=self.shape[0], size_px=self.size_px, bands=self.bands
        )
        self.model = model.eval().to(self.device)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for unit in work.unit_column(table):
            source, target = self.units[unit]
            arrays = read_rows("cutouts", [source], shape=self.shape)
            tokens = self._tokens(arrays)
            if not np.isfinite(tokens).all():
                raise RunError(
                    f"the frozen trunk's output for cutouts of '{storage.redact(source)}' is "
                    "beyond float16; look at vision.weights, or freeze fewer blocks"
                )
            write_tokens(target, tokens)
            rows.append(len(tokens))
        return pa.table({"rows": rows})

    def _tokens(self, arrays: Any) -> np.ndarray:
        n_views = self.settings.cached_views
        parts = [np.empty((0, *token_shape(self.model, n_views=n_views)), np.float16)]
        with cpu_threads(1 if self.device == "cpu" else None):
            for start in range(0, len(arrays[0]), _AT_ONCE):
                few = tuple(
                    torch.from_numpy(a[start : start + _AT_ONCE]).to(self.device) for a in arrays
                )
                found = encode(self.model, few, n_views=n_views, half=self.half)
                parts.append(found.cpu().numpy())
        return np.concatenate(parts)
