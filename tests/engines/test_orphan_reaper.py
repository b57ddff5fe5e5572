import subprocess
import sys

import psutil

PARENT = """
import subprocess, sys, time
from rdmldg_ray.engines.orphan_reaper import tie_children
stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
watch = tie_children()
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(stranger.pid, child.pid, watch.pid, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_has_started_ends_with_it_and_nothing_else():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    stranger, child, watch = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    try:
        parent.kill()
        parent.wait()
        gone, _ = psutil.wait_procs([child, watch], timeout=20)
        assert gone == [child, watch] or set(gone) == {child, watch}
        assert stranger.is_running()
    finally:
        stranger.kill()
