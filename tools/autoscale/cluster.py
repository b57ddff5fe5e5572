"""A Ray cluster that grows and shrinks on one machine, for tests.

Ray's own autoscaler (version 2) starts and ends the nodes, by its provider whose nodes are processes of this
machine: all is real but for the CPUs, of which a node offers what its type says. All listen on loopback
and ask for a token. ``ray.cluster_utils.AutoscalingCluster`` would do the same, but lacks a file in
Ray 2.60's wheel, and ends every Ray of the machine.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_START_TIMEOUT_S = 120
_HEAD = "127.0.0.1"
_HEAD_TYPE = "ray.head.default"
_HEAD_ID = "f" * 51 + "00000"  # the provider's own name for it
_OBJECT_STORE = 200_000_000
_NO_COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
_AUTOSCALER_ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


@contextmanager
def autoscaling_cluster(
    folder: Path, node_types: dict[str, dict[str, int]], idle_s: float
) -> Iterator[tuple[str, dict[str, str], psutil.Process]]:
    """A head without CPUs and an autoscaler: yields its address, a client's environment, its process.

    Args:
        folder: for Ray's session; its path must be short.
        node_types: how many ``CPU`` a node of a type offers, and how many nodes there may be at ``most``.
        idle_s: after so long without work a node is ended.
    """
    gcs, dashboard, agent, agent_grpc, client = free_ports(5)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # On any system: nodes are at 127.0.0.1 and listen nowhere else.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    # This process looks at the cluster too, and Ray reads these when it is imported.
    os.environ.update(environment)
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(autoscaler_config(f"{_HEAD}:{gcs}", node_types, idle_s)))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--node-ip-address={_HEAD}", f"--port={gcs}", f"--temp-dir={folder}"]
    command += [f"--dashboard-host={_HEAD}", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += [f"--ray-client-server-port={client}", f"--object-store-memory={_OBJECT_STORE}"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            [*command, f"--autoscaling-config={config}"],
            env=environment | _AUTOSCALER_ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
    process = psutil.Process(head.pid)
    try:
        wait_until_up(f"{_HEAD}:{gcs}", head, folder / "head.log")
        yield f"{_HEAD}:{gcs}", environment | {"RAY_ADDRESS": f"{_HEAD}:{gcs}"}, process
    finally:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself, with what it had started
            end(process)


def autoscaler_config(
    gcs_address: str, node_types: dict[str, dict[str, int]], idle_s: float
) -> dict[str, Any]:
    """The cluster's file, with Ray's provider of nodes that are processes of this machine."""
    types = {
        name: {
            "resources": {"CPU": size["CPU"], "object_store_memory": _OBJECT_STORE},
            "node_config": {},
            "min_workers": 0,
            "max_workers": size["most"],
        }
        for name, size in node_types.items()
    }
    return {
        "cluster_name": "autoscale",
        "max_workers": sum(size["most"] for size in node_types.values()),
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            # Ray's own AutoscalingCluster reads a file that the wheel lacks, and ends every Ray of the host:
            # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/cluster_utils.py#L65-L90
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
            "gcs_address": gcs_address,
        },
        # Ray has no defaults for such a provider, and wants to be told even what it does not use.
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in _NO_COMMANDS},
        "file_mounts_sync_continuously": False,
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {
            _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **types,
        },
    }


def free_ports(count: int) -> list[int]:
    """Ports that are free now, above those that Ray gives to its workers."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HEAD, 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_up(address: str, head: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the head's node is there, and the autoscaler has said a word."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    until = time.monotonic() + _START_TIMEOUT_S
    while True:
        if head.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"no head at {address}:\n{log.read_text()}")
        with suppress(Exception):  # of many kinds, by how far it is
            status = get_cluster_status(address)
            if status.active_nodes + status.idle_nodes and status.stats.autoscaler_version != "0":
                return
        time.sleep(1)


def end(head: psutil.Process) -> None:
    """End the head and all that it has started: nodes that are processes do not go with it."""
    tree = [*head.children(recursive=True), head]
    head.terminate()
    _, alive = psutil.wait_procs(tree, timeout=30)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)
