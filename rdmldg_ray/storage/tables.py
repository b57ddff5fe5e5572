"""Parquet, and the images within it."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from rdmldg_ray.storage.files import StorageError, errors_explained, list_files, open_location, write_bytes

_MAX_OPENED = 256
# What Arrow keeps an extension type's name under, in the metadata of a field.
_EXTENSION = b"ARROW:extension:name"


def read_table(
    location: str,
    columns: list[str] | None = None,
    renamed: Mapping[str, str] | None = None,
    schema: pa.Schema | None = None,
) -> pa.Table:
    """A Parquet file, or all Parquet files below a folder in sorted order, as one table.

    Args:
        columns: those that are wanted, or None for all.
        renamed: by a column's name in files of an earlier release, its name now.
        schema: columns that each file has, where they are wanted, and their types.

    Raises:
        StorageError: when there is none, or it lacks a column of the schema, has one of another type, or has
            nulls in one that is not nullable.
    """
    files = [location] if location.endswith(".parquet") else list_files(location, ".parquet")
    if not files:
        raise StorageError(f"{location}: no Parquet files here")
    tables = [_read_parquet(file, columns, renamed or {}, schema or pa.schema([])) for file in files]
    # Parts of earlier releases lack a column that later ones have.
    return pa.concat_tables(tables, promote_options="default")


def _read_parquet(
    location: str, columns: list[str] | None, renamed: Mapping[str, str], schema: pa.Schema
) -> pa.Table:
    with open_parquet(location) as parquet:
        names = parquet.schema_arrow.names
        before = {now: then for then, now in renamed.items() if then in names and now not in names}
        wanted = columns and [before.get(column, column) for column in columns]
        table = parquet.read(wanted)
    now = {then: now for now, then in before.items()}
    table = table.rename_columns([now.get(name, name) for name in table.column_names])
    return _in_types(location, table, [field for field in schema if columns is None or field.name in columns])


def _in_types(location: str, table: pa.Table, fields: Sequence[pa.Field]) -> pa.Table:
    """A table with columns of these types, as another program may have written it anew with others."""
    for field in fields:
        if table.column_names.count(field.name) != 1:
            found = ", ".join(table.column_names) or "none"
            raise StorageError(
                f"{location}: has not one column '{field.name}'; its columns are: {found}; restore it"
            )
        place = table.column_names.index(field.name)
        if not field.nullable and table.column(place).null_count:
            raise StorageError(f"{location}: its column '{field.name}' lacks values; restore it")
        if table.schema.field(place).type == field.type:
            continue
        try:
            column = table.column(place).cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise StorageError(
                f"{location}: its column '{field.name}' is not of {field.type} ({error}); restore it"
            ) from None
        table = table.set_column(place, field.name, column)
    return table


@contextmanager
def open_parquet(location: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose metadata is read and whose columns are to be chosen.

    Raises:
        StorageError: when it is missing, cannot be read, or has a column of an extension type.
    """
    with errors_explained(location, "read"), _open(location) as parquet:
        yield parquet


def _open(location: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file whose columns are all of Arrow's own types: the only place that opens one.

    A file names the extension types of its columns, and a package that knows one decides how its values are
    read: Ray Data's for Python objects unpickles them, which runs whatever the file says.
    """
    filesystem, path = open_location(location)
    try:
        parquet = pq.ParquetFile(path, metadata=metadata, filesystem=filesystem)
    except (OSError, pa.ArrowInvalid):
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        # What a registered type says to parameters that are not its own.
        raise StorageError(f"{location}: cannot be read ({error}); {_WRITE_PLAIN}") from error
    schema = parquet.schema_arrow
    # In the serialized form it is found at any depth, and whether or not a package here knows the type:
    # the process that the table is sent to may.
    if _EXTENSION in schema.serialize().to_pybytes():
        parquet.close()
        found = [
            f"column '{column.name}' is of {name}"
            for column in schema
            if (name := _extension_type(column)) is not None
        ]
        raise StorageError(
            f"{location}: not read, since values of an Arrow extension type may run code as they are read"
            f" ({', '.join(found) or schema}); {_WRITE_PLAIN}"
        )
    return parquet


_WRITE_PLAIN = "write the file again with columns of plain types, or remove it"


def _extension_type(field: pa.Field) -> str | None:
    """The name of the first extension type in a field or below it."""
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    if field.metadata and _EXTENSION in field.metadata:
        return str(field.metadata[_EXTENSION], errors="replace")
    below = (_extension_type(field.type.field(place)) for place in range(field.type.num_fields))
    return next((name for name in below if name is not None), None)


def read_images(index: pa.Table) -> list[bytes]:
    """The encoded images that rows point at with ``file``, ``row_group`` and ``row``, in their order.

    Each row group is read once. Files are taken to be what they were: parts of a data set do not change.

    Raises:
        StorageError: when a file cannot be read.
    """
    wanted: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    columns = (index[name].to_pylist() for name in ("file", "row_group", "row"))
    for position, (file, group, row) in enumerate(zip(*columns, strict=True)):
        wanted[file, group].append((row, position))
    images = [b""] * len(index)
    for places, group_images in zip(wanted.values(), _readers().map(_read_group, wanted), strict=True):
        for row, position in places:
            images[position] = group_images[row].as_py()
    return images


# A batch takes rows from all over a data set, and each is a request to S3 that is mostly waiting.
@lru_cache(maxsize=1)
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="read-images")


def _read_group(place: tuple[str, int]) -> pa.ChunkedArray:
    location, group = place
    # On a disk opening is quick, and a process may often have no more than 1,024 files open.
    opened = _kept_open if location.startswith("s3://") else _open_known
    with errors_explained(location, "read"):
        return opened(location).read_row_group(group, columns=["image"])["image"]


_opened = threading.local()


def _kept_open(location: str) -> pq.ParquetFile:
    """A file on S3, where opening one is a request and leaves nothing open on this machine."""
    # A reader is for one thread at a time.
    files: dict[str, pq.ParquetFile] = _opened.__dict__.setdefault("files", {})
    if location not in files:
        if len(files) >= _MAX_OPENED:
            files.clear()
        files[location] = _open_known(location)
    return files[location]


def _open_known(location: str) -> pq.ParquetFile:
    return _open(location, _metadata(location))


@lru_cache(maxsize=4096)
def _metadata(location: str) -> pq.FileMetaData:
    with open_parquet(location) as parquet:
        return parquet.metadata


def write_table(location: str, table: pa.Table) -> None:
    """Write one Parquet file whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(location, sink.getvalue().to_pybytes())
