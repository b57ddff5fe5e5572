"""That the verdict of tools/chaos/rehearse.py sees what a fault may do to a run's outputs."""

import json
import shutil

import pyarrow as pa
import pytest

from rdmldg_ray.storage import join, read_bytes, read_table, write_bytes, write_table
from tests.helpers import run_files
from tools.chaos.outcome import differences, read_outcome

CANDIDATES = "flat/sarr-1/candidates/part-00000.parquet"
LOG = "flat/mtct/metrics.jsonl"


@pytest.fixture
def run(store, tmp_path):
    """A complete run of small files, beside the data set's description and index."""
    root = str(tmp_path)
    shutil.copytree(join(store, "datasets/iconbed"), tmp_path / "datasets/iconbed")
    run_files.write_run(root)
    location = join(root, "runs/small")
    step = {"step": 1, "epoch": 0, "loss_direct": 1.0, "loss_reasoning": 2.0, "learning_rate": 1e-3}
    write_steps(location, step | {"tokens": 90, "resumed_at": 0, "samples_per_s": 7.0})
    write_bytes(join(location, "flat/sarr-1/metrics.jsonl"), b"")
    return location


def write_steps(run, *steps):
    write_bytes(join(run, LOG), "".join(json.dumps(step) + "\n" for step in steps).encode())


def rewrite(run, change):
    """Change the rows of the candidates."""
    rows = read_table(join(run, CANDIDATES))
    write_table(join(run, CANDIDATES), pa.Table.from_pylist(change(rows.to_pylist()), rows.schema))


def test_a_run_is_as_itself(run):
    assert differences(read_outcome(*run.rsplit("/runs/", 1)), read_outcome(*run.rsplit("/runs/", 1))) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows[1:], "lost iconbed/"),
        (lambda rows: [*rows, rows[0]], "twice: /flat/sarr-1/candidates: iconbed/"),
        (lambda rows: [rows[0] | {"candidate": 7}, *rows[1:]], "added iconbed/"),
        (lambda rows: [rows[0] | {"text": "another"}, *rows[1:]], " text: another instead of "),
    ],
)
def test_rows_lost_doubled_added_or_changed_are_found(run, change, found):
    before = read_outcome(*run.rsplit("/runs/", 1))
    rewrite(run, change)
    assert any(found in line for line in differences(read_outcome(*run.rsplit("/runs/", 1)), before))


def test_losses_and_files_are_compared_and_times_are_not(run):
    write_bytes(join(run, "flat/mtct/checkpoints/checkpoint_2026-01-01_00-00-00.1/shard"), b"x")
    before = read_outcome(*run.rsplit("/runs/", 1))
    step = json.loads(read_bytes(join(run, LOG)))
    write_steps(run, step | {"samples_per_s": 1.0, "loss_direct": 1.0 + 1e-6, "resumed_at": 1})
    after = read_outcome(*run.rsplit("/runs/", 1))
    assert differences(after, before) == []
    assert after.resumed_at[f"/{LOG}"] == [1]
    write_bytes(join(run, "flat/mtct/checkpoints/checkpoint_2026-01-01_00-09-00.1/shard"), b"x")
    write_steps(run, step | {"loss_direct": 1.001})
    assert differences(read_outcome(*run.rsplit("/runs/", 1)), before) == [
        f"steps /{LOG} 0 loss_direct: 1.001 instead of 1.0",
        "files /flat/mtct/checkpoints/checkpoint/shard: 2 instead of 1",
    ]
