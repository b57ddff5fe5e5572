"""The faults that ``chaos.py`` injects: each does its harm, waits as long as it lasts, and undoes what a
cloud would undo, such as to bring a new node for a lost one."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from rdmldg_ray import storage
from tools.chaos.cluster import Cluster, Node, can_mount
from tools.s3_proxy import S3Proxy

TRAINER, ENGINE = "RayTrainWorker", "ray::Engine"
DOWN_S = 20
SLOW_S = 60
SLOW_PIECE_S = 0.2
DISK_FULL_S = 20
NOTICE_S = 10
NEW_NODE_S = 3
_FIND_S = 90


@dataclass
class Scene:
    """What there is to harm."""

    cluster: Cluster
    proxy: S3Proxy
    rng: random.Random
    kill_driver: Callable[[], None]
    stage_folder: Callable[[], str]
    """Location of the stage that is under way, by way of S3's own endpoint."""

    def committed(self) -> set[str]:
        """The checkpoints that count of the stage that is under way."""
        record = storage.join(self.stage_folder(), "checkpoints/checkpoint_manager_snapshot.json")
        try:
            return {
                result["checkpoint_dir_name"] for result in storage.read_json(record)["checkpoint_results"]
            }
        except ValueError:
            return set()  # none yet, or replaced on S3 between its size and its content

    def busy(self, *words: str) -> list[tuple[Node, psutil.Process]]:
        """Processes of the product's on the worker nodes, with their nodes; waits until there is one."""
        deadline = time.monotonic() + _FIND_S
        while time.monotonic() < deadline:
            found = [
                (node, process)
                for node in self.cluster.workers
                for word in words
                for process in node.processes(word)
            ]
            if found:
                return found
            time.sleep(0.3)
        raise NothingToHarmError(f"no process of {' or '.join(words)}")


class NothingToHarmError(Exception):
    """What the fault would hit is not there."""


def kill_train_worker(scene: Scene) -> str:
    """SIGKILL one rank."""
    node, process = scene.rng.choice(scene.busy(TRAINER))
    process.kill()
    return f"a train worker on {node.address}"


def kill_engine(scene: Scene) -> str:
    """SIGKILL an engine."""
    node, process = scene.rng.choice(scene.busy(ENGINE))
    process.kill()
    return f"an engine on {node.address}"


def kill_raylet(scene: Scene) -> str:
    """SIGKILL the raylet of a node that works, and so all that runs there; a new node comes."""
    node, _ = scene.rng.choice(scene.busy(TRAINER, ENGINE))
    _replace(scene, node)
    return f"the raylet of {node.address}"


def kill_driver(scene: Scene) -> str:
    """SIGKILL the driver, which is then started again."""
    scene.kill_driver()
    return "the driver"


def s3_down(scene: Scene) -> str:
    """S3 refuses connections, and those that there are break."""
    scene.proxy.shut()
    try:
        time.sleep(DOWN_S)
    finally:
        scene.proxy.open()
    return f"S3 for {DOWN_S} s"


def s3_slow(scene: Scene) -> str:
    """Whatever goes to S3 or comes from it takes its time."""
    scene.proxy.slow_down(SLOW_PIECE_S)
    time.sleep(SLOW_S)
    scene.proxy.slow_down(0)
    return f"{SLOW_PIECE_S} s for each piece to or from S3, for {SLOW_S} s"


def disk_full(scene: Scene) -> str:
    """Not a byte is left on the disk of a node that works: temporary files, logs, spilled objects."""
    node, _ = scene.rng.choice(scene.busy(TRAINER, ENGINE))
    filler = node.disk / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024 * 1024))
        time.sleep(DISK_FULL_S)
    finally:
        filler.unlink()
    return f"the disk of {node.address} for {DISK_FULL_S} s"


def preemption(scene: Scene) -> str:
    """Notice is given for a node that works; when the time is up it goes, and a new one comes.

    It goes as soon as there is a checkpoint for the notice, so that what comes after goes on from it.
    """
    node, _ = scene.rng.choice(scene.busy(TRAINER, ENGINE))
    before = scene.committed()
    scene.cluster.drain(node, NOTICE_S)
    deadline = time.monotonic() + NOTICE_S
    while not (new := scene.committed() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = round(deadline - time.monotonic(), 1)
    _replace(scene, node)
    return f"{node.address} with {NOTICE_S} s notice, {left} s early, after {sorted(new) or 'no checkpoint'}"


def lost_checkpoint(scene: Scene) -> str:
    """SIGKILL a rank while its checkpoint is on its way, so that what was sent never counts."""
    folder = storage.join(scene.stage_folder(), "checkpoints")
    deadline = time.monotonic() + _FIND_S
    # While the workers start and read, a slow S3 would only hold them up.
    while not storage.exists(storage.join(scene.stage_folder(), "progress.json")):
        if time.monotonic() > deadline:
            raise NothingToHarmError("no training began")
        time.sleep(0.3)
    before = set(storage.list_folders(folder))
    scene.proxy.slow_down(SLOW_PIECE_S)  # so that it takes long enough to be hit
    try:
        while not (new := set(storage.list_folders(folder)) - before):
            if time.monotonic() > deadline:
                raise NothingToHarmError("no checkpoint was written")
            time.sleep(0.05)
        node, process = scene.rng.choice(scene.busy(TRAINER))
        process.kill()
    finally:
        scene.proxy.slow_down(0)
    return f"a train worker on {node.address} while it sent {min(new)}"


def _replace(scene: Scene, node: Node) -> None:
    scene.cluster.lose_worker(node)
    time.sleep(NEW_NODE_S)
    scene.cluster.add_workers(1)


_TRAINING, _SERVING = ("mtct", "train"), ("generate", "evaluate")
_ANY = (*_TRAINING, *_SERVING)

FAULTS: dict[str, tuple[Callable[[Scene], str], tuple[str, ...]]] = {
    "kill_train_worker": (kill_train_worker, _TRAINING),
    "kill_engine": (kill_engine, _SERVING),
    "kill_raylet": (kill_raylet, _ANY),
    "kill_driver": (kill_driver, _ANY),
    "s3_down": (s3_down, _ANY),
    "s3_slow": (s3_slow, _ANY),
    "preemption": (preemption, _TRAINING),
    "lost_checkpoint": (lost_checkpoint, _TRAINING),
}
"""By name: what does it, and the kinds of stages that it can hit."""
if can_mount():
    FAULTS["disk_full"] = (disk_full, _ANY)
