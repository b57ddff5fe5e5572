"""Predictions as they lie on storage, and the accuracies that they come to."""

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.storage import read_table

PREDICTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("split", pa.string()),  # DomainBed's "in" or "out"
        ("held_out", pa.bool_()),
        ("pathway", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),  # one of the options, or null where the answer names none
        ("correct", pa.bool_()),
        ("text", pa.string()),
        ("num_tokens", pa.int32()),
        ("logprob", pa.float64()),
    ]
)


def read_predictions(location: str, columns: list[str] | None = None) -> pa.Table:
    """Predictions of an evaluation, or those of their columns that are wanted."""
    return read_table(location, columns, renamed={"part": "split"}, schema=PREDICTION_SCHEMA)


def accuracies(predictions: pa.Table) -> dict[str, dict[str, float]]:
    """Accuracy, between 0 and 1, by pathway and by DomainBed's names.

    ``target_in`` is what DomainBed reports: accuracy on the held-out domain's ``in`` part (80 %).
    ``target_all`` is on the whole held-out domain, as many newer papers report. ``target_out`` is
    the oracle's validation set. ``validation`` is the mean over the source domains of the accuracy
    on their ``out`` parts, DomainBed's training-domain validation. Of several domains held out together
    the target's accuracies are means over domains too.
    """
    result: dict[str, dict[str, float]] = {}
    for pathway in sorted(set(predictions["pathway"].to_pylist())):
        mine = predictions.filter(pc.field("pathway") == pathway)
        target = mine.filter(pc.field("held_out"))
        sources = mine.filter(~pc.field("held_out"))
        result[pathway] = {
            "target_in": _mean_over_domains(target.filter(pc.field("split") == "in")),
            "target_out": _mean_over_domains(target.filter(pc.field("split") == "out")),
            "target_all": _mean_over_domains(target),
            "validation": _mean_over_domains(sources),
        }
    return result


def _mean_over_domains(predictions: pa.Table) -> float:
    assert len(predictions), "accuracy of no predictions"
    marks = predictions.select(["domain", "correct"]).set_column(
        1, "correct", pc.cast(predictions["correct"], pa.float64())
    )
    by_domain = marks.group_by("domain").aggregate([("correct", "mean")])["correct_mean"].to_pylist()
    return float(sum(by_domain) / len(by_domain))
