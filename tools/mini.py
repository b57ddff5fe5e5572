"""A small real data set: some of IconBed's images, classes and domains, with the rules' chains."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdmldg_ray.chains.store import write_chains
from rdmldg_ray.datasets.builtin.iconbed import RULES, iconbed_file, iconbed_samples
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, SAMPLE_SCHEMA, dataset_location, write_samples
from rdmldg_ray.storage import join, write_json

NAME = "mini"
DOMAINS = ("flat", "paint", "sketch")
CLASSES = ("bird", "building", "vehicle")
PER_CLASS = 10
# Of the demo, to run it on this data set.
SETTINGS = [
    f"data.dataset={NAME}",
    "data.held_out=flat",
    "lora.rank=16",
    "lora.alpha=32",
    "mtct.epochs=4",
    "mtct.learning_rate=1.0e-3",
    "mtct.batch_size=16",
    "mtct.micro_batch_size=8",
    "mtct.checkpoint_every=4",
    "sarr.max_attempts=3",
    "sarr.temperatures=[0.3, 0.6]",
    "sarr.without_chain=drop",
    "sarr.training.epochs=1",
    "sarr.training.learning_rate=5.0e-4",
    "sarr.training.batch_size=8",
    "sarr.training.micro_batch_size=4",
]


def write_mini(root: str) -> None:
    """Write the data set ``mini``: 3 domains x 3 classes x 10 images."""
    samples = iconbed_samples()
    chain_tables = {}
    chains = pq.read_table(io.BytesIO(iconbed_file("chains.parquet"))).to_pylist()
    texts = {row["id"]: row for row in chains}
    for domain in DOMAINS:
        rows, chain_rows = [], []
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
                    "accepted": True,
                    "reason": None,
                    "prompt_version": texts[old]["prompt_version"],
                    "model": RULES,
                }
            )
        table = pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)
        write_samples(root=root, name=NAME, domain=domain, part=0, samples=table)
        chain_tables[domain] = pa.Table.from_pylist(chain_rows, schema=CHAIN_SCHEMA)
    write_chains(root, NAME, RULES, chain_tables)
    counts = dict.fromkeys(DOMAINS, PER_CLASS * len(CLASSES))
    info = {"name": NAME, "environments": DOMAINS, "classes": CLASSES, "counts": counts}
    write_json(join(dataset_location(root, NAME), "dataset.json"), info)
