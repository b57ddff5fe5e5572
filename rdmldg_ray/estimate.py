"""What a run would take, from what another one took: hours by stage, chains, tokens, storage, cost.

Plain arithmetic on measured rates. They hold for the same model, image settings, lengths and kind of
machine, and for as many tokens in a chain as were seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from rdmldg_ray.config import Config
from rdmldg_ray.domainbed.samples import DatasetInfo
from rdmldg_ray.plan import Kind, Stage, count_samples, plan_stages

_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_File):
    """Rates of one finished run, each of one worker or one engine."""

    model: str
    machine: str
    train_images_per_s: _Positive
    """Of one worker, an image counted in every epoch."""
    train_start_s: _NotNegative
    """Of a training stage, besides its steps."""
    candidates_per_s: _Positive
    """Of one engine."""
    tokens_per_candidate: _Positive
    candidates_per_image: _Positive
    """Draws until a chain is kept or the limit is reached."""
    kept_share: Annotated[float, Field(ge=0, le=1)]
    """Images with a kept chain, of all."""
    answers_per_s: _Positive
    """Of one engine, over the pathways that the run evaluated."""
    bytes_per_training: _NotNegative
    """Adapter, checkpoints and logs of a stage."""
    bytes_per_candidate: _NotNegative
    bytes_per_answer: _NotNegative


class Prices(_File):
    """US dollars."""

    worker_hour: _NotNegative = 0.0
    """Of one training worker or one engine; with one GPU each, the price of a GPU and its share of a node."""
    gb_month: _NotNegative = 0.0

    def of(self, worker_hours: float, size: int) -> float:
        """US dollars for hours of workers or engines, and for bytes that lie there for a month."""
        return worker_hours * self.worker_hour + size / 1e9 * self.gb_month


@dataclass(frozen=True)
class Estimate:
    """What one kind of stage takes, over all of a run's stages of this kind."""

    kind: Kind
    stages: int
    images: int
    hours: float
    """Wall time."""
    worker_hours: float
    """Hours of workers or engines: GPU hours, with one GPU each."""
    chains: int
    tokens: int
    bytes: int

    def cost(self, prices: Prices) -> float:
        """US dollars, with storage for a month."""
        return prices.of(self.worker_hours, self.bytes)


def estimate(config: Config, info: DatasetInfo, rates: Calibration) -> list[Estimate]:
    """Estimates by kind of stage, in the order in which a run has them.

    Idle workers and engines are not counted, nor is their time to start, but for a training's.
    """
    rows: dict[Kind, Estimate] = {}
    for stage in plan_stages(config, info):
        new = _one(config, rates, stage, count_samples(config, info, stage))
        old = rows.get(stage.kind)
        rows[stage.kind] = _sum([old, new]) if old else new
    return list(rows.values())


def devices(config: Config, kind: Kind) -> int:
    """Workers or engines that a stage of a kind has."""
    return config.workers.num_workers if kind in ("mtct", "train") else config.engines.num_engines


def total(rows: Sequence[Estimate]) -> Estimate:
    """All rows as one; ``kind`` is the first's."""
    return _sum(rows)


def _one(config: Config, rates: Calibration, stage: Stage, images: int) -> Estimate:
    chains, tokens, count = 0, 0, devices(config, stage.kind)
    if stage.kind in ("mtct", "train"):
        training = config.mtct if stage.kind == "mtct" else config.sarr.training
        if stage.kind == "train" and config.sarr.without_chain == "drop":
            images = round(images * rates.kept_share)
        work = images * training.epochs / rates.train_images_per_s / count
        seconds = rates.train_start_s + work
        size = rates.bytes_per_training
    elif stage.kind == "generate":
        sarr = config.sarr
        draws = sarr.max_attempts if sarr.sampling == "fixed" else rates.candidates_per_image
        chains = round(images * min(draws, sarr.max_attempts))
        tokens = round(chains * rates.tokens_per_candidate)
        seconds = chains / rates.candidates_per_s / count
        size = chains * rates.bytes_per_candidate
    else:
        answers = images * len(config.evaluation.pathways)
        seconds = answers / rates.answers_per_s / count
        size = answers * rates.bytes_per_answer
    hours = seconds / 3600
    return Estimate(stage.kind, 1, images, hours, hours * count, chains, tokens, round(size))


def _sum(rows: Sequence[Estimate]) -> Estimate:
    return Estimate(
        rows[0].kind,
        sum(row.stages for row in rows),
        sum(row.images for row in rows),
        sum(row.hours for row in rows),
        sum(row.worker_hours for row in rows),
        sum(row.chains for row in rows),
        sum(row.tokens for row in rows),
        sum(row.bytes for row in rows),
    )


def calibrate(
    config: Config,
    info: DatasetInfo,
    state: dict[str, Any],
    step_rates: dict[str, list[float]],
    sizes: dict[str, int],
    machine: str,
) -> Calibration:
    """The rates of a finished run.

    Args:
        state: the run's, as ``Pipeline.state`` gives it.
        step_rates: by the name of a training stage, ``samples_per_s`` of its steps, over all workers.
        sizes: bytes that lie below the folder of each stage.
        machine: where that was, in words.

    Raises:
        ValueError: when no stage of some kind is complete.
    """
    stages = [stage for stage in plan_stages(config, info) if stage.name in state]
    by_kind = {
        kind: [stage for stage in stages if stage.kind == kind]
        for kind in ("mtct", "train", "generate", "evaluate")
    }
    trained = by_kind["mtct"] + by_kind["train"]
    for kind, found in (
        ("training", trained),
        ("generate", by_kind["generate"]),
        ("evaluate", by_kind["evaluate"]),
    ):
        if not found:
            raise ValueError(
                f"run '{config.name}': no stage of kind '{kind}' is complete; calibrate with a run of "
                "at least one round"
            )
    workers, engines = config.workers.num_workers, config.engines.num_engines
    rate = median(median(step_rates[stage.name]) for stage in trained)
    starts = []
    for stage in trained:
        epochs = (config.mtct if stage.kind == "mtct" else config.sarr.training).epochs
        starts.append(max(0.0, state[stage.name]["seconds"] - state[stage.name]["samples"] * epochs / rate))
    drawn = [state[stage.name] for stage in by_kind["generate"]]
    candidates = sum(entry["candidates"] for entry in drawn)
    images = sum(entry["images"] for entry in drawn)
    answers = {
        stage.name: count_samples(config, info, stage) * len(config.evaluation.pathways)
        for stage in by_kind["evaluate"]
    }
    return Calibration(
        model=config.model.path,
        machine=machine,
        train_images_per_s=rate / workers,
        train_start_s=median(starts),
        candidates_per_s=candidates / sum(entry["seconds"] for entry in drawn) / engines,
        tokens_per_candidate=sum(entry["tokens"] for entry in drawn) / candidates,
        candidates_per_image=candidates / images,
        kept_share=sum(entry["images_with_chain"] for entry in drawn) / images,
        answers_per_s=median(count / state[name]["seconds"] for name, count in answers.items()) / engines,
        bytes_per_training=sum(sizes[stage.name] for stage in trained) / len(trained),
        bytes_per_candidate=sum(sizes[stage.name] for stage in by_kind["generate"]) / candidates,
        bytes_per_answer=sum(sizes[name] for name in answers) / sum(answers.values()),
    )


def read_calibration(path: Path) -> Calibration:
    """A file that ``rdmldg calibrate`` wrote.

    Raises:
        ValueError: for a file that is not there, or not of this form.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `rdmldg calibrate RUN {path}` writes one")
    try:
        return Calibration.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}; write it again with `rdmldg calibrate`") from None


def print_estimate(
    console: Console, config: Config, rows: Sequence[Estimate], rates: Calibration, prices: Prices
) -> None:
    """Print what a run would take, by kind of stage."""
    table = Table(title=f"estimate by the rates of {rates.model} on {rates.machine}")
    for column in ("stages", "number", "images", "hours", "GPU hours", "chains", "tokens", "GB", "$"):
        table.add_column(column, justify="left" if column == "stages" else "right")
    if config.workers.gpus_per_worker == 0:
        table.columns[4].header = "worker hours"
    for name, row in [*((row.kind, row) for row in rows), ("all", total(rows))]:
        numbers = [f"{row.hours:.2f}", f"{row.worker_hours:.2f}", str(row.chains), str(row.tokens)]
        sums = [f"{row.bytes / 1e9:.2f}", f"{row.cost(prices):.2f}"]
        table.add_row(name, str(row.stages), str(row.images), *numbers, *sums)
    console.print(table)
    if rates.model != config.model.path:
        console.print(f"the rates are of another model than {config.model.path}", highlight=False)
