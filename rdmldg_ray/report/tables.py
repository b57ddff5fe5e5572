"""A run's results as tables, from its state alone."""

from collections.abc import Iterable

from rich.table import Table

from rdmldg_ray.runs.store import State, accuracies_of, evaluated_folds, evaluated_models, round_summary


def share_accepted(state: State, held_out: str, model: str) -> float | None:
    """Share of the drawn chains that the filter accepted before training ``model``; None for other models."""
    drawn = round_summary(state, held_out, model)
    return drawn["accepted"] / drawn["candidates"] if drawn else None


def domain_table(state: State, held_out: str) -> Table:
    """Pathway by stage: accuracy on the held-out domain and on the sources' validation parts."""
    table = Table(title=f"{held_out} held out: accuracy, %")
    for column in ("stage", "pathway", "target (in)", "target (all)", "validation", "chains accepted"):
        table.add_column(column, justify="left" if column in ("stage", "pathway") else "right")
    for model in evaluated_models(state, held_out):
        accepted = share_accepted(state, held_out, model)
        for pathway, accuracy in accuracies_of(state, held_out, model).items():
            table.add_row(
                model,
                pathway,
                percent(accuracy["target_in"]),
                percent(accuracy["target_all"]),
                percent(accuracy["validation"]),
                "" if accepted is None else percent(accepted),
            )
    return table


def summary_table(state: State, measure: str = "target_in") -> Table:
    """Stage and pathway by held-out domain, with the mean over domains, for one measure."""
    domains = evaluated_folds(state)
    table = Table(title=f"accuracy on the held-out domain ({measure.replace('_', ' ')}), %")
    table.add_column("stage")
    table.add_column("pathway")
    for column in (*domains, "mean"):
        table.add_column(column, justify="right")
    for model in evaluated_models(state, domains[0]):
        for pathway in accuracies_of(state, domains[0], model):
            values = [accuracies_of(state, domain, model).get(pathway, {}).get(measure) for domain in domains]
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
