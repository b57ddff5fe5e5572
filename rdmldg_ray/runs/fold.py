"""One fold of a run: MTCT, then N rounds of generate, filter and train, evaluating after each.

A fold is resumed by itself: it runs the stages that its state does not hold, each as if the earlier ones had
just ended.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from rdmldg_ray.config.schema import Config, TrainingConfig
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.inputs import StageInputs, check_inputs, running_inputs
from rdmldg_ray.runs.results import write_results
from rdmldg_ray.runs.serving import Serving
from rdmldg_ray.runs.stage_cache import StageCache
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runs.stage_outputs import missing_outputs
from rdmldg_ray.runs.store import RunStore, Stage, State, model_name
from rdmldg_ray.runtime.errors import RunFailedError
from rdmldg_ray.runtime.liveness import count_alive
from rdmldg_ray.runtime.progress import follow_progress, progress_bar
from rdmldg_ray.runtime.remote import in_task
from rdmldg_ray.storage import delete_folder, write_json, write_table

if TYPE_CHECKING:
    from rdmldg_ray.engines.answer_log import AnswerLog


class FoldPipeline:
    """Runs the stages of one fold.

    Args:
        stages: of the fold, in order.
        serving: the run's engines.
        cache: stages of other runs that this one may take over instead of computing them.
        on_complete: called after each stage.
    """

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        stages: Sequence[Stage],
        serving: Serving,
        console: Console,
        cache: StageCache | None = None,
        on_complete: Callable[[Stage, State], None] = lambda stage, state: None,
    ):
        self.config = config
        self.info = info
        self.stages = list(stages)
        self.held_out = self.stages[0].held_out
        self.store = RunStore(config.storage, config.name)
        self.lease = self.store.lease(self.held_out, console)
        self.data = StageData(config, info)
        self.serving = serving
        self.console = console
        self._cache = cache
        self._on_complete = on_complete

    def state(self) -> State:
        """The stages that are complete."""
        return self.store.fold_state(self.held_out)

    def remaining(self) -> list[Stage]:
        """The stages that are not complete."""
        complete = self.state()
        return [stage for stage in self.stages if stage.name not in complete]

    def run_stage(self, stage: Stage) -> None:
        """Run a stage, or take it over from the cache, and enter it as complete. Ray must be connected.

        Raises:
            LeaseHeldError: when another process works on the fold.
        """
        with self.lease.held(), self._cache.claim(stage) if self._cache else nullcontext():
            self.lease.confirm()
            read = StageInputs(self.config, self.info)
            check_inputs(self.store, [stage], read)
            self.store.begin(stage, read.of(stage) | running_inputs(self.config, stage))
            started = time.perf_counter()
            self.serving.take_loading()
            summary = self._take_over(stage) or self._run(stage)
            seconds = round(time.perf_counter() - started, 1)
            entry = {"seconds": seconds, **self.serving.take_loading(), **summary}
            self._check_outputs(stage, entry)
            self.lease.confirm()
            if stage.kind == "evaluate":
                write_results(self.store, self.config, self.info.environments, newest=stage)
            self.store.enter(stage, entry)
            if stage.kind in ("generate", "evaluate"):
                delete_folder(self.store.answers_uri(stage))
            if self._cache:
                self._cache.register(stage, entry)
        self._on_complete(stage, self.state())

    def _check_outputs(self, stage: Stage, entry: dict[str, Any]) -> None:
        missing = in_task(missing_outputs, self.store, stage, self.data, entry)
        if missing:
            raise RunFailedError(
                f"stage {stage.name} ended without all of its outputs, and is not complete:\n"
                + "\n".join(f"  {line}" for line in missing)
                + "\nrun again, which does this stage again"
            )

    def evaluate(
        self, adapter: str | None, stage: Stage | None = None
    ) -> tuple[pa.Table, dict[str, dict[str, float]]]:
        """Predictions and accuracies of base plus adapter on the fold, as ``evaluation.predict`` makes them.

        Args:
            adapter: URI of an adapter, or None for the base model.
            stage: the evaluation of the run that this is, whose answers are kept as they come.
        """
        from rdmldg_ray.evaluation.predict import predict
        from rdmldg_ray.evaluation.predictions import accuracies

        log = self._answer_log(stage, adapter) if stage else None
        samples = in_task(self.data.evaluation_set, self.held_out)
        location = self.store.stage_uri(stage) if stage else None
        with (
            self.serving.count_alive() as alive,
            progress_bar(self.console, "answers", location, alive) as bar,
        ):
            predictions = predict(
                writer=log or self.serving.pool(adapter),
                samples=samples,
                class_names=list(self.info.classes),
                config=self.config,
                progress=bar.update,
            )
        if log:
            self._tell_read_back(log)
        return predictions, accuracies(predictions)

    def _answer_log(self, stage: Stage, adapter: str | None) -> "AnswerLog":
        from rdmldg_ray.engines.answer_log import AnswerLog

        # What the adapter is made of, and when: a training that was done again gives another.
        model = {
            name: entry for name, entry in self.state().items() if Stage.parse(name).kind in ("mtct", "train")
        }
        read = self.store.fold_inputs(stage.held_out).get(stage.name)
        return AnswerLog(
            location=self.store.answers_uri(stage),
            model=json.dumps([adapter, model, read], sort_keys=True),
            pool=lambda: self.serving.pool(adapter),
        )

    def _tell_read_back(self, log: "AnswerLog") -> None:
        if log.read_back:
            self.console.print(
                f"  {log.read_back} answers were there, and were not asked for", highlight=False
            )

    def _take_over(self, stage: Stage) -> dict[str, Any] | None:
        """The summary of a stage that the cache has; a round is selected anew from candidates that it has."""
        found = self._cache.find(stage) if self._cache else []
        if not self._cache or not found:
            return None
        if stage.kind == "generate":
            return self._generate(stage, self._cache.candidates(stage, found)) | {"shared": found}
        self.console.print(f"  as in run '{found[0]}'", highlight=False)
        return self._cache.copy(stage, found[0]) | {"shared": [found[0]]}

    def _run(self, stage: Stage) -> dict[str, Any]:
        match stage.kind:
            case "mtct":
                return self._train(stage, self.config.mtct, None)
            case "generate":
                return self._generate(stage, None)
            case "train":
                return self._train(stage, self.config.sarr.training, self._adapter(stage.round - 1))
            case "evaluate":
                return self._evaluate(stage)

    def _adapter(self, number: int) -> str | None:
        """The adapter after a round; None before MTCT."""
        return self.store.adapter_uri(self.held_out, model_name(number))

    def _train(self, stage: Stage, training: TrainingConfig, adapter: str | None) -> dict[str, Any]:
        from rdmldg_ray.mtct.trainer import train_stage

        self.serving.make_room_for_training()
        training_set, left_out = in_task(self.data.training_set, stage)
        location = self.store.stage_uri(stage)
        # The record of what was read, which also proves that the held-out domain was not.
        read = training_set.select(["id", "domain", "label", "chain"])
        write_table(self.store.training_set_uri(stage), read)
        workers = self.config.workers.num_workers
        with (
            count_alive("RayTrainWorker", workers, "workers") as alive,
            follow_progress(self.console, "training", location, alive),
        ):
            train_stage(
                config=self.config,
                training=training,
                training_set=training_set,
                class_names=list(self.info.classes),
                location=location,
                adapter=adapter,
                model=stage.name,
                seed=self.config.seed + stage.round,
            )
        if left_out:
            self.console.print(
                f"  {left_out} images have no accepted chain, or one too long, and took no part",
                highlight=False,
            )
        only_label = training_set["chain"].null_count
        if only_label:
            self.console.print(
                f"  {only_label} images have no accepted chain and were trained on their label alone",
                highlight=False,
            )
        return {"samples": len(training_set), "without_chain": left_out + only_label}

    def _generate(self, stage: Stage, drawn: pa.Table | None) -> dict[str, Any]:
        """Draw and select a round's chains.

        Args:
            drawn: candidates that were drawn before, which are not drawn again.
        """
        from rdmldg_ray.sarr.candidate_cache import CandidateCache
        from rdmldg_ray.sarr.round import generate_round

        samples = in_task(self.data.source_index, self.held_out, "in")
        log = self._answer_log(stage, self._adapter(stage.round - 1))
        cached = None if drawn is None else CandidateCache(drawn, lambda: log)
        with (
            self.serving.count_alive() as alive,
            progress_bar(self.console, "chains", self.store.stage_uri(stage), alive) as bar,
        ):
            summary = generate_round(
                writer=cached or log,
                samples=samples,
                class_names=list(self.info.classes),
                config=self.config.sarr,
                seed=self.config.seed + stage.round,
                model=f"{self.held_out}/{model_name(stage.round - 1)}",
                location=self.store.round_uri(self.held_out, stage.model),
                progress=bar.update,
            )
        self._tell_read_back(log)
        return summary if cached is None else summary | {"drawn_anew": cached.drawn_anew}

    def _evaluate(self, stage: Stage) -> dict[str, Any]:
        predictions, accuracy = self.evaluate(self._adapter(stage.round), stage)
        write_table(self.store.predictions_uri(self.held_out, stage.model), predictions)
        write_json(self.store.accuracies_uri(self.held_out, stage.model), accuracy)
        return {"accuracy": accuracy}
