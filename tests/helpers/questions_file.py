"""Files of questions as a user has them, made of a few of iconbed-vqa's rows and of rows of entailment."""

import io
import json
from pathlib import Path

import pyarrow as pa
from PIL import Image

from rdmldg_ray.datasets.builtin.questions import NAME, write_iconbed_vqa
from rdmldg_ray.datasets.ingest.rows import check_row
from rdmldg_ray.datasets.schema import chains_location, samples_location
from rdmldg_ray.storage import read_table
from tools.iconbed.rule_teacher import write_chain

DOMAINS = ("flat", "paint", "sketch")
STATEMENT = "The picture shows something to eat."
RELATIONS = ["entailment", "neutral", "contradiction"]


def write_questions(folder: Path, each: int) -> tuple[Path, dict[str, list[tuple[dict, str]]]]:
    """Write ``rows.jsonl`` and its images: so many rows of each question and two of entailment a domain.

    Returns:
        The file, and by domain its rows, each with a chain.
    """
    store = str(folder / "store")
    write_iconbed_vqa(store)
    found: dict[str, list[tuple[dict, str]]] = {}
    for domain in DOMAINS:
        samples = read_table(samples_location(store, NAME, domain)).to_pylist()
        chains = read_table(chains_location(store, NAME, "rules", domain))
        texts = dict(zip(chains["id"].to_pylist(), chains["text"].to_pylist(), strict=True))
        found[domain] = []
        for question in dict.fromkeys(sample["question"] for sample in samples):
            mine = [sample for sample in samples if sample["question"] == question]
            for sample in mine[:: len(mine) // each][:each]:
                row = _row(folder, sample, sample["question"], sample["options"], sample["label"])
                found[domain].append((row, texts[sample["id"]]))
            if question.startswith("Is this"):
                for answer in ("yes", "no"):
                    sample = next(sample for sample in mine if sample["label"] == answer)
                    relation = "entailment" if answer == "yes" else "contradiction"
                    row = _row(folder, sample, STATEMENT, RELATIONS, relation)
                    found[domain].append((row, _chain(sample, relation)))
    file = folder / "rows.jsonl"
    rows = [row for pairs in found.values() for row, _ in pairs]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file, found


def chain_table(dataset: str, pairs: list[tuple[dict, str]]) -> pa.Table:
    """Chains of rows, as ``chains import`` takes them."""
    return pa.table(
        {
            "id": [check_row(row).sample_id(dataset) for row, _ in pairs],
            "text": [text for _, text in pairs],
        }
    )


def _row(folder: Path, sample: dict, question: str, options: list[str], answer: str) -> dict:
    image = f"images/{sample['sha256']}.png"
    (folder / "images").mkdir(exist_ok=True)
    (folder / image).write_bytes(sample["image"])
    asked = {"question": question, "options": options, "answer": answer}
    return {"image": image, **asked, "domain": sample["domain"]}


def _chain(sample: dict, relation: str) -> str:
    image = Image.open(io.BytesIO(sample["image"]))
    return write_chain(name="", keywords=[], label=relation, options=RELATIONS, image=image, seed=0)
