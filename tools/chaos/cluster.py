"""A Ray cluster of several nodes on this machine's loopback, each with a small disk of its own.

Every node is one ``ray start --block``, which ends with its raylet, as a machine would.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

DISK_MB = 256
# A node that is lost is found out in seconds, not in half a minute.
_QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@dataclass(eq=False)
class Node:
    """One node: its address on loopback, its process, and the disk that its files are on."""

    address: str
    process: "subprocess.Popen[bytes]"
    disk: Path
    log: Path

    def processes(self, word: str) -> list[psutil.Process]:
        """Those of the node's processes whose command line has a word in it."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if word in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL the raylet, and then whatever is left of the node."""
        tree = self.processes("")
        for raylet in self.processes("raylet/raylet"):
            raylet.kill()
        time.sleep(0.5)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()


class Cluster:
    """A head without CPUs, and worker nodes that can be lost and replaced."""

    def __init__(self, folder: Path, environment: Mapping[str, str], cpus: int):
        self._folder = folder
        self._cpus = cpus
        self._started = 0
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        repository = str(Path(__file__).resolve().parents[2])
        self.environment = {
            **inherited,
            **environment,
            **_QUICK,
            "PYTHONPATH": os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")])),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._port, self._dashboard = _free_ports(2)
        self.gcs = f"127.0.0.2:{self._port}"
        self.head: Node | None = None
        self.workers: list[Node] = []

    def start_head(self) -> None:
        """Start the node that the others join."""
        ports = (f"--port={self._port}", f"--dashboard-port={self._dashboard}")
        self.head = self._launch("--head", *ports, "--num-cpus=0")
        _wait(self.head)

    def add_workers(self, count: int) -> None:
        """Start so many more nodes."""
        new = [self._launch(f"--address={self.gcs}", f"--num-cpus={self._cpus}") for _ in range(count)]
        for node in new:
            self.workers.append(node)
            _wait(node)

    def lose_worker(self, node: Node) -> None:
        """End a node at once, as when its machine fails."""
        self.workers.remove(node)
        node.kill()
        _unmount(node.disk)

    def drain(self, node: Node, seconds: int) -> None:
        """Give notice that a node will be taken away."""
        command = (
            *("drain-node", "--address", self.gcs, "--node-id", self._node_id(node)),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "rehearsed"),
            *("--deadline-remaining-seconds", str(seconds)),
        )
        subprocess.run(_ray(*command), env=self.environment, check=True, capture_output=True)

    def close(self) -> None:
        """End all nodes."""
        for node in filter(None, (*self.workers, self.head)):
            node.kill()
            _unmount(node.disk)

    def _node_id(self, node: Node) -> str:
        # The node's raylet is told its own id.
        [raylet] = node.processes("raylet/raylet")
        [mark] = [part for part in raylet.cmdline() if part.startswith("--node_id=")]
        return mark.split("=")[1]

    def _launch(self, *arguments: str) -> Node:
        self._started += 1
        address = f"127.0.0.{self._started + 1}"
        disk = self._folder / f"n{self._started}"
        disk.mkdir()
        if can_mount():
            size = f"size={DISK_MB}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(disk)], check=True)
        command = _ray(
            *("start", "--block", f"--node-ip-address={address}", f"--temp-dir={disk}/ray", *arguments),
            *("--object-store-memory=150000000", "--min-worker-port=0", "--max-worker-port=0"),
            "--disable-usage-stats",
        )
        environment = {**self.environment, "TMPDIR": str(disk)}
        log = self._folder / f"n{self._started}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        return Node(address, process, disk, log)


@contextmanager
def cluster(folder: Path, environment: Mapping[str, str], workers: int, cpus: int) -> Iterator[Cluster]:
    """A cluster of so many worker nodes of so many CPUs each, for the time of the block.

    Args:
        folder: takes the nodes' disks; its path must be short, for there will be sockets.
        environment: what all nodes and drivers have besides this process's own.
    """
    made = Cluster(folder, environment, cpus)
    try:
        made.start_head()
        made.add_workers(workers)
        yield made
    finally:
        made.close()


def can_mount() -> bool:
    """Whether nodes can have disks of their own, which takes root."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _unmount(disk: Path) -> None:
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _wait(node: Node) -> None:
    deadline = time.monotonic() + 300
    while "Ray runtime started" not in node.log.read_text():
        assert node.process.poll() is None, node.log.read_text()
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.2)


def _ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def _free_ports(count: int) -> list[int]:
    """Ports that no address of loopback uses, below those that Ray and the system give out."""
    free: list[int] = []
    for port in range(23000, 26000):
        with closing(socket.socket()) as candidate, suppress(OSError):
            candidate.bind(("", port))
            free.append(port)
        if len(free) == count:
            break
    return free
