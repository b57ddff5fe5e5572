"""What is asked of a sample, and what it may answer.

A data set of classes asks one question about all images, with its classes for options. One of questions
has both in each of its rows: visual question answering, and entailment, where the question is a statement
and the options are what its relation to the image may be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdmldg_ray.chains.prompts import QUESTION


@dataclass(frozen=True)
class Question:
    """A question and the options for its answer, in the order in which they are shown."""

    text: str
    options: Sequence[str]


def question_of(sample: Mapping[str, Any], class_names: Sequence[str]) -> Question:
    """A sample's own question, where its row has one, or else the question for its class."""
    if sample.get("question") is None:
        return Question(QUESTION, class_names)
    return Question(sample["question"], sample["options"])
