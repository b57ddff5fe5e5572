"""The hand-over check: does the engine see the model that was trained?

A renamed module, an adapter that is silently ignored, another image size or another prompt all
leave an engine that runs and writes fluently, with the wrong weights or inputs. So the trainer
leaves the log-probabilities of a few known chains beside its adapter, and every engine that takes
the adapter has to find the same ones.
"""

from collections.abc import Sequence

import pyarrow as pa

from rdmldg_ray.config.schema import EnginesConfig

PARITY_FILE = "parity.parquet"
PARITY_PAIRS = 8

_TOLERANCE = {"float32": 0.02, "bfloat16": 0.1}


class ParityError(ValueError):
    """Trainer and engine disagree on the same images and chains."""


def parity_tolerance(config: EnginesConfig) -> float:
    """Largest accepted mean absolute difference per token, in nats."""
    return _TOLERANCE[config.dtype] if config.parity_tolerance is None else config.parity_tolerance


def check_parity(known: pa.Table, found: Sequence[Sequence[float]], tolerance: float) -> float:
    """Compare an engine's log-probabilities with the trainer's.

    Args:
        known: rows with ``id`` and ``logprobs``, the trainer's log-probability of each chain token.
        found: the engine's, in the same order.
        tolerance: largest accepted mean absolute difference per token, in nats.

    Returns:
        The mean absolute difference per token, in nats.

    Raises:
        ParityError: beyond the tolerance, or when the chains differ in length; gives both sides.
    """
    differences = []
    lines = []
    for row, engine in zip(known.to_pylist(), found, strict=True):
        trainer = row["logprobs"]
        if len(trainer) != len(engine):
            raise ParityError(
                f"{row['id']}: the trainer's chain has {len(trainer)} tokens, the engine's {len(engine)}; "
                "their tokenizers differ"
            )
        differences += [abs(a - b) for a, b in zip(trainer, engine, strict=True)]
        lines.append(f"  {row['id']}: trainer {_mean(trainer):.4f}, engine {_mean(engine):.4f}")
    difference = _mean(differences)
    if not difference <= tolerance:  # NaN is a disagreement too
        raise ParityError(
            "\n".join(
                [
                    "the engine does not compute what was trained: log-probabilities differ by "
                    f"{difference:.4f} a token on average, more than {tolerance}; means over known chains:",
                    *lines,
                    "check that engine and trainer use the same base, prompts and image size, and that the "
                    "export renames no module; or set engines.parity_tolerance",
                ]
            )
        )
    return difference


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
