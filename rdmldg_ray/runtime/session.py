"""Joining a Ray cluster, or starting one of our own on this machine's loopback."""

import atexit
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rdmldg_ray.config.schema import Config
from rdmldg_ray.runtime.errors import RunFailedError, user_error
from rdmldg_ray.runtime.lease import LeaseHeldError

_CARRIED = ("AWS_", "HF_", "MLFLOW_", "WANDB_")
_SECRET = ("KEY", "SECRET", "TOKEN", "PASSWORD")
_LOGIN = re.compile("://[^/]*@")  # a URL with a user's name or password


_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # Fractions of a core are meant; Ray need not warn that more workers than cores run.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
}
# With 1, Ray unpickles what the schema of a file says of a tensor, which runs whatever that is.
_NO_PICKLE = {"RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "0"}
# Work of hours is not to end with a minute of S3's: twelve tries take about that long. Before Ray is there
# few do, so that a wrong endpoint is told at once.
_PATIENCE = {"AWS_MAX_ATTEMPTS": "12", "AWS_RETRY_MODE": "standard"}
_OWN_CLUSTER_SETTINGS = {
    # Despite its name it works everywhere: without it, Ray puts the network card's address in the
    # place of 127.0.0.1 and its servers listen on every interface.
    # https://github.com/ray-project/ray/issues/26293
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/_private/services.py#L815-L819
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


@contextmanager
def ray_session(config: Config) -> Iterator[str]:
    """Connect to Ray for the time of the block and yield the folder of its logs.

    Inside a Ray job, or with ``RAY_ADDRESS`` set, that cluster is used. Otherwise a cluster is
    started here that listens on loopback only, asks for a token of its own and reports no usage.

    Raises:
        ValueError: when ``RAY_ADDRESS`` is no cluster's address, or nothing answers there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    own = not address
    if address not in ("", "auto", "local"):
        check_address(address)
    _set_up_environment(own)
    import ray
    from ray.data import DataContext

    context: Any = ray.init(
        address=None if own else "auto",
        dashboard_host="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": _worker_environment(config)},
    )
    if threading.current_thread() is threading.main_thread():
        # As Ctrl-C does: Ray's own handlers print a trace of C++ or leave with exit code 15.
        signal.signal(signal.SIGTERM, _terminate)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data = DataContext.get_current()
    data.enable_progress_bars = False
    data.target_max_block_size = 16 * 1024 * 1024
    try:
        yield f"{context.address_info['session_dir']}/logs" if own else "with the cluster's own"
    finally:
        ray.shutdown()


@contextmanager
def connected(config: Config, console: Console) -> Iterator[None]:
    """Ray for the time of the block: this process's own connection, or one made by ``ray_session``.

    Raises:
        LeaseHeldError: as the block raises it.
        RunFailedError: for another user error inside the block. Before Ray is there, what is wrong is what
            was asked for; from then on it is the work that failed.
    """
    with ExitStack() as stack:
        if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
            logs = stack.enter_context(ray_session(config))
            console.print(f"logs of Ray, DeepSpeed and vLLM: {logs}", soft_wrap=True)
        try:
            yield
        except Exception as error:
            told = user_error(error)
            if told is None or isinstance(told, LeaseHeldError):
                raise
            raise RunFailedError(str(told)) from error


def check_address(address: str) -> None:
    """Check that a cluster may be at an address; Ray tries for minutes what nothing answers at.

    Raises:
        ValueError: when it is not of a cluster's form, or nothing answers there.
    """
    remedy = "correct RAY_ADDRESS, or unset it to have a cluster started on this machine"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(
            f"RAY_ADDRESS={_LOGIN.sub('://', address)}: is not of the form host:port, such as 10.0.0.1:6379; "
            f"{remedy}. The address of a cluster's dashboard is for 'rdmldg submit --address'"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"RAY_ADDRESS={address}: no cluster answers there ({error}); {remedy}") from None


def _terminate(number: int, _: Any) -> None:
    sys.exit(128 + number)


def _set_up_environment(own: bool) -> None:
    """Set what the user has not set, for good: Ray reads these once in the life of a process."""
    settings = _RAY_SETTINGS | _PATIENCE
    # Where Ray is imported already it has read its settings, and others would only contradict them.
    if own and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        settings |= _OWN_CLUSTER_SETTINGS | {"RAY_AUTH_TOKEN_PATH": _write_token()}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ |= _NO_PICKLE


def _write_token() -> str:
    folder = Path(tempfile.mkdtemp(prefix="rdmldg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return str(path)


def _worker_environment(config: Config) -> dict[str, str]:
    """What workers on any node need and do not inherit from the driver.

    Endpoint and region, but no secrets: whoever sees the dashboard sees these. Workers of a cluster
    started here inherit the driver's credentials; elsewhere nodes have a role or secrets of their own.
    """
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_CARRIED)
        and not any(word in name for word in _SECRET)
        and not _LOGIN.search(value)
    }
    chosen |= _NO_PICKLE
    chosen["TOKENIZERS_PARALLELISM"] = "false"
    if config.workers.gpus_per_worker == 0:
        chosen["DS_ACCELERATOR"] = "cpu"
    return chosen
