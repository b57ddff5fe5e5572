"""A run: Algorithm 1 over the folds of a config, one after the other; resumable.

Imports neither torch nor ray before a stage runs, so that planning a run is instant.
"""

from collections.abc import Callable
from itertools import groupby

import pyarrow as pa
from rich.console import Console

from rdmldg_ray.config.load import ConfigError, changes_no_result, flatten_settings
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.mtct.tracking import check_tracking
from rdmldg_ray.runs.fold import FoldPipeline
from rdmldg_ray.runs.inputs import StageInputs, check_inputs
from rdmldg_ray.runs.plan import count_samples, plan_stages
from rdmldg_ray.runs.serving import Serving
from rdmldg_ray.runs.stage_cache import StageCache
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runs.stage_outputs import named
from rdmldg_ray.runs.store import RunStore, Stage, State, stages_of
from rdmldg_ray.runtime.remote import in_task
from rdmldg_ray.runtime.versions import package_versions
from rdmldg_ray.storage import write_json

_ONLY_ROUNDING = (
    "mtct.micro_batch_size",
    "sarr.training.micro_batch_size",
    "workers.num_workers",
    "workers.zero_stage",
)
"""How a step is cut: with others of these a training gives the same result but for rounding."""


def only_rounding(key: str, before: Config, now: Config) -> bool:
    """Whether a training begun with the value that a setting has now differs by rounding alone from one with
    the value before."""
    # Dropout draws for each forward pass.
    if key not in _ONLY_ROUNDING or now.lora.dropout > 0:
        return False
    # DeepSpeed has another optimizer for bfloat16 at stage 0.
    stages = {before.workers.zero_stage, now.workers.zero_stage}
    return not (key == "workers.zero_stage" and 0 in stages and now.model.dtype == "bfloat16")


class Run:
    """A run of the method on a data set that lies on storage.

    Args:
        cache: stages of other runs that this one may take over instead of computing them.
        on_complete: called after each stage with the stage and the state of its fold.
    """

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        console: Console,
        cache: StageCache | None = None,
        on_complete: Callable[[Stage, State], None] = lambda stage, state: None,
    ):
        self.config = config
        self.info = info
        self.console = console
        self.store = RunStore(config.storage, config.name)
        self.data = StageData(config, info)
        self.stages = plan_stages(config, info)
        self._maybe_long: list[Stage] = []
        self.serving = Serving(config, list(info.classes), console)
        self.folds = {
            held_out: FoldPipeline(
                config=config,
                info=info,
                stages=list(stages),
                serving=self.serving,
                console=console,
                cache=cache,
                on_complete=on_complete,
            )
            for held_out, stages in groupby(self.stages, key=lambda stage: stage.held_out)
        }

    @property
    def location(self) -> str:
        """Where the run's outputs lie."""
        return self.store.uri

    def state(self) -> State:
        """The stages that are complete."""
        return self.store.state()

    def remaining(self) -> list[Stage]:
        """The stages that are not complete."""
        complete = self.state()
        return [stage for stage in self.stages if stage.name not in complete]

    def workload(self, stage: Stage) -> tuple[int, int | None]:
        """Images and optimizer steps of a stage; for a round's training upper bounds."""
        images = count_samples(self.config, self.info, stage)
        if stage.kind not in ("mtct", "train"):
            return images, None
        training = self.config.mtct if stage.kind == "mtct" else self.config.sarr.training
        return images, BatchPlan.make(images, self.config.workers.num_workers, training, 0).total_steps

    def prepare(self) -> None:
        """Record the config of a new run; check that of an old one, as ``check_settings`` does, and that what
        its stages read is what it was.

        Raises:
            ConfigError: when it is not.
        """
        begun = self.store.exists()
        self.check_settings()
        remaining = self.remaining()
        if remaining and not check_inputs(self.store, remaining, StageInputs(self.config, self.info)):
            self._note("some stages are of a release that did not record what they read: not compared")
        check_tracking(self.config.tracking)
        if not begun and self.store.write_config(self.config):
            write_json(self.store.versions_uri, package_versions())
        elif not begun:
            self.check_settings()  # another command has begun the run in this moment

    def check_chains(self) -> None:
        """Read the index and the teacher's chains as the stages will, so that a mistake in them ends a run at
        once.

        Raises:
            ValueError: when a split is empty, chains are missing, or one is not well-formed.
        """
        remaining = self.remaining()
        for held_out in dict.fromkeys(stage.held_out for stage in remaining):
            self.data.evaluation_set(held_out)  # raises where a split is empty
        without: dict[tuple[str, ...], list[str]] = {}
        for stage in remaining:
            if stage.kind == "mtct":
                coverage = self.data.check_chains(stage)
                if coverage.long and self.config.data.long_chains == "refuse":
                    self._maybe_long.append(stage)
                if coverage.without:
                    without.setdefault(coverage.without, []).append(stage.name)
        for classes, stages in without.items():
            self._note(
                f"{', '.join(stages)}: no image is trained on of {named(classes)} classes, which have no "
                f"accepted chain of '{self.config.data.chains}'; look at why they were rejected, and have "
                "them written by another teacher"
            )

    def check_settings(self) -> None:
        """Check that the run, where it exists, was started with the same settings.

        Settings that change no result, such as the number of engines, may change, and those that change
        its rounding alone.

        Raises:
            ConfigError: when others differ.
        """
        if not self.store.exists():
            return
        # A setting that is younger than the run had its default.
        recorded = self.store.read_config()
        before = flatten_settings(recorded.model_dump(mode="json"))
        now = flatten_settings(self.config.model_dump(mode="json"))
        # A mapping of the user's own, such as image settings, may have keys on one side only.
        changed = [
            key for key in before | now if before.get(key) != now.get(key) and not changes_no_result(key)
        ]
        rounding = [key for key in changed if self._only_rounding(key, recorded)]
        for key in rounding:
            self._note(f"{key} was {before[key]}, now {now[key]}; results are the same but for rounding")
        changed = [key for key in changed if key not in rounding]
        if changed:
            lines = [f"  {key}: was {before.get(key)!r}, now {now.get(key)!r}" for key in changed]
            raise ConfigError(
                "\n".join(
                    [
                        f"run '{self.config.name}' exists with other settings:",
                        *lines,
                        f"set another name (name=...), or delete {self.location}",
                    ]
                )
            )

    def _only_rounding(self, key: str, before: Config) -> bool:
        """Whether another value of a setting than that of the run's config is of no consequence."""
        if not only_rounding(key, before, self.config):
            return False
        # Where a training has recorded how its checkpoint is cut, that is compared; see ``runs.inputs``.
        return key.endswith("micro_batch_size") or not any(
            self.store.checkpointed(stage) and stage.name not in self.store.fold_inputs(stage.held_out)
            for stage in self.remaining()
        )

    def _note(self, text: str) -> None:
        self.console.print(f"run '{self.config.name}': {text}", highlight=False, markup=False)

    def check_free(self) -> None:
        """Check that no other process works on the fold that comes next, before Ray is started for it.

        Raises:
            LeaseHeldError: when one does.
        """
        for stage in self.remaining()[:1]:
            with self.folds[stage.held_out].lease.held():
                pass

    def run(self) -> None:
        """Run what remains, in order, each fold under its lease. Ray must be connected.

        Raises:
            LeaseHeldError: when another process works on a fold.
            ValueError: before the first stage for chains that ``check_chains`` has found to be too long.
        """
        long = {row for stage in self._maybe_long for row in in_task(self.data.long_chains, stage)}
        if long:
            ids = [f"{sample_id}: {tokens} tokens" for sample_id, tokens in sorted(long)]
            raise ValueError(
                f"chains of '{self.config.data.chains}' that with their prompt are longer than "
                f"model.max_length {self.config.model.max_length}: {named(ids)}; raise it, set their "
                "'accepted' to false, or set data.long_chains=drop"
            )
        try:
            for fold in [fold for fold in self.folds.values() if fold.remaining()]:
                with fold.lease.held():
                    # Whoever held it before may have completed some.
                    for stage in fold.remaining():
                        number = self.stages.index(stage) + 1
                        self.console.print(f"[{number}/{len(self.stages)}] {stage.name}", style="bold")
                        fold.run_stage(stage)
        finally:
            self.close()

    def evaluate(self, held_out: str, adapter: str | None) -> dict[str, dict[str, float]]:
        """Accuracies of base plus adapter on a fold, by pathway; nothing is written."""
        return self.folds[held_out].evaluate(adapter)[1]

    def probe_set(self, held_out: str) -> tuple[dict[str, str | None], pa.Table]:
        """What ``evaluation.probe`` measures: the adapter of each evaluated model, and the ``out`` splits of
        all domains with the teacher's chains."""
        evaluated = stages_of(self.state(), "evaluate", held_out)
        adapters = {stage.model: self.store.adapter_uri(held_out, stage.model) for stage in evaluated}
        return adapters, self.data.probe_set(held_out)

    def close(self) -> None:
        """End the engines."""
        self.serving.close()
