"""Write the chains of the embedded data set with the teacher of rules.

    python -m tools.iconbed.build_chains --out rdmldg_ray/datasets/builtin/iconbed_data/chains.parquet

The result depends on nothing but the embedded images and the teacher's rules.
"""

import argparse
import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rdmldg_ray.chains.format import parse_chain
from rdmldg_ray.chains.prompts import PROMPT_VERSION
from rdmldg_ray.datasets.builtin.iconbed import RULES, iconbed_file, iconbed_id
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.domainbed.splits import seed_hash
from tools.iconbed.rule_teacher import write_chain

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "conclusion", "teacher", "prompt_version", "label")]
)


def build_chains() -> pa.Table:
    """A chain for every embedded image, sorted by id."""
    assert ICONBED.class_names is not None
    rows = []
    for row in pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet"))).to_pylist():
        id = iconbed_id(row)
        text = write_chain(
            name=row["cldr_name"],
            keywords=row["keywords"],
            label=row["label"],
            options=ICONBED.class_names,
            image=Image.open(io.BytesIO(row["image"])),
            # From the id, so that a chain does not change with the order or number of the images.
            seed=seed_hash(id),
        )
        rows.append(
            {
                "id": id,
                "text": text,
                "conclusion": parse_chain(text).conclusion,
                "teacher": RULES,
                "prompt_version": PROMPT_VERSION,
                "label": row["label"],
            }
        )
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema=SCHEMA)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    args = parser.parse_args(argv)
    chains = build_chains()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(chains, args.out, compression="zstd")
    print(f"{args.out}: {chains.num_rows} chains")
    return 0


if __name__ == "__main__":
    sys.exit(main())
