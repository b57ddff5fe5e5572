"""What Ray Train reserves is given back, whenever a worker is lost."""

import os

import pytest

pytestmark = pytest.mark.slow


def test_workers_lost_as_they_start_keep_no_room(ray_cluster, tmp_path):
    from ray import train
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig
    from ray.util import placement_group_table

    from rdmldg_ray.mtct.ray_trainer import RayTrainer

    marker = tmp_path / "marker"

    def end_once(marker=str(marker)):
        # Made by the first that comes.
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), 9)

    class EndsAWorker(Backend):
        def on_start(self, worker_group, backend_config):
            worker_group.execute(end_once)

    class Config(TorchConfig):
        @property
        def backend_cls(self):
            return EndsAWorker

    def reserved():
        return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]

    before = len(reserved())
    seen = tmp_path / "seen"

    def work():
        if train.get_context().get_world_rank() == 0:
            seen.write_text(str(len(reserved())))

    trainer = RayTrainer(
        work,
        torch_config=Config(),
        # All that the cluster has, so that the workers asked for anew need what the lost ones had.
        scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(
            storage_path=str(tmp_path / "train"), failure_config=train.FailureConfig(max_failures=1)
        ),
    )
    trainer.fit()
    assert marker.exists()
    assert seen.read_text() == str(before + 1)
    assert len(reserved()) == before
