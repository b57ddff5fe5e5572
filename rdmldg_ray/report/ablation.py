"""The paper's ablation as a table, from the state files of its runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from rdmldg_ray.report.tables import mean_of_known, percent
from rdmldg_ray.runs.store import State, accuracies_of, evaluated_folds, stages_of
from rdmldg_ray.sweeps.variants import AblationRow


def ablation_accuracies(
    states: Mapping[str, Sequence[State]], rows: Sequence[AblationRow], measure: str = "target_in"
) -> list[dict[str, Any]]:
    """Variant and pathway by held-out domain, means over trials, with the mean over domains.

    Args:
        states: by what a run trains on, the state of each trial.

    Returns:
        Rows of ``variant``, ``pathway``, ``accuracy`` by domain (shares, None for what was not measured) and
        ``mean``.
    """
    domains = dict.fromkeys(
        domain for trials in states.values() for state in trials for domain in evaluated_folds(state)
    )
    found = []
    for row in rows:
        for pathway in ("direct", "reasoning"):
            accuracy = {
                domain: mean_of_known(
                    _accuracy(state, domain, model=row.model, pathway=pathway, measure=measure)
                    for state in states[row.run]
                )
                for domain in domains
            }
            known = [value for value in accuracy.values() if value is not None]
            if known:
                # A mean over some of the domains would not compare with one over all.
                mean = mean_of_known(known) if len(known) == len(accuracy) else None
                found.append({"variant": row.title, "pathway": pathway, "accuracy": accuracy, "mean": mean})
    return found


def ablation_table(
    states: Mapping[str, Sequence[State]], rows: Sequence[AblationRow], measure: str = "target_in"
) -> Table:
    """``ablation_accuracies`` for the terminal."""
    found = ablation_accuracies(states, rows, measure)
    domains = found[0]["accuracy"] if found else {}
    trials = max(map(len, states.values()))
    over = f", mean of {trials} trials" if trials > 1 else ""
    table = Table(title=f"ablation: accuracy on the held-out domain ({measure.replace('_', ' ')}), %{over}")
    table.add_column("variant")
    table.add_column("pathway")
    for column in (*domains, "mean"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(
            row["variant"], row["pathway"], *map(percent, row["accuracy"].values()), percent(row["mean"])
        )
    return table


def ablation_images(states: Mapping[str, Sequence[State]]) -> str | None:
    """How the images that the runs' MTCT was trained on differ in number; None where they do not.

    Labels alone need no chains, so a run on them takes part with the images that have none too.

    Args:
        states: by what a run trains on, the state of each trial.
    """
    found: dict[str, dict[str, int]] = {}
    for kind, trials in states.items():
        for trial, state in enumerate(trials):
            for stage in stages_of(state, "mtct"):
                key = f"{stage.held_out} held out" + (f", trial {trial + 1}" if len(trials) > 1 else "")
                if (samples := state[stage.name].get("samples")) is not None:
                    found.setdefault(key, {})[kind] = samples
    differing = {key: images for key, images in found.items() if len(set(images.values())) > 1}
    if not differing:
        return None
    lines = [
        f"  {key}: " + ", ".join(f"{count} for {kind}" for kind, count in images.items())
        for key, images in differing.items()
    ]
    return "\n".join(
        ["trained on different numbers of images, those without a chain on labels only:", *lines]
    )


def _accuracy(state: State, domain: str, model: str, pathway: str, measure: str) -> float | None:
    return accuracies_of(state, domain, model).get(pathway, {}).get(measure)
