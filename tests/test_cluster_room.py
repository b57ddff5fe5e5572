import pytest
from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo

from rdmldg_ray.cluster_room import describe_autoscaler, describe_bundles, wait_for_room


def launch(state, details=None):
    return LaunchRequest("g6e.12xlarge", "gpu-spot", 2, state, request_ts_s=0, details=details)


def test_bundles_are_counted():
    worker = {"CPU": 4.0, "GPU": 1.0}
    assert describe_bundles([worker, worker, {"CPU": 0.25}]) == "2 x (4 CPU, 1 GPU) and 1 x (0.25 CPU)"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            ClusterStatus(),
            "nothing is being added to it: it has no autoscaler, or no type of node has this, "
            "or there are as many nodes as there may be",
        ),
        (
            ClusterStatus(
                pending_launches=[launch(LaunchRequest.Status.PENDING)],
                pending_nodes=[NodeInfo("", "cpu", "i-1", "")],
            ),
            "its autoscaler is launching 2 x gpu-spot, waits for a cpu to start",
        ),
        (
            ClusterStatus(
                failed_launches=[launch(LaunchRequest.Status.FAILED, "InsufficientInstanceCapacity")]
            ),
            "its autoscaler could not launch 2 x gpu-spot: InsufficientInstanceCapacity",
        ),
        (
            ClusterStatus(failed_nodes=[NodeInfo("", "cpu", "i-1", "", failure_detail="spot taken back")]),
            "its autoscaler lost a cpu: spot taken back",
        ),
    ],
)
def test_the_autoscaler_is_quoted(status, text):
    assert describe_autoscaler(status) == text


@pytest.mark.slow
def test_without_room_the_wait_ends_with_what_was_asked_and_what_there_is(ray_cluster):
    import ray

    with pytest.raises(TimeoutError) as raised:
        wait_for_room([{"CPU": 1000.0}, {"CPU": 0.25}], 2, "workers.scheduling_timeout_s")
    assert str(raised.value).startswith(
        "no room in 2 s (workers.scheduling_timeout_s) for 1 x (1000 CPU) and 1 x (0.25 CPU): "
        "the cluster has "
    )
    assert str(raised.value).endswith(describe_autoscaler(ClusterStatus()))
    # What was found is not held: as often as there are cores, all of them are found free.
    for _ in range(3):
        wait_for_room([{"CPU": ray.cluster_resources()["CPU"]}], 60, "workers.scheduling_timeout_s")
