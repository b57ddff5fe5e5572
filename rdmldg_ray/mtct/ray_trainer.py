"""Ray Train's trainer, less a leak of resources and a hold on Ctrl-C.

There is no public way to either: https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/api/data_parallel_trainer.py#L205
"""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group


class RayTrainer(TorchTrainer):
    """A ``TorchTrainer`` that gives back what its workers reserved, also where they are lost as they start.

    Ray Train 2.60 forgets the placement group of workers of which one ends after all are there and before
    training begins: while torch's process group is set up, or while the training function is sent. The
    group would stay for as long as the driver lives, and the workers asked for anew would find no room on
    a cluster that has no more.

    What has started counts as started as soon as its state is there, and is not cleaned up after that:
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/execution/worker_group/worker_group.py#L215-L218
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/execution/worker_group/worker_group.py#L361
    """

    def _create_default_callbacks(self) -> list[Any]:
        # Before all others, since the first of them that fails is the last that is called.
        default = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees the old trainer
        return [_FreesRoom(), *default]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C alone: Ray's handler outlives the training, and ends the program with exit code 0."""


class _FreesRoom(ControllerCallback, WorkerGroupCallback):
    """Removes a placement group that nobody else did; to remove one twice does nothing."""

    def __init__(self) -> None:
        self._group: PlacementGroup | None = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        self._remove()

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._group = worker_group.get_worker_group_state().placement_group_handle.placement_group

    async def before_controller_shutdown(self) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
