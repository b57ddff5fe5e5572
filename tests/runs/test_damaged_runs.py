"""A run's files cut, emptied, edited or gone: each command says which and what to do, or needs it not."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from rdmldg_ray import api
from rdmldg_ray.config.load import dump_config
from rdmldg_ray.runs.outputs import check_adapter, find_adapter
from rdmldg_ray.runs.results import write_results
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.storage import read_table, write_json, write_table
from tests.helpers.run_files import write_run
from tests.helpers.stage_files import write_training

CONFIG, STATE, VERSIONS = "config.yaml", "flat/state.json", "versions.json"
METRICS, PROGRESS = "flat/mtct/metrics.jsonl", "flat/evaluation/sarr-1/progress.json"
PREDICTIONS = "flat/evaluation/sarr-1/predictions.parquet"
CANDIDATES, REJECTIONS = "flat/sarr-1/candidates/part-00000.parquet", "flat/sarr-1/rejections.parquet"
ADAPTER_CONFIG = "flat/sarr-1/adapter/adapter_config.json"
ADAPTER, RESULTS = "flat/sarr-1/adapter/adapter_model.safetensors", "results.jsonl"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, store, info):
    """The files of a complete run, with its data set beside it."""
    root = tmp_path_factory.mktemp("whole")
    (root / "datasets").symlink_to(f"{store}/datasets")
    config = write_run(str(root), sarr={"rounds": 1})
    found = RunStore(str(root), "small")
    for stage in (Stage("flat", "mtct", 0), Stage("flat", "train", 1)):
        write_training(found, stage, config, 200)
    write_json(found.versions_uri, {"python": "3.11"})
    write_results(found, config, info.environments)
    return root


@pytest.fixture
def root(whole, store, tmp_path):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    (tmp_path / "datasets").symlink_to(f"{store}/datasets")
    return tmp_path


def commands(root):
    """What reads a run, without an engine or a worker, by the name of its command."""
    run = f"{root}/runs/small"

    def restart():
        api.plan(RunStore(str(root), "small").read_config())

    def evaluate():
        RunStore(str(root), "small").read_config()
        check_adapter(f"{run}/flat/sarr-1/adapter")

    return {
        "status": lambda: api.status(run),
        "show": lambda: api.candidates(run),
        "report": lambda: api.report([run], out=root / "report.html", max_images=4),
        "collect": lambda: api.collect([run]),
        "refilter": lambda: api.refilter(run, ["sarr.filter.max_tokens=50"]),
        # Up to where a model would be loaded.
        "export": lambda: check_adapter(find_adapter(api.read_run(run), None, None)),
        "evaluate": evaluate,
        "calibrate": lambda: api.calibrate(run),
        "analyze": lambda: api.analyze("rejected", run),
        "run": restart,
    }


def cut(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2 - 7])  # not at the end of a line


def emptied(file):
    file.write_bytes(b"")


def binary(file):
    file.write_bytes(bytes(range(256)) * 4)


def gone(file):
    file.unlink()


def folder(file):
    file.unlink()
    file.mkdir()


def text(content):
    def write(file):
        file.write_text(content)

    write.__name__ = content[:12]
    return write


def edited(change):
    def edit(file):
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value))

    edit.__name__ = change.__name__
    return edit


def no_seconds(value):
    del value["stages"]["mtct"]["seconds"]


def words_for_seconds(value):
    value["stages"]["mtct"]["seconds"] = "long"


def unknown_stage(value):
    value["stages"]["sarr-0"] = {"seconds": 1.0}


def newer(value):
    value["version"] = 99


def no_version(value):
    del value["version"]


def no_counts(value):
    del value["stages"]["sarr-1/candidates"]["accepted"]


def words_for_accuracy(value):
    value["stages"]["evaluation/mtct"]["accuracy"]["direct"]["target_in"] = "good"


def one_key_more(file):
    file.write_text(file.read_text() + "later_setting: 3\n")


def one_key_more_inside(file):
    tree = yaml.safe_load(file.read_text())
    tree["lora"]["later"] = True
    file.write_text(yaml.safe_dump(tree))


def wrong_type(file):
    file.write_text(file.read_text().replace("rounds: 1", "rounds: many"))


def rewritten(change):
    def write(file):
        write_table(str(file), change(read_table(str(file))))

    return write


def without(column):
    return rewritten(lambda table: table.drop_columns([column]))


def of_texts(column):
    return rewritten(lambda table: with_column(table, column, pa.array(["many"] * len(table))))


def of_nulls(column):
    return rewritten(lambda table: with_column(table, column, pa.nulls(len(table), table[column].type)))


def with_column(table, column, values):
    return table.set_column(table.column_names.index(column), column, values)


without_rows = rewritten(lambda table: table.slice(0, 0))

ALL = {"status", "show", "report", "collect", "refilter", "export", "evaluate", "calibrate", "analyze", "run"}
OF_STATE = ALL - {"collect", "evaluate"}
DAMAGE = [
    *[(CONFIG, how, ALL - {"collect"}) for how in (binary, emptied, text("[]"), text("{"))],
    *[(CONFIG, how, ALL - {"collect"}) for how in (one_key_more, one_key_more_inside, wrong_type)],
    *[(STATE, how, OF_STATE) for how in (cut, emptied, binary, text("{"), text("[]"), text("3"), text("{}"))],
    *[(STATE, edited(how), OF_STATE) for how in (no_seconds, words_for_seconds, unknown_stage, newer)],
    *[(STATE, edited(how), OF_STATE) for how in (no_version, no_counts, words_for_accuracy)],
    *[(VERSIONS, how, set()) for how in (cut, emptied, text("[]"), gone)],
    *[(METRICS, how, {"calibrate"}) for how in (cut, emptied, binary, gone, text("[]\n"), text("{}\n"))],
    *[(PREDICTIONS, how, set()) for how in (cut, emptied, binary, gone)],
    *[(CANDIDATES, how, {"show", "refilter", "analyze"}) for how in (cut, emptied, binary)],
    (CANDIDATES, gone, {"show", "refilter"}),
    *[(REJECTIONS, how, set()) for how in (cut, emptied, gone)],
    *[(ADAPTER, how, {"export", "evaluate"}) for how in (cut, emptied, binary, gone)],
    *[
        (RESULTS, how, {"collect"})
        for how in (cut, emptied, binary, text("[]\n"), text("{}\n"), gone, folder)
    ],
    (CONFIG, folder, ALL - {"collect"}),
    (STATE, folder, OF_STATE),
    (METRICS, folder, {"calibrate"}),
    *[(file, folder, set()) for file in (VERSIONS, PREDICTIONS, REJECTIONS)],
    (CANDIDATES, folder, {"show", "refilter"}),
    (ADAPTER, folder, {"export", "evaluate"}),
    *[(ADAPTER_CONFIG, text(content), {"export", "evaluate"}) for content in ("", "{", "[]", "{}")],
    *[
        (ADAPTER_CONFIG, text(content), {"export", "evaluate"})
        for content in ("[" * 9999, '{"peft_type": 1}')
    ],
    *[(CANDIDATES, without(column), {"show", "refilter"}) for column in ("id", "text")],
    (CANDIDATES, without("candidate"), {"show", "refilter", "analyze"}),
    (CANDIDATES, without("accepted"), {"show", "refilter", "analyze"}),
    (CANDIDATES, without("label_prob"), {"refilter"}),
    (CANDIDATES, of_texts("num_tokens"), {"refilter"}),
    (CANDIDATES, of_nulls("id"), {"show", "refilter"}),
    (CANDIDATES, without_rows, {"refilter"}),
    *[(REJECTIONS, how, set()) for how in (without("domain"), without_rows)],
    *[(PREDICTIONS, how, set()) for how in (without("correct"), without_rows)],
]


@pytest.mark.parametrize(
    ("file", "damage", "fail"), DAMAGE, ids=[f"{file}-{how.__name__}" for file, how, _ in DAMAGE]
)
def test_a_damaged_file_is_named_with_a_remedy_by_what_needs_it_alone(root, file, damage, fail):
    damage(root / "runs/small" / file)
    failed = {}
    for name, command in commands(root).items():
        if name == "report" and damage is not cut:  # which takes seconds
            continue
        try:
            command()
        except ValueError as error:
            failed[name] = str(error)
    assert set(failed) == (fail if damage is cut else fail - {"report"})
    for message in failed.values():
        assert Path(file).name in message or str(Path("runs/small", file).parent) in message
        assert "https://" not in message and "\n" not in message


def test_a_whole_run_is_read_by_all(root):
    for command in commands(root).values():
        command()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "[" * 100_000, '{"done": 1}', '{"done": "a", "total": 2, "text": ""}'),
        '{"done": Infinity, "total": 2, "text": ""}',
    ],
)
def test_progress_that_cannot_be_read_does_not_hide_how_far_a_run_is(root, content):
    state = root / "runs/small" / STATE
    value = json.loads(state.read_text())
    del value["stages"]["evaluation/sarr-1"]
    state.write_text(json.dumps(value))
    (root / "runs/small" / PROGRESS).write_text(content)
    found = api.status(f"{root}/runs/small")
    assert [stage.status for stage in found.stages] == ["complete"] * 5 + ["running"]
    assert "progress.json cannot be read" in found.stages[-1].text


def test_a_complete_run_is_told_of_without_its_data_set(root):
    (root / "datasets").unlink()
    found = api.status(f"{root}/runs/small")
    assert found.complete and len(found.stages) == 6
    page = api.report([f"{root}/runs/small"], out=root / "report.html").read_text()
    assert "Not shown: " in page and "dataset.json" in page
    assert "At the end of each stage" in page and "target (in)" in page


@pytest.mark.parametrize(
    ("damaged", "how"),
    [(CANDIDATES, cut), (PREDICTIONS, cut), (CANDIDATES, without("text")), (REJECTIONS, without("domain"))],
)
def test_a_report_shows_what_is_whole_and_says_what_is_not(root, damaged, how):
    how(root / "runs/small" / damaged)
    page = api.report([f"{root}/runs/small"], out=root / "report.html", max_images=4).read_text()
    assert "Not shown: " in page and damaged.removesuffix("/part-00000.parquet") in page
    assert "By stage" in page


def test_a_report_of_a_round_without_candidates_is_written(root):
    for damaged in (CANDIDATES, REJECTIONS):
        without_rows(root / "runs/small" / damaged)
    page = api.report([f"{root}/runs/small"], out=root / "report.html", max_images=4).read_text()
    assert "By stage" in page


def test_a_state_that_is_damaged_is_never_taken_for_a_new_run(root):
    (root / "runs/small" / STATE).write_text("[]")
    store = RunStore(str(root), "small")
    before = (root / "runs/small" / STATE).read_bytes()
    with pytest.raises(
        ValueError, match=r"flat/state\.json: is cut, damaged or edited .*; restore it, or delete"
    ):
        store.enter(Stage("flat", "mtct", 0), {"seconds": 1.0})
    assert (root / "runs/small" / STATE).read_bytes() == before


def test_the_config_is_written_whole(root):
    config = RunStore(str(root), "small").read_config()
    assert yaml.safe_load(dump_config(config))["name"] == "small"
