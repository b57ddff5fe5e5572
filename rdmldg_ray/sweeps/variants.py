"""One config made into several: trials, and the paper's ablation.

Plain functions of configs; each config that comes out is a run of its own, under its own name.
"""

import json
from dataclasses import dataclass
from typing import Any

from rdmldg_ray.config.load import ConfigError, override_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.domainbed.splits import seed_hash
from rdmldg_ray.runs.store import MTCT, ZERO_SHOT, RunStore, model_name

LABELS, CHAINS, BOTH, UNFILTERED = "labels", "chains", "both", "unfiltered"


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The config with other values of some settings, given by their dotted paths, checked anew.

    Raises:
        ConfigError: for an unknown setting, or values that are not allowed or do not go together.
    """
    # JSON is YAML, which is what overrides are written in.
    return override_config(config, [f"{path}={json.dumps(value)}" for path, value in settings.items()])


def trial_configs(config: Config, seeds: str | None) -> list[Config]:
    """A config for each of DomainBed's trial seeds, written ``0,1,2``; the config itself without them.

    As DomainBed's, trials differ in their splits and in the seed of training and sampling. Trial 0 has the
    config's own seed; so has a trial that was begun by a release in which all had.

    Raises:
        ConfigError: when the seeds are not whole numbers.
    """
    if seeds is None:
        return [config]
    numbers = [seed.strip() for seed in seeds.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ConfigError(f"--trials {seeds}: give whole numbers with commas between them, such as 0,1,2")
    return [_trial_config(config, trial) for trial in dict.fromkeys(map(int, numbers))]


def _trial_config(config: Config, trial: int) -> Config:
    name, seed = f"{config.name}-trial-{trial}", config.seed
    begun = RunStore(config.storage, name)
    if trial > 0 and not (begun.exists() and begun.read_config().seed == seed):
        seed = seed_hash(config.seed, trial)
    return with_settings(config, {"name": name, "data.trial_seed": trial, "seed": seed})


def sweep_config(config: Config, settings: dict[str, Any]) -> Config:
    """The config of a sweep's trial: ``with_settings``, with ``lora.alpha`` in its proportion to the rank.

    Otherwise a trial of another rank would have another scale, alpha over rank, too. A sweep that gives
    ``lora.alpha`` itself has it as given.

    Raises:
        ConfigError: as ``with_settings``, and where no whole number has the proportion.
    """
    made = with_settings(config, settings)
    if made.lora.rank == config.lora.rank or "lora.alpha" in settings:
        return made
    alpha, rest = divmod(config.lora.alpha * made.lora.rank, config.lora.rank)
    if rest or not alpha:
        raise ConfigError(
            f"lora.rank {made.lora.rank}: no whole lora.alpha is to it as {config.lora.alpha} is to "
            f"{config.lora.rank}; give lora.alpha in the sweep too"
        )
    return with_settings(made, {"lora.alpha": alpha})


def ablation_configs(config: Config) -> dict[str, Config]:
    """The runs that the paper's ablation needs, by what they train on.

    Seven rows come from four runs: zero-shot, MTCT and the whole method are stages of the run on ``both``;
    chains only and SARR without MTCT are stages of the run on ``chains``, whose loss has no label term at any
    stage. (The paper starts that row from a base model that writes chains by itself, which a small one does
    not.) SARR without its filter is ``unfiltered``, whose MTCT is that of ``both``. Pathways that a run does
    not train are not evaluated.
    """
    if config.mtct.weights.direct == 0 or config.mtct.weights.reasoning == 0:
        raise ConfigError("an ablation sets mtct.weights itself; give a recipe where both are positive")
    both: dict[str, Any] = {"evaluation.pathways": ["direct", "reasoning"]}
    labels = {"mtct.weights": {"direct": 1.0, "reasoning": 0.0}, "evaluation.pathways": ["direct"]}
    chains = {"mtct.weights": {"direct": 0.0, "reasoning": 1.0}, "evaluation.pathways": ["reasoning"]}
    if config.sarr.without_chain == "labels":
        chains["sarr.without_chain"] = "drop"
    variants = {
        BOTH: both | {"evaluation.zero_shot": True},
        LABELS: labels | {"evaluation.zero_shot": False, "sarr.rounds": 0},
        CHAINS: chains | {"evaluation.zero_shot": False},
    }
    if config.sarr.rounds:
        variants[UNFILTERED] = both | {"evaluation.zero_shot": False, "sarr.filter.conclusion": "any"}
    return {
        kind: with_settings(config, {"name": f"{config.name}-{kind}", **settings})
        for kind, settings in variants.items()
    }


@dataclass(frozen=True)
class AblationRow:
    """A row of the ablation: which run's which model it shows."""

    title: str
    run: str
    """A key of ``ablation_configs``."""
    model: str
    """``zero-shot``, ``mtct`` or ``sarr-<k>``."""


def ablation_rows(rounds: int) -> list[AblationRow]:
    """The rows of the paper's ablation, with every round of SARR."""

    def sarr(title: str, run: str) -> list[AblationRow]:
        return [AblationRow(f"{title}, round {k}", run, model_name(k)) for k in range(1, rounds + 1)]

    return [
        AblationRow("zero-shot", BOTH, ZERO_SHOT),
        AblationRow("labels only", LABELS, MTCT),
        AblationRow("chains only", CHAINS, MTCT),
        AblationRow("MTCT", BOTH, MTCT),
        *sarr("SARR without MTCT", CHAINS),
        *sarr("MTCT and SARR without filter", UNFILTERED),
        *sarr("MTCT and SARR", BOTH),
    ]


def ablation_comparisons(rounds: int) -> list[tuple[AblationRow, AblationRow]]:
    """The rows that show what a part of the method is worth: with it, and without."""
    rows = {row.title: row for row in ablation_rows(rounds)}
    pairs = [("MTCT", "zero-shot"), ("MTCT", "labels only"), ("MTCT", "chains only")]
    for k in range(1, rounds + 1):
        sarr = f"MTCT and SARR, round {k}"
        pairs += [(sarr, "MTCT"), (sarr, f"MTCT and SARR without filter, round {k}")]
    return [(rows[ours], rows[theirs]) for ours, theirs in pairs]
