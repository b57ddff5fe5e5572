"""DomainBed's three ways to choose a model without looking at what it is tested on, or, the oracle, with.

The protocol is DomainBed's (Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization",
arXiv 2007.01434). A record is what a checkpoint of a run scored, in DomainBed's own form: ``args`` with
``dataset``, ``algorithm``, ``test_envs``, ``trial_seed`` and ``hparams_seed``; ``step``; and
``env<i>_in_acc`` and ``env<i>_out_acc``, accuracies between 0 and 1 on the two parts of environment i.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Record = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """A checkpoint that a selection method chose, by the accuracy it looked at."""

    validation: float
    record: Record

    def accuracy(self, test_env: int, part: str = "in") -> float:
        """Accuracy on a part of the test environment: ``in`` is what DomainBed reports.

        Raises:
            ValueError: when the record does not have that part.
        """
        key = f"env{test_env}_{part}_acc"
        if key not in self.record:
            raise ValueError(f"a record of step {self.record['step']} has no '{key}'")
        return float(self.record[key])


@dataclass(frozen=True, order=True)
class Cell:
    """What one number of a table is chosen for."""

    dataset: str
    algorithm: str
    test_env: int
    trial_seed: int


Method = Callable[[Sequence[Record], int], Choice | None]


def training_domain(records: Sequence[Record], test_env: int) -> Choice | None:
    """The best checkpoint of one run by the mean accuracy on the source environments' ``out`` parts.

    Args:
        records: of one run's settings; those with other test environments than ``test_env`` alone
            are passed over.
    """
    choices = [
        Choice(_mean(record[f"env{i}_out_acc"] for i in range(num_envs(record)) if i != test_env), record)
        for record in _tested_on(records, [test_env])
    ]
    return _first_best(choices)


def leave_one_domain_out(records: Sequence[Record], test_env: int) -> Choice | None:
    """The best checkpoint by cross-validation: the mean, over each source environment v, of the accuracy
    on v's ``in`` part of the run that held both v and the test environment out, at the same step.

    Steps at which a run is missing are passed over.
    """
    choices = []
    for _, group in _grouped(records, lambda record: record["step"]):
        tested = _tested_on(group, [test_env])
        if len(tested) != 1:
            continue
        others = [env for env in range(num_envs(tested[0])) if env != test_env]
        held_out = {env: _tested_on(group, [test_env, env]) for env in others}
        if all(held_out.values()):
            # Of several records of a pair the last counts, as in DomainBed.
            accuracies = [found[-1][f"env{env}_in_acc"] for env, found in held_out.items()]
            choices.append(Choice(_mean(accuracies), tested[0]))
    return _first_best(choices)


def oracle(records: Sequence[Record], test_env: int) -> Choice | None:
    """The last checkpoint, with its accuracy on the test environment's ``out`` part: no early stopping."""
    tested = sorted(_tested_on(records, [test_env]), key=lambda record: record["step"])
    return Choice(tested[-1][f"env{test_env}_out_acc"], tested[-1]) if tested else None


METHODS: dict[str, Method] = {
    "training-domain validation set": training_domain,
    "leave-one-domain-out cross-validation": leave_one_domain_out,
    "test-domain validation set (oracle)": oracle,
}


def choose(records: Sequence[Record], test_env: int, method: Method) -> Choice | None:
    """The method's choice over checkpoints and hyperparameters; None where records are missing.

    Args:
        records: of one data set, algorithm and trial.
    """
    runs = _grouped(records, lambda record: record["args"]["hparams_seed"])
    choices = [choice for _, run in runs if (choice := method(run, test_env))]
    # DomainBed sorts upwards and reverses: of equals it takes the largest hparams_seed.
    return _first_best(choices[::-1])


def select(records: Iterable[Record], method: Method) -> dict[Cell, Choice]:
    """The method's choice for each data set, algorithm, test environment and trial that has one."""
    groups: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        args = record["args"]
        for env in args["test_envs"]:
            groups[Cell(args["dataset"], args["algorithm"], env, args["trial_seed"])].append(record)
    chosen = {cell: choose(group, cell.test_env, method) for cell, group in groups.items()}
    return {cell: choice for cell, choice in chosen.items() if choice}


@dataclass(frozen=True, order=True)
class SingleSource:
    """What is chosen in single-source generalization: trained on one environment, tested on all others."""

    dataset: str
    algorithm: str
    source_env: int
    trial_seed: int


def select_single_source(records: Iterable[Record]) -> dict[SingleSource, Choice]:
    """The best checkpoint of runs that held all environments but one out, by that one's ``out`` part.

    Of data sets of two environments there are none: there a single source is the usual protocol.
    """
    groups: dict[SingleSource, list[Choice]] = defaultdict(list)
    for record in records:
        args, count = record["args"], num_envs(record)
        sources = set(range(count)) - set(args["test_envs"])
        if count > 2 and len(sources) == 1:
            [env] = sources
            cell = SingleSource(args["dataset"], args["algorithm"], env, args["trial_seed"])
            groups[cell].append(Choice(record[f"env{env}_out_acc"], record))
    return {cell: max(choices, key=lambda choice: choice.validation) for cell, choices in groups.items()}


def num_envs(record: Record) -> int:
    """How many environments a record tells of."""
    count = 0
    while f"env{count}_out_acc" in record:
        count += 1
    return count


def _mean(values: Iterable[float]) -> float:
    # numpy's, as in DomainBed: the last bit decides between equals.
    return float(np.mean(list(values)))


def _tested_on(records: Iterable[Record], test_envs: list[int]) -> list[Record]:
    return [record for record in records if sorted(record["args"]["test_envs"]) == sorted(test_envs)]


def _grouped(records: Iterable[Record], key: Callable[[Record], int]) -> list[tuple[int, list[Record]]]:
    groups: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return sorted(groups.items())


def _first_best(choices: Sequence[Choice]) -> Choice | None:
    return max(choices, key=lambda choice: choice.validation) if choices else None
