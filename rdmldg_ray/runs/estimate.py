"""What a run would take, from what another one took: hours by stage, chains, tokens, storage, cost.

Plain arithmetic on what was measured: a stage takes a fixed time to start and then so long for each image.
It holds for the same model, adapter, image settings, lengths and kind of machine, and for a model that
writes as many tokens in a chain, and is right as often, as the measured one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.table import Table

from rdmldg_ray.config.schema import Config, SarrConfig
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.plan import count_samples, plan_stages
from rdmldg_ray.runs.serving import keeps_engines
from rdmldg_ray.runs.store import Kind, Stage

_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]


Load = Literal["start", "reload"] | None
"""How engines come to serve a stage's model; None where they do already, or none are needed."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(_File):
    """Rates of one finished run, each of one worker or one engine."""

    model: str
    machine: str
    train_images_per_s: _Positive
    """Of one worker, an image counted in every epoch."""
    mtct_start_s: _NotNegative
    """What MTCT takes besides its steps."""
    train_start_s: _NotNegative
    """The same of a round's training, which is less: it starts from an adapter and has fewer steps."""
    engine_start_s: _NotNegative
    """Until the first engines of a pool, which start at once, serve their first model."""
    engine_reload_s: _NotNegative
    """Until they serve another."""
    candidates_per_s: _Positive
    """Of one engine."""
    tokens_per_candidate: _Positive
    max_attempts: Annotated[int, Field(gt=0)]
    """Most draws for an image, in the measured run."""
    candidates_per_image: _Positive
    """Draws until a chain was accepted or the limit reached."""
    share_with_chain: Annotated[float, Field(ge=0, le=1)]
    """Images with an accepted chain, of all."""
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
    took_s: float | None
    """Seconds that these stages took; None before all of them are complete."""

    def cost(self, prices: Prices) -> float:
        """US dollars, with storage for a month."""
        return prices.of(self.worker_hours, self.bytes)


def estimate(config: Config, info: DatasetInfo, rates: Calibration, state: dict[str, Any]) -> list[Estimate]:
    """Estimates by kind of stage, in the order in which a run has them; idle engines are not counted.

    Args:
        state: what of the run is complete already, as ``Run.state`` gives it.
    """
    rows: dict[Kind, Estimate] = {}
    for stage, load in plan_loads(config, plan_stages(config, info)):
        took_s = state[stage.name]["seconds"] if stage.name in state else None
        new = _one(
            config=config,
            rates=rates,
            stage=stage,
            load=load,
            images=count_samples(config, info, stage),
            took_s=took_s,
        )
        old = rows.get(stage.kind)
        rows[stage.kind] = _sum([old, new]) if old else new
    return list(rows.values())


def plan_loads(config: Config, stages: list[Stage]) -> list[tuple[Stage, Load]]:
    """The stages of a run, with what its engines have to do for each before they answer."""
    loads: list[tuple[Stage, Load]] = []
    served: tuple[str, int] | None = None
    for stage in stages:
        if stage.kind in ("mtct", "train"):
            if not keeps_engines(config.engines):
                served = None
            loads.append((stage, None))
            continue
        # A round is written by the model of the one before; all zero-shot evaluations have the same.
        number = stage.round - 1 if stage.kind == "generate" else stage.round
        wanted = ("" if number < 0 else stage.held_out, number)
        loads.append((stage, None if served == wanted else "reload" if served else "start"))
        served = wanted
    return loads


def devices(config: Config, kind: Kind) -> int:
    """Workers or engines that a stage of a kind has."""
    return config.workers.num_workers if kind in ("mtct", "train") else config.engines.num_engines


def total(rows: Sequence[Estimate]) -> Estimate:
    """All rows as one; ``kind`` is the first's."""
    return _sum(rows)


def _one(
    config: Config, rates: Calibration, stage: Stage, load: Load, images: int, took_s: float | None
) -> Estimate:
    chains, tokens, count = 0, 0, devices(config, stage.kind)
    if stage.kind in ("mtct", "train"):
        if stage.kind == "train" and config.sarr.without_chain == "drop":
            images = round(images * _draws_and_share(config.sarr, rates)[1])
        start = rates.mtct_start_s if stage.kind == "mtct" else rates.train_start_s
        seconds = start + images * _epochs(config, stage) / rates.train_images_per_s / count
        size = rates.bytes_per_training
    else:
        seconds = {"start": rates.engine_start_s, "reload": rates.engine_reload_s, None: 0.0}[load]
        if stage.kind == "generate":
            chains = round(images * _draws_and_share(config.sarr, rates)[0])
            tokens = round(chains * rates.tokens_per_candidate)
            seconds += chains / rates.candidates_per_s / count
            size = chains * rates.bytes_per_candidate
        else:
            answers = images * len(config.evaluation.pathways)
            seconds += answers / rates.answers_per_s / count
            size = answers * rates.bytes_per_answer
    hours = seconds / 3600
    return Estimate(
        kind=stage.kind,
        stages=1,
        images=images,
        hours=hours,
        worker_hours=hours * count,
        chains=chains,
        tokens=tokens,
        bytes=round(size),
        took_s=took_s,
    )


def _epochs(config: Config, stage: Stage) -> int:
    return (config.mtct if stage.kind == "mtct" else config.sarr.training).epochs


def _draws_and_share(sarr: SarrConfig, rates: Calibration) -> tuple[float, float]:
    """Candidates for each image, and the share of images with an accepted chain.

    As measured, where the limit of draws is the measured run's. For another limit they are scaled as if
    every draw were accepted with the same probability p, the measured one: of m draws at most, (1-(1-p)^m)/p
    are made on average and 1-(1-p)^m of the images have a chain (the geometric distribution).
    """
    kept = rates.share_with_chain / rates.candidates_per_image
    before, now = (1 - (1 - kept) ** most for most in (rates.max_attempts, sarr.max_attempts))
    grown = now / before if kept else 1.0
    share = min(1.0, rates.share_with_chain * grown)
    if sarr.sampling == "fixed":
        return sarr.max_attempts, share
    draws = rates.candidates_per_image * grown if kept else sarr.max_attempts
    return max(1.0, min(draws, sarr.max_attempts)), share


def _sum(rows: Sequence[Estimate]) -> Estimate:
    took = [row.took_s for row in rows if row.took_s is not None]
    return Estimate(
        kind=rows[0].kind,
        stages=sum(row.stages for row in rows),
        images=sum(row.images for row in rows),
        hours=sum(row.hours for row in rows),
        worker_hours=sum(row.worker_hours for row in rows),
        chains=sum(row.chains for row in rows),
        tokens=sum(row.tokens for row in rows),
        bytes=sum(row.bytes for row in rows),
        took_s=sum(took) if len(took) == len(rows) else None,
    )


def calibrate(
    config: Config,
    info: DatasetInfo,
    state: dict[str, Any],
    step_rates: dict[str, float],
    sizes: dict[str, int],
    machine: str,
) -> Calibration:
    """The rates of a finished run.

    Args:
        state: the run's, as ``Run.state`` gives it.
        step_rates: images a second over the steps of a training stage, of all workers, by its name; of
            stages that were not interrupted.
        sizes: bytes that lie below the folder of each stage.
        machine: where that was, in words.

    Raises:
        ValueError: when no stage of some kind is complete.
    """
    stages = [stage for stage in plan_stages(config, info) if stage.name in state]
    trained = [stage for stage in stages if stage.name in step_rates]
    first = [stage for stage in trained if stage.kind == "mtct"]
    later = [stage for stage in trained if stage.kind == "train"]
    drawn = [stage for stage in stages if stage.kind == "generate"]
    answered = [stage for stage in stages if stage.kind == "evaluate"]
    for kind, found in (("mtct", first), ("train", later), ("generate", drawn), ("evaluate", answered)):
        if not found:
            raise ValueError(
                f"run '{config.name}': no stage of kind '{kind}' is complete; calibrate with a run of "
                "at least one round that was not interrupted"
            )
    workers, engines = config.workers.num_workers, config.engines.num_engines
    worked = {stage.name: state[stage.name]["samples"] * _epochs(config, stage) for stage in trained}
    stepped = {name: images / step_rates[name] for name, images in worked.items()}
    starts = {name: max(0.0, state[name]["seconds"] - seconds) for name, seconds in stepped.items()}
    candidates = sum(state[stage.name]["candidates"] for stage in drawn)
    images = sum(state[stage.name]["images"] for stage in drawn)
    answers = sum(count_samples(config, info, s) for s in answered) * len(config.evaluation.pathways)
    loads = {
        how: [state[s.name]["loading_s"] for s in drawn + answered if state[s.name].get("loading") == how]
        for how in ("start", "reload")
    }
    return Calibration(
        model=config.model.path,
        machine=machine,
        train_images_per_s=sum(worked.values()) / sum(stepped.values()) / workers,
        mtct_start_s=median(starts[stage.name] for stage in first),
        train_start_s=median(starts[stage.name] for stage in later),
        engine_start_s=median(loads["start"] or [0.0]),
        engine_reload_s=median(loads["reload"] or [0.0]),
        candidates_per_s=candidates / _seconds(state, drawn) / engines,
        tokens_per_candidate=sum(state[stage.name]["tokens"] for stage in drawn) / candidates,
        max_attempts=config.sarr.max_attempts,
        candidates_per_image=candidates / images,
        share_with_chain=sum(state[stage.name]["images_with_chain"] for stage in drawn) / images,
        answers_per_s=answers / _seconds(state, answered) / engines,
        bytes_per_training=sum(sizes[stage.name] for stage in trained) / len(trained),
        bytes_per_candidate=sum(sizes[stage.name] for stage in drawn) / candidates,
        bytes_per_answer=sum(sizes[stage.name] for stage in answered) / answers,
    )


def _seconds(state: dict[str, Any], stages: Sequence[Stage]) -> float:
    """What the stages took, without the time until their engines were ready."""
    return sum(state[stage.name]["seconds"] - state[stage.name].get("loading_s", 0) for stage in stages)


def read_calibration(path: Path) -> Calibration:
    """A file that ``rdmldg calibrate`` wrote.

    Raises:
        ValueError: for a file that is not there, or not of this form.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `rdmldg calibrate RUN --out {path}` writes one")
    try:
        return Calibration.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {where}: {first['msg']}; write it again with `rdmldg calibrate`") from None


def print_estimate(
    console: Console, config: Config, rows: Sequence[Estimate], rates: Calibration, prices: Prices
) -> None:
    """Print what a run would take, by kind of stage, beside what those took that are complete."""
    table = Table(title=f"estimate by the rates of {rates.model} on {rates.machine}")
    worker_hours = "GPU hours" if config.workers.gpus_per_worker else "worker hours"
    for column in ("stages", "number", "images", "time", "took", worker_hours, "chains", "tokens", "GB", "$"):
        table.add_column(column, justify="left" if column == "stages" else "right")
    for name, row in [*((row.kind, row) for row in rows), ("all", total(rows))]:
        times = [_time(row.hours * 3600), "" if row.took_s is None else _time(row.took_s)]
        numbers = [f"{row.worker_hours:.2f}", str(row.chains), str(row.tokens)]
        sums = [f"{row.bytes / 1e9:.2f}", f"{row.cost(prices):.2f}"]
        table.add_row(name, str(row.stages), str(row.images), *times, *numbers, *sums)
    console.print(table)
    if any(row.kind == "generate" for row in rows):
        # What a model of other training will do is not known before.
        draws, share = _draws_and_share(config.sarr, rates)
        console.print(
            f"rounds as in the measured run: {draws:.2f} draws for an image, {share:.0%} of images with a "
            f"accepted chain (edit candidates_per_image and share_with_chain to try others)",
            highlight=False,
        )
    if rates.model != config.model.path:
        console.print(f"the rates are of another model than {config.model.path}", highlight=False)


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
