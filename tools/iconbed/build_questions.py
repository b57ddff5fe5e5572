"""Write the questions of iconbed-vqa: by rules from the classes and names of IconBed's drawings.

    python -m tools.iconbed.build_questions --out rdmldg_ray/datasets/builtin/iconbed_data/questions.parquet

Three questions of 96 rows in each domain, their answers in equal numbers:

- "Is this something to eat?" yes, no. Drinks, plants and animals other than bugs, of which that could be
  argued, are not asked about.
- "What kind of thing is this?" with eight options, each of which holds one to four of the classes.
- "Which of these is drawn here?" with four names of drawings, of four classes. The three wrong ones are
  drawn anew in every domain, so that words alone do not give the answer away.

The chains are the teacher of rules'.
"""

import argparse
import io
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rdmldg_ray.chains.format import normalize_answer, parse_chain
from rdmldg_ray.chains.prompts import PROMPT_VERSION
from rdmldg_ray.datasets.builtin.iconbed import RULES, iconbed_file, iconbed_id
from rdmldg_ray.datasets.builtin.questions import NAME
from rdmldg_ray.datasets.ingest.rows import Row
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.domainbed.splits import seed_hash
from tools.iconbed.rule_teacher import KINDS, REFLECTIONS, SUMMARIES, write_chain

EAT = "Is this something to eat?"
KIND = "What kind of thing is this?"
WHICH = "Which of these is drawn here?"

_EATEN = ("meal", "produce")
_NOT_EATEN = ("bug", "building", "clothing", "tool", "vehicle")
_THINGS = {
    "animal": ("bird", "bug", "mammal", "sea_animal"),
    "building": ("building",),
    "clothing": ("clothing",),
    "drink": ("drink",),
    "food": ("meal", "produce"),
    "plant": ("plant",),
    "tool": ("tool",),
    "vehicle": ("vehicle",),
}
_EACH_ANSWER, _EACH_THING, _EACH_CLASS = 48, 12, 8

# For the chains: what an option means, in words that name no option.
_MEANINGS = {thing: KINDS[classes[0]] for thing, classes in _THINGS.items() if len(classes) == 1} | {
    "animal": ("a creature", "that moves about by itself"),
    "food": ("something", "for the table, raw or cooked"),
}
_YES_NO = {"yes": ("something", "to put on a plate"), "no": ("something", "to keep off the plate")}
_EAT_SUMMARIES = (
    "I look at the picture and decide whether one would put it in the mouth.",
    "The task is to say whether the object is food.",
    "One object is shown; I judge whether it is for a meal.",
)
_EAT_REFLECTIONS = (
    "The answer {other} would take {kind}, and I do not see that here.",
    "What if it were {other}? That would be {kind}, which fits less.",
    "I also thought of {other}, but that would be {kind}.",
)


@dataclass(frozen=True)
class _Question:
    """A row about a drawing, and how the teacher of rules writes of it."""

    drawing: Mapping[str, Any]
    row: Row
    kinds: Mapping[str, tuple[str, str]]
    summaries: Sequence[str] = SUMMARIES
    reflections: Sequence[str] = REFLECTIONS


def build_questions() -> pa.Table:
    """All rows with their chains, by domain and id."""
    packed = pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet"))).to_pylist()
    drawings = sorted(packed, key=lambda row: (row["domain"], row["hexcode"]))
    rows = []
    for question in _questions(drawings):
        row, sample_id = question.row, question.row.sample_id(NAME)
        rows.append(
            {
                "id": sample_id,
                "drawing": iconbed_id(question.drawing),
                "domain": row.domain,
                "question": row.question,
                "options": list(row.options),
                "label": row.answer,
                "teacher": RULES,
                "prompt_version": PROMPT_VERSION,
                **_chain(question, sample_id),
            }
        )
    return pa.Table.from_pylist(sorted(rows, key=lambda row: (row["domain"], row["id"])))


def _questions(drawings: Sequence[Mapping[str, Any]]) -> Iterator[_Question]:
    for domain in ICONBED.environments:
        mine = [drawing for drawing in drawings if drawing["domain"] == domain]
        yield from _eat(mine)
        yield from _kind(mine)
        yield from _which(mine, domain)


def _eat(drawings: Sequence[Mapping[str, Any]]) -> Iterator[_Question]:
    for answer, other, classes in (("yes", "no", _EATEN), ("no", "yes", _NOT_EATEN)):
        for drawing in _some(drawings, classes, EAT, _EACH_ANSWER):
            kinds = {answer: KINDS[normalize_answer(drawing["label"])], other: _YES_NO[other]}
            row = _row(drawing, EAT, ("yes", "no"), answer)
            yield _Question(
                drawing=drawing, row=row, kinds=kinds, summaries=_EAT_SUMMARIES, reflections=_EAT_REFLECTIONS
            )


def _kind(drawings: Sequence[Mapping[str, Any]]) -> Iterator[_Question]:
    for thing, classes in _THINGS.items():
        for drawing in _some(drawings, classes, KIND, _EACH_THING):
            yield _Question(drawing, _row(drawing, KIND, tuple(_THINGS), thing), _MEANINGS)


def _which(drawings: Sequence[Mapping[str, Any]], domain: str) -> Iterator[_Question]:
    assert ICONBED.class_names is not None
    by_class = {name: _some(drawings, (name,), WHICH, _EACH_CLASS) for name in ICONBED.class_names}
    asked = [drawing for chosen in by_class.values() for drawing in chosen]
    for number, drawing in enumerate(asked):
        rng = random.Random(f"{WHICH}/{domain}/{drawing['hexcode']}")
        classes = rng.sample([name for name in by_class if name != drawing["label"]], 3)
        options = [rng.choice(by_class[name]) for name in classes]
        # Each place among the options is right as often as the others.
        options.insert(number % 4, drawing)
        names = [_name(option) for option in options]
        kinds = {
            normalize_answer(name): KINDS[normalize_answer(option["label"])]
            for name, option in zip(names, options, strict=True)
        }
        yield _Question(drawing, _row(drawing, WHICH, tuple(names), _name(drawing)), kinds)


def _some(
    drawings: Sequence[Mapping[str, Any]], classes: Sequence[str], question: str, number: int
) -> list[Mapping[str, Any]]:
    """So many drawings of some classes, in an order of chance that is the same in every domain."""
    found = [drawing for drawing in drawings if drawing["label"] in classes]
    return sorted(found, key=lambda drawing: seed_hash(question, drawing["hexcode"]))[:number]


def _row(drawing: Mapping[str, Any], question: str, options: tuple[str, ...], answer: str) -> Row:
    image = f"{drawing['label']}/{drawing['hexcode']}.png"
    return Row(image, question, options, answer, drawing["domain"])


def _name(drawing: Mapping[str, Any]) -> str:
    return str(drawing["cldr_name"]).replace("\u2019", "'")


def _chain(question: _Question, sample_id: str) -> dict[str, str]:
    text = write_chain(
        name=question.drawing["cldr_name"],
        keywords=question.drawing["keywords"],
        label=question.row.answer,
        options=question.row.options,
        image=Image.open(io.BytesIO(question.drawing["image"])),
        seed=seed_hash(sample_id),
        kinds=question.kinds,
        summaries=question.summaries,
        reflections=question.reflections,
    )
    return {"text": text, "conclusion": parse_chain(text).conclusion}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    args = parser.parse_args(argv)
    questions = build_questions()
    pq.write_table(questions, args.out, compression="zstd")
    print(f"{args.out}: {questions.num_rows} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
