"""Algorithm 1: MTCT, then N rounds of generate, filter and train, evaluating after each; resumable.

Imports neither torch nor ray before a stage runs, so that planning a run is instant.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from rich.console import Console

from rdmldg_ray.alive import count_alive
from rdmldg_ray.chains.attach import CHAIN_COLUMNS, attach_chains
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.config import Config, ConfigError, changes_no_result, dump_config, flatten_settings
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.domainbed.samples import DatasetInfo, chains_location
from rdmldg_ray.domainbed.view import base_classes, sample_index, take_part
from rdmldg_ray.evaluation.records import write_results
from rdmldg_ray.mtct.schedule import BatchPlan
from rdmldg_ray.mtct.tracking import check_tracking
from rdmldg_ray.plan import Stage, count_samples, keeps_engines, plan_stages
from rdmldg_ray.progress import follow_progress, progress_bar
from rdmldg_ray.report.rejections import print_round
from rdmldg_ray.settings import TrainingConfig
from rdmldg_ray.storage import (
    exists,
    join,
    read_bytes,
    read_json,
    read_table,
    write_bytes,
    write_json,
    write_table,
)
from rdmldg_ray.versions import VERSIONS_FILE, package_versions

if TYPE_CHECKING:
    from rdmldg_ray.engines.pool import EnginePool


class Pipeline:
    """A run of the method on a data set that lies on storage.

    Stages write their outputs first and are then entered in ``state.json``, which is replaced
    whole; a stage is complete when, and only when, it is entered there.
    """

    def __init__(self, config: Config, info: DatasetInfo, console: Console):
        self.config = config
        self.info = info
        self.console = console
        self.stages = plan_stages(config, info)
        self.location = join(config.storage, "runs", config.name)
        self.state_location = join(self.location, "state.json")
        self.config_location = join(self.location, "config.yaml")
        self._pool: EnginePool | None = None
        self._served: str | None = None
        self._loading: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """What is complete: stage name to seconds and summary."""
        return read_json(self.state_location) if exists(self.state_location) else {}

    def remaining(self) -> list[Stage]:
        """Stages that are not complete."""
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
        """Record the config of a new run; check that of an old one, as ``check_settings`` does."""
        self.check_settings()
        check_tracking(self.config.tracking)
        if not exists(self.config_location):
            write_bytes(self.config_location, dump_config(self.config).encode())
            write_json(join(self.location, VERSIONS_FILE), package_versions())

    def check_chains(self) -> None:
        """Read the teacher's chains as training will, so that a mistake in them ends a run at once.

        Raises:
            ValueError: when chains are missing or one is not well-formed.
        """
        for stage in self.remaining():
            if stage.kind == "mtct":
                self._teacher_set(stage)

    def check_settings(self) -> None:
        """Check that the run, where it exists, was started with the same settings.

        Settings that change no result, such as the number of engines, may change.

        Raises:
            ConfigError: when others differ.
        """
        if not exists(self.config_location):
            return
        # A setting that is younger than the run had its default.
        before = flatten_settings(Config().model_dump(mode="json")) | flatten_settings(
            yaml.safe_load(read_bytes(self.config_location))
        )
        now = flatten_settings(self.config.model_dump(mode="json"))
        # A mapping of the user's own, such as image settings, may have keys on one side only.
        changed = [
            key for key in before | now if before.get(key) != now.get(key) and not changes_no_result(key)
        ]
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

    def run(self) -> None:
        """Run what remains, in order. Ray must be connected."""
        remaining = self.remaining()
        try:
            for stage in remaining:
                number = self.stages.index(stage) + 1
                self.console.print(
                    f"[bold]\\[{number}/{len(self.stages)}] {stage.name}[/bold]", highlight=False
                )
                self._do(stage)
        finally:
            self.close()

    def evaluate(
        self, held_out: str, adapter: str | None, location: str | None = None
    ) -> tuple[pa.Table, dict[str, dict[str, float]]]:
        """Predictions and accuracies of base plus adapter, as ``evaluation.predict`` makes them.

        With a location, how far it is is written there.
        """
        from rdmldg_ray.evaluation.predict import accuracies, predict

        pool = self._serve(adapter)
        samples = self._evaluation_set(held_out)
        with self._engines_alive() as alive, progress_bar(self.console, "answers", location, alive) as bar:
            predictions = predict(pool, samples, list(self.info.classes), self.config, bar.update)
        return predictions, accuracies(predictions)

    def probe_set(self, held_out: str) -> tuple[dict[str, str | None], pa.Table]:
        """What ``evaluation.probe`` measures: the adapter of each evaluated model, and the ``out`` parts of
        all domains with the teacher's chains."""
        complete = self.state()
        mine = [stage for stage in self.stages if stage.held_out == held_out and stage.kind == "evaluate"]
        adapters = {s.model: self._adapter(held_out, s.round) for s in mine if s.name in complete}
        samples = self._evaluation_set(held_out).filter(pc.field("part") == "out")
        name, teacher = self.info.name, self.config.data.chains
        chains = read_chains(self.config.storage, name, teacher, self.info.environments, CHAIN_COLUMNS)
        location = chains_location(self.config.storage, name, teacher)
        return adapters, attach_chains(samples, chains, location)

    def close(self) -> None:
        """End the engines."""
        if self._pool:
            self._pool.close()
            self._pool = None

    def _do(self, stage: Stage) -> None:
        started = time.perf_counter()
        self._loading = {}
        summary = self._run_stage(stage)
        self._complete(stage, time.perf_counter() - started, self._loading | summary)

    def _run_stage(self, stage: Stage) -> dict[str, Any]:
        match stage.kind:
            case "mtct":
                return self._train(stage, self.config.mtct, self._teacher_set(stage), adapter=None)
            case "generate":
                return self._generate(stage)
            case "train":
                before = self._adapter(stage.held_out, stage.round - 1)
                return self._train(stage, self.config.sarr.training, self._own_set(stage), before)
            case "evaluate":
                return self._evaluate(stage)

    def _complete(self, stage: Stage, seconds: float, summary: dict[str, Any]) -> None:
        state = self.state()
        state[stage.name] = {"seconds": round(seconds, 1), **summary}
        write_json(self.state_location, state)

    # What a stage may see: source domains for training and generation, all of them for evaluation.

    def _sources(self, held_out: str) -> list[str]:
        return [domain for domain in self.info.environments if domain not in fold_domains(held_out)]

    def _source_index(self, held_out: str, part: Literal["in", "out"]) -> pa.Table:
        data = self.config.data
        index = sample_index(self.config.storage, self.info, self._sources(held_out))
        rows = take_part(index, self.info, part, data.trial_seed, data.holdout_fraction)
        if data.classes == "base":
            rows = rows.filter(pc.field("label").isin(base_classes(self.info.classes)))
        return rows

    def _teacher_set(self, stage: Stage) -> pa.Table:
        samples = self._source_index(stage.held_out, "in")
        if self.config.mtct.weights.reasoning == 0:  # labels only
            return _with_constants(samples, {"chain": ""})
        return attach_chains(samples, *self._teacher_chains(stage))

    def _teacher_chains(self, stage: Stage) -> tuple[pa.Table, str]:
        root, dataset, teacher = self.config.storage, self.info.name, self.config.data.chains
        chains = read_chains(root, dataset, teacher, self._sources(stage.held_out), CHAIN_COLUMNS)
        return chains, chains_location(root, dataset, teacher)

    def _own_set(self, stage: Stage) -> pa.Table:
        location = join(self.location, stage.held_out, stage.model, "kept")
        samples = self._source_index(stage.held_out, "in")
        # A round that keeps no chain still trains, where its images are to be trained on something else.
        may_be_none = self.config.sarr.without_chain != "drop"
        own = attach_chains(samples, read_table(location, CHAIN_COLUMNS), location, may_be_none)
        rest = samples.filter(pc.invert(pc.is_in(samples["id"], own["id"].combine_chunks())))
        match self.config.sarr.without_chain:
            case "teacher":
                theirs = attach_chains(rest, *self._teacher_chains(stage), may_be_none=True)
                return pa.concat_tables([own, theirs])
            case "labels":
                no_chains = pa.nulls(len(rest), pa.string())
                return pa.concat_tables([own, rest.append_column("chain", no_chains)])
            case "drop":
                return own

    def _adapter(self, held_out: str, number: int) -> str | None:
        if number < 0:
            return None
        return join(self.location, Stage(held_out, "train", number).name, "adapter")

    # The stages.

    def _train(
        self, stage: Stage, training: TrainingConfig, training_set: pa.Table, adapter: str | None
    ) -> dict[str, Any]:
        from rdmldg_ray.mtct.trainer import train_stage

        if not keeps_engines(self.config.engines):
            self.close()
        location = join(self.location, stage.name)
        # The record of what was read, which also proves that the held-out domain was not.
        read = training_set.select(["id", "domain", "label", "chain"])
        write_table(join(location, "training_set.parquet"), read)
        workers = self.config.workers.num_workers
        with (
            count_alive("RayTrainWorker", workers, "workers") as alive,
            follow_progress(self.console, "training", location, alive),
        ):
            train_stage(
                self.config,
                training,
                training_set,
                list(self.info.classes),
                location,
                adapter,
                seed=self.config.seed + stage.round,
            )
        left_out = len(self._source_index(stage.held_out, "in")) - len(training_set)
        if left_out:
            self.console.print(f"  {left_out} images have no kept chain and took no part", highlight=False)
        only_label = training_set["chain"].null_count
        if only_label:
            self.console.print(
                f"  {only_label} images have no kept chain and were trained on their label alone",
                highlight=False,
            )
        return {"samples": len(training_set), "without_chain": left_out + only_label}

    def _generate(self, stage: Stage) -> dict[str, Any]:
        from rdmldg_ray.sarr.round import generate_round

        location = join(self.location, stage.held_out, stage.model)
        samples = self._source_index(stage.held_out, "in")
        pool = self._serve(self._adapter(stage.held_out, stage.round - 1))
        stage_folder = join(self.location, stage.name)
        with self._engines_alive() as alive, progress_bar(self.console, "chains", stage_folder, alive) as bar:
            summary = generate_round(
                pool,
                samples,
                list(self.info.classes),
                self.config.sarr,
                self.config.seed + stage.round,
                Stage(stage.held_out, "train", stage.round - 1).name,
                location,
                bar.update,
            )
        print_round(self.console, location, {**self.state(), stage.name: summary}, stage.name)
        return summary

    def _evaluate(self, stage: Stage) -> dict[str, Any]:
        location = join(self.location, stage.name)
        adapter = self._adapter(stage.held_out, stage.round)
        predictions, accuracy = self.evaluate(stage.held_out, adapter, location)
        write_table(join(location, "predictions.parquet"), predictions)
        write_json(join(location, "metrics.json"), accuracy)
        self._write_results(stage)
        return {"accuracy": accuracy}

    def _write_results(self, stage: Stage) -> None:
        """Write ``results.jsonl`` of the evaluations that are complete and of this one."""
        complete = self.state()
        evaluated = [s for s in self.stages if s.kind == "evaluate" and (s == stage or s.name in complete)]
        steps = {s.name: s.round + 1 for s in evaluated}
        write_results(self.location, self.config, self.info, steps)

    def _evaluation_set(self, held_out: str) -> pa.Table:
        data = self.config.data
        target = sample_index(self.config.storage, self.info, fold_domains(held_out))
        parts = [(self._source_index(held_out, "out"), "out", False)]
        for part in ("in", "out"):
            rows = take_part(target, self.info, part, data.trial_seed, data.holdout_fraction)
            parts.append((rows, part, True))
        return pa.concat_tables(
            _with_constants(rows, {"part": part, "held_out": target}) for rows, part, target in parts
        )

    def _engines_alive(self) -> AbstractContextManager[Callable[[], str]]:
        return count_alive("Engine", self.config.engines.num_engines, "engines")

    def _serve(self, adapter: str | None) -> "EnginePool":
        from rdmldg_ray.engines.pool import EnginePool

        started = time.perf_counter()
        fresh = self._pool is None
        if self._pool is None:
            self._pool = EnginePool(self.config, list(self.info.classes))
        if fresh or adapter != self._served:
            with self.console.status("  loading the model into the engines"):
                report = self._pool.load(adapter)
            self._served = adapter
            # Of the stage's time, what is no work of its own; `rdmldg calibrate` tells them apart.
            self._loading = {"loading": report.how, "loading_s": round(time.perf_counter() - started, 1)}
            parity = "" if report.parity is None else f", within {report.parity:.1e} of the trainer"
            self.console.print(
                f"  engines ready ({report.how}, {report.seconds:.1f} s{parity})", highlight=False
            )
        return self._pool


def _with_constants(table: pa.Table, values: dict[str, Any]) -> pa.Table:
    for name, value in values.items():
        table = table.append_column(name, pa.array([value] * len(table)))
    return table
