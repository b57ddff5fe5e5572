"""End vLLM's processes with the actor that started them, however it ends.

vLLM runs its engine in a process of its own, which does not notice that its parent was killed and
would go on holding the memory that the next engine needs.
"""

import os
import subprocess
import sys
import uuid

_MARK = "RDMLDG_ENGINE"

# The pipe to its parent ends with the parent; then whoever inherited the mark is killed.
_WATCH = """
import os, sys, psutil
name, mark = sys.argv[1:]
sys.stdin.read()
for process in psutil.process_iter():
    try:
        if process.pid != os.getpid() and process.environ().get(name) == mark:
            process.kill()
    except psutil.Error:
        pass
"""


def tie_children() -> "subprocess.Popen[bytes]":
    """Let every process that is started from now on end with this one; keep what this returns."""
    mark = uuid.uuid4().hex
    watch = subprocess.Popen(
        [sys.executable, "-c", _WATCH, _MARK, mark], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[_MARK] = mark
    # A forked process would not show the mark.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    return watch
