"""What stands in for an engine pool where it matters who is asked, and not what a model says."""

import math

import pyarrow as pa

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.engines.engine import ANSWER_SCHEMA


class FixedAnswers:
    """Answers as an engine does, by image and draw alone: some wrong, each of another length."""

    def __init__(self):
        self.asked = []

    def generate(self, samples, request):
        rows = []
        for row in samples.to_pylist():
            number = int(row["id"][1:])
            self.asked.append((row["id"], request.candidate))
            right = (number + request.candidate) % 3 > 0
            named = row["label"] if right else "nothing"
            tokens = 10 + (7 * number + 5 * request.candidate) % 11
            rows.append(
                {
                    "id": row["id"],
                    "candidate": request.candidate,
                    "text": render_chain({**dict.fromkeys(SECTIONS, "x"), "CONCLUSION": named}),
                    "num_tokens": tokens,
                    "logprob": -0.1 * (number + 1) - request.candidate,
                    "finished": True,
                    "label_logprob": math.log(0.1 * (number + 1)) if request.score_label else None,
                    "error": None,
                }
            )
        # In two batches, the later images first, as engines may finish.
        table = pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)
        yield table.slice(len(table) // 2)
        yield table.slice(0, len(table) // 2)
