"""A run's results as tables, from its state file alone."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

State = dict[str, dict[str, Any]]


def held_out_domains(state: State) -> list[str]:
    """Domains that have an evaluation, in the order in which they were run."""
    return list(dict.fromkeys(name.split("/")[0] for name in state if "/evaluation/" in name))


def models(state: State, held_out: str) -> list[str]:
    """Models evaluated for a held-out domain: ``zero-shot``, ``mtct``, ``sarr-1``, ..."""
    prefix = f"{held_out}/evaluation/"
    return [name.removeprefix(prefix) for name in state if name.startswith(prefix)]


def share_kept(state: State, held_out: str, model: str) -> float | None:
    """Share of drawn chains that the filter kept before training ``model``; None for other models."""
    round_ = state.get(f"{held_out}/{model}/candidates")
    return round_["kept"] / round_["candidates"] if round_ else None


def domain_table(state: State, held_out: str) -> Table:
    """Pathway by stage: accuracy on the held-out domain and on the sources' validation parts."""
    table = Table(title=f"{held_out} held out: accuracy, %")
    for column in ("stage", "pathway", "target (in)", "target (all)", "validation", "chains kept"):
        table.add_column(column, justify="left" if column in ("stage", "pathway") else "right")
    for model in models(state, held_out):
        kept = share_kept(state, held_out, model)
        for pathway, accuracy in state[f"{held_out}/evaluation/{model}"]["accuracy"].items():
            table.add_row(
                model,
                pathway,
                percent(accuracy["target_in"]),
                percent(accuracy["target_all"]),
                percent(accuracy["validation"]),
                "" if kept is None else percent(kept),
            )
    return table


def summary_table(state: State, measure: str = "target_in") -> Table:
    """Stage and pathway by held-out domain, with the mean over domains, for one measure."""
    domains = held_out_domains(state)
    table = Table(title=f"accuracy on the held-out domain ({measure.replace('_', ' ')}), %")
    table.add_column("stage")
    table.add_column("pathway")
    for column in (*domains, "mean"):
        table.add_column(column, justify="right")
    for model in models(state, domains[0]):
        for pathway in state[f"{domains[0]}/evaluation/{model}"]["accuracy"]:
            values = [
                state.get(f"{domain}/evaluation/{model}", {})
                .get("accuracy", {})
                .get(pathway, {})
                .get(measure)
                for domain in domains
            ]
            table.add_row(model, pathway, *[percent(v) for v in values], percent(mean_of_known(values)))
    return table


def time_table(state: State) -> Table:
    """Seconds of each stage and in total."""
    table = Table(title="time by stage")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for name, entry in state.items():
        table.add_row(name, f"{entry['seconds']:.0f}")
    table.add_row("total", f"{sum(entry['seconds'] for entry in state.values()):.0f}")
    return table


def percent(value: float | None) -> str:
    """A share as percent with one decimal; a dash for what was not measured."""
    return "-" if value is None else f"{100 * value:.1f}"


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None when nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
