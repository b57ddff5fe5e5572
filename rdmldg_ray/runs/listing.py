"""What a storage holds, in a row each: its runs, and its data sets."""

from typing import Any

from rdmldg_ray.datasets.builtin.embedded import EMBEDDED_NAMES, find_info
from rdmldg_ray.datasets.schema import dataset_location
from rdmldg_ray.runs.results import read_run
from rdmldg_ray.runs.status import planned_stages
from rdmldg_ray.runs.store import run_names
from rdmldg_ray.storage import join, list_folders


def list_runs(root: str) -> list[dict[str, Any]]:
    """The runs of a storage, sorted by name.

    Returns:
        Rows of ``name``, ``dataset``, ``model``, ``held_out``, ``stages`` and how many of them are
        ``complete``; of a run that cannot be read, of ``name`` and ``damage``, what is wrong with it.
    """
    return [_run_row(root, name) for name in run_names(root)]


def list_datasets(root: str) -> list[dict[str, Any]]:
    """The data sets of a storage and those in the package, sorted by name.

    Returns:
        Rows of ``name``, ``samples``, ``classes``, ``domains`` (names), ``chains`` (teachers) and ``stored``,
        whether it is on the storage; of one that cannot be read, of ``name`` and ``damage``.
    """
    stored = list_folders(join(root, "datasets"))
    return [_dataset_row(root, name, name in stored) for name in sorted({*stored, *EMBEDDED_NAMES})]


def _run_row(root: str, name: str) -> dict[str, Any]:
    try:
        run = read_run(root, name)
        stages = planned_stages(run)
        return {
            "name": name,
            "dataset": run.config.data.dataset,
            "model": run.config.model.path,
            "held_out": list(dict.fromkeys(stage.held_out for stage in stages)),
            "complete": sum(stage.name in run.state for stage in stages),
            "stages": len(stages),
        }
    except ValueError as error:
        return {"name": name, "damage": str(error)}


def _dataset_row(root: str, name: str, stored: bool) -> dict[str, Any]:
    try:
        info = find_info(root, name)
        return {
            "name": name,
            "samples": sum(info.counts.values()),
            "classes": len(info.classes),
            "domains": list(info.environments),
            "chains": list_folders(join(dataset_location(root, name), "chains")),
            "stored": stored,
        }
    except ValueError as error:
        return {"name": name, "damage": str(error)}
