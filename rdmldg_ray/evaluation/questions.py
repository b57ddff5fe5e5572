"""Accuracy by question, in a data set of questions: a plain function of stored predictions.

Beside each accuracy stands what needs no picture: guessing among the options, and always giving the answer
that is the commonest one to this question.
"""

from collections import Counter, defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def by_question(predictions: pa.Table, samples: pa.Table) -> list[dict[str, Any]]:
    """What each pathway scores on the held-out domain, for each question.

    Args:
        predictions: of one evaluation, in ``predictions.PREDICTION_SCHEMA``.
        samples: an index with ``question`` and ``options``, of the held-out domain at least.

    Returns:
        ``question``, ``pathway``, ``rows``, ``accuracy``, ``error`` (standard error, sqrt(p (1 - p) / n)),
        ``chance`` (mean of one over the number of options) and ``commonest`` (share of the commonest label),
        the question with the most rows first.
    """
    asked = {row["id"]: row for row in samples.select(["id", "question", "options"]).to_pylist()}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    columns = ["id", "pathway", "label", "correct"]
    for row in predictions.filter(pc.field("held_out")).select(columns).to_pylist():
        groups[asked[row["id"]]["question"], row["pathway"]].append(row)
    found = []
    for (question, pathway), rows in groups.items():
        number = len(rows)
        accuracy = sum(row["correct"] for row in rows) / number
        [(_, commonest)] = Counter(row["label"] for row in rows).most_common(1)
        found.append(
            {
                "question": question,
                "pathway": pathway,
                "rows": number,
                "accuracy": accuracy,
                "error": (accuracy * (1 - accuracy) / number) ** 0.5,
                "chance": sum(1 / len(asked[row["id"]]["options"]) for row in rows) / number,
                "commonest": commonest / number,
            }
        )
    return sorted(found, key=lambda row: (-row["rows"], row["question"], row["pathway"]))
