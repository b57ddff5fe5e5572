"""Runs the demo on a cluster that grows and shrinks, and tells which nodes came and went, stage by stage.

    python -m tools.autoscale.rehearse [key.path=value ...] > autoscale.json

See ``autoscaling_cluster``. The head offers no CPU. A node of type ``training`` has room for one training
worker, one of type ``engines`` for the engine or for a worker. So the nodes that trained are idle while the
engine writes, and go.

First it asks for more than any node has, once for training and once for engines, and keeps what is said.
Then it runs the demo, with the given settings besides. Prints one JSON document; exit code 0 when all
of its checks hold.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import find_info
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.runtime.console import plain_console
from tools.autoscale.cluster import autoscaling_cluster

NODE_TYPES = {"training": {"CPU": 2, "most": 2}, "engines": {"CPU": 3, "most": 1}}
SETTINGS = [
    "name=autoscale",
    # The first stage is to find a cluster without nodes.
    "evaluation.zero_shot=false",
    "workers.num_workers=2",
    "workers.cpus_per_worker=1.6",
    "engines.num_engines=1",
    "engines.cpus_per_engine=2.5",
    "engines.keep_while_training=false",
]
IDLE_S = 6
IDLE = "after the run"
_LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
_POLL_S = 0.5
_GONE_TIMEOUT_S = 90


@dataclass(frozen=True)
class Sample:
    """The cluster at one moment.

    Attributes:
        seconds: since the run was started.
        stage: the first that is not complete.
        nodes: type by id, of all but the head.
        used: CPUs that are taken.
        demands: what is asked for and has no room yet, as text.
        exposed: how many of the cluster's processes listen where other machines can reach them.
    """

    seconds: float
    stage: str
    nodes: dict[str, str]
    used: float
    demands: list[str]
    exposed: int


def main() -> int:
    """Print what happened, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--storage", help="a folder that stays; by default one that goes")
    arguments = parser.parse_args()
    # Whoever ends this early is left with no nodes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        overrides = [f"storage={arguments.storage or folder + '/store'}", *SETTINGS, *arguments.overrides]
        config = load_config("demo", overrides)
        with autoscaling_cluster(Path(folder), NODE_TYPES, IDLE_S) as (address, environment, head):
            said = {
                "training": refused(environment, overrides, "workers.cpus_per_worker=50"),
                "engines": refused(environment, overrides, "engines.cpus_per_engine=50"),
            }
            samples, exit_code = watch_run(
                address=address, environment=environment, head=head, config=config, overrides=overrides
            )
        result = summarize(config, samples, exit_code, said)
    print(json.dumps(result, indent=2))
    return 0 if result["verdict"] == "passed" else 1


def refused(environment: dict[str, str], overrides: list[str], too_much: str) -> str:
    """What a run says of a stage that no node has room for."""
    section = too_much.split(".")[0]
    settings = ["workers.scheduling_timeout_s=10", "engines.start_timeout_s=10", too_much]
    # A run begins with engines, if zero-shot is evaluated, or with training.
    settings += [f"evaluation.zero_shot={section == 'engines'}", f"name=refused-{section}"]
    command = [sys.executable, "-m", "rdmldg_ray", "run", "demo", *overrides, *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    say(f"{too_much}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stderr.strip()


def watch_run(
    address: str, environment: dict[str, str], head: psutil.Process, config: Config, overrides: list[str]
) -> tuple[list[Sample], int]:
    """Run, and look at the cluster until the run has ended and its nodes have gone; with the exit code."""
    stages = plan_stages(config, find_info(config.storage, config.data.dataset))
    command = [sys.executable, "-m", "rdmldg_ray", "run", "demo", *overrides]
    samples: list[Sample] = []
    started = time.monotonic()
    run = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    ended: float | None = None
    while ended is None or (samples[-1].nodes and time.monotonic() - ended < _GONE_TIMEOUT_S):
        time.sleep(_POLL_S)
        stage = IDLE if ended else current_stage(config, stages)
        nodes, used, demands = cluster_now(address)
        seconds = round(time.monotonic() - started, 1)
        samples.append(
            Sample(
                seconds=seconds,
                stage=stage,
                nodes=nodes,
                used=used,
                demands=demands,
                exposed=count_exposed(head),
            )
        )
        if ended is None and run.poll() is not None:
            ended = time.monotonic()
    return samples, run.wait()


def current_stage(config: Config, stages: list[Stage]) -> str:
    """The name of the run's first stage that is not complete."""
    complete = RunStore(config.storage, config.name).state()
    return next((stage.name for stage in stages if stage.name not in complete), IDLE)


def cluster_now(address: str) -> tuple[dict[str, str], float, list[str]]:
    """Nodes (type by id), CPUs in use, and demands without room."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    from rdmldg_ray.runtime.placement import describe_bundles

    status = get_cluster_status(address)
    nodes = {
        node.instance_id: node.ray_node_type_name
        for node in status.active_nodes + status.idle_nodes
        if node.ray_node_type_name in NODE_TYPES
    }
    used = sum(usage.used for usage in status.cluster_resource_usage if usage.resource_name == "CPU")
    demands = status.resource_demands
    bundles = [
        [entry.bundle for entry in demand.bundles_by_count for _ in range(entry.count)]
        for demand in [*demands.placement_group_demand, *demands.ray_task_actor_demand]
    ]
    # What starts within a placement group asks for a share of what the group has already.
    waiting = [
        describe_bundles(new) for new in bundles if not any("_group_" in kind for b in new for kind in b)
    ]
    return nodes, used, waiting


def count_exposed(head: psutil.Process) -> int:
    """How many of the cluster's processes listen where other machines can reach them."""
    count = 0
    for process in [head, *head.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            listens = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
            count += not listens <= _LOOPBACK
    return count


def summarize(config: Config, samples: list[Sample], exit_code: int, said: dict[str, str]) -> dict[str, Any]:
    """The document: the nodes' comings and goings, the stages, and whether all is as it should be."""
    planned = plan_stages(config, find_info(config.storage, config.data.dataset))
    kinds = {stage.name: stage.kind for stage in planned}
    stages, nodes = by_stage(samples), comings_and_goings(samples)

    def some(node_type: str, when: str, *during: str) -> bool:
        return any(node["type"] == node_type and kinds.get(node[when]) in during for node in nodes)

    def rows(*during: str) -> list[dict[str, Any]]:
        return [row for row in stages if kinds.get(row["stage"]) in during]

    checks = {
        "no node is there before one is asked for": not samples[0].nodes,
        "nodes come for training": some("training", "came_in", "mtct"),
        "a node comes for the engine": some("engines", "came_in", "evaluate", "generate"),
        "nodes that trained go while the engine writes": some("training", "went_in", "evaluate", "generate")
        and not any("training" in row["nodes_at_end"] for row in rows("generate")),
        # No room is held while another trains: an engine's node that is still there takes a worker.
        "every training has a node for each worker": all(
            sum(row["most_nodes"].values()) >= config.workers.num_workers for row in rows("mtct", "train")
        ),
        "none is asked for beyond that": all(
            row["most_nodes"]["training"] <= config.workers.num_workers for row in rows("mtct", "train")
        ),
        "none are left after the run": not samples[-1].nodes and not samples[-1].used,
        "the run is complete": exit_code == 0 and current_stage(config, planned) == IDLE,
        # torch's rendezvous store, in rank 0, listens on every address, whichever it is given:
        # https://github.com/pytorch/pytorch/issues/173909
        "all but the training's rendezvous listen on loopback": max(s.exposed for s in samples) <= 1,
        "a stage without room tells what it asked for, what there is, what the autoscaler said": all(
            "50 CPU" in text and "the cluster has " in text and "its autoscaler can add no node" in text
            for text in said.values()
        ),
    }
    return {
        "verdict": "passed" if all(checks.values()) else "failed",
        "checks": checks,
        "node_types": NODE_TYPES,
        "idle_timeout_s": IDLE_S,
        "stages": stages,
        "nodes": nodes,
        "without_room": said,
    }


def by_stage(samples: list[Sample]) -> list[dict[str, Any]]:
    """Each stage with its time, nodes by type (at its start, at most, at its end), and demands."""
    rows = []
    for stage in dict.fromkeys(sample.stage for sample in samples):
        mine = [sample for sample in samples if sample.stage == stage]
        counts = [count_types(sample) for sample in mine]
        types = sorted({name for count in counts for name in count})
        rows.append(
            {
                "stage": stage,
                "from_s": mine[0].seconds,
                "to_s": mine[-1].seconds,
                "nodes_at_start": counts[0],
                "most_nodes": {name: max(count.get(name, 0) for count in counts) for name in types},
                "nodes_at_end": counts[-1],
                "most_used": round(max(sample.used for sample in mine), 2),
                "demands": list(dict.fromkeys(text for sample in mine for text in sample.demands)),
            }
        )
    return rows


def count_types(sample: Sample) -> dict[str, int]:
    """Nodes by type."""
    types = sorted(sample.nodes.values())
    return {name: types.count(name) for name in dict.fromkeys(types)}


def comings_and_goings(samples: list[Sample]) -> list[dict[str, Any]]:
    """Each node with its type, when it came and went, and in which stage; nulls for one that is left."""
    rows: dict[str, dict[str, Any]] = {}
    for sample in samples:
        for node, kind in sample.nodes.items():
            new = {"type": kind, "came_s": sample.seconds, "came_in": sample.stage}
            rows.setdefault(node, {**new, "went_s": None, "went_in": None})
        for node, row in rows.items():
            if node not in sample.nodes and row["went_s"] is None:
                row |= {"went_s": sample.seconds, "went_in": sample.stage}
    return list(rows.values())


def say(text: str) -> None:
    """A line on how it goes; the result alone goes to the standard output."""
    plain_console(file=sys.stderr).print(text, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
