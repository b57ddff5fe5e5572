from rdmldg_ray.mtct.trainer import sweep_checkpoints
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
