"""What of a sweep needs no cluster."""

import json
import math
from pathlib import Path

import pytest
import yaml

from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.storage import write_json
from rdmldg_ray.sweeps.space import Range, SweepSpace
from rdmldg_ray.sweeps.sweep_plan import sweep_location
from tools import mini

pytest.importorskip("optuna")
sweep = pytest.importorskip("rdmldg_ray.sweeps.tuner")


def test_an_address_is_held_by_one_until_it_is_released():
    claims = sweep.Claims()
    assert claims.take("a", "first")
    assert claims.take("a", "first")
    assert not claims.take("a", "second")
    assert claims.take("b", "second")
    claims.release("a", "second")  # not its own
    assert not claims.take("a", "second")
    claims.release("a", "first")
    assert claims.take("a", "second")


def test_what_a_killed_trial_held_is_free_after_a_while(monkeypatch):
    now = 100.0
    monkeypatch.setattr(sweep.time, "monotonic", lambda: now)
    claims = sweep.Claims()
    claims.take("a", "killed")
    now += sweep._LEASE_S - 1
    assert not claims.take("a", "other")
    now += 2
    assert claims.take("a", "other")
    claims.release("a", "killed")
    assert not claims.take("a", "killed")


@pytest.fixture
def recorded(tmp_path):
    """Record a sweep over a small data set, as its start does; again is to resume it."""
    mini.write_mini(str(tmp_path))
    info = read_dataset_info(str(tmp_path), "mini")

    def recorded(*overrides, **settings):
        config = load_config("demo", [*mini.SETTINGS, "name=swept", f"storage={tmp_path}", *overrides])
        space = SweepSpace(settings=settings or {"lora.rank": [8, 16]})
        sweep._record(sweep_location(config), config, info, space)
        return f"{sweep_location(config)}/sweep.yaml"

    return recorded


def test_a_sweep_resumes_as_it_was_begun(recorded):
    recorded()
    recorded()
    with pytest.raises(ConfigError, match="exists with other settings"):
        recorded("mtct.epochs=9")
    with pytest.raises(ConfigError, match="exists with other settings"):
        recorded(**{"lora.rank": [8]})


@pytest.mark.parametrize(
    "other", ["engines.num_engines=2", "workers.max_failures=7", "workers.cpus_per_worker=1", "tracking=[]"]
)
def test_a_sweep_resumes_with_other_settings_that_change_no_result(recorded, other):
    recorded()
    recorded(other)
    with pytest.raises(ConfigError, match="exists with other settings"):
        recorded(other, "engines.dtype=bfloat16")


@pytest.mark.parametrize(
    "others",
    [
        ["mtct.micro_batch_size=2"],
        ["sarr.training.micro_batch_size=2", "workers.gradient_checkpointing=true"],
        ["workers.num_workers=1"],
        ["workers.zero_stage=2", "engines.num_engines=1"],
    ],
)
def test_a_sweep_resumes_with_other_settings_that_change_its_rounding_alone(recorded, others):
    recorded()
    recorded(*others)
    with pytest.raises(ConfigError, match=r"exists with other settings \(mtct\.epochs; see"):
        recorded(*others, "mtct.epochs=9")


@pytest.mark.parametrize(
    ("settings", "space"), [(["lora.dropout=0.1"], {}), ([], {"lora.dropout": [0.0, 0.1]})]
)
def test_how_a_step_is_cut_matters_to_a_sweep_with_dropout(recorded, settings, space):
    recorded(*settings, **space)
    recorded(*settings, **space)
    with pytest.raises(ConfigError, match=r"other settings \(mtct\.micro_batch_size; see"):
        recorded(*settings, "mtct.micro_batch_size=2", **space)


def test_a_sweep_does_not_leave_its_checkpoints_behind_for_other_workers(recorded, tmp_path):
    recorded()
    trial = load_config("demo", [*mini.SETTINGS, "name=swept-1", f"storage={tmp_path}"])
    store = RunStore(str(tmp_path), "swept-1")
    store.write_config(trial)
    stage = Stage("flat", "mtct", 0)
    write_json(f"{store.checkpoints_uri(stage)}/checkpoint_1/shard.json", {})
    assert store.checkpointed(stage)
    recorded("mtct.micro_batch_size=2")
    with pytest.raises(
        ConfigError, match=r"swept-1 would resume .* with workers\.num_workers=2; resume the sweep with that"
    ):
        recorded("workers.num_workers=1")


def test_a_sweep_whose_chains_changed_does_not_go_on(recorded, tmp_path):
    recorded()
    chains = {name: read_chains(str(tmp_path), "mini", "rules", [name]) for name in mini.DOMAINS}
    write_chains(str(tmp_path), "mini", "rules", chains | {"flat": chains["flat"].slice(1)})  # held out
    recorded()
    write_chains(str(tmp_path), "mini", "rules", chains | {"paint": chains["paint"].slice(1)})
    with pytest.raises(
        ConfigError, match="changed since it began: chains of rules for paint; bring them back"
    ):
        recorded()


def test_a_sweep_of_an_earlier_release_resumes_where_its_trials_are_the_same(recorded):
    file = Path(recorded(**{"mtct.epochs": [1, 2]}))
    file.write_text(
        yaml.safe_dump({k: v for k, v in yaml.safe_load(file.read_text()).items() if k != "inputs"})
    )
    recorded(**{"mtct.epochs": [1, 2]})
    other = {"lora.rank": [8, 16]}
    content = yaml.safe_load(file.read_text())
    content["space"]["settings"] = other
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"a release that kept lora\.alpha"):
        recorded(**other)


@pytest.mark.parametrize("text", ["", "{", "[]", "space: 3", "\x00"])
def test_a_damaged_record_of_a_sweep_is_named(recorded, text):
    file = Path(recorded())
    file.write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.yaml: is .*or delete "):
        recorded()


@pytest.mark.parametrize(
    ("overrides", "cluster", "trials"),
    [
        # Workers 2 x 0.5 and, since they stay while training, engines 2 x 0.25.
        ((), {"CPU": 2}, 1),
        ((), {"CPU": 6}, 4),
        (("engines.keep_while_training=false",), {"CPU": 6}, 6),
        ((), {"CPU": 0.5}, 1),
        (
            ("workers.gpus_per_worker=1", "engines.gpus_per_engine=1", "engines.num_engines=4"),
            {"CPU": 64, "GPU": 8},
            2,
        ),
    ],
)
def test_as_many_trials_run_at_once_as_there_is_room_for(overrides, cluster, trials):
    assert sweep.concurrent_trials(load_config("demo", list(overrides)), cluster) == trials


@pytest.mark.parametrize(
    "values",
    [
        Range(min=0.25, max=4),
        Range(min=1e-4, max=1e-2, scale="log"),
        Range(min=4, max=6, integer=True),
        Range(min=1, max=64, scale="log", integer=True),
        [None, 80, 0.5, "cosine"],
    ],
)
def test_what_is_drawn_lies_in_its_range_and_can_be_written_down(values):
    space = SweepSpace(search="random", trials=3, settings={"x": values})
    drawn = [sweep._param_space(space)["x"].sample() for _ in range(200)]
    assert json.loads(json.dumps(drawn)) == drawn
    if isinstance(values, list):
        assert set(drawn) == set(values)
        return
    assert all(values.min <= value <= values.max for value in drawn)
    if values.integer:
        assert all(isinstance(value, int) for value in drawn)
        assert {int(values.min), int(values.max)} <= set(drawn) or values.max > 10
    elif values.scale == "log":
        middle = sum(value < math.sqrt(values.min * values.max) for value in drawn)
        assert 60 < middle < 140


def test_a_grid_is_handed_to_tune_as_one():
    space = SweepSpace(settings={"x": [1, 2]})
    assert sweep._param_space(space) == {"x": {"grid_search": [1, 2]}}


def test_optuna_searches_the_space_as_it_is_written():
    space = SweepSpace(
        search="optuna",
        trials=3,
        settings={
            "mtct.learning_rate": Range(min=1e-4, max=1e-2, scale="log"),
            "lora.rank": Range(min=4, max=16, integer=True),
            "sarr.filter.max_tokens": [None, 90],
        },
    )
    search = sweep.OptunaSearch(seed=space.seed)
    assert search.set_search_properties("score", "max", sweep._param_space(space))
    for number in range(5):
        found = search.suggest(f"trial-{number}")
        assert set(found) == set(space.settings)
        assert 1e-4 <= found["mtct.learning_rate"] <= 1e-2
        assert found["lora.rank"] in range(4, 17)
        assert found["sarr.filter.max_tokens"] in (None, 90)
        assert json.loads(json.dumps(found)) == found
        search.on_trial_complete(f"trial-{number}", {"score": 0.1 * number, "training_iteration": 1})
