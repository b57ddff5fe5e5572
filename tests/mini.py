"""A small real data set: some of IconBed's images, classes and domains, with the rules' chains."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray.domainbed.samples import (
    CHAIN_SCHEMA,
    RULES,
    SAMPLE_SCHEMA,
    chains_location,
    dataset_location,
    iconbed_file,
    iconbed_samples,
    samples_location,
)
from rdmldg_ray.storage import join, write_json, write_table

NAME = "mini"
DOMAINS = ("flat", "paint", "sketch")
CLASSES = ("bird", "building", "vehicle")
PER_CLASS = 10


def write_mini(root: str) -> None:
    """Write the data set ``mini``: 3 domains x 3 classes x 10 images."""
    samples = iconbed_samples()
    chains = pq.read_table(io.BytesIO(iconbed_file("chains.parquet"))).to_pylist()
    texts = {row["id"]: row for row in chains}
    chain_rows = []
    for domain in DOMAINS:
        rows = []
        for number, label in enumerate(CLASSES):
            wanted = (pc.field("domain") == domain) & (pc.field("label") == label)
            rows += [row | {"label_id": number} for row in samples.filter(wanted).to_pylist()[:PER_CLASS]]
        for index, row in enumerate(rows):
            old = row["id"]
            row |= {"index": index, "id": old.replace("iconbed/", f"{NAME}/")}
            chain_rows.append(
                {
                    "id": row["id"],
                    "candidate": 0,
                    "text": texts[old]["text"],
                    "conclusion": texts[old]["conclusion"],
                    "kept": True,
                    "reason": None,
                    "prompt_version": texts[old]["prompt_version"],
                    "model": RULES,
                }
            )
        table = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
        write_table(join(samples_location(root, NAME, domain), "part-00000.parquet"), table)
    chains_table = pa.Table.from_pylist(chain_rows, schema=CHAIN_SCHEMA)
    write_table(join(chains_location(root, NAME, RULES), "part-00000.parquet"), chains_table)
    counts = dict.fromkeys(DOMAINS, PER_CLASS * len(CLASSES))
    info = {"name": NAME, "environments": DOMAINS, "classes": CLASSES, "counts": counts}
    write_json(join(dataset_location(root, NAME), "dataset.json"), info)
