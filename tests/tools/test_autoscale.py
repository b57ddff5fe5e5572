"""The method on a cluster that grows and shrinks, and the record that is made of it."""

import json
import subprocess
import sys

import pytest

from rdmldg_ray.storage import read_bytes
from tests.helpers.repository import ROOT
from tools import mini
from tools.autoscale import rehearse as autoscale
from tools.autoscale.cluster import autoscaler_config
from tools.autoscale.rehearse import IDLE, Sample


def sample(seconds, stage, nodes, demands=()):
    return Sample(seconds, stage, nodes, float(len(nodes)), list(demands), 0)


SAMPLES = [
    sample(0.5, "flat/mtct", {}, ["2 x (1.6 CPU)"]),
    sample(1.0, "flat/mtct", {"a": "training"}, ["2 x (1.6 CPU)"]),
    sample(1.5, "flat/mtct", {"a": "training", "b": "training"}),
    sample(2.0, "flat/evaluation/mtct", {"b": "training", "c": "engines"}),
    sample(2.5, IDLE, {"c": "engines"}),
]


def test_a_stage_has_its_nodes_and_what_it_waited_for():
    mtct, evaluation, idle = autoscale.by_stage(SAMPLES)
    assert mtct == {
        "stage": "flat/mtct",
        "from_s": 0.5,
        "to_s": 1.5,
        "nodes_at_start": {},
        "most_nodes": {"training": 2},
        "nodes_at_end": {"training": 2},
        "most_used": 2.0,
        "demands": ["2 x (1.6 CPU)"],
    }
    assert evaluation["most_nodes"] == {"engines": 1, "training": 1}
    assert (idle["stage"], idle["nodes_at_end"]) == (IDLE, {"engines": 1})


def test_a_node_comes_and_goes_once():
    came = {"type": "training", "came_s": 1.0, "came_in": "flat/mtct"}
    rows = autoscale.comings_and_goings(SAMPLES)
    assert rows[0] == {**came, "went_s": 2.0, "went_in": "flat/evaluation/mtct"}
    assert [row["went_in"] for row in rows] == ["flat/evaluation/mtct", IDLE, None]


def test_ray_takes_the_clusters_file():
    # What `ray start` calls first; there is no public way: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/autoscaler/_private/util.py#L242
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(autoscaler_config("127.0.0.1:6379", autoscale.NODE_TYPES, 6)))


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """The storage of a run on such a cluster, and what the job says of it."""
    root = tmp_path_factory.mktemp("mini")
    mini.write_mini(str(root))
    few = [
        "data.dataset=mini",
        "data.held_out=flat",
        "mtct.epochs=2",
        "mtct.batch_size=16",
        "mtct.micro_batch_size=8",
    ]
    few += ["sarr.training.epochs=1", "sarr.training.batch_size=8", "sarr.training.micro_batch_size=4"]
    few += ["sarr.without_chain=teacher"]  # so short a training need not lead to any chain that is kept
    command = [sys.executable, "-m", "tools.autoscale.rehearse", "--storage", str(root), *few]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        out, _ = job.communicate(timeout=1100)
    finally:
        job.terminate()
    return root, json.loads(out)


@pytest.mark.slow
def test_nodes_come_for_training_and_for_engines_and_go_when_idle(scaled):
    root, found = scaled
    assert found["verdict"] == "passed", json.dumps(found, indent=2)
    stages = {row["stage"]: row for row in found["stages"]}
    assert stages["flat/mtct"]["nodes_at_start"] == {}
    assert stages["flat/mtct"]["most_nodes"] == {"training": 2}
    # As a whole: the controller may find its place before the workers do, but no worker before the other.
    demands = stages["flat/mtct"]["demands"]
    assert "2 x (1.6 CPU) and 1 x (0.25 CPU)" in demands
    assert set(demands) <= {"2 x (1.6 CPU) and 1 x (0.25 CPU)", "2 x (1.6 CPU)"}
    assert stages["flat/sarr-1/candidates"]["nodes_at_end"] == {"engines": 1}
    assert 1 <= stages["flat/sarr-1"]["most_nodes"]["training"] <= 2  # one, if a worker took the engine's
    assert stages[IDLE]["nodes_at_end"] == {}
    rows = [json.loads(line) for line in read_bytes(f"{root}/runs/autoscale/results.jsonl").splitlines()]
    assert {row["step"] for row in rows} == {1, 2}


@pytest.mark.slow
def test_a_stage_without_room_says_what_the_autoscaler_said(scaled):
    _, found = scaled
    training, engines = found["without_room"]["training"], found["without_room"]["engines"]
    asked = "2 x (50 CPU) and 1 x (0.25 CPU)"
    none = "the cluster has 0 CPU, 0 GPU, of it free 0 CPU, 0 GPU; its autoscaler can add no node for "
    assert training.startswith(
        f"error: no room in 10 s (workers.scheduling_timeout_s) for {asked}: {none}{asked}"
    )
    assert engines.startswith("error: 0 of 1 engines were ready in 10 s: asked for 1 x 50 CPU and 0 GPU, ")
    assert f"{none}1 x (50 CPU): no type of node has this" in engines
