"""A run that takes over what others of its group have computed, by content address.

The runs of an ablation or a sweep register their complete stages in an index, one small file for each
address. A stage whose address is there is copied instead of computed: each run stays whole by itself,
and any of them may be deleted. Optimizer states are not copied, nor needed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
from rich.console import Console

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.cache_key import stage_addresses
from rdmldg_ray.runs.pipeline import Pipeline
from rdmldg_ray.runs.plan import Stage
from rdmldg_ray.sarr.selection import CANDIDATES, KEPT, REJECTIONS
from rdmldg_ray.storage import (
    copy_folder,
    exists,
    join,
    read_json,
    read_table,
    write_json,
)

if TYPE_CHECKING:
    from rdmldg_ray.engines.pool import EnginePool
    from rdmldg_ray.sarr.candidate_cache import Draws

_NOT_COPIED = ("checkpoints/", f"{CANDIDATES}/", f"{KEPT}/", REJECTIONS)

Claim = Callable[[str], AbstractContextManager[None]]
"""Holds an address while its stage is looked up or computed, so that no two runs compute it at once."""


class SharingPipeline(Pipeline):
    """A run of a group that shares stages.

    Args:
        index: where the group's index lies.
        claim: see ``Claim``; runs that come one after the other need none.
    """

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        console: Console,
        index: str,
        claim: Claim = lambda address: nullcontext(),
    ):
        super().__init__(config, info, console)
        self.addresses = stage_addresses(config, info, self.stages)
        self._index = index
        self._claim = claim
        self._draws: Draws | None = None

    def _do(self, stage: Stage) -> None:
        with self._claim(self.addresses[stage.name]):
            super()._do(stage)
            self._register(stage)

    def _run_stage(self, stage: Stage) -> dict[str, Any]:
        runs = self._complete_runs(stage)
        if not runs:
            return super()._run_stage(stage)
        return self._replay(stage, runs) if stage.kind == "generate" else self._copy(stage, runs[0])

    def _serve(self, adapter: str | None) -> "EnginePool":
        # What asks for the pool while a round is replayed only ever calls its ``generate``.
        return cast("EnginePool", self._draws) if self._draws else super()._serve(adapter)

    def _replay(self, stage: Stage, runs: list[str]) -> dict[str, Any]:
        """A round's candidates out of what others have drawn, with new draws where they do not reach."""
        from rdmldg_ray.sarr.candidate_cache import Draws

        drawn = pa.concat_tables(read_table(join(self._location(run), stage.name)) for run in runs)
        adapter = self._adapter(stage.held_out, stage.round - 1)
        draws = self._draws = Draws(drawn, lambda: super(SharingPipeline, self)._serve(adapter))
        try:
            summary = super()._run_stage(stage)
        finally:
            self._draws = None
        return {**summary, "shared": runs, "drawn_anew": draws.drawn_anew}

    def _copy(self, stage: Stage, run: str) -> dict[str, Any]:
        source, target = join(self._location(run), stage.name), join(self.location, stage.name)
        copy_folder(source, target, lambda name: not name.startswith(_NOT_COPIED))
        if stage.kind == "evaluate":
            self._write_results(stage)
        self.console.print(f"  as in run '{run}'", highlight=False)
        entry = _state(self._location(run))[stage.name]
        return {key: value for key, value in entry.items() if key != "seconds"} | {"shared": [run]}

    def _complete_runs(self, stage: Stage) -> list[str]:
        """The runs of the group that have completed a stage of the same address."""
        return [run for run in self._entry(stage) if stage.name in _state(self._location(run))]

    def _register(self, stage: Stage) -> None:
        # A run that drew nothing anew has nothing that others do not have.
        if self.state()[stage.name].get("drawn_anew", 1) > 0:
            runs = [run for run in self._entry(stage) if run != self.config.name]
            write_json(self._entry_location(stage), [*runs, self.config.name])

    def _entry(self, stage: Stage) -> list[str]:
        location = self._entry_location(stage)
        return read_json(location) if exists(location) else []

    def _entry_location(self, stage: Stage) -> str:
        return join(self._index, f"{self.addresses[stage.name]}.json")

    def _location(self, run: str) -> str:
        return join(self.config.storage, "runs", run)


def _state(location: str) -> dict[str, Any]:
    state = join(location, "state.json")
    return read_json(state) if exists(state) else {}
