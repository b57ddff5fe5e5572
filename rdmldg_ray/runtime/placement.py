"""Room on the cluster: waiting for it no longer than may be, and saying what stood in the way."""

from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

Resources = dict[str, float]

_STATUS_TIMEOUT_S = 10


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
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    # Ray's own reader of this reply leaves out what the autoscaler finds no way to provide:
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/autoscaler/v2/schema.py#L218-L220
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=_STATUS_TIMEOUT_S))
    return (
        f"the cluster has {_totals(ray.cluster_resources())}, of it free "
        f"{_totals(ray.available_resources())}; {describe_autoscaler(reply.autoscaling_state)}"
    )


def describe_autoscaler(state: Any) -> str:
    """What an autoscaler (version 2) launches, could not launch, and finds no way to provide.

    Args:
        state: Ray's message ``AutoscalingState``.
    """
    if not state.autoscaler_state_version:
        return "it has no autoscaler that would add to it"
    gangs = [request for gang in state.infeasible_gang_resource_requests for request in gang.requests]
    beyond = [dict(r.resources_bundle) for r in [*gangs, *state.infeasible_resource_requests]]
    said = [
        *[f"is launching {new.count} x {new.ray_node_type_name}" for new in state.pending_instance_requests],
        *[f"waits for a {node.ray_node_type_name} to start" for node in state.pending_instances],
        *[
            f"could not launch {new.count} x {new.ray_node_type_name}: {new.reason or 'no reason'}"
            for new in state.failed_instance_requests
        ],
    ]
    if beyond:
        said.append(
            f"can add no node for {describe_bundles(beyond)}: no type of node has this, or there are as many "
            "as there may be"
        )
    return f"its autoscaler {', '.join(said) or 'is adding nothing'}"


def _totals(resources: Resources) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
