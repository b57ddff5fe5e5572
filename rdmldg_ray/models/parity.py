"""The hand-over check: does the engine see the model that was trained?

A renamed module, an adapter that is silently ignored, another image size or another prompt all
leave an engine that runs and writes fluently, with the wrong weights or inputs. So the trainer
leaves the log-probabilities of a few known answers beside its adapter, and every engine that takes
the adapter has to find the same ones.

Most tokens of a chain follow from the text before them, whatever the image and whatever was trained.
So only those are compared that the image decides: whose log-probability changes most where a gray
image is in the image's place. And a model of which training changed little is near to what it was, so
the engine also has to be nearer to the trainer than to what training began with, and than to the base.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rdmldg_ray.chains.format import display_name
from rdmldg_ray.config.schema import EnginesConfig

PARITY_FILE = "parity.parquet"
PARITY_IMAGES = 8

# Means over the tokens that are compared, in nats. Merged weights in bfloat16 differ from the adapter beside
# the base by up to 0.010; of what must not pass, another order of the options differs least, by 0.040.
_TOLERANCE = {"float32": 0.002, "bfloat16": 0.025}
# Below this, rounding decides to which of two models an engine is nearer.
_NOISE = {"float32": 1e-4, "bfloat16": 0.0125}
_NEARER = 3
_FEWEST_TOKENS = 16
_OTHERS = {
    "start_logprobs": "the model that training began with",
    "base_logprobs": "the base model",
}


class ParityError(ValueError):
    """Trainer and engine disagree on the same images and answers."""


def known_answers(samples: Iterable[Mapping[str, Any]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The answers to compare: two for each sample by the direct pathway, and its chain if it has one.

    The two are the label and another option: what a model is sure of hardly moves.

    Args:
        samples: rows of ``id``, ``label``, ``chain`` (may be empty), and ``question`` and ``options`` in a
            data set of questions.
        class_names: the options of samples without their own.

    Returns:
        A row for each answer, with ``pathway`` and ``target`` besides the sample's columns.
    """
    rows = []
    for sample in samples:
        options = list(sample.get("options") or class_names)
        other = options[(options.index(sample["label"]) + 1) % len(options)]
        answers = [("direct", display_name(option)) for option in (sample["label"], other)]
        if sample["chain"]:
            answers.append(("reasoning", sample["chain"]))
        rows += [{**sample, "pathway": pathway, "target": target} for pathway, target in answers]
    return rows


def parity_tolerance(config: EnginesConfig) -> float:
    """Largest accepted mean absolute difference of a compared token, in nats."""
    return _TOLERANCE[config.dtype] if config.parity_tolerance is None else config.parity_tolerance


def as_known(left: pa.Table) -> pa.Table:
    """A parity file as ``check_parity`` takes it. Before version 0.2 there were chains in it, and no more."""
    if "pathway" in left.column_names:
        return left
    chains = left.rename_columns({"chain": "target"})
    return chains.append_column("pathway", pa.repeat(pa.scalar("reasoning"), len(chains)))


def check_parity(known: pa.Table, found: Sequence[Sequence[float]], config: EnginesConfig) -> float:
    """Compare an engine's log-probabilities with the trainer's.

    Args:
        known: a row for each answer, with its ``id``, ``pathway`` and log-probabilities of each token, in
            nats: ``logprobs`` by the model as trained, ``blank_logprobs`` by the same for a gray image,
            ``start_logprobs`` by the model that training began with, ``base_logprobs`` by the base model. All
            but the first may be missing.
        found: the engine's, in the same order.
        config: has the tolerance, and the engine's dtype, on which it depends.

    Returns:
        The mean absolute difference of the tokens that are compared, in nats.

    Raises:
        ParityError: beyond the tolerance, when the engine is not clearly nearer to the trainer than to
            another model, or when answers differ in length; gives both sides.
    """
    rows = known.to_pylist()
    for row, engine in zip(rows, found, strict=True):
        if len(row["logprobs"]) != len(engine):
            raise ParityError(
                f"{row['id']}: the trainer's answer has {len(row['logprobs'])} tokens, the engine's "
                f"{len(engine)}; their tokenizers differ"
            )
    engines = np.concatenate([np.asarray(tokens, dtype=float) for tokens in found])
    compared = _decided_by_the_image(rows)

    def distance(column: str) -> float | None:
        tokens = _tokens(rows, column)
        return None if tokens is None else float(np.abs(engines - tokens)[compared].mean())

    difference = distance("logprobs")
    assert difference is not None
    tolerance = parity_tolerance(config)
    noise = _NOISE[config.dtype] if config.parity_tolerance is None else tolerance
    faults = []
    if not difference <= tolerance:  # NaN is a disagreement too
        faults.append(f"more than {tolerance}")
    if not difference <= noise:
        for column, model in _OTHERS.items():
            other = distance(column)
            if other is not None and difference * _NEARER > other:
                faults.append(f"and from {model} by {other:.4f}")
    if faults:
        raise ParityError(
            "\n".join(
                [
                    "the engine does not compute what was trained: log-probabilities differ by "
                    f"{difference:.4f} on average over the {int(compared.sum())} tokens that depend most on "
                    f"the image, {', '.join(faults)}; means over all tokens of known answers:",
                    *(
                        f"  {row['id']}, {row['pathway']}: trainer {np.mean(row['logprobs']):.4f}, "
                        f"engine {np.mean(engine):.4f}"
                        for row, engine in zip(rows, found, strict=True)
                    ),
                    "check that engine and trainer use the same base, prompts and image size, and that the "
                    "export renames no module; or set engines.parity_tolerance",
                ]
            )
        )
    return difference


def _decided_by_the_image(rows: list[dict[str, Any]]) -> np.ndarray:
    """Which tokens to compare: the tenth, but 16 at least, that change most without the image."""
    trainer, blank = _tokens(rows, "logprobs"), _tokens(rows, "blank_logprobs")
    assert trainer is not None
    chosen = np.ones(len(trainer), dtype=bool)
    if blank is not None:
        number = max(_FEWEST_TOKENS, len(trainer) // 10)
        chosen[np.argsort(-np.abs(trainer - blank), kind="stable")[number:]] = False
    return chosen


def _tokens(rows: list[dict[str, Any]], column: str) -> np.ndarray | None:
    """The log-probabilities of all tokens, or None where a row has none."""
    if any(row.get(column) is None for row in rows):
        return None
    return np.concatenate([np.asarray(row[column], dtype=float) for row in rows])
