import pytest
from rich.console import Console

from rdmldg_ray.config.load import load_config
from rdmldg_ray.runs.cleaning import clean_run
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.runtime.lease import LeaseHeldError
from rdmldg_ray.storage import list_files, write_bytes
from tests.helpers.cli import rdmldg

MTCT, EVALUATION, DRAWS, ROUND = (
    Stage("flat", "mtct", 0),
    Stage("flat", "evaluate", 0),
    Stage("flat", "generate", 1),
    Stage("flat", "train", 1),
)


@pytest.fixture
def store(root):
    """A run whose round still trains: its own checkpoint, and what the complete stages left."""
    store = RunStore(root, "mine")
    store.write_config(load_config("demo", ["name=mine", "data.held_out=flat", f"storage={root}"]))
    for stage in (MTCT, ROUND):
        write_bytes(f"{store.stage_uri(stage)}/adapter/adapter_config.json", b"{}")
        write_bytes(f"{store.checkpoints_uri(stage)}/checkpoint_1/optimizer.pt", b"large")
    for stage in (EVALUATION, DRAWS):
        write_bytes(f"{store.answers_uri(stage)}/0/part-0.parquet", b"some")
    for stage in (MTCT, EVALUATION):
        store.enter(stage, {"seconds": 1.0})
    return store


def test_what_complete_stages_left_goes_and_all_that_resumes_stays(store):
    before = set(list_files(store.uri))
    removed = clean_run(store, Console())
    assert [(one.files, one.bytes) for one in removed] == [(1, 5), (1, 4)]
    gone = before - set(list_files(store.uri))
    assert {file.removeprefix(f"{store.uri}/") for file in gone} == {
        "flat/mtct/checkpoints/checkpoint_1/optimizer.pt",
        "flat/answers/evaluate/mtct/0/part-0.parquet",
    }
    assert clean_run(store, Console()) == []


def test_a_dry_run_deletes_nothing(store):
    before = list_files(store.uri)
    found = rdmldg("clean", "mine", "--dry-run", "--storage", store.root)
    assert found.exit_code == 0 and "would be free" in found.output
    assert list_files(store.uri) == before


def test_a_fold_that_another_works_on_is_left(store):
    before = list_files(store.uri)
    with store.lease("flat", Console()).held(), pytest.raises(LeaseHeldError):
        clean_run(store, Console())
    assert list_files(store.uri) == before


def test_several_runs_are_cleaned_by_a_pattern(store):
    found = rdmldg("clean", "m*", "--storage", store.root)
    assert found.exit_code == 0 and "0.000 GB are free" in found.output
    assert rdmldg("clean", "x*", "--storage", store.root).exit_code == 2
