"""Which runs are meant: a run's name, a name with wildcards, or the path of a run's folder."""

import difflib
import fnmatch
from collections.abc import Iterable

from rdmldg_ray.config.schema import Config
from rdmldg_ray.runs.store import RunStore, runs_uri
from rdmldg_ray.storage import absolute, exists, list_folders

_WILDCARDS = "*?["
DEFAULT_STORAGE = Config().storage


def storage_root(storage: str | None) -> str:
    """The given storage, by default that of the recipes, as a location that means the same everywhere."""
    return absolute(DEFAULT_STORAGE if storage is None else storage)


def parse_run(named: str, storage: str | None = None) -> RunStore:
    """Storage and name of a run; the name may hold wildcards, and nothing is looked up.

    Args:
        named: a name, or a path such as ``rdmldg-store/runs/demo`` or ``s3://bucket/x/runs/demo``, whose
            storage is part of it.
        storage: where a run that is given by its name lies.

    Raises:
        ValueError: for a path that cannot be a run's folder.
    """
    if "/" not in named:
        return RunStore(storage_root(storage), named)
    found = RunStore.at(absolute(named).rstrip("/"))
    if found is None:
        raise ValueError(f"{named}: no run's folder; give a run's name, or a path <storage>/runs/<run>")
    return found


def resolve_runs(
    named: Iterable[str], storage: str | None = None, with_results: bool = False
) -> list[RunStore]:
    """The runs that are meant, each once, in the order given; those of a wildcard by name.

    Args:
        named: as ``parse_run`` takes them.
        with_results: whether only runs with results are meant.

    Raises:
        ValueError: when there is no such run.
    """
    return list(
        dict.fromkeys(run for one in named for run in _resolve(parse_run(one, storage), with_results))
    )


def resolve_run(named: str, storage: str | None = None) -> RunStore:
    """The one run that is meant; as ``resolve_runs``.

    Raises:
        ValueError: when there is no such run, or several.
    """
    found = resolve_runs([named], storage)
    if len(found) > 1:
        names = ", ".join(run.name for run in found)
        raise ValueError(f"'{named}' means {len(found)} runs, and one is wanted: {names}")
    return found[0]


def _resolve(run: RunStore, with_results: bool) -> list[RunStore]:
    names = [run.name]
    there = list_folders(runs_uri(run.root))
    if any(character in run.name for character in _WILDCARDS):
        names = fnmatch.filter(there, run.name)
    candidates = [RunStore(run.root, name) for name in names]
    found = [one for one in candidates if (exists(one.results_uri) if with_results else one.exists())]
    if not found:
        lacks = "no run with results here" if with_results else "no run here"
        near = difflib.get_close_matches(run.name, there, n=1)
        meant = f"; did you mean '{near[0]}'?" if near and near[0] != run.name else ""
        raise ValueError(f"{run.uri}: {lacks}; correct the run's name, or --storage{meant}")
    return found
