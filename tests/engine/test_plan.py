import pytest

from clusterray.engine.ledger import Receipt, Shard
from clusterray.engine.plan import StageCosts, missing_row_groups, plan_pools
from clusterray.errors import RunError

COSTS = StageCosts(read=3e-3, vit_cpu=3e-3, vit_gpu=5e-5, finish=1e-4)


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 128])
@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("workers", [None, 1, 2, 5])
def test_pools_never_hold_all_cpus_and_every_stage_has_an_actor(cpus, gpus, workers):
    pools = plan_pools(cpus, gpus, costs=COSTS, units=1000, workers=workers)
    on_cpu = pools.read + pools.finish + (0 if gpus else pools.vit)
    assert on_cpu * pools.num_cpus <= 7 / 8 * cpus + 1e-9
    assert min(pools.read, pools.vit, pools.finish) >= 1
    assert pools.vit * pools.gpus_per_vit <= gpus
    # Ray refuses parts of more than one GPU.
    assert pools.gpus_per_vit <= 1
    assert 0 < pools.num_cpus <= 1


def test_equal_costs_get_equal_pools_and_gpus_leave_the_cpus_to_reading():
    cpu = plan_pools(64, 0, costs=COSTS, units=1000)
    assert cpu.read == cpu.vit > 20
    gpu = plan_pools(64, 1, costs=COSTS, units=1000)
    assert gpu.read > 1.5 * cpu.read
    assert gpu.vit == 1 and gpu.vit_calls == 3


@pytest.mark.parametrize("cpus", [1, 2, 3, 16])
def test_in_a_long_run_on_cpus_one_actor_on_each_does_all_stages(cpus):
    costs = StageCosts(read=1e-3, vit_cpu=3e-3, finish=1e-5)
    pools = plan_pools(cpus, 0, costs=costs, units=1000, rows=1_000_000)
    assert pools.fused
    assert pools.read == cpus
    assert pools.read * pools.num_cpus <= 7 / 8 * cpus
    short = plan_pools(cpus, 0, costs=costs, units=1000, rows=1000)
    asked = plan_pools(cpus, 0, costs=costs, units=1000, rows=1_000_000, workers=2)
    on_gpu = plan_pools(cpus, 1, costs=costs, units=1000, rows=100_000_000)
    assert not (short.fused or asked.fused or on_gpu.fused)


def test_gpus_are_handed_several_row_groups_a_call():
    per_call = {
        n: plan_pools(64, n, costs=COSTS, units=1000).row_groups_per_batch for n in (0, 1, 2, 8)
    }
    assert per_call == {0: 1, 1: 2, 2: 4, 8: 4}
    assert plan_pools(64, 8, costs=COSTS, units=60).row_groups_per_batch == 1
    asked = plan_pools(64, 8, costs=COSTS, units=1000, row_groups_per_batch=1)
    assert asked.row_groups_per_batch == 1


def test_a_call_carries_no_more_than_the_store_takes_with_ease():
    """Of 512 cutouts of 5×224×224 one: two of them were a quarter slower."""
    per_call = [
        [
            plan_pools(
                16 * n, n, costs=COSTS, units=1000, row_group_bytes=size
            ).row_groups_per_batch
            for size in (29e6, 86e6, 1e9)
        ]
        for n in (1, 2)
    ]
    assert per_call == [[2, 1, 1], [3, 1, 1]]


def test_no_pool_is_larger_than_the_work():
    pools = plan_pools(64, 0, costs=COSTS, units=2)
    assert (pools.read, pools.vit, pools.finish) == (2, 2, 2)


def test_missing_row_groups_follow_from_names(tmp_path):
    shard = Shard("x/a.parquet", 10, "f" * 64, (5, 5, 2))
    (tmp_path / shard.row_groups()[1].output).touch()
    missing, there = missing_row_groups([shard], str(tmp_path))
    assert [g.index for g in missing] == [0, 2]
    assert there == 1
    rewritten = Shard("x/a.parquet", 10, "e" * 64, (5, 5, 2))
    assert len(missing_row_groups([rewritten], str(tmp_path))[0]) == 3


def test_receipt_that_loses_a_row_is_refused():
    receipt = Receipt("a", 1, "f", rows=10, scored=8, rejected=1, outputs=())
    with pytest.raises(RunError, match=r"10 rows, but 8 scored \+ 1 rejected = 9"):
        receipt.reconcile()
