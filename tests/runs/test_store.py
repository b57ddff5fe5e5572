import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.runs.store import (
    RunStore,
    Stage,
    accuracies_of,
    evaluated_folds,
    evaluated_models,
    model_name,
    model_round,
    round_summary,
    run_names,
    stages_of,
    write_fold_state,
)
from rdmldg_ray.storage import StorageError, read_json, write_json

STAGES = {
    "art+photo/evaluation/zero-shot": Stage("art+photo", "evaluate", -1),
    "flat/mtct": Stage("flat", "mtct", 0),
    "flat/evaluation/mtct": Stage("flat", "evaluate", 0),
    "flat/sarr-1/candidates": Stage("flat", "generate", 1),
    "Real World/sarr-12": Stage("Real World", "train", 12),
    "sarr-1/evaluation/sarr-2": Stage("sarr-1", "evaluate", 2),
    "evaluation/mtct": Stage("evaluation", "mtct", 0),
}


@pytest.mark.parametrize(("name", "stage"), STAGES.items())
def test_a_stage_is_printed_as_it_is_parsed(name, stage):
    assert stage.name == name
    assert Stage.parse(name) == stage


@pytest.mark.parametrize(
    "name",
    [
        *("flat", "flat/", "flat/zero-shot", "flat/sarr-0", "flat/sarr-x", "flat/mtct/adapter"),
        *("flat/analyses", "../mtct", "./mtct", "/mtct", "../evaluation/mtct"),
    ],
)
def test_what_is_no_stage_is_refused(name):
    with pytest.raises(ValueError, match="no stage"):
        Stage.parse(name)


def test_models_are_numbered_by_round():
    assert [model_name(number) for number in (-1, 0, 3)] == ["zero-shot", "mtct", "sarr-3"]
    assert [model_round(name) for name in ("zero-shot", "mtct", "sarr-3")] == [-1, 0, 3]


@pytest.fixture
def store(tmp_path):
    store = RunStore(str(tmp_path), "mine")
    store.write_config(load_config("demo", ["name=mine", "data.held_out=sketch,flat"]))
    return store


def test_each_fold_has_a_state_of_its_own_with_a_version(store):
    store.enter(Stage("flat", "mtct", 0), {"seconds": 1.0})
    store.enter(Stage("flat", "evaluate", 0), {"seconds": 2.0})
    store.enter(Stage("sketch", "mtct", 0), {"seconds": 3.0})
    assert read_json(f"{store.uri}/flat/state.json") == {
        "version": 2,
        "stages": {"mtct": {"seconds": 1.0}, "evaluation/mtct": {"seconds": 2.0}},
    }
    assert list(store.fold_state("sketch")) == ["sketch/mtct"]
    assert store.fold_state("paint") == {}


def test_the_state_of_a_run_is_that_of_its_folds_in_the_order_of_its_plan(store):
    for fold in ("flat", "paint", "sketch"):
        store.enter(Stage(fold, "mtct", 0), {"seconds": 1.0})
    assert list(store.state()) == ["sketch/mtct", "flat/mtct", "paint/mtct"]


def test_a_state_of_a_newer_release_is_refused(store):
    write_json(f"{store.uri}/flat/state.json", {"version": 3, "stages": {}})
    with pytest.raises(ValueError, match=r"flat/state\.json: has version 3, .*newer"):
        store.state()


def test_a_run_of_release_0_1_0_is_read_and_resumed(store):
    """It had one state for all folds, with other words in it."""
    before = {
        "flat/mtct": {"seconds": 1.0},
        "flat/sarr-1/candidates": {"seconds": 2.0, "kept": 3, "candidates": 4, "tokens_per_kept": 9.0},
        "sketch/mtct": {"seconds": 5.0},
    }
    write_json(f"{store.uri}/state.json", before)
    summary = {"seconds": 2.0, "accepted": 3, "candidates": 4, "tokens_per_selected": 9.0}
    assert round_summary(store.state(), "flat", "sarr-1") == summary
    store.enter(Stage("flat", "train", 1), {"seconds": 6.0})
    assert list(store.state()) == ["sketch/mtct", "flat/mtct", "flat/sarr-1/candidates", "flat/sarr-1"]
    assert list(store.fold_state("flat")) == ["flat/mtct", "flat/sarr-1/candidates", "flat/sarr-1"]
    assert read_json(f"{store.uri}/state.json") == before


def test_the_config_is_read_with_the_storage_where_the_run_is(store):
    assert store.read_config().storage == store.root
    with pytest.raises(StorageError, match="runs/other: no run here; correct the run's name, or --storage"):
        RunStore(store.root, "other").read_config()
    assert run_names(store.root) == ["mine"]


def test_what_was_selected_in_release_0_1_0_is_found(store):
    assert store.selected_uri("flat", "sarr-1") == f"{store.uri}/flat/sarr-1/selected"
    write_json(f"{store.uri}/flat/sarr-1/selected/part-00000.parquet", {})
    assert store.selected_uri("flat", "sarr-1") == f"{store.uri}/flat/sarr-1/selected"


def test_the_base_model_has_no_adapter(store):
    assert store.adapter_uri("flat", "zero-shot") is None
    assert store.adapter_uri("flat", "sarr-2") == f"{store.uri}/flat/sarr-2/adapter"


def test_what_a_state_tells():
    accuracy = {"direct": {"target_in": 0.5}}
    state = {
        "flat/mtct": {},
        "flat/evaluation/zero-shot": {"accuracy": {}},
        "flat/evaluation/mtct": {"accuracy": accuracy},
        "paint/sarr-1/candidates": {"accepted": 1},
    }
    assert evaluated_folds(state) == ["flat"]
    assert evaluated_models(state, "flat") == ["zero-shot", "mtct"]
    assert accuracies_of(state, "flat", "mtct") == accuracy
    assert accuracies_of(state, "paint", "mtct") == {}
    assert round_summary(state, "paint", "sarr-1") == {"accepted": 1}
    assert round_summary(state, "paint", "mtct") is None
    assert stages_of(state, "mtct") == [Stage("flat", "mtct", 0)]


def test_a_fold_state_is_replaced_whole(store):
    write_fold_state(store, "flat", {"flat/mtct": {"seconds": 1.0}})
    write_fold_state(store, "flat", {})
    assert store.state() == {}
