import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterray.engine.fit_schedule import plan_fits
from clusterray.errors import ConfigError


@pytest.mark.parametrize(
    ("cpus", "gpus", "n_fits", "workers", "want"),
    [
        (2, 0, 4, None, ((1, 1), 2)),
        (2, 0, 4, 2, ((2, 2), 1)),
        (16, 1, 6, None, ((1, 1), 1)),
        (64, 4, 6, None, ((1, 1), 4)),
        (128, 8, 4, None, ((2, 2), 4)),
        (128, 8, 4, (1, 3), ((1, 3), 2)),
        (128, 0, 4, None, ((8, 8), 4)),
        (4, 0, 0, None, ((3, 3), 1)),
    ],
)
def test_processes_and_fits_at_a_time(cpus, gpus, n_fits, workers, want):
    plan = plan_fits(cpus, gpus, n_fits=n_fits, batch_size=64, workers=workers)
    assert (plan.workers, plan.at_a_time) == want
    assert plan.grouped == (want[0] != (1, 1))


@given(
    st.integers(1, 200), st.integers(0, 16), st.integers(1, 12),
    st.none() | st.integers(1, 16) | st.tuples(st.integers(1, 3), st.integers(3, 16)),
)  # fmt: skip
def test_what_runs_together_fits_on_the_cluster(cpus, gpus, n_fits, workers):
    low = workers[0] if isinstance(workers, tuple) else workers
    if gpus and low and low > gpus:
        with pytest.raises(ConfigError, match=r"vision\.workers is .* GPUs"):
            plan_fits(cpus, gpus, n_fits=n_fits, batch_size=64, workers=workers)
        return
    plan = plan_fits(cpus, gpus, n_fits=n_fits, batch_size=64, workers=workers)
    together = plan.at_a_time * plan.workers[1]
    assert together * plan.num_cpus <= max(0.5, 7 / 8 * cpus) + 1e-9
    assert 1 <= plan.at_a_time <= n_fits
    if gpus:
        assert plan.at_a_time * plan.workers[0] <= gpus


@pytest.mark.parametrize(("workers", "match"), [(65, "65, with 0 GPUs"), ((4, 2), "expected")])
def test_what_cannot_be_shared_is_refused(workers, match):
    with pytest.raises(ConfigError, match=match):
        plan_fits(8, 0, n_fits=2, batch_size=64, workers=workers)
