"""The paper's ablation as a table, from the state files of its runs."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from rdmldg_ray.report.tables import State, held_out_domains, mean_of_known, percent
from rdmldg_ray.variants import AblationRow


def ablation_table(
    states: Mapping[str, Sequence[State]], rows: Sequence[AblationRow], measure: str = "target_in"
) -> Table:
    """Variant and pathway by held-out domain, with the mean over domains; means over trials.

    Args:
        states: by what a run trains on, the state of each trial.
    """
    everywhere = [
        domain for trials in states.values() for state in trials for domain in held_out_domains(state)
    ]
    domains = list(dict.fromkeys(everywhere))
    trials = max(map(len, states.values()))
    over = f", mean of {trials} trials" if trials > 1 else ""
    table = Table(title=f"ablation: accuracy on the held-out domain ({measure.replace('_', ' ')}), %{over}")
    table.add_column("variant")
    table.add_column("pathway")
    for column in (*domains, "mean"):
        table.add_column(column, justify="right")
    for row in rows:
        for pathway in ("direct", "reasoning"):
            values = [
                mean_of_known(
                    _accuracy(state, domain, row.model, pathway, measure) for state in states[row.run]
                )
                for domain in domains
            ]
            if any(value is not None for value in values):
                # A mean over some of the domains would not compare with one over all.
                mean = mean_of_known(values) if None not in values else None
                table.add_row(row.title, pathway, *map(percent, values), percent(mean))
    return table


def _accuracy(state: State, domain: str, model: str, pathway: str, measure: str) -> float | None:
    entry = state.get(f"{domain}/evaluation/{model}", {})
    return entry.get("accuracy", {}).get(pathway, {}).get(measure)
