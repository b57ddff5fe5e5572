"""Chains on storage, one folder for each domain, so that a held-out domain's are never read."""

from collections.abc import Sequence

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, PART, chains_location


def read_chains(
    root: str, name: str, teacher: str, domains: Sequence[str], columns: list[str] | None = None
) -> pa.Table:
    """The chains that a teacher wrote for samples of the given domains; no other file is opened.

    Args:
        columns: the columns that are wanted, or None for all.

    Raises:
        StorageError: when there are none.
    """
    files = [
        file
        for domain in domains
        for file in storage.list_files(chains_location(root, name, teacher, domain), ".parquet")
    ]
    if not files:
        raise storage.StorageError(
            f"{chains_location(root, name, teacher)}: no chains for {', '.join(domains)}; choose another "
            "teacher (data.chains), or import or write chains for them"
        )
    # Parts of earlier releases lack a column that later ones have.
    return pa.concat_tables([read_chain_file(file, columns) for file in files], promote_options="default")


def read_chain_file(location: str, columns: list[str] | None = None) -> pa.Table:
    """A file or folder of chains; release 0.1.0 called the column ``accepted`` ``kept``."""
    return storage.read_table(location, columns, renamed={"kept": "accepted"})


def write_chains(root: str, name: str, teacher: str, domain: str, chains: pa.Table) -> None:
    """Write a teacher's chains of one domain, a table of CHAIN_SCHEMA, in the place of earlier ones."""
    assert chains.schema.equals(CHAIN_SCHEMA)
    folder = chains_location(root, name, teacher, domain)
    storage.delete_folder(folder)
    storage.write_table(storage.join(folder, PART.format(0)), chains)
