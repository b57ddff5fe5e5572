import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.domainbed.records import read_results
from rdmldg_ray.runs.results import read_run, write_results
from rdmldg_ray.runs.status import run_status
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.storage import read_bytes, write_table
from tests.domainbed.test_records import ENVIRONMENTS, TABLE
from tests.helpers.run_files import as_release_0_1_0, write_run


def test_results_are_written_a_record_a_line_and_read_back(tmp_path):
    store = RunStore(str(tmp_path), "run")
    for model in ("zero-shot", "sarr-1"):
        write_table(store.predictions_uri("photo", model), TABLE)
    store.enter(Stage("photo", "evaluate", -1), {"seconds": 1.0})
    config = load_config("demo", ["data.dataset=pacs"])
    write_results(store, config, ENVIRONMENTS, newest=Stage("photo", "evaluate", 1))
    records = read_results(store.uri)
    assert [(record["args"]["algorithm"], record["step"]) for record in records] == [
        ("zero-shot (direct)", 0),
        ("zero-shot (reasoning)", 0),
        ("RD-MLDG (direct)", 2),
        ("RD-MLDG (reasoning)", 2),
    ]
    assert read_results(store.results_uri) == records
    # DomainBed cuts the last character of each line, which must be the newline.
    assert read_bytes(store.results_uri).endswith(b"}\n")


@pytest.fixture(params=["now", "0.1.0"])
def run(request, tmp_path, store):
    """A run as this release leaves it, and as release 0.1.0 did."""
    (tmp_path / "datasets").symlink_to(f"{store}/datasets")
    write_run(str(tmp_path))
    if request.param == "0.1.0":
        as_release_0_1_0(str(tmp_path))
    return read_run(str(tmp_path), "small")


def test_a_run_of_any_release_is_read(run):
    assert run.held_out == ["flat"] and run.models("flat") == ["zero-shot", "mtct", "sarr-1"]
    assert set(run.accuracy("flat", "mtct")) == {"direct", "reasoning"}
    assert "split" in run.predictions("flat", "mtct").column_names
    assert run.rounds("flat") == ["sarr-1"]
    candidates = run.candidates("flat", "sarr-1")
    assert sum(candidates["accepted"].to_pylist()) == run.state["flat/sarr-1/candidates"]["accepted"]
    assert run.rejections("flat", "sarr-1") is not None
    assert {stage: len(steps) for stage, steps in run.metrics().items()} == {
        "flat/mtct": 500,
        "flat/sarr-1": 500,
    }
    assert run.stage_bytes("flat/sarr-1") > 0 and run.stage_bytes("flat/sarr-1/candidates") > 0
    assert [stage.status for stage in run_status(run.root, "small").stages[:6]] == ["complete"] * 6


def test_an_evaluation_that_is_not_there_is_named(run):
    with pytest.raises(
        ValueError, match=r"no evaluation of sarr-9 for flat; there is: flat \(zero-shot, mtct, sarr-1\)"
    ):
        run.accuracy("flat", "sarr-9")
