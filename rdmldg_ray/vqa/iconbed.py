"""Questions about IconBed's drawings, by rules from their classes and names: a small set to try the form on.

Three questions of 96 rows in each domain, their answers in equal numbers:

- "Is this something to eat?" yes, no. Drinks, plants and animals other than bugs, of which that could be
  argued, are not asked about.
- "What kind of thing is this?" with eight options, each of which holds one to four of the classes.
- "Which of these is drawn here?" with four names of drawings, of four classes. The three wrong ones are
  drawn anew in every domain, so that words alone do not give the answer away.

The chains are the teacher of rules'.
"""

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rdmldg_ray import storage
from rdmldg_ray.chains.format import normalize_answer, parse_chain
from rdmldg_ray.chains.prompts import PROMPT_VERSION
from rdmldg_ray.chains.rules import KINDS, REFLECTIONS, SUMMARIES, write_chain
from rdmldg_ray.chains.store import write_chains
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.domainbed.samples import (
    CHAIN_SCHEMA,
    QUESTION_SCHEMA,
    RULES,
    SAMPLE_SCHEMA,
    DatasetInfo,
    dataset_location,
    has_content,
    iconbed_file,
    iconbed_id,
    iconbed_samples,
    info_location,
    write_samples,
)
from rdmldg_ray.domainbed.splits import seed_hash
from rdmldg_ray.vqa.rows import Row

NAME = "iconbed-vqa"
EAT = "Is this something to eat?"
KIND = "What kind of thing is this?"
WHICH = "Which of these is drawn here?"

# What the rules below give; raise it with any change of them.
_VERSION = "1"
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


def iconbed_vqa_info() -> DatasetInfo:
    """What the set holds, without its images and chains."""
    rows = [question.row for question in _questions(_drawings(images=False))]
    return DatasetInfo(
        name=NAME,
        environments=ICONBED.environments,
        classes=tuple(sorted({row.answer for row in rows})),
        counts={domain: sum(row.domain == domain for row in rows) for domain in ICONBED.environments},
        questions=True,
    )


def write_iconbed_vqa(root: str) -> None:
    """Lay the set and its chains down on storage; does nothing when they are there.

    Raises:
        StorageError: when the storage cannot be written.
    """
    info_file, content = info_location(root, NAME), f"rules {_VERSION}"
    if has_content(info_file, content):
        return
    storage.delete_folder(dataset_location(root, NAME))
    info = iconbed_vqa_info()
    known = {row["id"]: row for row in iconbed_samples().to_pylist()}
    questions = list(_questions(_drawings(images=True)))
    schema = pa.schema([*SAMPLE_SCHEMA, *QUESTION_SCHEMA])
    for domain in info.environments:
        mine = [question for question in questions if question.row.domain == domain]
        mine.sort(key=lambda question: question.row.sample_id(NAME))
        samples, chains = [], []
        for index, question in enumerate(mine):
            row, sample_id = question.row, question.row.sample_id(NAME)
            told = {"id": sample_id, "label": row.answer, "label_id": info.classes.index(row.answer)}
            asked = {"question": row.question, "options": row.options}
            samples.append({**known[iconbed_id(question.drawing)], **told, **asked, "index": index})
            chains.append(_chain(question, sample_id))
        write_samples(root, NAME, domain, 0, pa.Table.from_pylist(samples, schema=schema))
        write_chains(root, NAME, RULES, domain, pa.Table.from_pylist(chains, schema=CHAIN_SCHEMA))
    storage.write_json(info_file, {**asdict(info), "content": content})


def _drawings(images: bool) -> list[dict[str, Any]]:
    columns = ["domain", "label", "hexcode", "cldr_name", "keywords", *(["image"] if images else [])]
    table = pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet")), columns=columns)
    rows: list[dict[str, Any]] = table.to_pylist()
    return sorted(rows, key=lambda row: (row["domain"], row["hexcode"]))


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
            yield _Question(drawing, row, kinds, _EAT_SUMMARIES, _EAT_REFLECTIONS)


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


def _chain(question: _Question, sample_id: str) -> dict[str, Any]:
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
    return {
        "id": sample_id,
        "candidate": 0,
        "text": text,
        "conclusion": parse_chain(text).conclusion,
        "kept": True,
        "reason": None,
        "prompt_version": PROMPT_VERSION,
        "model": RULES,
    }
