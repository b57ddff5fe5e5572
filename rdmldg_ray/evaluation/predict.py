"""Let the engines answer, and score what they say."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.chains.format import conclusion_of, match_class
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.config.schema import Config, Pathway
from rdmldg_ray.datasets.schema import question_columns
from rdmldg_ray.engines.engine import Request
from rdmldg_ray.engines.pool import EnginePool

PREDICTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("part", pa.string()),  # DomainBed's "in" or "out"
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


def predict(
    pool: EnginePool,
    samples: pa.Table,
    class_names: list[str],
    config: Config,
    progress: Callable[[int, int, str], None],
) -> pa.Table:
    """Greedy answers of every configured pathway, in ``PREDICTION_SCHEMA``.

    The direct pathway's answer is constrained to the options, which are the class names or, in a data set
    of questions, the sample's own; the reasoning pathway's is what
    stands in its conclusion.

    Args:
        samples: an index with columns ``part`` and ``held_out`` added.
    """
    pathways = config.evaluation.pathways
    total = len(samples) * len(pathways)
    tables: list[pa.Table] = []
    for pathway in pathways:
        request = Request(pathway, 0, 0.0, 1.0, config.evaluation.max_new_tokens, config.seed)
        for answers in pool.generate(samples, request):
            tables.append(score_answers(answers, samples, class_names, pathway))
            progress(sum(len(t) for t in tables), total, pathway)
    return pa.concat_tables(tables).sort_by([("pathway", "ascending"), ("id", "ascending")])


def score_answers(answers: pa.Table, samples: pa.Table, class_names: list[str], pathway: Pathway) -> pa.Table:
    """Answers of an engine with the class they name and whether it is the label.

    Raises:
        ValueError: for an image that did not decode; accuracies over other images would not compare.
    """
    columns = ["id", "domain", "part", "held_out", "label", *question_columns(samples)]
    known = {row["id"]: row for row in samples.select(columns).to_pylist()}
    rows = []
    for answer in answers.to_pylist():
        if answer["error"]:
            raise ValueError(answer["error"])
        sample = known[answer["id"]]
        named = answer["text"] if pathway == "direct" else conclusion_of(answer["text"])
        options = question_of(sample, class_names).options
        index = None if named is None else match_class(named, options)
        prediction = None if index is None else options[index]
        rows.append(
            {
                **sample,
                "pathway": pathway,
                "prediction": prediction,
                "correct": prediction == sample["label"],
                "text": answer["text"],
                "num_tokens": answer["num_tokens"],
                "logprob": answer["logprob"],
            }
        )
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


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
            "target_in": _mean_over_domains(target.filter(pc.field("part") == "in")),
            "target_out": _mean_over_domains(target.filter(pc.field("part") == "out")),
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
