"""An evaluated fold of a run, opened for analyses: its predictions, and what its models are measured for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa
from rich.console import Console

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runs.results import RunResults, read_run
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import RunStore, damage_told
from rdmldg_ray.storage import exists, join, read_table, write_table


@dataclass(frozen=True)
class EvaluatedFold:
    """A held-out domain of a run, with at least one evaluation."""

    run: RunResults
    pipeline: Run
    held_out: str
    session: Callable[[Config], AbstractContextManager[None]]
    """Connects to Ray for the time of a block."""

    @property
    def folder(self) -> str:
        """Where the fold's analyses lie."""
        return self.run.store.analyses_uri(self.held_out)

    @property
    def run_folder(self) -> str:
        """Where the analyses of all of the run's folds lie."""
        return self.run.store.analyses_uri()

    @property
    def models(self) -> list[str]:
        """Models that were evaluated: ``zero-shot``, ``mtct``, ``sarr-1``, ..."""
        return self.run.models(self.held_out)

    def predictions(self, model: str) -> pa.Table:
        """In ``evaluation.predictions.PREDICTION_SCHEMA``."""
        return self.run.predictions(self.held_out, model)

    def probe_samples(self) -> pa.Table:
        """What the models are measured on, with the teacher's chains."""
        return self.pipeline.probe_set(self.held_out)[1]

    def measured(self) -> tuple[pa.Table, pa.Table]:
        """Tokens and embeddings of every evaluated model, in ``evaluation.analyses``' schemas.

        They are measured once, on Ray, and then read.
        """
        locations = [join(self.folder, f"{name}.parquet") for name in ("tokens", "embeddings")]
        anew = f"delete {self.folder} and analyze again, which measures anew"
        with damage_told(locations[0], anew):
            there = read_table(locations[0], ["model"])["model"].unique() if exists(locations[1]) else []
        if [str(name) for name in there] != self.models:
            from rdmldg_ray.evaluation.probe import probe_models

            pipeline = self.pipeline
            adapters, samples = pipeline.probe_set(self.held_out)
            status = pipeline.console.status(f"measuring {', '.join(self.models)}")
            with self.session(pipeline.config), status:
                tables = probe_models(pipeline.config, list(pipeline.info.classes), adapters, samples)
            for location, table in zip(locations, tables, strict=True):
                write_table(location, table)
        with damage_told(self.folder, anew):
            return read_table(locations[0]), read_table(locations[1])


def open_fold(
    run: RunStore,
    held_out: str | None,
    *,
    console: Console,
    session: Callable[[Config], AbstractContextManager[None]],
) -> EvaluatedFold:
    """Open a run's fold; by default that of its first held-out domain.

    Raises:
        ValueError: when it has no evaluation yet.
    """
    found = read_run(run.root, run.name)
    if not found.held_out or (held_out and held_out not in found.held_out):
        raise ValueError(
            f"{run.uri}: no evaluation of {held_out or 'a domain'}; there is "
            f"{', '.join(found.held_out) or 'none'}"
        )
    pipeline = Run(found.config, read_dataset_info(run.root, found.config.data.dataset), console)
    return EvaluatedFold(found, pipeline, held_out=held_out or found.held_out[0], session=session)
