"""Room on the cluster: waiting for it no longer than may be, and saying what stood in the way."""

from typing import TYPE_CHECKING

import ray
from ray.util.placement_group import placement_group, remove_placement_group

if TYPE_CHECKING:
    from ray.autoscaler.v2.schema import ClusterStatus

Resources = dict[str, float]


def wait_for_room(bundles: list[Resources], timeout_s: float, setting: str) -> None:
    """Wait until all of the bundles would fit on the cluster at once, each on one node; hold none of it.

    A stage asks this before it starts, for libraries that would wait for ever. An autoscaler sees what
    is asked for and starts nodes.

    Args:
        setting: the name of the one that sets the time.

    Raises:
        TimeoutError: with what was asked for, what the cluster has, and what its autoscaler says.
    """
    group = placement_group(bundles, strategy="PACK")
    try:
        if not group.wait(timeout_s):
            raise TimeoutError(
                f"no room in {timeout_s:g} s ({setting}) for {describe_bundles(bundles)}: "
                f"{describe_cluster()}"
            )
    finally:
        remove_placement_group(group)


def describe_bundles(bundles: list[Resources]) -> str:
    """Bundles as text, equal ones counted: ``2 x (1 CPU, 1 GPU) and 1 x (0.25 CPU)``."""
    texts = ["(" + ", ".join(f"{amount:g} {kind}" for kind, amount in b.items()) + ")" for b in bundles]
    return " and ".join(f"{texts.count(text)} x {text}" for text in dict.fromkeys(texts))


def describe_cluster() -> str:
    """What the cluster has, what of it is free, and what its autoscaler says, as text."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return (
        f"the cluster has {_totals(ray.cluster_resources())}, of it free "
        f"{_totals(ray.available_resources())}; {describe_autoscaler(status)}"
    )


def describe_autoscaler(status: "ClusterStatus") -> str:
    """What an autoscaler (version 2) launches and could not launch; or that it does neither."""
    said = [
        *[f"is launching {launch.count} x {launch.ray_node_type_name}" for launch in status.pending_launches],
        *[f"waits for a {node.ray_node_type_name} to start" for node in status.pending_nodes],
        *[
            f"could not launch {launch.count} x {launch.ray_node_type_name}: {launch.details or 'no reason'}"
            for launch in status.failed_launches
        ],
        *[
            f"lost a {node.ray_node_type_name}: {node.failure_detail or node.details or 'no reason'}"
            for node in status.failed_nodes
        ],
    ]
    if said:
        return f"its autoscaler {', '.join(said)}"
    return (
        "nothing is being added to it: it has no autoscaler, or no type of node has this, "
        "or there are as many nodes as there may be"
    )


def _totals(resources: Resources) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
