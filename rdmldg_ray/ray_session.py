"""Joining a Ray cluster, or starting one of our own on this machine's loopback."""

import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rdmldg_ray.config import Config

# 127.0.0.1 would be rewritten to the network card's address; the rest of 127/8 is left alone.
_LOOPBACK = "127.0.0.2"
_CARRIED = ("AWS_", "HF_")
_SECRET = ("KEY", "SECRET", "TOKEN")


@contextmanager
def ray_session(config: Config) -> Iterator[str]:
    """Connect to Ray for the time of the block and yield the folder of its logs.

    Inside a Ray job, or with ``RAY_ADDRESS`` set, that cluster is used. Otherwise a cluster is
    started here that listens on loopback only, asks for a token of its own and reports no usage.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    # Fractions of a core are meant; Ray need not warn that more workers than cores run.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
    own = "RAY_ADDRESS" not in os.environ
    with tempfile.TemporaryDirectory(prefix="rdmldg-") as folder:
        own_token = own and "RAY_AUTH_MODE" not in os.environ
        if own_token:
            _use_private_token(Path(folder) / "token")
        import ray
        from ray.data import DataContext

        loopback: dict[str, Any] = {"_node_ip_address": _LOOPBACK, "dashboard_host": "127.0.0.1"}
        context: Any = ray.init(
            address=None if own else "auto",
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": _worker_environment(config)},
            **(loopback if own else {}),
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        data = DataContext.get_current()
        data.enable_progress_bars = False
        data.target_max_block_size = 16 * 1024 * 1024
        try:
            yield f"{context.address_info['session_dir']}/logs" if own else "with the cluster's own"
        finally:
            ray.shutdown()
            if own_token:
                del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]


def _use_private_token(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _worker_environment(config: Config) -> dict[str, str]:
    """What workers on any node need and do not inherit from the driver.

    Endpoint and region, but no secrets: whoever sees the dashboard sees these. Workers of a cluster
    started here inherit the driver's credentials; elsewhere nodes have a role or secrets of their own.
    """
    chosen = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_CARRIED) and not any(word in name for word in _SECRET)
    }
    chosen["TOKENIZERS_PARALLELISM"] = "false"
    if config.workers.gpus_per_worker == 0:
        chosen["DS_ACCELERATOR"] = "cpu"
    return chosen
