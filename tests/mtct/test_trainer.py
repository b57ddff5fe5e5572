import pyarrow as pa

from rdmldg_ray.mtct.trainer import _spread, sweep_checkpoints
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
