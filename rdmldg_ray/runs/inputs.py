"""What the stages of a run read from outside of it, as digests: data, chains, model, prompts, and the code.

A stage records them when it begins, in the state of its fold. A run that resumes compares: where something
has changed that a complete stage has read and a remaining one would read, the two do not belong together.
"""

import hashlib
from collections.abc import Sequence
from functools import cache, cached_property

from rdmldg_ray.chains.attach import CHAIN_COLUMNS
from rdmldg_ray.chains.prompts import direct_prompt, reasoning_prompt
from rdmldg_ray.chains.store import chain_files, read_chain_file
from rdmldg_ray.config.load import ConfigError
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo, info_location
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.models.folder import model_digest
from rdmldg_ray.runs.store import Inputs, Kind, RunStore, Stage
from rdmldg_ray.storage import exists, read_json

STAGE_VERSIONS: dict[Kind, int] = {"mtct": 1, "generate": 2, "train": 1, "evaluate": 3}
"""Raised when a kind of stage comes to give another result from the same inputs and settings."""

_CODE, _WORKERS = "code of ", "workers of "


class StageInputs:
    """Digests of what stages read; each is computed once, when it is first asked for."""

    def __init__(self, config: Config, info: DatasetInfo):
        self.config = config
        self._info = info
        self._chains = cache(self._digest_chains)

    def of(self, stage: Stage) -> Inputs:
        """By name what a stage reads from outside of its run."""
        found = {
            f"data set {self._info.name}": self._dataset,
            f"model {self.config.model.path}": self._model,
            "prompts": _digest(direct_prompt(["a", "b"]), reasoning_prompt(["a", "b"])),
            f"{_CODE}{stage.kind}": str(STAGE_VERSIONS[stage.kind]),
        }
        if self._reads_chains(stage):
            for domain in self._info.environments:
                if domain not in fold_domains(stage.held_out):
                    found[f"chains of {self.config.data.chains} for {domain}"] = self._chains(domain)
        return found

    def _reads_chains(self, stage: Stage) -> bool:
        if stage.kind == "train":
            return self.config.sarr.without_chain == "teacher"
        return stage.kind == "mtct" and self.config.mtct.weights.reasoning > 0

    @cached_property
    def _model(self) -> str:
        return model_digest(self.config.model.path)

    @cached_property
    def _dataset(self) -> str:
        info, file = self._info, info_location(self.config.storage, self._info.name)
        described = read_json(file) if exists(file) else {}
        # What an ingest found at its source; of a data set without it, what it says of itself.
        return _digest(
            described.get("content"),
            info.environments,
            info.classes,
            sorted(info.counts.items()),
            sorted(info.sizes.items()),
            info.questions,
        )

    def _digest_chains(self, domain: str) -> str:
        """Of the accepted chains, wherever in its files each lies."""
        rows = []
        teacher = self.config.data.chains
        for file in chain_files(self.config.storage, self._info.name, teacher, [domain]):
            chains = read_chain_file(file, CHAIN_COLUMNS)
            for row in chains.filter(chains["accepted"]).to_pylist():
                rows.append(
                    hashlib.sha256(repr((row["id"], row["candidate"], row["text"])).encode()).digest()
                )
        return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def running_inputs(config: Config, stage: Stage) -> Inputs:
    """What a checkpoint of a stage depends on besides: how its training is spread over workers."""
    if stage.kind not in ("mtct", "train"):
        return {}
    workers = config.workers
    return {f"{_WORKERS}{stage.name}": f"{workers.num_workers}, at ZeRO stage {workers.zero_stage}"}


def check_inputs(store: RunStore, stages: Sequence[Stage], read: StageInputs) -> bool:
    """Check that stages would read what those before them have read.

    Args:
        stages: that are to be run.

    Returns:
        Whether all complete stages have recorded what they read; those of earlier releases have not.

    Raises:
        ConfigError: when something was changed since; it is named, with the remedy.
    """
    state = store.state()
    folds = [Stage.parse(name).held_out for name in state] + [stage.held_out for stage in stages]
    recorded = {
        name: inputs
        for held_out in dict.fromkeys(folds)
        for name, inputs in store.fold_inputs(held_out).items()
    }
    now: Inputs = {}
    for stage in stages if recorded else []:
        now |= read.of(stage) | running_inputs(read.config, stage)
    lines = []
    for name, inputs in recorded.items():
        # An interrupted stage that left no checkpoint begins anew.
        if name in state or store.checkpointed(Stage.parse(name)):
            changed = [what for what, was in inputs.items() if now.get(what, was) != was]
            lines += [_told(store, what, Stage.parse(name), inputs[what], now[what]) for what in changed]
    if lines:
        raise ConfigError(
            "\n".join(
                [
                    f"run '{store.name}': what its stages read is not what it was:",
                    *dict.fromkeys(lines),
                    "bring back what is named, or set another name (name=...), which computes all anew",
                ]
            )
        )
    return state.keys() <= recorded.keys()


def _told(store: RunStore, what: str, stage: Stage, was: str, now: str) -> str:
    if what.startswith(_WORKERS):
        return (
            f"  the last checkpoint of {stage.name} is of other workers: was {was}, now {now}; to begin the "
            f"stage anew with these, delete {store.checkpoints_uri(stage)}"
        )
    if what.startswith(_CODE):
        return f"  {what} stages: {stage.name} is of version {was}, and this release has version {now}"
    return f"  {what}: changed since {stage.name} read it"


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
