"""Algorithm 1: MTCT, then N rounds of generate, filter and train, evaluating after each; resumable.

Imports neither torch nor ray before a stage runs, so that planning a run is instant.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml
from rich.console import Console

from rdmldg_ray.config.load import ConfigError, changes_no_result, dump_config, flatten_settings
from rdmldg_ray.config.schema import Config, TrainingConfig
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.records import write_results
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.mtct.tracking import check_tracking
from rdmldg_ray.report.rejections import print_round
from rdmldg_ray.runs.plan import Stage, count_samples, keeps_engines, plan_stages
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runtime.liveness import count_alive
from rdmldg_ray.runtime.progress import follow_progress, progress_bar
from rdmldg_ray.runtime.remote import in_task
from rdmldg_ray.runtime.versions import VERSIONS_FILE, package_versions
from rdmldg_ray.storage import exists, join, read_bytes, read_json, write_bytes, write_json, write_table

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
        self.data = StageData(config, info)
        self.location = self.data.run
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
                self.data.check_chains(stage)

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
        samples = in_task(self.data.evaluation_set, held_out)
        with self._engines_alive() as alive, progress_bar(self.console, "answers", location, alive) as bar:
            predictions = predict(pool, samples, list(self.info.classes), self.config, bar.update)
        return predictions, accuracies(predictions)

    def probe_set(self, held_out: str) -> tuple[dict[str, str | None], pa.Table]:
        """What ``evaluation.probe`` measures: the adapter of each evaluated model, and the ``out`` parts of
        all domains with the teacher's chains."""
        complete = self.state()
        mine = [stage for stage in self.stages if stage.held_out == held_out and stage.kind == "evaluate"]
        adapters = {s.model: self._adapter(held_out, s.round) for s in mine if s.name in complete}
        return adapters, self.data.probe_set(held_out)

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
                return self._train(stage, self.config.mtct, adapter=None)
            case "generate":
                return self._generate(stage)
            case "train":
                before = self._adapter(stage.held_out, stage.round - 1)
                return self._train(stage, self.config.sarr.training, before)
            case "evaluate":
                return self._evaluate(stage)

    def _complete(self, stage: Stage, seconds: float, summary: dict[str, Any]) -> None:
        state = self.state()
        state[stage.name] = {"seconds": round(seconds, 1), **summary}
        write_json(self.state_location, state)

    def _adapter(self, held_out: str, number: int) -> str | None:
        if number < 0:
            return None
        return join(self.location, Stage(held_out, "train", number).name, "adapter")

    # The stages.

    def _train(self, stage: Stage, training: TrainingConfig, adapter: str | None) -> dict[str, Any]:
        from rdmldg_ray.mtct.trainer import train_stage

        if not keeps_engines(self.config.engines):
            self.close()
        training_set, left_out = in_task(self.data.training_set, stage)
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
        samples = in_task(self.data.source_index, stage.held_out, "in")
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
        write_results(self.location, self.config, self.info.environments, steps)

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
