"""Tables as DomainBed prints them, from records in its form."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from rdmldg_ray.domainbed.catalogue import DATASETS
from rdmldg_ray.domainbed.selection import (
    METHODS,
    Choice,
    Method,
    Record,
    num_envs,
    select,
    select_single_source,
)

MISSING = "X"
PARTS = {"in": "in part, as DomainBed reports", "all": "all of the test domain"}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of shares, and population standard deviation over the root of the count, both in percent."""
    # In DomainBed's order of operations: the last bit may decide the last digit.
    shares = np.array(values)
    return 100 * float(np.mean(shares)), 100 * float(np.std(shares / np.sqrt(len(shares))))


def format_cell(values: Sequence[float]) -> str:
    """Shares as ``mean +/- error`` in percent with one decimal; ``X`` for none."""
    if not values:
        return MISSING
    mean, error = mean_and_error(values)
    return f"{mean:.1f} +/- {error:.1f}"


def error_note(records: Sequence[Record]) -> str:
    """Over what the tables' errors are: what the trials differ in."""
    trials: dict[int, set[Any]] = {}
    for record in records:
        trials.setdefault(record["args"]["trial_seed"], set()).add(record["args"].get("seed"))
    if len(trials) < 2:
        return "+/- is 0: there is one trial only; for an error run several, as --trials 0,1,2"
    seeds = set.union(*trials.values())
    # Records of DomainBed itself have the seed that follows from the trial.
    same = len(seeds) == 1 and None not in seeds
    differ = "splits alone, not in the seed of training" if same else "splits and in the seed of training"
    return f"+/- is the standard error over {len(trials)} trials, which differ in {differ}"


def collect_tables(records: Sequence[Record], part: str = "in") -> list[Table]:
    """A table for each selection method and data set, and one of averages for each method.

    Args:
        part: ``in`` for the accuracy that DomainBed reports, ``all`` for all of the test environment,
            which records of DomainBed itself do not have.
    """
    tables = []
    for name, method in METHODS.items():
        tables += _method_tables(records, name, method, part)
    return tables


def _method_tables(records: Sequence[Record], name: str, method: Method, part: str) -> list[Table]:
    datasets = _sorted_datasets({record["args"]["dataset"] for record in records})
    # In the order of appearance: zero-shot first.
    algorithms = list(dict.fromkeys(record["args"]["algorithm"] for record in records))
    accuracy = {
        cell: choice.accuracy(cell.test_env, part) for cell, choice in select(records, method).items()
    }

    def trials(dataset: str, algorithm: str, env: int) -> list[float]:
        wanted = (dataset, algorithm, env)
        return [a for c, a in accuracy.items() if (c.dataset, c.algorithm, c.test_env) == wanted]

    tables = []
    for dataset in datasets:
        environments = environment_names(record for record in records if record["args"]["dataset"] == dataset)
        table = _table(f"{dataset} ({PARTS[part]}), model selection: {name}", [*environments, "Avg"])
        for algorithm in algorithms:
            cells = [trials(dataset, algorithm, env) for env in range(len(environments))]
            table.add_row(algorithm, *map(format_cell, cells), _mean_of_means(cells))
        tables.append(table)

    table = _table(f"Averages ({PARTS[part]}), model selection: {name}", [*datasets, "Avg"])
    for algorithm in algorithms:
        cells = []
        for dataset in datasets:
            mine = {c: a for c, a in accuracy.items() if (c.dataset, c.algorithm) == (dataset, algorithm)}
            seeds = sorted({cell.trial_seed for cell in mine})
            cells.append(
                [float(np.mean([a for c, a in mine.items() if c.trial_seed == seed])) for seed in seeds]
            )
        table.add_row(algorithm, *map(format_cell, cells), _mean_of_means(cells))
    return [*tables, table]


def single_source_tables(records: Sequence[Record], part: str = "in") -> list[Table]:
    """For each data set with runs on a single source domain, a table of source by test domain."""
    chosen = select_single_source(records)
    tables = []
    for dataset in _sorted_datasets({cell.dataset for cell in chosen}):
        names = environment_names(record for record in records if record["args"]["dataset"] == dataset)
        mine = {cell: choice for cell, choice in chosen.items() if cell.dataset == dataset}
        table = _table(
            f"{dataset} ({PARTS[part]}), single source domain, model selection: its validation set",
            ["source", *names, "Avg"],
        )
        for algorithm, env in dict.fromkeys((cell.algorithm, cell.source_env) for cell in mine):
            choices = [c for cell, c in mine.items() if (cell.algorithm, cell.source_env) == (algorithm, env)]
            targets = [target for target in range(len(names)) if target != env]
            cells = {target: [choice.accuracy(target, part) for choice in choices] for target in targets}
            shown = [format_cell(cells[target]) if target in cells else "" for target in range(len(names))]
            table.add_row(algorithm, names[env], *shown, _mean_of_means(list(cells.values())))
        tables.append(table)
    return tables


def environment_names(records: Iterable[Record]) -> list[str]:
    """The environments of records of one data set: by name where the records or the catalogue tell."""
    known = {dataset.title: list(dataset.environments) for dataset in DATASETS.values()}
    record = next(iter(records))
    numbered = [f"env{i}" for i in range(num_envs(record))]
    return record["args"].get("environments") or known.get(record["args"]["dataset"]) or numbered


def chosen_rows(records: Sequence[Record], part: str = "in") -> list[dict[str, Any]]:
    """What each method chose, in numbers: a row for each cell of the tables and each trial.

    ``source`` is the source domain of single-source generalization, else None; ``accuracy`` is a share, on
    ``part`` of the test domain.
    """
    found = []
    for method_name, method in METHODS.items():
        for cell, choice in sorted(select(records, method).items(), key=lambda item: item[0]):
            found.append(
                _chosen_row(
                    method=method_name,
                    trial=cell.trial_seed,
                    choice=choice,
                    source=None,
                    env=cell.test_env,
                    part=part,
                )
            )
    for source, choice in sorted(select_single_source(records).items(), key=lambda item: item[0]):
        for env in choice.record["args"]["test_envs"]:
            name = "validation set of the single source"
            found.append(
                _chosen_row(
                    method=name,
                    trial=source.trial_seed,
                    choice=choice,
                    source=source.source_env,
                    env=env,
                    part=part,
                )
            )
    return found


def _chosen_row(
    method: str, trial: int, choice: Choice, source: int | None, env: int, part: str
) -> dict[str, Any]:
    names, args = environment_names([choice.record]), choice.record["args"]
    return {
        "method": method,
        "dataset": args["dataset"],
        "algorithm": args["algorithm"],
        "source": None if source is None else names[source],
        "test_domain": names[env],
        "trial_seed": trial,
        "step": choice.record["step"],
        "validation": choice.validation,
        "accuracy": choice.accuracy(env, part),
    }


def chosen_table(records: Sequence[Record], method_name: str) -> Table:
    """Which step was chosen for each data set, algorithm, test environment and trial, and its scores."""
    table = Table(title=f"chosen checkpoints, model selection: {method_name}; accuracy, %")
    for column in ("data set", "algorithm", "test domain", "trial", "step", "validation", "in", "all"):
        table.add_column(column, justify="left" if column in ("data set", "algorithm") else "right")
    for cell, choice in sorted(select(records, METHODS[method_name]).items(), key=lambda item: item[0]):
        names = environment_names([choice.record])
        scores = (_percent(choice, cell.test_env, part) for part in PARTS)
        table.add_row(
            cell.dataset,
            cell.algorithm,
            names[cell.test_env],
            str(cell.trial_seed),
            str(choice.record["step"]),
            f"{100 * choice.validation:.1f}",
            *scores,
        )
    return table


def _percent(choice: Choice, env: int, part: str) -> str:
    has = f"env{env}_{part}_acc" in choice.record
    return f"{100 * choice.accuracy(env, part):.1f}" if has else "-"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("algorithm")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _mean_of_means(cells: Sequence[Sequence[float]]) -> str:
    if not all(cells):
        return MISSING
    means = [mean_and_error(values)[0] for values in cells]
    return f"{sum(means) / len(means):.1f}"


def _sorted_datasets(names: Iterable[str]) -> list[str]:
    """In the catalogue's order, others after them."""
    known = [dataset.title for dataset in DATASETS.values()]
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))
