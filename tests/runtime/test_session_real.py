"""How a program ends that is interrupted while Ray works for it."""

import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers.repository import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import time
import ray
from rdmldg_ray.config.load import load_config
from rdmldg_ray.runtime.session import ray_session

with ray_session(load_config("demo")):
    print("ready", flush=True)
    ray.get(ray.remote(lambda: time.sleep(600)).remote())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_and_all_that_it_started(number, code):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "ready\n"
    started = psutil.Process(program.pid).children(recursive=True)
    assert started
    program.send_signal(number)
    _, said = program.communicate()
    assert program.returncode == code
    assert "***" not in said, "no trace of C++"
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
