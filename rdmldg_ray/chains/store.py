"""Chains on storage, one folder for each domain, so that a held-out domain's are never read.

A teacher's chains are the parts of one version, which chains.json in the teacher's folder names. Without that
file they are the parts without a version, as an annotation writes them, or in an embedded data set those of
the version of the data set itself. So chains that replace others are written beside them, and take their
place when chains.json is written.
"""

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pyarrow as pa

from rdmldg_ray import storage
from rdmldg_ray.datasets.schema import (
    CHAIN_SCHEMA,
    CHAINS_FILE,
    chains_location,
    info_location,
    of_version,
    part_name,
    part_version,
    read_description,
)

_IMAGE = "image_sha256"
# What every file of chains has, those of candidates and of earlier releases too.
_READ = pa.schema(
    [
        *(CHAIN_SCHEMA.field(name).with_nullable(False) for name in ("id", "candidate", "text", "accepted")),
        CHAIN_SCHEMA.field("reason"),
    ]
)


def chain_files(root: str, name: str, teacher: str, domains: Sequence[str]) -> list[str]:
    """The files of a teacher's chains of the given domains; none when there are none.

    Raises:
        ValueError: when chains.json is broken.
    """
    prefix = storage.folder_prefix(chains_location(root, name, teacher))
    there = storage.list_files(prefix.rstrip("/"))
    version = _current_version(root, name, teacher, there)
    files = [file for file in of_version(there, version) if file.endswith(".parquet")]
    return [file for domain in domains for file in files if file.startswith(f"{prefix}{domain}/")]


def _current_version(root: str, name: str, teacher: str, there: Sequence[str]) -> str:
    """The version of the chains that count, of the files that are there."""
    location = storage.join(chains_location(root, name, teacher), CHAINS_FILE)
    if storage.folder_prefix(chains_location(root, name, teacher)) + CHAINS_FILE in there:
        version = (read_description(location) or {}).get("version")
        if not isinstance(version, str):
            raise ValueError(
                f"{location}: does not name a version of the chains; import the chains again (--replace)"
            )
        return version
    versions = {part_version(file) for file in there}
    if versions <= {""}:
        return ""
    of_dataset = (read_description(info_location(root, name)) or {}).get("version", "")
    return of_dataset if of_dataset in versions else ""


def read_chains(
    root: str, name: str, teacher: str, domains: Sequence[str], columns: list[str] | None = None
) -> pa.Table:
    """The chains that a teacher wrote for samples of the given domains; no other file is opened.

    Args:
        columns: the columns that are wanted, or None for all.

    Raises:
        StorageError: when there are none.
    """
    files = chain_files(root, name, teacher, domains)
    if not files:
        raise storage.StorageError(
            f"{chains_location(root, name, teacher)}: no chains for {', '.join(domains)}; choose another "
            "teacher (data.chains), or import or write chains for them"
        )
    # Parts of earlier releases lack a column that later ones have.
    return pa.concat_tables([read_chain_file(file, columns) for file in files], promote_options="default")


def read_chain_file(location: str, columns: list[str] | None = None) -> pa.Table:
    """A file or folder of chains; release 0.1.0 called the column ``accepted`` ``kept``."""
    table = storage.read_table(location, columns, renamed={"kept": "accepted"}, schema=_READ)
    if _IMAGE not in table.column_names and (columns is None or _IMAGE in columns):
        # As earlier releases wrote it.
        place = min(CHAIN_SCHEMA.get_field_index(_IMAGE), table.num_columns)
        table = table.add_column(place, _IMAGE, pa.nulls(len(table), pa.string()))
    return table


def write_chains(root: str, name: str, teacher: str, chains: Mapping[str, pa.Table]) -> None:
    """Write a teacher's chains in the place of earlier ones, which stay until all of these are written.

    Args:
        chains: tables of CHAIN_SCHEMA by domain.

    Raises:
        ValueError: when other chains were written in their place meanwhile.
        StorageError: when they cannot be written.
    """
    folder = chains_location(root, name, teacher)
    commit = storage.join(folder, CHAINS_FILE)
    # Before the listing: whoever has written parts that are in it has read this commit or an earlier one.
    committed, there = storage.read_if_there(commit), storage.list_files(folder)
    try:
        before: str | None = _current_version(root, name, teacher, there)
    except storage.StorageError:
        raise
    except ValueError:
        before = None  # the commit is broken, and is mended by this one
    version = uuid.uuid4().hex[:12]
    parts = {
        storage.join(chains_location(root, name, teacher, domain), part_name(0, version)): table
        for domain, table in chains.items()
    }

    def give_up() -> None:
        for part in parts:
            with suppress(OSError, ValueError):
                storage.delete_file(part)

    try:
        for part, table in parts.items():
            assert table.schema.equals(CHAIN_SCHEMA)
            storage.write_table(part, table)
    except BaseException:
        give_up()
        raise
    # One that raises may have come to pass, and then these parts count.
    mine = {"version": version, "host": socket.gethostname(), "pid": os.getpid()}
    if not storage.write_if_unchanged(commit, storage.json_bytes(mine), committed):
        give_up()
        other = read_description(commit) or {}
        by = f" by process {other['pid']} on {other['host']}" if {"pid", "host"} <= other.keys() else ""
        raise ValueError(f"{folder}: other chains were written here meanwhile{by}; write these again")
    # Parts of versions that never came to count are of writers that were killed, or that find this commit
    # where they are to write theirs. What an annotation wrote after the listing stays, though it does not
    # count: it was paid for.
    dead = {before, *(version for version in map(part_version, there) if version)}
    for file in there:
        replaced = file.endswith(".parquet") and part_version(file) in dead
        if replaced or file.endswith("/annotation.json"):  # which says whose chains were replaced
            storage.delete_file(file)
