"""How the demo ends: some of the model's chains, and what the words of its table mean."""

import math
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.panel import Panel

from rdmldg_ray.report.tables import percent
from rdmldg_ray.runs.results import RunResults, on_target

_RIGHT = 2


def print_demo_end(console: Console, run: RunResults) -> None:
    """Print chains of the last model about the held-out domain, and words about the tables above
    them; nothing where its predictions are gone.
    """
    held_out = run.held_out[-1]
    model = run.models(held_out)[-1]
    if run.store.predictions_uri(held_out, model) not in run.files:
        return  # removed, to save space
    predictions = run.predictions(held_out, model)
    for row in choose_chains(on_target(predictions, "reasoning").to_pylist()):
        title = f"{row['id']}: {'right' if row['correct'] else 'wrong'}, it is {row['label']}"
        console.print(Panel(row["text"], title=title, border_style="green" if row["correct"] else "red"))
    pathway, accuracy = next(iter(run.accuracy(held_out, model).items()))
    share = accuracy["target_in"]
    counted = len(on_target(predictions, pathway).filter(pc.field("split") == "in"))
    chance = 1 / len(predictions["label"].unique())
    console.print(
        f"'{held_out}' is a domain that the model was never trained on; target (in) counts {counted} images "
        "of it, and validation counts images of the domains that it was trained on.\n"
        "direct: the model answers with a class name. reasoning: it writes a chain, as those above, and the "
        "chain's conclusion counts.\n"
        f"Chance is {percent(chance)} %. {percent(share)} % has a standard error of "
        f"{percent(math.sqrt(share * (1 - share) / counted))} points.",
        soft_wrap=True,
    )


def choose_chains(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first that are right, two of different classes, and the first that is wrong."""
    first: dict[str | None, dict[str, Any]] = {}
    for row in predictions:
        first.setdefault(row["label"] if row["correct"] else None, row)
    wrong = first.pop(None, None)
    return list(first.values())[:_RIGHT] + ([wrong] if wrong else [])
