"""Deletes what a run no longer needs: the checkpoints and answers of stages that are complete."""

from dataclasses import dataclass

from rich.console import Console

from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.storage import delete_folder, list_entries


@dataclass(frozen=True)
class Removed:
    """A folder that was deleted, or would be."""

    location: str
    files: int
    bytes: int


def clean_run(store: RunStore, console: Console, dry_run: bool = False) -> list[Removed]:
    """Delete the checkpoints of a run's complete trainings, and answers that a killed driver left.

    Adapters, metrics, chains and predictions stay; so does all that a stage needs to resume.

    Args:
        console: where to tell that a lease is waited for.
        dry_run: whether to tell only what would be deleted.

    Raises:
        LeaseHeldError: when another process works on a fold.
    """
    removed = []
    for held_out in dict.fromkeys(Stage.parse(name).held_out for name in store.state()):
        if dry_run:
            removed += _unneeded(store, held_out)
            continue
        with store.lease(held_out, console).held():
            for one in _unneeded(store, held_out):
                delete_folder(one.location)
                removed.append(one)
    return removed


def _unneeded(store: RunStore, held_out: str) -> list[Removed]:
    complete = [Stage.parse(name) for name in store.fold_state(held_out)]
    folders = [
        store.checkpoints_uri(stage) if stage.kind in ("mtct", "train") else store.answers_uri(stage)
        for stage in complete
    ]
    found = [(folder, list_entries(folder)) for folder in folders]
    return [
        Removed(folder, len(entries), sum(entry.size for entry in entries))
        for folder, entries in found
        if entries
    ]
