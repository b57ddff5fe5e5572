"""Which runs are meant: a run's name, a name with wildcards, or the path of a run's folder."""

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from rdmldg_ray.config.schema import Config
from rdmldg_ray.storage import absolute, exists, join, list_folders

_RUNS = "runs"
_WILDCARDS = "*?["
CONFIG_FILE = "config.yaml"
DEFAULT_STORAGE = Config().storage


@dataclass(frozen=True)
class RunRef:
    """A run's name, and the storage that it lies on."""

    root: str
    name: str

    @property
    def location(self) -> str:
        return join(self.root, _RUNS, self.name)


def storage_root(storage: str | None) -> str:
    """The given storage, by default that of the recipes, as a location that means the same everywhere."""
    return absolute(storage or DEFAULT_STORAGE)


def parse_run(named: str, storage: str | None = None) -> RunRef:
    """Storage and name of a run; the name may hold wildcards, and nothing is looked up.

    Args:
        named: a name, or a path such as ``rdmldg-store/runs/demo`` or ``s3://bucket/x/runs/demo``, whose
            storage is part of it.
        storage: where a run that is given by its name lies.

    Raises:
        ValueError: for a path that cannot be a run's folder.
    """
    if "/" not in named:
        return RunRef(storage_root(storage), named)
    root, _, name = absolute(named).rstrip("/").rpartition("/")
    root, _, folder = root.rpartition("/")
    if folder != _RUNS or not root or root.endswith("/"):
        raise ValueError(f"{named}: no run's folder; give a run's name, or a path <storage>/{_RUNS}/<run>")
    return RunRef(root, name)


def resolve_runs(named: Iterable[str], storage: str | None = None, having: str = CONFIG_FILE) -> list[RunRef]:
    """The runs that are meant, each once, in the order given; those of a wildcard by name.

    Args:
        named: as ``parse_run`` takes them.
        having: a file that a run must have.

    Raises:
        ValueError: when there is no such run.
    """
    return list(dict.fromkeys(run for one in named for run in _resolve(parse_run(one, storage), having)))


def resolve_run(named: str, storage: str | None = None) -> RunRef:
    """The one run that is meant; as ``resolve_runs``.

    Raises:
        ValueError: when there is no such run, or several.
    """
    found = resolve_runs([named], storage)
    if len(found) > 1:
        names = ", ".join(run.name for run in found)
        raise ValueError(f"'{named}' means {len(found)} runs, and one is wanted: {names}")
    return found[0]


def _resolve(run: RunRef, having: str) -> list[RunRef]:
    names = [run.name]
    if any(character in run.name for character in _WILDCARDS):
        names = fnmatch.filter(list_folders(join(run.root, _RUNS)), run.name)
    candidates = [RunRef(run.root, name) for name in names]
    found = [candidate for candidate in candidates if exists(join(candidate.location, having))]
    if not found:
        lacks = "no run here" if having == CONFIG_FILE else f"no run here with a {having}"
        near = difflib.get_close_matches(run.name, list_folders(join(run.root, _RUNS)), n=1)
        meant = f"; did you mean '{near[0]}'?" if near and near[0] != run.name else ""
        raise ValueError(f"{run.location}: {lacks}; correct the run's name, or --storage{meant}")
    return found
