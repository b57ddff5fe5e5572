import pytest

from rdmldg_ray import storage
from rdmldg_ray.config.load import load_config
from rdmldg_ray.mtct.tracking import check_tracking, start_trackers

LOSSES = {1: 3.0, 2: 2.5, 3: 2.0}


@pytest.fixture
def log(root):
    """Log the losses of some steps of a stage with a tracker, as a worker does."""

    def log(name, steps=(1, 2, 3), close=True):
        config = load_config("demo", [f"tracking={name}", f"storage={root}"])
        stage = storage.join(root, "runs/demo/flat/mtct")
        [tracker] = start_trackers(config, stage, first_step=steps[0] - 1)
        for step in steps:
            tracker.log(step, {"loss_direct": LOSSES[step], "eta_s": 0.0})
        tracker.save()
        if close:
            tracker.close()
        return stage

    return log


def test_tensorboard_finds_the_metrics_beside_the_stage(log):
    from tensorboardX.proto.event_pb2 import Event

    [file] = storage.list_files(storage.join(log("tensorboard"), "tensorboard"))
    data, found = storage.read_bytes(file), {}
    while data:  # a record is its length, a checksum, the event and a checksum
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            if value.tag == "loss_direct":
                found[event.step] = value.simple_value
        data = data[16 + size :]
    assert found == LOSSES


def test_a_stage_that_goes_on_keeps_what_tensorboard_had(log):
    log("tensorboard", (1, 2), close=False)
    assert len(storage.list_files(storage.join(log("tensorboard", (3,)), "tensorboard"))) == 2


def test_mlflow_has_one_run_for_a_stage_however_often_it_is_started(log, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    log("mlflow", (1, 2), close=False)
    mlflow.end_run("FAILED")  # as when a worker dies
    log("mlflow", (3,))
    [run] = mlflow.search_runs(experiment_names=["demo"], output_format="list")
    assert (run.info.run_name, run.info.status) == ("flat/mtct", "FINISHED")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss_direct")
    assert {metric.step: metric.value for metric in history} == LOSSES


def test_wandb_records_a_stage(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    [tracker] = start_trackers(load_config("demo", ["tracking=wandb"]), "runs/demo/flat/mtct", 0)
    for step, loss in LOSSES.items():
        tracker.log(step, {"loss_direct": loss})
    assert (tracker.run.group, tracker.run.name) == ("demo", "demo/flat/mtct")
    assert tracker.run.summary["loss_direct"] == LOSSES[2]  # a step is taken in when the next one comes
    tracker.close()
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert file.stat().st_size > 0


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"the package 'wandb' is not installed; pip install 'rdmldg_ray\[wandb\]'"
    ):
        check_tracking(["wandb"])
    check_tracking([])


def test_mlflow_without_a_server_is_a_mistake(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI in the environment"):
        check_tracking(["mlflow"])


def test_a_tracker_that_does_not_start_is_named_with_why(log, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    with pytest.raises(ValueError, match=r"tracking: mlflow does not start \(.*nowhere.*leave mlflow out"):
        log("mlflow")
