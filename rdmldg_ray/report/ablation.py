"""The paper's ablation as tables: accuracies from the states of its runs, comparisons from their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from rdmldg_ray.evaluation.comparison import compare
from rdmldg_ray.report.protocol import mean_and_error
from rdmldg_ray.report.tables import mean_of_known, percent
from rdmldg_ray.runs.results import RunResults, on_target
from rdmldg_ray.runs.store import State, accuracies_of, evaluated_folds, stages_of
from rdmldg_ray.sweeps.variants import AblationRow


def ablation_accuracies(
    states: Mapping[str, Sequence[State]], rows: Sequence[AblationRow], measure: str = "target_in"
) -> list[dict[str, Any]]:
    """Variant and pathway by held-out domain, means over trials, with the mean over domains.

    Args:
        states: by what a run trains on, the state of each trial.

    Returns:
        Rows of ``variant``, ``pathway``, ``accuracy`` by domain (shares, None for what was not measured),
        ``mean`` over domains, and ``error``, the standard error of that mean over trials, None for one.
    """
    domains = dict.fromkeys(
        domain for trials in states.values() for state in trials for domain in evaluated_folds(state)
    )
    found = []
    for row in rows:
        for pathway in ("direct", "reasoning"):
            by_trial = [
                [_accuracy(state, domain, row.model, pathway, measure) for domain in domains]
                for state in states[row.run]
            ]
            accuracy = dict(zip(domains, map(mean_of_known, zip(*by_trial, strict=True)), strict=True))
            if all(value is None for value in accuracy.values()):
                continue
            # A mean over some of the domains would not compare with one over all.
            mean = mean_of_known(accuracy.values()) if None not in accuracy.values() else None
            means = [mean_of_known(of_trial) for of_trial in by_trial if None not in of_trial]
            known = [value for value in means if value is not None]
            error = mean_and_error(known)[1] / 100 if len(known) == len(by_trial) > 1 else None
            found.append(
                {
                    "variant": row.title,
                    "pathway": pathway,
                    "accuracy": accuracy,
                    "mean": mean,
                    "error": error,
                }
            )
    return found


def ablation_table(
    states: Mapping[str, Sequence[State]], rows: Sequence[AblationRow], measure: str = "target_in"
) -> Table:
    """``ablation_accuracies`` for the terminal."""
    found = ablation_accuracies(states, rows, measure)
    domains = found[0]["accuracy"] if found else {}
    trials = max(map(len, states.values()))
    over = f", mean of {trials} trials, +/- its standard error" if trials > 1 else ""
    table = Table(title=f"ablation: accuracy on the held-out domain ({measure.replace('_', ' ')}), %{over}")
    table.add_column("variant")
    table.add_column("pathway")
    for column in (*domains, "mean"):
        table.add_column(column, justify="right")
    for row in found:
        error = "" if row["error"] is None else f" +/- {percent(row['error'])}"
        cells = [*map(percent, row["accuracy"].values()), percent(row["mean"]) + error]
        table.add_row(row["variant"], row["pathway"], *cells)
    return table


def ablation_differences(
    runs: Mapping[str, Sequence[RunResults]], pairs: Sequence[tuple[AblationRow, AblationRow]]
) -> list[dict[str, Any]]:
    """Paired comparisons on the ``in`` splits of the held-out domains that all of the trials have evaluated.

    Args:
        runs: by what a run trains on, the run of each trial.
        pairs: the row that is compared, and the one that it is compared with.

    Returns:
        Rows of ``variant``, ``against``, ``pathway``, and what ``evaluation.comparison.Comparison`` has.
    """
    found = []
    for ours, theirs in pairs:
        for pathway in ("direct", "reasoning"):
            domains = set.intersection(
                *(
                    _evaluated(run.state, row.model, pathway)
                    for row in (ours, theirs)
                    for run in runs[row.run]
                )
            )
            if domains:
                answers = [
                    {
                        domain: _answers(runs[row.run], domain, row.model, pathway)
                        for domain in sorted(domains)
                    }
                    for row in (ours, theirs)
                ]
                names = {"variant": ours.title, "against": theirs.title, "pathway": pathway}
                found.append(names | asdict(compare(*answers)))
    return found


def differences_table(differences: Sequence[Mapping[str, Any]]) -> Table:
    """``ablation_differences`` for the terminal."""
    table = Table(title="differences in accuracy on the same images of the held-out domains (in), points")
    for column in ("variant", "against", "pathway", "difference", "p", "images"):
        table.add_column(column, justify="right" if column in ("difference", "p", "images") else "left")
    for row in differences:
        difference = f"{100 * row['difference']:+.1f} +/- {percent(row['error'])}"
        names = (row["variant"], row["against"], row["pathway"])
        table.add_row(*names, difference, f"{row['p']:.3f}", str(row["images"]))
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


def _evaluated(state: State, model: str, pathway: str) -> set[str]:
    return {domain for domain in evaluated_folds(state) if pathway in accuracies_of(state, domain, model)}


def _answers(trials: Sequence[RunResults], domain: str, model: str, pathway: str) -> list[pa.Table]:
    found = [on_target(run.predictions(domain, model), pathway) for run in trials]
    return [answers.filter(pc.field("split") == "in").select(["id", "correct"]) for answers in found]
