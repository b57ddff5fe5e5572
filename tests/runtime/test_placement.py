import pytest
from ray.core.generated.autoscaler_pb2 import AutoscalingState

from rdmldg_ray.runtime.placement import describe_autoscaler, describe_bundles, wait_for_room


def test_bundles_are_counted():
    worker = {"CPU": 4.0, "GPU": 1.0}
    assert describe_bundles([worker, worker, {"CPU": 0.25}]) == "2 x (4 CPU, 1 GPU) and 1 x (0.25 CPU)"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "it has no autoscaler that would add to it"),
        ({"autoscaler_state_version": 1}, "its autoscaler is adding nothing"),
        (
            {
                "autoscaler_state_version": 7,
                "pending_instance_requests": [{"ray_node_type_name": "gpu-spot", "count": 2}],
                "pending_instances": [{"ray_node_type_name": "cpu"}],
            },
            "its autoscaler is launching 2 x gpu-spot, waits for a cpu to start",
        ),
        (
            {
                "autoscaler_state_version": 7,
                "failed_instance_requests": [
                    {"ray_node_type_name": "gpu-spot", "count": 2, "reason": "InsufficientInstanceCapacity"}
                ],
            },
            "its autoscaler could not launch 2 x gpu-spot: InsufficientInstanceCapacity",
        ),
        (
            {
                "autoscaler_state_version": 7,
                "infeasible_gang_resource_requests": [
                    {"requests": [{"resources_bundle": {"GPU": 8.0}}, {"resources_bundle": {"GPU": 8.0}}]}
                ],
                "infeasible_resource_requests": [{"resources_bundle": {"CPU": 0.25}}],
            },
            "its autoscaler can add no node for 2 x (8 GPU) and 1 x (0.25 CPU): no type of node has this, or "
            "there are as many as there may be",
        ),
    ],
)
def test_the_autoscaler_is_quoted(state, text):
    assert describe_autoscaler(AutoscalingState(**state)) == text


@pytest.mark.slow
def test_without_room_the_wait_ends_with_what_was_asked_and_what_there_is(ray_cluster):
    import ray

    with pytest.raises(TimeoutError) as raised:
        wait_for_room([{"CPU": 1000.0}, {"CPU": 0.25}], 2, "workers.scheduling_timeout_s")
    assert str(raised.value).startswith(
        "no room in 2 s (workers.scheduling_timeout_s) for 1 x (1000 CPU) and 1 x (0.25 CPU): "
        "the cluster has "
    )
    assert str(raised.value).endswith(describe_autoscaler(AutoscalingState()))
    # What was found is not held: as often as there are cores, all of them are found free.
    for _ in range(3):
        wait_for_room([{"CPU": ray.cluster_resources()["CPU"]}], 60, "workers.scheduling_timeout_s")
