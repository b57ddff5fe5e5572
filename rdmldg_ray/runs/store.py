"""Where a run lies on storage: the one module that makes a path below ``<root>/runs``.

::

    <root>/runs/<run>/config.yaml                      the resolved config, written first
    <root>/runs/<run>/versions.json                    of the packages that the run was started with
    <root>/runs/<run>/results.jsonl                    a record of DomainBed for each evaluation
    <root>/runs/<run>/<fold>/state.json                which stages of the fold are complete
    <root>/runs/<run>/<fold>/lease.json                who works on the fold, while somebody does
    <root>/runs/<run>/<fold>/mtct/, sarr-<k>/          what trainings and rounds leave
    <root>/runs/<run>/<fold>/evaluation/<model>/       predictions.parquet, metrics.json
    <root>/runs/<run>/[<fold>/]analyses/               tables and pictures of ``rdmldg analyze``

A stage writes its outputs first and is then entered in its fold's ``state.json``, which is replaced whole: it
is complete when, and only when, it is entered there. Runs of release 0.1.0 had one ``state.json`` for all
folds; they are read, and resumed, as they are.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import ValidationError
from rich.console import Console

from rdmldg_ray.config.load import dump_config, parse_config
from rdmldg_ray.config.names import check_name
from rdmldg_ray.config.schema import Config
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.domainbed.records import RESULTS_FILE
from rdmldg_ray.mtct.job import ADAPTER_FOLDER, CHECKPOINTS_FOLDER, METRICS_FILE
from rdmldg_ray.runtime.lease import LEASE_FILE, Holder, Lease, read_holder
from rdmldg_ray.sarr.selection import CANDIDATES_FOLDER, REJECTIONS_FILE, SELECTED_FOLDER
from rdmldg_ray.storage import (
    StorageError,
    exists,
    join,
    list_entries,
    list_folders,
    read_bytes,
    write_if_unchanged,
    write_json,
)

Kind = Literal["mtct", "generate", "train", "evaluate"]

State = dict[str, dict[str, Any]]
"""Complete stages by name, each with its seconds and summary, in the order in which they were completed."""

Inputs = dict[str, str]
"""What a stage read from outside of its run, as digests by name; see ``runs.inputs``."""

ZERO_SHOT, MTCT = "zero-shot", "mtct"

_RUNS_FOLDER = "runs"
_STATE_VERSION = 2
_STATE_FILE = "state.json"
_EVALUATION = "evaluation"
_ANALYSES = "analyses"
_ANSWERS = "answers"
_ROUND = re.compile(r"sarr-([1-9]\d*)")
# Entries of release 0.1.0.
_RENAMED = {"kept": "accepted", "tokens_per_kept": "tokens_per_selected"}
_SELECTED_BEFORE = "kept"
# Numbers that an entry has, whatever the release that wrote it.
_COUNTED = {"generate": ("seconds", "candidates", "accepted")}


def model_name(number: int) -> str:
    """The model after a round of SARR: ``sarr-<k>``, ``mtct`` for 0 and ``zero-shot`` for -1."""
    return ZERO_SHOT if number < 0 else MTCT if number == 0 else f"sarr-{number}"


def model_round(model: str) -> int:
    """The inverse of ``model_name``.

    Raises:
        ValueError: for what is no model's name.
    """
    if model in (ZERO_SHOT, MTCT):
        return -1 if model == ZERO_SHOT else 0
    if match := _ROUND.fullmatch(model):
        return int(match[1])
    raise ValueError(f"no stage '{model}'; there are zero-shot, mtct, sarr-1, sarr-2, ...")


@dataclass(frozen=True)
class Stage:
    """One step of Algorithm 1 for one fold.

    Attributes:
        held_out: the fold: the held-out domain, or several joined by ``+``.
        round: 0 for MTCT and its evaluation, 1..N for SARR; -1 for the zero-shot evaluation.
    """

    held_out: str
    kind: Kind
    round: int

    @property
    def model(self) -> str:
        """The model that the stage makes, evaluates, or draws candidates for: ``mtct``, ``sarr-<k>``, ..."""
        return model_name(self.round)

    @property
    def name(self) -> str:
        """Also the stage's folder below the run."""
        return f"{self.held_out}/{self._below_fold}"

    @property
    def _below_fold(self) -> str:
        if self.kind == "evaluate":
            return f"{_EVALUATION}/{self.model}"
        return f"{self.model}/{CANDIDATES_FOLDER}" if self.kind == "generate" else self.model

    @classmethod
    def parse(cls, name: str) -> "Stage":
        """The stage of a name.

        Raises:
            ValueError: for what is no stage's name.
        """
        held_out, _, below = name.partition("/")
        first, _, second = below.partition("/")
        if held_out in ("", ".", ".."):  # as somebody may have written into a file
            raise ValueError(f"no stage '{name}'; its fold is no folder's name")
        if first == _EVALUATION:
            return cls(held_out, "evaluate", model_round(second))
        number = model_round(first)
        if second == CANDIDATES_FOLDER:
            return cls(held_out, "generate", number)
        if second or number < 0:
            raise ValueError(f"'{name}' is no stage's name")
        return cls(held_out, "train" if number else "mtct", number)


@dataclass(frozen=True)
class RunStore:
    """The files of one run.

    Attributes:
        root: the storage, a local path or a URI.
        name: the run's.
    """

    root: str
    name: str

    def __post_init__(self) -> None:
        check_name("the run", self.name)

    @classmethod
    def at(cls, uri: str) -> "RunStore | None":
        """The run whose folder is at an absolute path or URI; None for what cannot be a run's folder."""
        above, _, name = uri.rpartition("/")
        root, _, folder = above.rpartition("/")
        if folder != _RUNS_FOLDER or not name or not root or root.endswith("/"):
            return None
        return cls(root, name)

    @property
    def uri(self) -> str:
        return join(runs_uri(self.root), self.name)

    @property
    def config_uri(self) -> str:
        return join(self.uri, "config.yaml")

    @property
    def versions_uri(self) -> str:
        return join(self.uri, "versions.json")

    @property
    def results_uri(self) -> str:
        return join(self.uri, RESULTS_FILE)

    def exists(self) -> bool:
        """Whether a run of this name was started."""
        return exists(self.config_uri)

    def read_config(self) -> Config:
        """The config that the run was started with, with the storage where the run is now.

        Raises:
            StorageError: when there is no such run.
            ValueError: when the file is damaged, or of another release.
        """
        if not self.exists():
            raise StorageError(f"{self.uri}: no run here; correct the run's name, or --storage")
        with damage_told(self.config_uri, f"restore it, or delete {self.uri} and run anew"):
            config = parse_config(read_bytes(self.config_uri).decode())
        return config.model_copy(update={"storage": self.root})

    def write_config(self, config: Config) -> bool:
        """Record the config; from then on the run exists. False where it exists already."""
        return write_if_unchanged(self.config_uri, dump_config(config).encode(), None)

    # Folds and their states.

    def fold_state(self, held_out: str) -> State:
        """The complete stages of a fold."""
        return self._earlier_state(held_out) | self._read_fold(held_out)

    def state(self) -> State:
        """The complete stages of all folds, fold by fold in the order in which the run plans them."""
        earlier = self._earlier_state()
        names = [*dict.fromkeys(Stage.parse(name).held_out for name in earlier), *list_folders(self.uri)]
        states = {name: self._read_fold(name) for name in dict.fromkeys(names)}
        merged: State = {}
        for held_out in self.in_planned_order(states):
            mine = {name: entry for name, entry in earlier.items() if Stage.parse(name).held_out == held_out}
            merged |= mine | states[held_out]
        return merged

    def enter(self, stage: Stage, entry: dict[str, Any]) -> None:
        """Enter a stage as complete; its outputs must be on storage."""
        state = self.fold_state(stage.held_out) | {stage.name: entry}
        write_fold_state(self, stage.held_out, state)

    def begin(self, stage: Stage, inputs: Inputs) -> None:
        """Record what a stage that begins reads."""
        known = self.fold_inputs(stage.held_out) | {stage.name: inputs}
        write_fold_state(self, stage.held_out, self._read_fold(stage.held_out), known)

    def fold_inputs(self, held_out: str) -> dict[str, Inputs]:
        """What the begun stages of a fold have read; without those of releases that did not record it."""
        return {
            f"{held_out}/{below}": inputs
            for below, inputs in self._read_file(held_out).get("inputs", {}).items()
        }

    def lease(self, held_out: str, console: Console) -> Lease:
        """The lease of a fold, to hold while stages are computed into it."""
        what = f"run '{self.name}', fold {held_out}"
        return Lease(self._lease_uri(held_out), what, f"rdmldg status {self.uri} --watch", console)

    def holder(self, held_out: str) -> Holder | None:
        """Who works on a fold, or did when it was killed; None where nobody does."""
        return read_holder(self._lease_uri(held_out))

    def checkpointed(self, stage: Stage) -> bool:
        """Whether a training has left a checkpoint from which it would resume."""
        names = list_folders(self.checkpoints_uri(stage))
        return any(name.startswith("checkpoint_") for name in names)

    def _read_fold(self, held_out: str) -> State:
        stages = self._read_file(held_out).get("stages", {})
        return {f"{held_out}/{below}": entry for below, entry in stages.items()}

    def _read_file(self, held_out: str) -> dict[str, Any]:
        """A fold's file of state, checked; empty where there is none."""
        file = self._state_uri(held_out)
        if not exists(file):
            return {}
        with damage_told(file, self._state_remedy(f"{self.uri}/{held_out}")):
            value = _object(json.loads(read_bytes(file)))
            version = value["version"]
            if not isinstance(version, int):
                raise TypeError(f"its version is {version!r}")
            if version > _STATE_VERSION:
                raise OtherReleaseError(
                    f"{file}: has version {version}, and this release reads up to {_STATE_VERSION}; "
                    "use the release that wrote it, or a newer one"
                )
            for below, entry in _object(value["stages"]).items():
                _check_entry(f"{held_out}/{below}", entry)
            for inputs in _object(value.get("inputs", {})).values():
                _object(inputs)
            return value

    def _earlier_state(self, held_out: str | None = None) -> State:
        """What release 0.1.0 entered in one file for the run, of one fold or of all."""
        file = join(self.uri, _STATE_FILE)
        if not exists(file):
            return {}
        with damage_told(file, self._state_remedy(self.uri)):
            state = {}
            for name, entry in _object(json.loads(read_bytes(file))).items():
                state[name] = {_RENAMED.get(key, key): value for key, value in _object(entry).items()}
                _check_entry(name, state[name])
        return {
            name: entry for name, entry in state.items() if held_out in (None, Stage.parse(name).held_out)
        }

    def _state_remedy(self, folder: str) -> str:
        return f"restore it, or delete {folder} and run again, which computes what lies there anew"

    def _state_uri(self, held_out: str) -> str:
        return join(self.uri, held_out, _STATE_FILE)

    def _lease_uri(self, held_out: str) -> str:
        return join(self.uri, held_out, LEASE_FILE)

    def redo_remedy(self, stage: Stage) -> str:
        """What to do where an output of a complete stage is damaged."""
        return (
            f"restore it, or remove '{stage.name.removeprefix(f'{stage.held_out}/')}' from 'stages' in "
            f"{self._state_uri(stage.held_out)} and run again, which computes the stage anew"
        )

    def in_planned_order(self, folds: Iterable[str]) -> list[str]:
        """Folds in the order in which the run plans them."""
        # As listed in the config; what a word such as `all` stands for is in the order of sorted domains.
        listed = self.read_config().data.held_out if self.exists() else []
        places = {frozenset(fold_domains(fold)): place for place, fold in enumerate(listed)}
        return sorted(
            folds,
            key=lambda fold: (places.get(frozenset(fold_domains(fold)), len(places)), fold_domains(fold)),
        )

    # What stages leave.

    def stage_uri(self, stage: Stage) -> str:
        """The folder of a stage's outputs."""
        return join(self.uri, stage.name)

    def round_uri(self, held_out: str, model: str) -> str:
        """The folder of a training; of a round of SARR also its candidates and what was selected of them."""
        return join(self.uri, held_out, model)

    def candidates_uri(self, held_out: str, model: str) -> str:
        """Every chain that a round drew, in ``sarr.candidates.CANDIDATE_SCHEMA``."""
        return join(self.round_uri(held_out, model), CANDIDATES_FOLDER)

    def selected_uri(self, held_out: str, model: str) -> str:
        """The best accepted chain of each image of a round."""
        folder = self.round_uri(held_out, model)
        earlier = join(folder, _SELECTED_BEFORE)
        return earlier if list_entries(earlier) else join(folder, SELECTED_FOLDER)

    def rejections_uri(self, held_out: str, model: str) -> str:
        """Counts of a round's candidates by reason, in ``sarr.selection.REJECTION_SCHEMA``."""
        return join(self.round_uri(held_out, model), REJECTIONS_FILE)

    def adapter_uri(self, held_out: str, model: str) -> str | None:
        """The adapter that a training left; None for the base model."""
        return None if model == ZERO_SHOT else join(self.round_uri(held_out, model), ADAPTER_FOLDER)

    def checkpoints_uri(self, stage: Stage) -> str:
        """The checkpoints of a training."""
        return join(self.stage_uri(stage), CHECKPOINTS_FOLDER)

    def metrics_uri(self, held_out: str, model: str) -> str:
        """A line of JSON for each optimizer step of a training."""
        return join(self.round_uri(held_out, model), METRICS_FILE)

    def training_set_uri(self, stage: Stage) -> str:
        """What a training read: ids, domains, labels and chains."""
        return join(self.stage_uri(stage), "training_set.parquet")

    def answers_uri(self, stage: Stage) -> str:
        """What engines have answered for a stage that is not complete."""
        return join(self.uri, stage.held_out, _ANSWERS, stage.kind, stage.model)

    def predictions_uri(self, held_out: str, model: str) -> str:
        """An evaluation's answers, in ``evaluation.predictions.PREDICTION_SCHEMA``."""
        return join(self.stage_uri(Stage(held_out, "evaluate", model_round(model))), "predictions.parquet")

    def accuracies_uri(self, held_out: str, model: str) -> str:
        """An evaluation's accuracies by pathway."""
        return join(self.stage_uri(Stage(held_out, "evaluate", model_round(model))), "metrics.json")

    def analyses_uri(self, held_out: str | None = None) -> str:
        """The folder of the analyses of a fold, or of the run."""
        return join(self.uri, *([held_out] if held_out else []), _ANALYSES)

    def report_uri(self) -> str:
        """The page that the demo ends with."""
        return join(self.uri, "report.html")

    def refiltered_uri(self) -> str:
        """What a run was refiltered from."""
        return join(self.uri, "refiltered.json")


def runs_uri(root: str) -> str:
    """The folder of all runs."""
    return join(root, _RUNS_FOLDER)


def run_names(root: str) -> list[str]:
    """The runs of a storage, sorted."""
    return [name for name in list_folders(runs_uri(root)) if RunStore(root, name).exists()]


def write_fold_state(
    store: RunStore, held_out: str, state: State, inputs: Mapping[str, Inputs] | None = None
) -> None:
    """Replace the state of a fold.

    Args:
        inputs: what its stages read, by their names; by default as it is recorded.
    """
    known = store.fold_inputs(held_out) if inputs is None else inputs
    value: dict[str, Any] = {"version": _STATE_VERSION, "stages": _below(held_out, state)}
    if known:
        value["inputs"] = _below(held_out, known)
    write_json(join(store.uri, held_out, _STATE_FILE), value)


def _below(held_out: str, by_name: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{held_out}/"): value for name, value in by_name.items()}


# What is read may be cut, edited by hand, or of another release.


class OtherReleaseError(ValueError):
    """A file is of a release that this one does not read."""


@contextmanager
def damage_told(file: str, remedy: str) -> Iterator[None]:
    """Around reading a file of a run.

    Raises:
        ValueError: with file and remedy, in the place of what a damaged file makes a parser raise.
    """
    try:
        yield
    except OtherReleaseError:
        raise
    except StorageError as error:
        raise StorageError(f"{error}; {remedy}") from error
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'all of it'}: "
            + (
                "this release has no such setting, use the one that wrote it"
                if item["type"] == "extra_forbidden"
                else item["msg"]
            )
            for item in error.errors()
        )
        raise ValueError(f"{file}: is no config of this release: {found}; or {remedy}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise ValueError(f"{file}: is cut, damaged or edited ({told}); {remedy}") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a mapping is wanted, not {str(value)[:40]!r}")
    return value


def _check_entry(name: str, entry: Any) -> None:
    stage = Stage.parse(name)
    for key in _COUNTED.get(stage.kind, ("seconds",)):
        value = _object(entry).get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"stage '{name}': '{key}' is {value!r}, and a number is wanted")
    for measures in _object(entry.get("accuracy", {})).values():
        for value in _object(measures).values():
            if not isinstance(value, int | float):
                raise TypeError(f"stage '{name}': an accuracy is {value!r}, and a number is wanted")


# What a state tells.


def stages_of(state: Mapping[str, Any], kind: Kind, held_out: str | None = None) -> list[Stage]:
    """The complete stages of a kind, of one fold or of all."""
    stages = map(Stage.parse, state)
    return [stage for stage in stages if stage.kind == kind and held_out in (None, stage.held_out)]


def evaluated_folds(state: Mapping[str, Any]) -> list[str]:
    """Folds with an evaluation."""
    return list(dict.fromkeys(stage.held_out for stage in stages_of(state, "evaluate")))


def evaluated_models(state: Mapping[str, Any], held_out: str) -> list[str]:
    """Models that were evaluated for a fold: ``zero-shot``, ``mtct``, ``sarr-1``, ..."""
    return [stage.model for stage in stages_of(state, "evaluate", held_out)]


def accuracies_of(state: Mapping[str, Any], held_out: str, model: str) -> dict[str, dict[str, float]]:
    """Accuracies of an evaluated model by pathway and measure; empty where it was not evaluated."""
    entry = state.get(Stage(held_out, "evaluate", model_round(model)).name, {})
    found: dict[str, dict[str, float]] = entry.get("accuracy", {})
    return found


def round_summary(state: Mapping[str, Any], held_out: str, model: str) -> dict[str, Any] | None:
    """What a round of SARR drew and accepted; None before its candidates are complete."""
    number = model_round(model)
    return state.get(Stage(held_out, "generate", number).name) if number > 0 else None
