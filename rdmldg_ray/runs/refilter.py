"""Filter the stored candidates of a run anew: a new run with other chains, without an engine."""

import time
from contextlib import ExitStack

from rdmldg_ray.config.load import ConfigError, override_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.mtct.job import CHECKPOINTS_FOLDER
from rdmldg_ray.runs.store import RunStore, Stage, State, damage_told, stages_of, write_fold_state
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.sarr.candidates import read_candidates
from rdmldg_ray.sarr.selection import select_chains
from rdmldg_ray.storage import copy_folder, write_json

# What the filter decides; anything else would have changed what was generated.
_SETTINGS = ("sarr.filter.", "sarr.best_by=", "sarr.without_chain=")


def refilter_run(
    root: str, run: str, into: str | None, overrides: list[str], round_number: int
) -> tuple[str, State]:
    """Make a run like ``run`` up to a round's candidates, judged with other settings.

    The old run stays as it is. The new one has its own copy of what came before (adapters and
    results, not the optimizer's state), so that it resumes with training on the new chains as any
    interrupted run does.

    Args:
        into: name of the new run; by default ``<run>-refiltered``, with a number where that is taken.
        overrides: settings of the filter, as ``sarr.filter.min_logprob=-0.3``.
        round_number: the round whose candidates are judged; earlier rounds are taken as they are.

    Returns:
        The new run's name, and its state.

    Raises:
        ConfigError: for settings that are not the filter's.
        ValueError: when the run has no such round, or the new one exists or is being made.
    """
    old = RunStore(root, run)
    if not old.exists():
        raise ValueError(f"{old.uri}: no run here; give the name of a run, and its --storage")
    new = RunStore(root, into or _free_name(root, run))
    _check_new(new)
    config = _new_config(old.read_config(), overrides, new.name)
    state = old.state()
    rounds = [stage for stage in stages_of(state, "generate") if stage.round == round_number]
    if not rounds:
        raise ValueError(f"{old.uri}: no complete candidates of round {round_number} to filter")
    for stage in rounds:
        drawn = old.candidates_uri(stage.held_out, stage.model)
        with damage_told(drawn, old.redo_remedy(stage)):
            if not len(read_candidates(drawn, ["id"])):
                raise ValueError("there are none in it")

    classes = list(read_dataset_info(root, config.data.dataset).classes)
    made: State = {}
    folds = sorted({Stage.parse(name).held_out for name in state})
    leases = {held_out: new.lease(held_out, plain_console()) for held_out in folds}
    with ExitStack() as held:
        for lease in leases.values():
            held.enter_context(lease.held())
        _check_new(new)  # one that was made meanwhile
        for name in state:
            stage = Stage.parse(name)
            if stage.round < round_number:
                _copy_outputs(old, new, stage)
                made[name] = state[name]
        for stage in rounds:
            started = time.perf_counter()
            summary = select_chains(
                drawn=old.round_uri(stage.held_out, stage.model),
                selected=new.round_uri(stage.held_out, stage.model),
                class_names=classes,
                config=config.sarr,
            )
            made[stage.name] = {"seconds": round(time.perf_counter() - started, 1), **summary}
        write_json(new.refiltered_uri(), {"run": run, "round": round_number, "settings": overrides})
        if not new.write_config(config):
            _check_new(new)
        for held_out in dict.fromkeys(Stage.parse(name).held_out for name in made):
            mine = {name: entry for name, entry in made.items() if Stage.parse(name).held_out == held_out}
            read = {name: inputs for name, inputs in old.fold_inputs(held_out).items() if name in mine}
            leases[held_out].confirm()
            write_fold_state(new, held_out, mine, read)
    return new.name, made


def _check_new(run: RunStore) -> None:
    if run.exists():
        raise ValueError(f"{run.uri}: exists already; give another name with --into")


def _new_config(config: Config, overrides: list[str], into: str) -> Config:
    for override in overrides:
        if not override.startswith(_SETTINGS):
            raise ConfigError(
                f"'{override}' is no setting of the filter; there are sarr.filter.*, sarr.best_by and "
                "sarr.without_chain; for others, run again under another name"
            )
    return override_config(config, [*overrides, f"name={into}"])


def _free_name(root: str, run: str) -> str:
    name, number = f"{run}-refiltered", 1
    while RunStore(root, name).exists():
        number += 1
        name = f"{run}-refiltered-{number}"
    return name


def _copy_outputs(old: RunStore, new: RunStore, stage: Stage) -> None:
    # What was selected of a round's candidates lies beside them, in the folder of its training.
    source, target = (
        store.round_uri(stage.held_out, stage.model) if stage.kind == "generate" else store.stage_uri(stage)
        for store in (old, new)
    )
    copy_folder(source, target, lambda name: not name.startswith(f"{CHECKPOINTS_FOLDER}/"))
