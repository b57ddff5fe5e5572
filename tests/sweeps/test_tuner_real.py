"""A sweep on a small real data set, killed and resumed: Ray Tune, Ray Train and vLLM, nothing replaced."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rdmldg_ray.runs.store import RunStore, run_names
from tools import mini

pytestmark = pytest.mark.slow
pytest.importorskip("optuna")

SETTINGS = [
    "name=swept",
    "data.dataset=mini",
    "data.held_out=flat",
    "mtct.epochs=4",
    "mtct.batch_size=16",
    "mtct.micro_batch_size=8",
    "sarr.max_attempts=2",
    "sarr.without_chain=drop",
    "sarr.temperatures=[0.3, 0.6]",
    "sarr.training.epochs=1",
    "sarr.training.batch_size=8",
    "sarr.training.micro_batch_size=4",
    "evaluation.zero_shot=false",
    # One of each: this is about stages. So there is room for two trials at once.
    "workers.num_workers=1",
    "engines.num_engines=1",
]
# No chain is as short as one token: that trial has nothing to train on.
SPACE = "settings: {sarr.filter.max_tokens: [null, 1]}\n"
DRAWS, LAST = "flat/sarr-1/candidates", "flat/evaluation/sarr-1"


def start(root):
    command = [sys.executable, "-m", "rdmldg_ray", "sweep", "demo", "--space", str(root / "space.yaml")]
    # Its own cluster, though the test may run where RAY_ADDRESS is set.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen([*command, "--storage", str(root), *SETTINGS], env=environment)


def states(root):
    return {name: RunStore(str(root), name).state() for name in run_names(str(root))}


def test_a_killed_sweep_loses_no_trial_shares_its_stages_and_marks_the_one_that_fails(tmp_path):
    mini.write_mini(str(tmp_path))
    (tmp_path / "space.yaml").write_text(SPACE)
    process = start(tmp_path)
    deadline = time.monotonic() + 600
    while not any(LAST in state for state in states(tmp_path).values()):
        assert process.poll() is None, "the sweep ended before it was killed"
        assert time.monotonic() < deadline, "no trial was ever complete"
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {run: state for run, state in states(tmp_path).items() if LAST in state}

    assert start(tmp_path).wait(timeout=400) == 0
    after = states(tmp_path)
    for run, state in before.items():
        assert after[run] == state, "a finished trial was run again"

    text = Path(tmp_path, "sweeps/swept/results.csv").read_text()
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == 2
    rows = {row["sarr.filter.max_tokens"]: row for row in found}
    assert {bound: row["status"].split(":")[0] for bound, row in rows.items()} == {
        "": "complete",
        "1": "failed",
    }
    assert "no sample of the source domains has an accepted chain" in rows["1"]["status"]
    state = after[rows[""]["trial"]]
    scores = [state[f"flat/evaluation/{model}"]["accuracy"]["reasoning"] for model in ("mtct", "sarr-1")]
    assert float(rows[""]["score"]) == pytest.approx(max(entry["validation"] for entry in scores))
    assert (tmp_path / "sweeps/swept/results.png").exists()

    # One training of MTCT for all, and no draw made twice.
    assert sum("shared" not in state["flat/mtct"] for state in after.values()) == 1
    drawn = [state[DRAWS].get("drawn_anew", state[DRAWS]["candidates"]) for state in after.values()]
    assert sum(drawn) == max(state[DRAWS]["candidates"] for state in after.values())
