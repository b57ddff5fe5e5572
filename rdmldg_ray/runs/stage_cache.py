"""Stages that runs of a group share: those of a sweep's trials.

The first run that completes a stage registers it under its cache key (see ``runs.cache_key``), in an index of
the group; the others copy it, so that each is a whole run that resumes and reports like any other. Candidates
are not copied: a round takes those that were drawn, draws what is missing, and selects by its own filter.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyarrow as pa

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.mtct.job import CHECKPOINTS_FOLDER
from rdmldg_ray.runs.cache_key import stage_keys
from rdmldg_ray.runs.inputs import StageInputs
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.sarr.candidates import read_candidates
from rdmldg_ray.sarr.selection import CANDIDATES_FOLDER, REJECTIONS_FILE, SELECTED_FOLDER
from rdmldg_ray.storage import (
    copy_folder,
    exists,
    join,
    read_json,
    write_json,
)

_NOT_COPIED = (f"{CHECKPOINTS_FOLDER}/", f"{CANDIDATES_FOLDER}/", f"{SELECTED_FOLDER}/", REJECTIONS_FILE)

Claim = Callable[[str], AbstractContextManager[None]]
"""Holds a key while its stage is looked up or computed, so that no two runs compute it at once."""


class StageCache:
    """What a run of a group may take over from the others.

    Args:
        index: where the group's index lies.
        claim: see ``Claim``; runs that come one after the other need none.
    """

    def __init__(
        self, config: Config, info: DatasetInfo, index: str, claim: Claim = lambda key: nullcontext()
    ):
        self._config, self._info = config, info
        self._store = RunStore(config.storage, config.name)
        self._keys = self._find_keys()
        self._index = index
        self._claim = claim

    def claim(self, stage: Stage) -> AbstractContextManager[None]:
        """Hold a stage for the time of a block."""
        # Chains may have been added since the run began.
        self._keys = self._find_keys()
        return self._claim(self._keys[stage.name])

    def find(self, stage: Stage) -> list[str]:
        """The runs of the group that have completed a stage of the same key."""
        return [
            run
            for run in self._registered(stage)
            if stage.name in self._other(run).fold_state(stage.held_out)
        ]

    def copy(self, stage: Stage, run: str) -> dict[str, Any]:
        """Copy the outputs of another run's stage; returns its summary."""
        source, target = self._other(run).stage_uri(stage), self._store.stage_uri(stage)
        copy_folder(source, target, lambda name: not name.startswith(_NOT_COPIED))
        entry = self._other(run).fold_state(stage.held_out)[stage.name]
        return {key: value for key, value in entry.items() if key != "seconds"}

    def candidates(self, stage: Stage, runs: list[str]) -> pa.Table:
        """The candidates of a round that other runs have drawn."""
        return pa.concat_tables(
            read_candidates(self._other(run).candidates_uri(stage.held_out, stage.model)) for run in runs
        )

    def register(self, stage: Stage, entry: dict[str, Any]) -> None:
        """Offer a complete stage of this run to the others."""
        # A run that drew nothing anew has nothing that others do not have.
        if entry.get("drawn_anew", 1) > 0:
            runs = [run for run in self._registered(stage) if run != self._store.name]
            write_json(self._entry_uri(stage), [*runs, self._store.name])

    def _find_keys(self) -> dict[str, str]:
        plan = plan_stages(self._config, self._info)
        return stage_keys(self._config, self._info, plan, StageInputs(self._config, self._info))

    def _registered(self, stage: Stage) -> list[str]:
        uri = self._entry_uri(stage)
        return read_json(uri) if exists(uri) else []

    def _entry_uri(self, stage: Stage) -> str:
        return join(self._index, f"{self._keys[stage.name]}.json")

    def _other(self, run: str) -> RunStore:
        return RunStore(self._store.root, run)
