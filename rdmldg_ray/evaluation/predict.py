"""Let the engines answer, and score what they say."""

from collections.abc import Callable

import pyarrow as pa

from rdmldg_ray.chains.format import conclusion_of, match_class
from rdmldg_ray.chains.questions import question_of
from rdmldg_ray.config.schema import Config, Pathway
from rdmldg_ray.datasets.schema import question_columns
from rdmldg_ray.engines.answer_log import Writer
from rdmldg_ray.engines.engine import GenerationRequest
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA


def predict(
    writer: Writer,
    samples: pa.Table,
    class_names: list[str],
    config: Config,
    progress: Callable[[int, int, str], None],
) -> pa.Table:
    """Greedy answers of every configured pathway, in ``PREDICTION_SCHEMA``.

    The direct pathway's answer is constrained to the options, which are the class names or, in a data set
    of questions, the sample's own; the reasoning pathway's is what stands in its conclusion.

    Args:
        writer: an engine pool, or what stands before one.
        samples: an index with columns ``split`` and ``held_out`` added.
    """
    pathways = config.evaluation.pathways
    total = len(samples) * len(pathways)
    tables: list[pa.Table] = []
    for pathway in pathways:
        request = GenerationRequest(
            pathway=pathway,
            candidate=0,
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=config.evaluation.max_new_tokens,
            seed=config.seed,
        )
        for answers in writer.generate(samples, request):
            tables.append(score_answers(answers, samples, class_names, pathway))
            progress(sum(len(t) for t in tables), total, pathway)
    return pa.concat_tables(tables).sort_by([("pathway", "ascending"), ("id", "ascending")])


def score_answers(answers: pa.Table, samples: pa.Table, class_names: list[str], pathway: Pathway) -> pa.Table:
    """Answers of an engine with the class they name and whether it is the label.

    Raises:
        ValueError: for an image that did not decode; accuracies over other images would not compare.
    """
    columns = ["id", "domain", "split", "held_out", "label", *question_columns(samples)]
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
