"""Files and folders: found, listed, read, written whole, removed."""

import errno
import fcntl
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

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
        StorageError: for an empty one, which would mean whatever folder a process happens to be in; for a
            ``file:`` URI of no path of this machine; as ``open_location`` for one that is not local.
    """
    if not location.strip():
        raise StorageError("an empty path was given, as by a variable that is not set; give a path")
    if location.startswith("file:"):
        return _local_path(location)
    if "://" in location or location.startswith("s3:"):
        _check_remote(location)
        return location
    # Workers run in other folders, where a relative path would mean another place.
    return os.path.abspath(os.path.expanduser(location))


def _local_path(uri: str) -> str:
    """The path that a ``file:`` URI names."""
    # As a plain path may, it may hold a wildcard's question mark.
    path = re.sub(r"^//(localhost(?=/))?", "", uri.removeprefix("file:"))
    if not path.startswith("/"):
        raise StorageError(f"{uri}: names no path of this machine; write file:///folder, or the plain path")
    return os.path.abspath(unquote(path))


def _check_remote(location: str) -> None:
    """Raise StorageError for a location that is not local and not below a bucket of S3."""
    scheme, _, path = location.partition(":")
    # What stands before an @ may be a credential, so the location is not repeated.
    shown = f"{scheme}://...@..." if "@" in path else location
    if scheme != "s3":
        raise StorageError(f"{shown}: unknown scheme '{scheme}://'; use a local path or s3://bucket/prefix")
    if not path.startswith("//") or not s3.BUCKET.fullmatch(path.removeprefix("//").split("/")[0]):
        raise StorageError(
            f"{shown}: no valid bucket name; write s3://bucket/prefix, and give credentials in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location and the path within it.

    Raises:
        StorageError: for a scheme that is neither ``s3://`` nor a local path, or a bucket that has no
            valid name.
    """
    location = absolute(location)
    if "://" not in location:
        return fs.LocalFileSystem(), location
    bucket, *keys = location.removeprefix("s3://").split("/")
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
    except s3.RefusedError as refused:
        raise _refused(location, done, refused.code) from None
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, FileNotFoundError):
            _check_bucket(location)
        code = _s3_code(location, error)
        if code:
            # S3's own words may quote the request and with it a key, so only its code is repeated.
            raise _refused(location, done, code) from None
        remedy = (
            "; choose another storage path or mend its permissions" if done in ("written", "deleted") else ""
        )
        raise StorageError(f"{location}: cannot be {done} ({error}){remedy}") from error


def _s3_code(location: str, error: Exception) -> str | None:
    """S3's word for what is wrong, in an error of pyarrow's; None where it is another's."""
    code = re.search(r"AWS Error (\w+)", str(error))
    if not location.startswith("s3://") or not (code or "resolving region" in str(error)):
        return None
    if code is None:
        return "NO_SUCH_BUCKET"
    if "HTTP status 301" in str(error):
        return "PERMANENT_REDIRECT"
    if code[1] == "UNKNOWN" or "No response body" in str(error):  # there is more to be told
        return s3.reason(_split_s3(location)[0]) or code[1]
    return code[1]


def _refused(location: str, done: str, code: str) -> StorageError:
    return StorageError(f"{location}: cannot be {done}: {s3.explain(location, code)}")


def _split_s3(location: str) -> tuple[str, str]:
    """Bucket and key of a location on S3."""
    bucket, *keys = location.removeprefix("s3://").split("/")
    return bucket, "/".join(filter(None, keys))


def _check_bucket(location: str) -> None:
    """Raise for a missing bucket; servers and pyarrow tell it apart from a missing key only here."""
    if location.startswith("s3://"):
        filesystem, path = open_location(location)
        with errors_explained(location, "found"):
            try:
                found = filesystem.get_file_info(path.split("/")[0]).type
            except OSError as error:
                # Credentials for a part of a bucket may not ask for all of it.
                if _s3_code(location, error) != "ACCESS_DENIED":
                    raise
                return
        if found == fs.FileType.NotFound:
            raise _refused(location, "found", "NO_SUCH_BUCKET")


def _file_type(location: str) -> fs.FileType:
    filesystem, path = open_location(location)
    with errors_explained(location, "found"):
        try:
            found = filesystem.get_file_info(path).type
        except OSError as error:
            if _s3_code(location, error) != "ACCESS_DENIED":
                raise
            return s3.find(*_split_s3(location))
    if found == fs.FileType.NotFound:
        _check_bucket(location)
    return found


def _infos(location: str, recursive: bool = False) -> list[fs.FileInfo]:
    """What is in a folder; nothing when it is missing, or a file."""
    filesystem, path = open_location(location)
    with errors_explained(location, "listed"):
        try:
            infos = filesystem.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
        except NotADirectoryError:
            return []  # S3 lists nothing below a file
        except OSError as error:
            # pyarrow asks for an empty folder by its name.
            denied = _s3_code(location, error) == "ACCESS_DENIED"
            if denied and s3.find(*_split_s3(location)) != fs.FileType.Directory:
                return []
            raise
    if not infos:
        _check_bucket(location)
    return list(infos)


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
    prefix = "s3://" if location.startswith("s3://") else ""
    entries = [
        FileEntry(prefix + info.path, info.size, info.mtime_ns)
        for info in _infos(location, recursive=True)
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
    return sorted(info.base_name for info in _infos(location) if info.type == fs.FileType.Directory)


def read_bytes(location: str) -> bytes:
    """The content of a file.

    Raises:
        StorageError: when the file is missing or cannot be read.
    """
    filesystem, path = open_location(location)
    with errors_explained(location, "read"), filesystem.open_input_file(path) as stream:
        return stream.read()


def read_if_there(location: str) -> bytes | None:
    """The content of a file, or None when it is missing.

    Raises:
        StorageError: when it cannot be read, or that cannot be told.
    """
    try:
        return read_bytes(location)
    except StorageError:
        if _file_type(location) == fs.FileType.NotFound:
            return None
    return read_bytes(location)  # it may have been written since


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
        try:
            s3.upload(*_split_s3(location), chunks)
        except s3.RefusedError as refused:
            raise _refused(location, "written", refused.code) from None
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


def write_if_unchanged(location: str, data: bytes, before: bytes | None) -> bool:
    """Write a file whole if it holds what it held before: of several that do so at once one succeeds.

    Args:
        data: what no other writes, so that it tells whose a file is.
        before: what it held when it was read; None for a file that was missing.

    Returns:
        Whether it was written. Where it was not, another has written or removed the file meanwhile.

    Raises:
        StorageError: when the location cannot be written. On S3 it may then have been written all the same.
    """
    filesystem, path = open_location(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        with errors_explained(location, "written"):
            return s3.put_if_unchanged(*_split_s3(location), data, before)
    with errors_explained(location, "written"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with _alone(path):
            if read_if_there(path) != before:
                return False
            write_bytes(path, data)
            return True


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Hold the lock of a local file for the block. It ends with its process, however that ends."""
    lock = f"{path}.lock"
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
                    raise  # some network file systems have no locks, and do without
            if not _is_at(descriptor, lock):
                continue  # its holder has removed it meanwhile
            try:
                yield
            finally:
                Path(lock).unlink()
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except FileNotFoundError:
        return False


def read_json(location: str) -> Any:
    """A JSON file's content.

    Raises:
        StorageError: when the file is missing or cannot be read.
        ValueError: when it is no JSON.
    """
    return parse_json(read_bytes(location))


def parse_json(data: str | bytes) -> Any:
    """The value of a text in JSON; raises ValueError for whatever is wrong with it."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_bytes(value: Any) -> bytes:
    """JSON as ``write_json`` writes it."""
    return (json.dumps(value, indent=2) + "\n").encode()


def write_json(location: str, value: Any) -> None:
    """Write JSON, indented, replacing the file whole."""
    write_bytes(location, json_bytes(value))


def delete_file(location: str) -> None:
    """Remove a file; nothing happens when it is missing."""
    filesystem, path = open_location(location)
    with errors_explained(location, "deleted"), suppress(FileNotFoundError):
        try:
            filesystem.delete_file(path)
        except OSError as error:
            denied = _s3_code(location, error) == "ACCESS_DENIED"
            if not denied or s3.find(*_split_s3(location)) == fs.FileType.File:
                raise


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
            try:
                filesystem.delete_dir(path)
            except OSError as error:
                # pyarrow asks for all of the bucket, which credentials for a part of it may not.
                if _s3_code(location, error) != "ACCESS_DENIED":
                    raise
                for file in list_files(location):
                    delete_file(file)


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
