"""What a run left: the adapters of its trainings, the chains of its rounds, the rates at which it worked."""

import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.models.parity import PARITY_FILE
from rdmldg_ray.runs.estimate import Calibration, calibrate
from rdmldg_ray.runs.results import RunResults
from rdmldg_ray.runs.stage_outputs import adapter_tensors
from rdmldg_ray.runs.store import Stage, damage_told, stages_of
from rdmldg_ray.storage import absolute, download_folder, exists, join, read_table


def find_candidates(run: RunResults, held_out: str | None, round_number: int) -> str:
    """Where a round's candidates lie, complete or not; by default those of the run's first fold.

    Raises:
        ValueError: when there are none.
    """
    for stage in run.stages():
        if (stage.kind, stage.round) == ("generate", round_number) and held_out in (None, stage.held_out):
            return run.store.candidates_uri(stage.held_out, stage.model)
    for stage in stages_of(run.state, "generate", held_out):
        if stage.round == round_number:
            location = run.store.candidates_uri(stage.held_out, stage.model)
            raise ValueError(f"{location}: no candidates here any more; {run.store.redo_remedy(stage)}")
    raise ValueError(
        f"{run.location}: no candidates of round {round_number} for {held_out or 'any domain'}; correct "
        "--round or --held-out, or look how far the run is with `rdmldg status`"
    )


def find_adapter(run: RunResults, held_out: str | None, model: str | None) -> str:
    """The adapter that a training left; by default the last one of the run's first fold with any.

    Raises:
        ValueError: when there is none.
    """
    trained = [stage for stage in run.stages() if _adapter_of(run, stage)]
    first = held_out or (trained[0].held_out if trained else None)
    for stage in reversed(trained):
        adapter = _adapter_of(run, stage)
        if adapter and stage.held_out == first and model in (None, stage.model):
            return adapter
    raise ValueError(f"{run.location}: no adapter of {model or 'any stage'} for {held_out or 'any domain'}")


def _adapter_of(run: RunResults, stage: Stage) -> str | None:
    """The adapter of a training that has left one whole; its parity set is written last."""
    if stage.kind not in ("mtct", "train"):
        return None
    adapter = run.store.adapter_uri(stage.held_out, stage.model)
    return adapter if adapter and join(adapter, PARITY_FILE) in run.files else None


def check_adapter(location: str) -> str:
    """The absolute location of an adapter.

    Raises:
        ValueError: when no training left one there, or it is damaged.
    """
    location = absolute(location)
    if not exists(join(location, PARITY_FILE)):
        raise ValueError(f"{location}: no {PARITY_FILE} here; give the folder that a training left")
    with damage_told(join(location, PARITY_FILE), "run the training that left it again"):
        read_table(join(location, PARITY_FILE), ["id"])
    adapter_tensors(location)
    return location


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, and the base and the adapter that it was made of."""

    folder: str
    model: str
    adapter: str


def write_model(run: RunResults, out: Path, held_out: str | None, stage: str | None) -> ModelFolder:
    """Write base plus adapter of a training, as ``find_adapter`` finds it, as a plain model folder.

    Raises:
        ValueError: when the folder exists, or there is no such adapter, or it is damaged.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already; give a folder that does not")
    adapter, model = check_adapter(find_adapter(run, held_out, stage)), run.config.model

    from rdmldg_ray.models.loading import save_merged

    with tempfile.TemporaryDirectory() as folder:
        save_merged(model_folder(model.path), download_folder(adapter, Path(folder)), model, out)
    return ModelFolder(absolute(str(out)), model.path, adapter)


def calibrate_run(run: RunResults) -> Calibration:
    """The rates of a finished run, for estimates of others.

    Raises:
        ValueError: when no stage of some kind is complete, or what it left is damaged.
    """
    rates: dict[str, float] = {}
    metrics = run.metrics()
    for done in [*stages_of(run.state, "mtct"), *stages_of(run.state, "train")]:
        if not metrics.get(done.name):
            file = run.store.metrics_uri(done.held_out, done.model)
            raise ValueError(f"{file}: is missing or empty; restore it, or calibrate with another run")
    for stage, steps in metrics.items():
        # After a resume the last rate is not that of the whole stage.
        if steps and steps[-1].get("resumed_at") == 0 and (rate := steps[-1].get("samples_per_s")):
            rates[stage] = rate
    info = read_dataset_info(run.root, run.config.data.dataset)
    try:
        return calibrate(
            run.config,
            info,
            state=run.state,
            step_rates=rates,
            sizes={stage: run.stage_bytes(stage) for stage in run.state},
            machine=f"{platform.machine()}, {run.config.workers.num_workers} workers",
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{run.location}: a state.json lacks what its stages took ({error!r}); calibrate with another run"
        ) from None
