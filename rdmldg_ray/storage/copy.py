"""Copies of files and folders: within storage, and between storage and this machine's disk.

Within S3 the server copies, and no byte passes through here.

Why not ``pyarrow.fs.copy_files`` for a whole folder? It copies what it lists itself, names that nobody has
checked, and on S3 leaves a marker object for each folder. It copies single files here. Uploads are boto3's,
since pyarrow completes an upload whose source fails: https://github.com/apache/arrow/issues/40502.
"""

import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pyarrow import fs

from rdmldg_ray.config.names import check_path
from rdmldg_ray.storage.files import (
    StorageError,
    errors_explained,
    folder_prefix,
    join,
    list_files,
    open_location,
    write_chunks,
)

# Copying is mostly waiting for the server.
_AT_ONCE = 8
# Each chunk that is read from S3 is a request.
_CHUNK = 16 * 1024 * 1024


def copy_file(source: str, target: str) -> None:
    """Copy a file whole: a reader of the target sees the old content or the new, never a part of it.

    S3 copies objects of up to 5 GiB, which is more than any file that we write.

    Raises:
        StorageError: when the source is missing or cannot be read, or the target cannot be written.
    """
    source_fs, source_path = open_location(source)
    target_fs, target_path = open_location(target)
    if isinstance(target_fs, fs.LocalFileSystem):
        with errors_explained(target, "written"):
            _fetch(source, Path(target_path))
    elif isinstance(source_fs, fs.LocalFileSystem):
        with errors_explained(source, "read"), Path(source_path).open("rb") as stream:
            write_chunks(target, iter(lambda: stream.read(_CHUNK), b""))
    else:
        with errors_explained(source, f"copied to {target}"):
            target_fs.copy_file(source_path, target_path)


def copy_folder(source: str, target: str, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Copy the files below a folder, several at once; what else is below the target stays.

    Args:
        wanted: whether to copy a file, by its name below the folder.

    Returns:
        The names that were copied, sorted.

    Raises:
        StorageError: as ``copy_file``; for a name that would lead out of the target, before any is copied.
    """
    names = [name for name in _names(source) if wanted(name)]
    _each(lambda name: copy_file(join(source, name), join(target, name)), names)
    return names


def upload_folder(local: Path, location: str) -> None:
    """Copy every file below a local folder to a location."""
    copy_folder(str(local), location)


def download_folder(location: str, local: Path) -> Path:
    """Copy every file below a location into a local folder, replacing what was there.

    Raises:
        StorageError: when there is nothing at the location, it cannot be read, or a name there leads out
            of a folder.
        OSError: when this machine's disk fails, as when it is full.
    """
    names = _names(location)
    if not names:
        raise StorageError(f"{location}: nothing to download here")
    shutil.rmtree(local, ignore_errors=True)
    _each(lambda name: _fetch(join(location, name), local / name), names)
    return local


def _names(folder: str) -> list[str]:
    """The files below a folder by their names there, none of which leads anywhere else."""
    prefix = folder_prefix(folder)
    names = [file.removeprefix(prefix) for file in list_files(folder)]
    for name in names:
        # A key of S3 may be any string, and whoever writes there is not to write elsewhere on this machine.
        try:
            check_path("the file", name)
        except ValueError as error:
            raise StorageError(f"{folder}: {error}") from None
    return names


def _each(copy: Callable[[str], None], names: list[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="copy") as copiers:
        # Raises the first error, and leaves out what has not begun.
        list(copiers.map(copy, names))


def _fetch(source: str, target: Path) -> None:
    """Copy to this machine's disk; raises StorageError for the source's fault and OSError for the disk's."""
    filesystem, path = open_location(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            fs.copy_files(path, str(unfinished), filesystem, fs.LocalFileSystem(), chunk_size=_CHUNK)
        except OSError as error:
            # A disk's errors have a number; of a store's, only that of a missing file.
            if error.errno is None or isinstance(error, FileNotFoundError):
                with errors_explained(source, "read"):
                    raise
            raise
        unfinished.replace(target)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
