"""The demo with everything on object storage: data sets, runs, checkpoints."""

import os
import subprocess
import sys

import pytest

from rdmldg_ray import storage
from rdmldg_ray.runs.store import RunStore
from tests.helpers.repository import ROOT
from tools import mini, s3_server

pytestmark = pytest.mark.slow

SETTINGS = [
    "data.dataset=mini",
    "name=on-s3",
    "mtct.epochs=2",
    "mtct.batch_size=16",
    "mtct.micro_batch_size=8",
    "mtct.checkpoint_every=4",
    "sarr.max_attempts=2",
    # So short a training keeps few chains, if any; the teacher's keep the round going.
    "sarr.without_chain=teacher",
    "sarr.training.epochs=1",
    "sarr.training.batch_size=8",
    "sarr.training.micro_batch_size=4",
]


def rdmldg(folder, *arguments):
    """Run a command in an empty folder; returns what it printed."""
    # Its own cluster, though the test may run where RAY_ADDRESS is set.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "rdmldg_ray", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_demo_runs_with_everything_on_object_storage(s3_root, tmp_path):
    mini.write_mini(s3_root)
    printed = rdmldg(tmp_path, "demo", *SETTINGS, "--storage", s3_root)
    run = RunStore(s3_root, "on-s3").uri
    assert "flat/evaluation/sarr-1" in RunStore(s3_root, "on-s3").state()
    there = storage.list_files(run)
    for part in ("/mtct/adapter/", "/mtct/checkpoints/", "/sarr-1/candidates/", "/evaluation/sarr-1/"):
        assert any(part in file for file in there), part

    printed += rdmldg(tmp_path, "demo", *SETTINGS, "--storage", s3_root)
    assert "run 'on-s3' is complete; nothing to do" in printed
    printed += rdmldg(tmp_path, "show", "on-s3", "--storage", s3_root, "--limit", "1")
    printed += rdmldg(tmp_path, "export", "on-s3", "exported", "--storage", s3_root)
    assert (tmp_path / "exported/model.safetensors").exists()
    # What goes to storage does not also come here, and credentials go nowhere.
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    for secret in (s3_server.SECRET_KEY, s3_server.ACCESS_KEY):
        assert secret not in printed
        assert not any(secret.encode() in storage.read_bytes(file) for file in there)
