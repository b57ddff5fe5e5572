"""The paper's analyses as plain functions of tables (arXiv 2602.23777).

``TOKEN_SCHEMA`` and ``EMBEDDING_SCHEMA`` are what ``evaluation.probe`` measures with a model.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TOKEN_SCHEMA = pa.schema(
    [
        ("model", pa.string()),  # zero-shot, mtct, sarr-1, ...
        ("id", pa.string()),
        ("domain", pa.string()),
        ("held_out", pa.bool_()),
        ("target", pa.string()),  # "chain" under q_reason, "class" under q_cls
        ("position", pa.int32()),  # within the target
        ("token", pa.string()),
        ("logprob", pa.float64()),  # nats
        ("entropy", pa.float64()),  # of the distribution over all tokens at this place, nats
    ]
)
EMBEDDING_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("id", pa.string()),
        ("domain", pa.string()),
        ("kind", pa.string()),  # "image" or "chain"
        ("vector", pa.list_(pa.float32())),  # of unit length
    ]
)
LOW, HIGH = 0.25, 0.75

Rows = list[dict[str, Any]]


def probability_shares(tokens: pa.Table, low: float = LOW, high: float = HIGH) -> Rows:
    """Shares of target tokens with a probability under ``low`` and over ``high``.

    A class's name is often one token, so that the end of the turn is half of its tokens; shares without that
    stand beside those with it.

    Args:
        tokens: in ``TOKEN_SCHEMA``, each target's in one piece and in order.

    Returns:
        For each model, target and side of the split, in the table's order: ``model``, ``target``,
        ``held_out``, ``tokens``, ``low``, ``high``; and ``low_without_end``, ``high_without_end``, None where
        there are no other tokens.
    """
    # The next target begins where this one has ended.
    begins = np.append(tokens["position"].to_numpy()[1:] == 0, True)
    rows = []
    for (model, target, held_out), mine in _groups(
        tokens.append_column("is_end", pa.array(begins)), ("model", "target", "held_out")
    ):
        probability = np.exp(mine["logprob"].to_numpy())
        text = probability[~mine["is_end"].to_numpy()]
        rows.append(
            {
                "model": model,
                "target": target,
                "held_out": held_out,
                "tokens": len(probability),
                "low": float((probability < low).mean()),
                "high": float((probability > high).mean()),
                "low_without_end": float((text < low).mean()) if len(text) else None,
                "high_without_end": float((text > high).mean()) if len(text) else None,
            }
        )
    return rows


def rejected_of_first(candidates: pa.Table) -> float | None:
    """Share of the images' first draws that the filter rejected; None without any.

    Args:
        candidates: with ``candidate``, the number of the draw for its image, and ``accepted``.
    """
    first = candidates.filter(pc.field("candidate") == 0)
    return 1 - float(pc.mean(pc.cast(first["accepted"], pa.float64())).as_py()) if len(first) else None


def entropy_falls(tokens: pa.Table, before: str, after: str, least_count: int = 20) -> Rows:
    """Chain tokens by how much the model's mean entropy where they stand fell between two models.

    Args:
        tokens: in ``TOKEN_SCHEMA``, of the same targets for both models.
        before, after: names of models in it.
        least_count: rarer tokens are left out.

    Returns:
        ``token``, ``count``, ``before``, ``after``, ``fall`` in nats, the largest fall first.

    Raises:
        ValueError: for a model that was not measured.
    """
    chains = tokens.filter(pc.field("target") == "chain")
    means: dict[str, dict[str, tuple[float, int]]] = {}
    for model in (before, after):
        mine = chains.filter(pc.field("model") == model)
        if not len(mine):
            known = ", ".join(dict.fromkeys(tokens["model"].to_pylist()))
            raise ValueError(f"no tokens were measured for '{model}'; there are: {known}")
        found = mine.group_by("token").aggregate([("entropy", "mean"), ("entropy", "count")])
        means[model] = {
            row["token"]: (row["entropy_mean"], row["entropy_count"]) for row in found.to_pylist()
        }
    assert means[before].keys() == means[after].keys(), "the models were measured on other targets"
    rows = []
    for token, (old, count) in means[before].items():
        new = means[after][token][0]
        if count >= least_count:
            rows.append({"token": token, "count": count, "before": old, "after": new, "fall": old - new})
    return sorted(rows, key=lambda row: (-row["fall"], row["token"]))


def mmd_squared(first: np.ndarray, second: np.ndarray) -> float:
    """MMD^2 with the linear kernel: the squared distance of the mean embeddings of two sets.

    Args:
        first, second: (n, d) and (m, d).
    """
    return float(((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum())


def domain_distances(embeddings: pa.Table) -> Rows:
    """``mmd_squared`` between every two domains, for each model and kind of embedding.

    Args:
        embeddings: in ``EMBEDDING_SCHEMA``.

    Returns:
        ``model``, ``kind``, ``first``, ``second``, ``mmd_squared``.
    """
    rows = []
    for (model, kind), mine in _groups(embeddings, ("model", "kind")):
        domains = dict.fromkeys(mine["domain"].to_pylist())
        by_domain = {
            domain: np.array(mine.filter(pc.field("domain") == domain)["vector"].to_pylist())
            for domain in domains
        }
        for first, second in combinations(by_domain, 2):
            rows.append(
                {
                    "model": model,
                    "kind": kind,
                    "first": first,
                    "second": second,
                    "mmd_squared": mmd_squared(by_domain[first], by_domain[second]),
                }
            )
    return rows


def base_to_new(predictions: pa.Table, base: Sequence[str]) -> Rows:
    """Accuracy on the target's images of the classes trained on and of the others, and harmonic mean.

    All classes are offered as options to every image, which is harder than the usual protocol, where base
    and new classes are two tasks with options of their own.

    Args:
        predictions: of one evaluation, in ``predictions.PREDICTION_SCHEMA``.
        base: the classes trained on.

    Returns:
        For each pathway: ``pathway``, ``base``, ``new``, ``harmonic_mean``.

    Raises:
        ValueError: when the target has images of one kind only.
    """
    rows = []
    target = predictions.filter(pc.field("held_out"))
    for (pathway,), mine in _groups(target, ("pathway",)):
        is_base = pc.field("label").isin(list(base))
        sides = [mine.filter(is_base)["correct"], mine.filter(~is_base)["correct"]]
        if not all(map(len, sides)):
            raise ValueError("the target has no images of the base classes, or none of the new ones")
        found = [float(pc.mean(pc.cast(side, pa.float64())).as_py()) for side in sides]
        rows.append(
            {"pathway": pathway, "base": found[0], "new": found[1], "harmonic_mean": harmonic_mean(*found)}
        )
    return rows


def harmonic_mean(first: float, second: float) -> float:
    """The harmonic mean of two accuracies, 0 when one of them is 0."""
    return 2 * first * second / (first + second) if first > 0 and second > 0 else 0.0


def _groups(table: pa.Table, keys: tuple[str, ...]) -> list[tuple[tuple[Any, ...], pa.Table]]:
    """Parts of a table with equal keys, in the order of their first rows."""
    found = dict.fromkeys(zip(*(table[key].to_pylist() for key in keys), strict=True))
    groups = []
    for values in found:
        mine = table
        for key, value in zip(keys, values, strict=True):
            mine = mine.filter(pc.field(key) == value)
        groups.append((values, mine))
    return groups
