"""How the fits of a training run share a cluster: processes per fit, and fits at a time."""

from dataclasses import dataclass

from clusterray.engine.work import cpu_share
from clusterray.errors import ConfigError

__all__ = ["FitPlan", "plan_fits"]

_MOST_CPU_WORKERS = 8
_LEAST_ROWS = 8


@dataclass(frozen=True)
class FitPlan:
    """Processes that share a network's fit (least, most), fits at a time, what a process reserves.

    One process is an ordinary Ray task, which Ray starts again where its process or node dies, and
    which finds torch imported if another fit ran there before. More, or a range, are a worker group
    of Ray Train.
    """

    workers: tuple[int, int]
    at_a_time: int
    num_cpus: float
    num_gpus: float

    @property
    def grouped(self) -> bool:
        """Whether Ray Train runs the fits."""
        return self.workers != (1, 1)


def plan_fits(
    cpus: float,
    gpus: float,
    *,
    n_fits: int,
    batch_size: int,
    workers: int | tuple[int, int] | None,
) -> FitPlan:
    """Share a cluster of this shape among the network fits that are to be done.

    All processes together reserve at most 7/8 of the CPUs (see `work.cpu_share`) and each a whole
    GPU where there are any, so that every fit that is started gets all of its processes. Unless
    told otherwise a fit has one process, and more only where there are GPUs, or dozens of CPUs,
    for each fit.

    Raises
    ------
    ConfigError : more processes than GPUs, or than a batch has rows to share out.
    """
    on_gpu = gpus >= 1
    places = int(gpus) if on_gpu else max(1, int(cpus))
    if workers is None:
        most = max(1, (int(gpus) if on_gpu else int(cpus * 7 / 8)) // max(1, n_fits))
        limit = batch_size // _LEAST_ROWS
        most = min(most, max(1, limit), most if on_gpu else _MOST_CPU_WORKERS)
        wanted = (most, most)
    else:
        wanted = (workers, workers) if isinstance(workers, int) else workers
    low, high = wanted
    if low > high:
        raise ConfigError(f"vision.workers is [{low}, {high}], expected [least, most]")
    if high > batch_size or (on_gpu and low > places):
        raise ConfigError(
            f"vision.workers is {high if high > batch_size else low}, with {int(gpus)} GPUs and "
            f"{batch_size} rows in a batch; choose as many as either at most"
        )
    at_a_time = min(max(1, places // high), max(1, n_fits))
    share = cpu_share(cpus, at_a_time * high)
    return FitPlan((low, high), at_a_time, share, 1.0 if on_gpu else 0.0)
