"""What readers compute ahead: given out once, spread over the plan, and never relied upon."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

from clusterray.engine import ahead
from clusterray.engine.ahead import Ahead, Register, opened_register
from clusterray.errors import StorageError

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass
class Value:
    unit: int
    nbytes: int = 8


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(ahead, "_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "_LOOK_SECONDS", 0.01)


def until(condition, *, seconds=20.0, pause=0.02):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(pause)


def is_dead(register):
    try:
        ray.get(register.next.remote())
    except RayActorError:
        return True
    return False


@pytest.mark.parametrize("n_units", [0, 1, 2, 7, 1954])
def test_every_unit_is_given_out_once(n_units):
    register = Register(n_units)
    given = [register.next() for _ in range(n_units)]
    assert sorted(given) == list(range(n_units))
    assert register.next() is None


@pytest.mark.parametrize("taken", [20, 150, 700])
def test_what_is_given_out_is_spread_over_the_plan(taken):
    register = Register(1954)
    given = np.sort([register.next() for _ in range(taken)])
    assert np.diff(given, prepend=0, append=1953).max() <= 3 * 1954 / taken


def test_units_that_are_begun_are_neither_given_out_nor_kept():
    register = Register(6)
    assert register.begin(2) == []
    first = register.next()
    register.keep(first, ["its value"])
    register.keep(2, ["too late"])
    assert register.begin(2) == []
    assert register.begin(first) == ["its value"]
    assert register.begin(first) == []
    rest = [register.next() for _ in range(4)]
    assert sorted([first, *rest]) == [0, 1, 3, 4, 5]


def test_an_idle_actor_computes_and_any_other_gets_it():
    computed = []

    def compute(unit):
        computed.append(unit)
        return Value(unit)

    with opened_register(8) as register:
        Ahead(register, compute)
        until(lambda: ray.get(register.__ray_call__.remote(lambda r: len(r._kept))) == 8)
        other = Ahead(register, compute)
        for unit in range(8):
            value, seconds = other.begin(unit)
            assert (value.unit, seconds >= 0) == (unit, True)
            assert other.begin(unit) == (None, 0.0)
    assert sorted(computed) == list(range(8))


def test_nothing_is_begun_while_a_call_is_at_work(monkeypatch):
    computed = []

    def compute(unit):
        computed.append(unit)
        time.sleep(0.05)
        return Value(unit)

    with opened_register(1000) as register:
        actor = Ahead(register, compute)
        until(lambda: computed)
        with actor.at_work():
            time.sleep(0.5)
            before = len(computed)
            time.sleep(0.5)
            assert len(computed) == before
        until(lambda: len(computed) > before)


def test_an_actor_keeps_no_more_than_its_share(monkeypatch):
    monkeypatch.setattr(ahead, "_MOST_BYTES", 3 * 8)
    computed = []
    with opened_register(10) as register:
        Ahead(register, lambda unit: (computed.append(unit), Value(unit))[1])
        until(lambda: len(computed) == 3)
        time.sleep(0.3)
    assert len(computed) == 3


def refuse(unit):
    raise StorageError("no such file")


def test_a_unit_that_cannot_be_computed_is_left_to_its_turn():
    tried = []
    with opened_register(5) as register:
        actor = Ahead(register, lambda unit: (tried.append(unit), refuse(unit)))
        until(lambda: tried)
        assert actor.begin(tried[0]) == (None, 0.0)
    assert len(tried) == 1


def test_a_register_that_is_gone_costs_nothing_but_what_it_knew():
    computed = []
    with opened_register(4) as register:
        actor = Ahead(register, lambda unit: (computed.append(unit), Value(unit))[1])
        until(lambda: len(computed) == 4)
        ray.kill(register)
        until(lambda: is_dead(register))
        start = time.monotonic()
        assert [actor.begin(unit) for unit in range(4)] == [(None, 0.0)] * 4
        assert time.monotonic() - start < 5


def test_a_value_that_went_with_its_maker_is_none():
    @ray.remote(num_cpus=0)
    class Maker:
        def keep(self, register, n_units):
            for unit in range(n_units):
                kept = ray.put((Value(unit), np.zeros(200_000)))
                ray.get(register.keep.remote(unit, [kept]))

    with opened_register(100) as register:
        maker = Maker.remote()
        ray.get(maker.keep.remote(register, 100))
        actor, units = Ahead(register, refuse), iter(range(100))
        assert actor.begin(next(units))[0] == Value(0)
        ray.kill(maker)
        # Ray takes its objects away when it has noticed.
        until(lambda: actor.begin(next(units)) == (None, 0.0), pause=0.2)
