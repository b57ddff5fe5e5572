"""How the pool deals out batches, without Ray: tasks end, fail or hang as a test says."""

import random
from types import SimpleNamespace

import pyarrow as pa
import pytest
from ray.exceptions import RayActorError, RayTaskError

from rdmldg_ray.config import load_config
from rdmldg_ray.engines import pool as pool_module
from rdmldg_ray.engines.engine import EngineError, EngineLostError, LoadReport, Request
from rdmldg_ray.engines.pool import EnginePool, _Member
from rdmldg_ray.models.parity import ParityError

REQUEST = Request("reasoning", 0, 1.0, 1.0, 16, 0)
HANGS = object()


class Task:
    """A remote call: what it returns or raises, or that it hangs."""

    def __init__(self, outcome):
        self.outcome = outcome


class Actor:
    """An engine's handle; ``outcomes`` gives what the next load or batch comes to."""

    def __init__(self, outcomes):
        self.killed = False
        self.outcomes = outcomes
        self.load = SimpleNamespace(remote=lambda adapter: self._task("load", LoadReport("start", 1.0)))
        self.generate = SimpleNamespace(
            remote=lambda batch, request: self._task("generate", batch.append_column("answer", batch["id"]))
        )

    def _task(self, kind, result):
        outcome = self.outcomes(kind)
        return Task(result if outcome is None else outcome)


class Clock:
    """Stands where ``time`` is, and moves when there is nothing to do but wait."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def world(monkeypatch):
    """What the pool takes for Ray: kept outcomes of tasks, and the engines that were killed."""
    clock = Clock()
    chosen = random.Random(0)

    def wait(tasks, timeout):
        assert tasks, "waits for nothing"
        done = [task for task in tasks if task.outcome is not HANGS]
        if not done:
            clock.now += timeout
            return [], tasks
        return [chosen.choice(done)], []

    def get(task):
        if isinstance(task.outcome, Exception):
            raise task.outcome
        return task.outcome

    def kill(actor):
        actor.killed = True

    resources = {"CPU": 2.0}
    stub = SimpleNamespace(
        wait=wait,
        get=get,
        kill=kill,
        put=lambda batch: batch,
        cluster_resources=lambda: resources,
        available_resources=lambda: resources,
    )
    monkeypatch.setattr(pool_module, "ray", stub)
    monkeypatch.setattr(pool_module, "time", clock)
    return clock


def make_pool(outcomes, **settings):
    config = load_config("demo")
    config = config.model_copy(update={"engines": config.engines.model_copy(update=settings)})

    class Pool(EnginePool):
        started = 0

        def _new_member(self, replaces):
            self.started += 1
            number = self.started
            return _Member(Actor(lambda kind: outcomes(number, kind)), replaces)

        def _batches(self, samples, request):
            return [samples.slice(first, 4) for first in range(0, len(samples), 4)]

    return Pool(config, ["dog"])


SAMPLES = pa.table({"id": [f"d/{number}" for number in range(50)]})


def ids_of(answers):
    return sorted(sample_id for table in answers for sample_id in table["answer"].to_pylist())


def task_error(cause):
    return RayTaskError("generate", "traceback", cause)


def test_every_sample_is_answered_once_by_engines_that_live(world):
    pool = make_pool(lambda number, kind: None, num_engines=3)
    assert pool.load("there").how == "start"
    assert ids_of(pool.generate(SAMPLES, REQUEST)) == sorted(SAMPLES["id"].to_pylist())
    assert ids_of(pool.generate(SAMPLES.slice(0, 0), REQUEST)) == []
    assert pool.started == 3


@pytest.mark.parametrize("seed", range(20))
def test_every_sample_is_answered_once_whatever_engines_die_of(world, seed):
    rng = random.Random(seed)
    ends = [RayActorError(), task_error(EngineLostError("its process ended")), HANGS]

    def outcomes(number, kind):
        return rng.choice(ends) if kind == "generate" and rng.random() < 0.3 else None

    pool = make_pool(outcomes, num_engines=1 + seed % 3, max_restarts=1000)
    pool.load("there")
    assert ids_of(pool.generate(SAMPLES, REQUEST)) == sorted(SAMPLES["id"].to_pylist())
    assert pool.started > pool.config.engines.num_engines


def test_an_engine_that_cannot_take_a_lost_ones_place_is_asked_for_anew(world):
    def outcomes(number, kind):
        if number == 1 and kind == "generate":
            return RayActorError()
        return task_error(EngineError("no room")) if number == 2 else None

    pool = make_pool(outcomes, num_engines=1)
    pool.load("there")
    assert ids_of(pool.generate(SAMPLES, REQUEST)) == sorted(SAMPLES["id"].to_pylist())
    assert pool.started == 3


def test_engines_that_die_too_often_end_the_stage_with_the_last_reason_and_what_was_asked_for(world):
    pool = make_pool(
        lambda number, kind: RayActorError() if kind == "generate" else None, num_engines=2, max_restarts=3
    )
    pool.load("there")
    message = r"4 engines were lost, and engines\.max_restarts is 3; .* asked for 2 x 0\.25 CPU .*1 GiB of KV"
    with pytest.raises(EngineError, match=message):
        list(pool.generate(SAMPLES, REQUEST))


def test_losses_are_counted_anew_for_each_model(world):
    dies = iter([True, False] * 1000)
    pool = make_pool(
        lambda number, kind: RayActorError() if kind == "generate" and next(dies) else None,
        num_engines=1,
        max_restarts=1000,
    )
    pool.load("first")
    list(pool.generate(SAMPLES, REQUEST))
    assert pool._losses
    pool.load("second")
    assert not pool._losses


def test_a_hanging_engine_is_killed_after_the_set_time_and_not_before(world):
    def outcomes(number, kind):
        return HANGS if number == 1 and kind == "generate" else None

    pool = make_pool(outcomes, num_engines=1, batch_timeout_s=60)
    pool.load("there")
    first = pool._members[0].actor
    assert ids_of(pool.generate(SAMPLES, REQUEST)) == sorted(SAMPLES["id"].to_pylist())
    assert first.killed
    assert 60 < world.now < 63


def test_engines_that_do_not_come_in_time_are_told_with_what_was_asked_for(world):
    pool = make_pool(lambda number, kind: HANGS, num_engines=3, min_engines=2, start_timeout_s=30)
    message = r"0 of 2 engines were ready in 30 s: asked for 3 x 0\.25 CPU and 0 GPU, .*has 2 CPU, 0 GPU"
    with pytest.raises(TimeoutError, match=message):
        pool.load(None)


def test_fewer_engines_do_the_work_while_the_cluster_has_no_room_for_more(world):
    pool = make_pool(lambda number, kind: HANGS if number > 1 else None, num_engines=3, min_engines=1)
    pool.load(None)
    assert ids_of(pool.generate(SAMPLES, REQUEST)) == sorted(SAMPLES["id"].to_pylist())
    assert [member.serves for member in pool._members] == [True, False, False]


def test_an_engine_that_comes_late_joins(world):
    pool = make_pool(lambda number, kind: HANGS if number == 2 else None, num_engines=2, min_engines=1)
    pool.load(None)
    answers = pool.generate(SAMPLES, REQUEST)
    found = [next(answers)]
    late = pool._members[1]
    late.loading.outcome = LoadReport("start", 9.0)
    while not late.serves:
        found.append(next(answers))
    found += answers
    assert ids_of(found) == sorted(SAMPLES["id"].to_pylist())


@pytest.mark.parametrize("error", [ParityError("differ by 3.0"), ValueError("no adapter there")])
def test_what_is_wrong_for_all_engines_stops_at_once_and_passes_as_it_is(world, error):
    pool = make_pool(lambda number, kind: task_error(error), num_engines=2)
    with pytest.raises(type(error), match=str(error)):
        pool.load("there")
    assert pool.started == 2


def test_an_engine_that_cannot_start_says_why_and_what_it_asked_for(world):
    pool = make_pool(lambda number, kind: task_error(EngineError("no room for the KV cache")))
    with pytest.raises(EngineError, match=r"no room for the KV cache; asked for 2 x 0\.25 CPU"):
        pool.load(None)
