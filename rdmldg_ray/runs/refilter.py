"""Filter the stored candidates of a run anew: a new run with other chains, without an engine."""

import time
from typing import Any

from rdmldg_ray.config.load import ConfigError, dump_config, override_config, parse_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.sarr.selection import select_chains
from rdmldg_ray.storage import copy_folder, exists, join, read_bytes, read_json, write_bytes, write_json

# What the filter decides; anything else would have changed what was generated.
_SETTINGS = ("sarr.filter.", "sarr.best_by=", "sarr.without_chain=")

State = dict[str, dict[str, Any]]


def refilter_run(
    root: str, run: str, into: str | None, overrides: list[str], round_number: int
) -> tuple[str, State]:
    """Make a run like ``run`` up to a round's candidates, judged with other settings.

    The old run stays as it is. The new one has its own copy of what came before (adapters and
    results, not the optimizer's state), so that it can go on with training on the new chains as any
    interrupted run does.

    Args:
        into: name of the new run; by default ``<run>-refiltered``, with a number where that is taken.
        overrides: settings of the filter, as ``sarr.filter.min_logprob=-0.3``.
        round_number: the round whose candidates are judged; earlier rounds are taken as they are.

    Returns:
        The new run's name, and its state.

    Raises:
        ConfigError: for settings that are not the filter's.
        ValueError: when the run has no such round, or the new one exists.
    """
    location = join(root, "runs", run)
    if not exists(join(location, "config.yaml")):
        raise ValueError(f"{location}: no run here; give the name of a run, and its --storage")
    into = into or _free_name(root, run)
    target = join(root, "runs", into)
    if exists(join(target, "config.yaml")):
        raise ValueError(f"{target}: exists already; give another name with --into")
    config = _new_config(
        root, parse_config(read_bytes(join(location, "config.yaml")).decode()), overrides, into
    )
    old = read_json(join(location, "state.json")) if exists(join(location, "state.json")) else {}
    if not any(name.endswith(f"/sarr-{round_number}/candidates") for name in old):
        raise ValueError(f"{location}: no complete candidates of round {round_number} to filter")

    classes = list(read_dataset_info(root, config.data.dataset).classes)
    state: State = {}
    for name, entry in old.items():
        if _before(name, round_number):
            _copy_outputs(location, target, name)
            state[name] = entry
        elif name.endswith(f"/sarr-{round_number}/candidates"):
            started = time.perf_counter()
            folder = name.removesuffix("/candidates")
            summary = select_chains(join(location, folder), join(target, folder), classes, config.sarr)
            state[name] = {"seconds": round(time.perf_counter() - started, 1), **summary}
    write_json(join(target, "refiltered.json"), {"run": run, "round": round_number, "settings": overrides})
    write_bytes(join(target, "config.yaml"), dump_config(config).encode())
    write_json(join(target, "state.json"), state)
    return into, state


def _new_config(root: str, config: Config, overrides: list[str], into: str) -> Config:
    for override in overrides:
        if not override.startswith(_SETTINGS):
            raise ConfigError(
                f"'{override}' is no setting of the filter; there are sarr.filter.*, sarr.best_by and "
                "sarr.without_chain; for others, run again under another name"
            )
    # The storage may have been moved since.
    return override_config(config.model_copy(update={"storage": root}), [*overrides, f"name={into}"])


def _free_name(root: str, run: str) -> str:
    name, number = f"{run}-refiltered", 1
    while exists(join(root, "runs", name, "config.yaml")):
        number += 1
        name = f"{run}-refiltered-{number}"
    return name


def _before(stage: str, round_number: int) -> bool:
    """Whether a stage comes before a round, by the model in its name."""
    _, _, rest = stage.partition("/")
    model = rest.removeprefix("evaluation/").split("/")[0]
    number = model.removeprefix("sarr-")
    return not model.startswith("sarr-") or int(number) < round_number


def _copy_outputs(location: str, target: str, stage: str) -> None:
    # A round's candidates are a stage, and what was kept of them lies beside them.
    folder = stage.removesuffix("/candidates")
    copy_folder(
        join(location, folder), join(target, folder), lambda name: not name.startswith("checkpoints/")
    )
