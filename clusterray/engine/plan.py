"""What there is to do, and how many actors do it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

from clusterray import storage
from clusterray.engine.ledger import RowGroup, Shard, concurrently, read_shard
from clusterray.engine.work import cpu_share
from clusterray.errors import InputError

__all__ = ["Pools", "StageCosts", "list_shards", "missing_row_groups", "plan_pools"]

_LONG_SECONDS = 30.0
_BATCH_BYTES = 96e6
"""As stored. Larger calls fill the object store with pixels that wait for each other."""


def list_shards(
    url: str, *, bands: Sequence[str], size_px: int, pixel_scale_arcsec: float | None = None
) -> list[Shard]:
    """Every shard in a folder, sorted by URL, with its footer read and checked.

    Raises
    ------
    InputError : there are none.
    StorageError, ContractError : one is unreadable, foreign, or of other bands, size or scale.
    """
    entries = storage.list_files(url, suffix=".parquet", recursive=False)
    if not entries:
        raise InputError(
            f"no shards (*.parquet) under '{storage.redact(url)}'; run 'clusterray ingest' first, "
            "or set paths.shards"
        )
    read = partial(read_shard, bands=bands, size_px=size_px, pixel_scale_arcsec=pixel_scale_arcsec)
    return concurrently(read, [entry.url for entry in entries])


def missing_row_groups(shards: Sequence[Shard], outputs_url: str) -> tuple[list[RowGroup], int]:
    """Row groups that have no output yet, in plan order, and how many have one."""
    there = {storage.name_of(e.url) for e in storage.list_files(outputs_url, suffix=".parquet")}
    every = [group for shard in shards for group in shard.row_groups()]
    missing = [group for group in every if group.output not in there]
    return missing, len(every) - len(missing)


@dataclass(frozen=True)
class StageCosts:
    """Seconds of one core (for `vit_gpu`: of one GPU) that one cutout costs in each stage.

    The defaults were measured with 5×128×128 cutouts of 57 kB: on a slow core, features on; the
    network on a CPU is the demo's, on a GPU ViT-S/16 at 224 px. They decide pool sizes, never
    results.
    """

    read: float = 7e-4
    vit_cpu: float = 2e-3
    vit_gpu: float = 4e-5
    finish: float = 4e-5


@dataclass(frozen=True)
class Pools:
    """Actors per stage, what each reserves, and how many calls one of them works on at once."""

    read: int
    vit: int
    finish: int
    num_cpus: float
    gpus_per_vit: float
    vit_calls: int = 1
    finish_calls: int = 4
    """Its actors wait for storage most of the time."""
    row_groups_per_batch: int = 1
    fused: bool = False
    """One pool, of `read` actors that each take row groups through every stage."""


def plan_pools(
    cpus: float,
    gpus: float,
    *,
    costs: StageCosts,
    units: int,
    rows: int = 0,
    workers: int | None = None,
    actors_per_gpu: int = 1,
    calls_per_gpu_actor: int = 3,
    row_groups_per_batch: int | None = None,
    row_group_bytes: float = 0.0,
) -> Pools:
    """Pool sizes that keep every stage equally busy on a cluster of this shape.

    The last stage gets twice its share: all others would wait for it. In a long run without a GPU
    one actor on each CPU does all stages: nothing to balance, and no pixels to carry from process
    to process. Each of them loads every model, which a short run would not earn back.

    All pools together reserve at most 7/8 of the CPUs (see `work.cpu_share`), so actors on small
    clusters reserve fractions of one.

    Parameters
    ----------
    cpus, gpus : of the whole cluster.
    units : row groups to do; no pool is larger.
    rows : cutouts in them.
    workers : actors in the read and ViT pools, where the user says so; stages are not fused then.
    actors_per_gpu, calls_per_gpu_actor : they hide the copies of one row group behind the kernels
        of another.
    row_groups_per_batch : None takes two for each GPU, at most four and 96 MB, while there are
        enough; one without a GPU.
    row_group_bytes : stored bytes of the largest one.
    """
    on_gpu = gpus >= 1
    weights = {
        "read": costs.read,
        "vit": 0.0 if on_gpu else costs.vit_cpu,
        "finish": costs.finish,
    }
    total = sum(weights.values())
    cores = max(1.0, cpus * 7 / 8)
    fused = not on_gpu and not workers and rows * total / cores > _LONG_SECONDS
    size = {name: max(1, int(cores * w / total)) for name, w in weights.items()}
    size["finish"] = max(1, ceil(2 * cores * weights["finish"] / total))
    if on_gpu:
        size["vit"] = actors_per_gpu * int(gpus)
    if workers:
        size["read"] = size["vit"] = workers
    if fused:
        size = dict.fromkeys(size, max(1, int(cpus)))
    size = {name: min(n, max(1, units)) for name, n in size.items()}
    enough = max(1, units // (2 * size["read"]))
    fitting = max(1, int(_BATCH_BYTES / max(row_group_bytes, 1.0)))
    holders = size["read"]
    if not fused:
        holders += size["finish"] + (0 if on_gpu else size["vit"])
    return Pools(
        read=size["read"],
        vit=size["vit"],
        finish=size["finish"],
        num_cpus=cpu_share(cpus, holders),
        # Ray takes parts of one GPU or whole ones, and an actor works on one.
        gpus_per_vit=min(1.0, int(1e4 * gpus / size["vit"]) / 1e4) if on_gpu else 0.0,
        vit_calls=calls_per_gpu_actor if on_gpu else 1,
        row_groups_per_batch=row_groups_per_batch or min(4, max(1, 2 * int(gpus)), enough, fitting),
        fused=fused,
    )
