"""One thin way to object storage and to the local disk.

A location is a plain string: a local path or ``s3://bucket/prefix``. Endpoint, region and
credentials of S3 come from the usual AWS environment variables and files, and from nowhere else.
"""

import json
import os
import shutil
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs


class StorageError(ValueError):
    """A location cannot be read or written; the message names it and the remedy."""


def join(root: str, *parts: str) -> str:
    """Join with single slashes, whatever the kind of location."""
    return "/".join([root.rstrip("/"), *(part.strip("/") for part in parts)])


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location and the path within it.

    Raises:
        StorageError: for a scheme that is neither ``s3://`` nor a local path.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(location))
    scheme, path = location.split("://", 1)
    if scheme == "file":
        return fs.LocalFileSystem(), path
    if scheme != "s3":
        raise StorageError(
            f"{location}: unknown scheme '{scheme}://'; use a local path or s3://bucket/prefix"
        )
    return fs.S3FileSystem(), path


def exists(location: str) -> bool:
    """Whether a file or a folder is there."""
    filesystem, path = open_location(location)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def list_files(location: str, suffix: str = "") -> list[str]:
    """All files below a folder, sorted by plain string order; empty when the folder is missing."""
    filesystem, path = open_location(location)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    prefix = "s3://" if isinstance(filesystem, fs.S3FileSystem) else ""
    infos = filesystem.get_file_info(selector)
    return sorted(prefix + i.path for i in infos if i.type == fs.FileType.File and i.path.endswith(suffix))


def read_bytes(location: str) -> bytes:
    """The content of a file.

    Raises:
        StorageError: when the file is missing or cannot be read.
    """
    filesystem, path = open_location(location)
    try:
        with filesystem.open_input_file(path) as stream:
            return stream.read()
    except OSError as error:
        raise StorageError(f"{location}: cannot be read ({error})") from error


def write_bytes(location: str, data: bytes) -> None:
    """Write a file whole: a reader sees the old content or the new, never a part of it.

    Raises:
        StorageError: when the location cannot be written.
    """
    filesystem, path = open_location(location)
    # An S3 object appears when its upload completes; a local file must be renamed into place.
    local = isinstance(filesystem, fs.LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}.tmp" if local else path
    try:
        if local:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with filesystem.open_output_stream(target) as stream:
            stream.write(data)
        if local:
            os.replace(target, path)
    except OSError as error:
        raise StorageError(
            f"{location}: cannot be written ({error}); choose another storage path or mend its permissions"
        ) from error


def read_json(location: str) -> Any:
    """A JSON file's content."""
    return json.loads(read_bytes(location))


def write_json(location: str, value: Any) -> None:
    """Write JSON, indented, replacing the file whole."""
    write_bytes(location, (json.dumps(value, indent=2) + "\n").encode())


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file, or all Parquet files below a folder in sorted order, as one table.

    Raises:
        StorageError: when there is none.
    """
    files = [location] if location.endswith(".parquet") else list_files(location, ".parquet")
    if not files:
        raise StorageError(f"{location}: no Parquet files here")
    return pa.concat_tables([_read_parquet(file, columns) for file in files])


def _read_parquet(location: str, columns: list[str] | None) -> pa.Table:
    filesystem, path = open_location(location)
    try:
        return pq.read_table(path, columns=columns, filesystem=filesystem, partitioning=None)
    except OSError as error:
        raise StorageError(f"{location}: cannot be read ({error})") from error


def read_images(index: pa.Table) -> list[bytes]:
    """The encoded images that rows point at with ``file``, ``row_group`` and ``row``, in their order."""
    places = zip(*(index[name].to_pylist() for name in ("file", "row_group", "row")), strict=True)
    return [_row_group_images(file, group)[row].as_py() for file, group, row in places]


# A batch takes rows from all over a data set; keeping the last few row groups spares most reads.
@lru_cache(maxsize=32)
def _row_group_images(location: str, group: int) -> pa.ChunkedArray:
    filesystem, path = open_location(location)
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        return parquet.read_row_group(group, columns=["image"])["image"]


def write_table(location: str, table: pa.Table) -> None:
    """Write one Parquet file whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(location, sink.getvalue().to_pybytes())


def upload_folder(local: Path, location: str) -> None:
    """Copy every file below a local folder to a location."""
    for file in sorted(p for p in local.rglob("*") if p.is_file()):
        write_bytes(join(location, file.relative_to(local).as_posix()), file.read_bytes())


def download_folder(location: str, local: Path) -> Path:
    """Copy every file below a location into a local folder, replacing what was there.

    Raises:
        StorageError: when there is nothing at the location.
    """
    files = list_files(location)
    if not files:
        raise StorageError(f"{location}: nothing to download here")
    shutil.rmtree(local, ignore_errors=True)
    root = location.split("://")[-1] if "://" in location else os.path.abspath(os.path.expanduser(location))
    for file in files:
        target = local / file.split("://")[-1].removeprefix(root.rstrip("/") + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_bytes(file))
    return local


def delete_folder(location: str) -> None:
    """Remove a folder and what is in it; nothing happens when it is missing."""
    filesystem, path = open_location(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def check_writable(location: str) -> None:
    """Write and remove a small file, so that a run fails in its first second and not in its last.

    Raises:
        StorageError: when the location cannot be written.
    """
    probe = join(location, f".write-test-{uuid.uuid4().hex}")
    write_bytes(probe, b"")
    filesystem, path = open_location(probe)
    filesystem.delete_file(path)
