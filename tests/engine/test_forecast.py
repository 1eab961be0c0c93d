import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterray.config import ClusterSettings, Config, PriceSettings
from clusterray.engine.costs import MeasuredCosts, of_run, read_costs
from clusterray.engine.forecast import forecast, foresee
from clusterray.engine.ledger import Shard
from clusterray.engine.plan import Pools, StageCosts
from clusterray.engine.prices import price
from clusterray.errors import RunError

COSTS = StageCosts(read=2e-3, vit_cpu=8e-3, vit_gpu=1e-4, finish=1e-3)
NO_PRICE = PriceSettings()


def shard(groups: int, rows: int = 100, size: int = 1_000_000) -> Shard:
    return Shard("x/a.parquet", size, "f" * 64, (rows,) * groups)


def predict(shard: Shard, pools: Pools, shape: tuple[float, float], models=("lightgbm", "vit")):
    return forecast(
        shard.row_groups(),
        pools,
        shape=shape,
        costs=COSTS,
        startup_seconds=5.0,
        models=models,
        prices=NO_PRICE,
    )


def test_the_slowest_stage_decides():
    pools = Pools(read=2, vit=4, finish=1, num_cpus=0.5, gpus_per_vit=0)
    # 64 CPUs leave no stage waiting: 4 actors share 100 row groups of 100 rows at 8 ms each.
    assert predict(shard(100), pools, (64, 0)).seconds == pytest.approx(5 + 10_000 * 8e-3 / 4)
    # Without the network reading is the slowest: 2 actors, 2 ms.
    bare = predict(shard(100), pools, (64, 0), models=("lightgbm",))
    assert bare.seconds == pytest.approx(5 + 10_000 * 2e-3 / 2)


def test_fused_stages_take_their_sum():
    pools = Pools(read=4, vit=4, finish=4, num_cpus=0.5, gpus_per_vit=0, fused=True)
    told = predict(shard(101), pools, (64, 0))
    assert told.seconds == pytest.approx(5 + 26 * 100 * 11e-3)
    bare = predict(shard(101), pools, (64, 0), models=("lightgbm",))
    assert bare.seconds == pytest.approx(5 + 26 * 100 * 3e-3)


def test_few_cores_share_all_the_work():
    pools = Pools(read=2, vit=4, finish=1, num_cpus=0.2, gpus_per_vit=0)
    assert predict(shard(100), pools, (2, 0)).seconds == pytest.approx(5 + 10_000 * 11e-3 / 2)


def test_actors_on_one_gpu_are_no_faster_than_it():
    pools = Pools(read=60, vit=3, finish=30, num_cpus=0.5, gpus_per_vit=0.3333)
    told = predict(shard(3000), pools, (64, 1))
    assert told.seconds == pytest.approx(5 + 300_000 * 1e-4 / (3 * 0.3333))
    assert told.gpu_hours == pytest.approx(told.seconds / 3600)
    assert told.cpu_hours == pytest.approx(64 * told.seconds / 3600)
    assert told.bytes_read == 1_000_000


def test_one_row_group_passes_through_every_stage():
    pools = Pools(read=1, vit=1, finish=1, num_cpus=1, gpus_per_vit=0)
    assert predict(shard(1), pools, (64, 0)).seconds == pytest.approx(5 + 100 * 11e-3)
    assert predict(shard(0), pools, (64, 0)).seconds == 0


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 4))
def test_more_work_never_takes_less_time(groups, cpus, gpus):
    def seconds(n: int) -> float:
        config = Config(cluster=ClusterSettings(workers=2))
        groups = shard(n, size=n * 5_700_000).row_groups()
        outlook = foresee(groups, config, ("vit",), shape=(cpus, gpus), measured=None)
        assert "not measured" in outlook.source
        return outlook.predicted.seconds

    assert seconds(groups + 5) >= seconds(groups)


def test_where_nothing_was_measured_larger_cutouts_take_longer():
    def seconds(kilobytes: int) -> float:
        groups = shard(1954, rows=512, size=1954 * 512 * kilobytes * 1000).row_groups()
        outlook = foresee(groups, Config(), ("lightgbm", "vit"), shape=(16, 1), measured=None)
        return outlook.predicted.seconds

    # A million of 5×128×128 and of 5×224×224 pixels took 83 and 168 s on one GPU with 16 cores.
    assert seconds(57) == pytest.approx(83, rel=0.2)
    assert seconds(167) == pytest.approx(168, rel=0.2)


def test_where_nothing_was_measured_each_network_costs_as_much_as_one():
    twice = MeasuredCosts({"vit": 2 * StageCosts().vit_cpu}, 10.0, 1, "b" * 64, "cpu", "a run")

    def seconds(*models: str, measured: MeasuredCosts | None = None) -> float:
        groups = shard(3000, size=300_000 * 57_000).row_groups()
        outlook = foresee(groups, Config(), models, shape=(4, 0), measured=measured)
        return outlook.predicted.seconds

    two = seconds("lightgbm", "vit", "cnn")
    assert two == pytest.approx(seconds("vit", measured=twice))
    assert two > seconds("lightgbm", "vit") > seconds("lightgbm")


def test_price_is_told_only_where_all_that_matters_has_one():
    assert price(3600, shape=(10, 2), prices=PriceSettings(cpu_hour=0.05, gpu_hour=1.5)) == 3.5
    assert price(3600, shape=(10, 0), prices=PriceSettings(cpu_hour=0.05)) == 0.5
    assert price(3600, shape=(10, 2), prices=PriceSettings(cpu_hour=0.05)) is None


def run(busy: dict[str, float], device: str = "cpu") -> MeasuredCosts:
    return of_run(
        busy,
        rows=1000,
        working_seconds=10.0,
        startup_seconds=3.0,
        shape=(2, 1),
        bundle="b",
        device=device,
    )


def test_a_crowded_run_counts_what_its_cores_had():
    # 40 busy seconds on 2 cores in 10 s: each second was half a core's.
    assert run({"read": 10.0, "vit": 30.0}).per_row == pytest.approx({"read": 5e-3, "vit": 15e-3})
    assert run({"read": 10.0, "vit": 5.0}).per_row == pytest.approx({"read": 1e-2, "vit": 5e-3})
    # A GPU's seconds are not the cores'; three actors were busy on it for all of the 10 s.
    gpu = run({"read": 10.0, "vit": 30.0}, device="cuda")
    assert gpu.per_row == pytest.approx({"read": 1e-2, "vit": 1e-2})
    assert gpu.stage_costs().vit_gpu == pytest.approx(1e-2)
    assert gpu.stage_costs().vit_cpu == StageCosts().vit_cpu


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.integers(1, 8))
def test_the_same_run_again_is_predicted_to_take_as_long(read, vit, cpus):
    """Its own costs, on the same shape and pools, give back its own working time."""
    working = max(read, vit, (read + vit) / cpus)
    costs = of_run(
        {"read": read, "vit": vit, "finish": 0.0},
        rows=10_000,
        working_seconds=working,
        startup_seconds=4.0,
        shape=(cpus, 0),
        bundle="b",
        device="cpu",
    )
    told = forecast(
        shard(100).row_groups(),
        Pools(read=1, vit=1, finish=1, num_cpus=0.1, gpus_per_vit=0),
        shape=(cpus, 0),
        costs=costs.stage_costs(),
        startup_seconds=costs.startup_seconds,
        models=("vit",),
        prices=NO_PRICE,
    )
    assert told.seconds == pytest.approx(4.0 + working, rel=1e-4)


def test_costs_are_for_one_bundle_and_device(tmp_path):
    costs = run({"read": 1.0, "vit": 2.0, "finish": 0.5})
    costs.write(str(tmp_path))
    assert read_costs(str(tmp_path), bundle="b", device="cpu") == costs
    assert read_costs(str(tmp_path), bundle="c", device="cpu") is None
    assert read_costs(str(tmp_path), bundle="b", device="cuda") is None
    assert read_costs(f"{tmp_path}/none", bundle="b", device="cpu") is None
    (tmp_path / "costs.json").write_text('{"per_row": 3}')
    with pytest.raises(RunError, match=r"costs\.json' is damaged: 'per_row' is 3"):
        read_costs(str(tmp_path), bundle="b", device="cpu")


def test_text_names_time_resources_bytes_and_price():
    pools = Pools(read=1, vit=1, finish=1, num_cpus=1, gpus_per_vit=0.5)
    told = forecast(
        shard(10_000).row_groups(),
        pools,
        shape=(16, 1),
        costs=COSTS,
        startup_seconds=5.0,
        models=("vit",),
        prices=PriceSettings(cpu_hour=0.04, gpu_hour=1.0, currency="EUR"),
    )
    # One reader at 2 ms: 2005 s.
    assert str(told) == "33 min 25 s, 0.557 GPU h, 8.91 CPU h, 0.001 GB read, 0.91 EUR"
