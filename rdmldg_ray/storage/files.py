"""Files and folders: found, listed, read, written whole, removed."""

import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from rdmldg_ray.storage import s3

# Each read from S3 is a request.
_READ_AHEAD = 1024 * 1024


class StorageError(ValueError):
    """A location cannot be read or written; the message names it and the remedy."""


def join(root: str, *parts: str) -> str:
    """Join with single slashes, whatever the kind of location."""
    return "/".join([root.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(location: str) -> str:
    """A location that means the same place everywhere.

    Raises:
        StorageError: for an empty one, which would mean whatever folder a process happens to be in.
    """
    if not location.strip():
        raise StorageError("an empty path was given, as by a variable that is not set; give a path")
    # Workers run in other folders, where a relative path would mean another place.
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location and the path within it.

    Raises:
        StorageError: for a scheme that is neither ``s3://`` nor a local path, or a bucket that has no
            valid name.
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
    bucket, *keys = path.split("/")
    if not s3.BUCKET.fullmatch(bucket):
        # What stands before an @ may be a credential, so the location is not repeated.
        shown = "s3://...@..." if "@" in path else location
        raise StorageError(
            f"{shown}: no valid bucket name; write s3://bucket/prefix, and give credentials in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )
    with errors_explained(location, "opened"):
        return s3.connect(bucket), "/".join([bucket, *filter(None, keys)])


def as_uri(location: str) -> str:
    """A location for a library that parses it as a URI, as Ray Train does: spaces and the like escaped."""
    return f"s3://{quote(location.removeprefix('s3://'))}" if location.startswith("s3://") else location


@contextmanager
def errors_explained(location: str, done: str) -> Iterator[None]:
    """Turn what a file system raises into a StorageError with the location and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, FileNotFoundError):
            _check_bucket(location)
        code = re.search(r"AWS Error (\w+)", str(error))
        if location.startswith("s3://") and (code or "resolving region" in str(error)):
            # S3's own words may quote the request and with it a key, so only its code is repeated.
            problem = s3.explain(location, code.group(1) if code else "NO_SUCH_BUCKET")
            raise StorageError(f"{location}: cannot be {done}: {problem}") from None
        remedy = (
            "; choose another storage path or mend its permissions" if done in ("written", "deleted") else ""
        )
        raise StorageError(f"{location}: cannot be {done} ({error}){remedy}") from error


def _check_bucket(location: str) -> None:
    """Raise for a missing bucket; servers and pyarrow tell it apart from a missing key only here."""
    if location.startswith("s3://"):
        filesystem, path = open_location(location)
        with errors_explained(location, "found"):
            found = filesystem.get_file_info(path.split("/")[0]).type
        if found == fs.FileType.NotFound:
            raise StorageError(f"{location}: cannot be found: {s3.explain(location, 'NO_SUCH_BUCKET')}")


def _file_type(location: str) -> fs.FileType:
    filesystem, path = open_location(location)
    with errors_explained(location, "found"):
        found = filesystem.get_file_info(path).type
    if found == fs.FileType.NotFound:
        _check_bucket(location)
    return found


def exists(location: str) -> bool:
    """Whether a file or a folder is there.

    Raises:
        StorageError: when that cannot be told: a missing bucket, refused credentials, no server.
    """
    return bool(_file_type(location) != fs.FileType.NotFound)


def is_file(location: str) -> bool:
    """Whether a file is there; raises as ``exists`` does."""
    return bool(_file_type(location) == fs.FileType.File)


@dataclass(frozen=True)
class FileEntry:
    """A file in a listing."""

    location: str
    size: int
    """Bytes."""
    mtime_ns: int
    """When it was last written, in nanoseconds since 1970; to the second on S3."""


def list_entries(location: str) -> list[FileEntry]:
    """All files below a folder, sorted by plain string order; empty when the folder is missing.

    Raises:
        StorageError: when the folder cannot be listed.
    """
    filesystem, path = open_location(location)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    prefix = "s3://" if location.startswith("s3://") else ""
    with errors_explained(location, "listed"):
        try:
            infos = filesystem.get_file_info(selector)
        except NotADirectoryError:
            infos = []  # a file; S3 lists nothing below one
    if not infos:
        _check_bucket(location)
    entries = [
        FileEntry(prefix + info.path, info.size, info.mtime_ns)
        for info in infos
        if info.type == fs.FileType.File
    ]
    # Neither servers nor disks are to be relied on for an order.
    return sorted(entries, key=lambda entry: entry.location)


def folder_prefix(location: str) -> str:
    """What the locations of all files below a folder begin with in a listing."""
    _, path = open_location(location)
    return ("s3://" if location.startswith("s3://") else "") + path.rstrip("/") + "/"


def list_files(location: str, suffix: str = "") -> list[str]:
    """The locations of ``list_entries``, those that end in the suffix."""
    return [entry.location for entry in list_entries(location) if entry.location.endswith(suffix)]


def list_folders(location: str) -> list[str]:
    """The names of the folders directly below a folder, sorted; empty when it is missing.

    Raises:
        StorageError: when the folder cannot be listed.
    """
    filesystem, path = open_location(location)
    with errors_explained(location, "listed"):
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    if not infos:
        _check_bucket(location)
    return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def read_bytes(location: str) -> bytes:
    """The content of a file.

    Raises:
        StorageError: when the file is missing or cannot be read.
    """
    filesystem, path = open_location(location)
    with errors_explained(location, "read"), filesystem.open_input_file(path) as stream:
        return stream.read()


def open_input(location: str) -> io.BufferedReader:
    """A file to read and to seek in, in steps of at least ``_READ_AHEAD`` bytes.

    Raises:
        StorageError: when the file is missing or cannot be opened.
    """
    filesystem, path = open_location(location)
    with errors_explained(location, "read"):
        return io.BufferedReader(filesystem.open_input_file(path), _READ_AHEAD)


def write_bytes(location: str, data: bytes) -> None:
    """Write a file whole: a reader sees the old content or the new, never a part of it.

    Raises:
        StorageError: when the location cannot be written.
    """
    write_chunks(location, [data])


def write_chunks(location: str, chunks: Iterable[bytes]) -> None:
    """Write a file whole, as ``write_bytes`` does, from content that need not fit in memory.

    What the chunks' own iteration raises passes through, and what was there before stays.

    Raises:
        StorageError: when the location cannot be written.
    """
    filesystem, path = open_location(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        bucket, _, key = path.partition("/")
        try:
            s3.upload(bucket, key, chunks)
        except s3.RefusedError as refused:
            problem = s3.explain(location, refused.code)
            raise StorageError(f"{location}: cannot be written: {problem}") from None
        return
    unfinished = f"{path}.{uuid.uuid4().hex}.tmp"
    with errors_explained(location, "written"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # By default a name that ends in .gz would have its content compressed once more.
        stream = filesystem.open_output_stream(unfinished, compression=None)
    try:
        for chunk in chunks:
            with errors_explained(location, "written"):
                stream.write(chunk)
        with errors_explained(location, "written"):
            stream.close()
            os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            stream.close()
        with suppress(OSError):
            filesystem.delete_file(unfinished)
        raise


def read_json(location: str) -> Any:
    """A JSON file's content."""
    return json.loads(read_bytes(location))


def write_json(location: str, value: Any) -> None:
    """Write JSON, indented, replacing the file whole."""
    write_bytes(location, (json.dumps(value, indent=2) + "\n").encode())


def delete_file(location: str) -> None:
    """Remove a file; nothing happens when it is missing."""
    filesystem, path = open_location(location)
    with errors_explained(location, "deleted"), suppress(FileNotFoundError):
        filesystem.delete_file(path)


def delete_folder(location: str) -> None:
    """Remove a folder and what is in it; nothing happens when it is missing.

    Raises:
        StorageError: when it cannot be removed, or the location is not the plain path of a folder in
            another: ``..`` or an empty part, as an empty name leaves it, would remove more than was meant.
    """
    scheme, _, path = location.rpartition("://")
    first, *parts = path.split("/")
    if not parts or {"", ".", ".."} & {*parts, first if scheme == "s3" else "folder"}:
        raise StorageError(f"{location}: not deleted, since this is no plain path of a folder; correct it")
    if _file_type(location) == fs.FileType.Directory:
        filesystem, path = open_location(location)
        # Another process may be removing it.
        with errors_explained(location, "deleted"), suppress(FileNotFoundError):
            filesystem.delete_dir(path)


def check_writable(location: str) -> None:
    """Write and remove a small file, so that a run fails in its first second and not in its last.

    Raises:
        StorageError: when the location cannot be written.
    """
    # Some servers would create a missing bucket, and a misspelt one is not to be created.
    _check_bucket(location)
    probe = join(location, f".write-test-{uuid.uuid4().hex}")
    write_bytes(probe, b"")
    delete_file(probe)
