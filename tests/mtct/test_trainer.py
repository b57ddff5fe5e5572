import json

import pyarrow as pa
import pytest

from rdmldg_ray.mtct.trainer import _committed, _spread, sweep_checkpoints
from rdmldg_ray.storage import join, list_folders, write_bytes, write_json

RECORD = "checkpoints/checkpoint_manager_snapshot.json"


def checkpoints(stage, *names):
    for name in names:
        write_bytes(join(stage, "checkpoints", name, "deepspeed/shard-0"), b"x")


def test_only_checkpoints_that_count_stay(root):
    stage = join(root, "mtct")
    checkpoints(stage, "checkpoint_1", "checkpoint_2", "checkpoint_3", "another")
    write_json(join(stage, RECORD), {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]})
    sweep_checkpoints(stage)
    assert list_folders(join(stage, "checkpoints")) == ["another", "checkpoint_2"]


def test_before_the_first_that_counts_none_does(root):
    stage = join(root, "mtct")
    sweep_checkpoints(stage)  # a stage that has not begun
    checkpoints(stage, "checkpoint_1")
    sweep_checkpoints(stage)
    assert list_folders(join(stage, "checkpoints")) == []


def test_engines_are_checked_on_samples_with_a_chain_where_there_are_any():
    labels = [f"class {number}" for number in range(9)]
    chains = pa.array([None, "a", None, "b", *[None] * 5], pa.string())
    rows = pa.table({"label": labels, "chain": chains})
    assert _spread(rows)["chain"].to_pylist() == ["a", "b"]
    assert _spread(rows.slice(4))["label"].to_pylist() == labels[4:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"checkpoint_results": [{}]}',
        b'{"checkpoint_results": [], "latest_checkpoint_result": {"metrics": {"step": "x"}}}',
    ],
)
def test_a_damaged_record_of_checkpoints_is_told_with_its_remedy(root, content):
    write_bytes(f"{root}/checkpoints/checkpoint_manager_snapshot.json", content)
    with pytest.raises(ValueError, match=r"snapshot\.json: is damaged .*delete its folder"):
        sweep_checkpoints(root)


def test_a_training_resumes_after_the_last_checkpoint_that_counts(root):
    assert _committed(root) == (set(), 0)
    result = {"checkpoint_dir_name": "checkpoint_2", "metrics": {"step": 11}}
    record = {"checkpoint_results": [result], "latest_checkpoint_result": result}
    write_bytes(f"{root}/checkpoints/checkpoint_manager_snapshot.json", json.dumps(record).encode())
    assert _committed(root) == ({"checkpoint_2"}, 12)
