"""Where a data set is ingested from: a folder of files, a zip or a tar, on the local disk or on S3.

A source lists its files once and is then read in pieces, by several processes at a time: nothing here
holds more than one piece.
"""

import bz2
import gzip
import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from typing import IO, Any, Protocol

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import ImageError
from rdmldg_ray.storage import StorageError

# No photo is larger; an archive's entry may claim to be.
MAX_FILE_BYTES = 256 * 1024 * 1024
# Reading many small objects from S3 is mostly waiting.
_READERS = 8
_COPY_BYTES = 8 * 1024 * 1024
# What macOS puts beside the files that it packs.
_SHADOW_FOLDER = "__MACOSX"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that may be read.

    Attributes:
        path: within the source, with single slashes.
        size: bytes.
        stamp: differs when the content does: a time, or a checksum.
        offset: where its bytes start in an archive, 0 in a folder.
        row: in a data set of questions, the sample's ``id``, ``label``, ``question`` and ``options``, which
            an image's path does not tell.
    """

    path: str
    size: int
    stamp: str
    offset: int = 0
    row: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reject:
    """A file that does not become a sample.

    Attributes:
        path: within the source.
        reason: a short machine-readable word.
        message: what is wrong with it.
    """

    path: str
    size: int
    reason: str
    message: str


Listing = tuple[list[SourceFile], list[Reject]]


class Source(Protocol):
    """What a data set is ingested from."""

    @property
    def location(self) -> str: ...

    def list(self) -> Listing:
        """All files, and entries that are rejected unread.

        Raises:
            ValueError: when there is nothing, or an archive is damaged; the message names the remedy.
        """
        ...

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        """The files' bytes in the order asked for; an error in the place of one that is damaged."""
        ...


def open_source(location: str) -> Source:
    """The source at a location, by its kind.

    Raises:
        ValueError: when there is nothing, or a file of another kind.
    """
    if not storage.is_file(location):
        return FolderSource(location)
    if location.lower().endswith(".zip"):
        return ZipSource(location)
    if location.lower().endswith(_TARS):
        return TarSource(location)
    raise ValueError(f"{location}: neither a folder nor an archive; known are .zip, {', '.join(_TARS)}")


@dataclass(frozen=True)
class FolderSource:
    """A folder on the local disk, or a prefix on S3."""

    location: str

    def list(self) -> Listing:
        root = storage.folder_prefix(self.location)
        files = [
            SourceFile(entry.location.removeprefix(root), entry.size, str(entry.mtime_ns))
            for entry in storage.list_entries(self.location)
        ]
        return _sorted_out(self.location, ((file, None) for file in files))

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        with ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(
                lambda file: storage.read_bytes(storage.join(self.location, file.path)), files
            )


@dataclass(frozen=True)
class ZipSource:
    """A zip archive."""

    location: str

    def list(self) -> Listing:
        with _damage_named(self.location), zipfile.ZipFile(storage.open_input(self.location)) as archive:
            entries = [
                (
                    SourceFile(entry.filename, entry.file_size, f"{entry.CRC:08x}", entry.header_offset),
                    _zip_refusal(entry),
                )
                for entry in archive.infolist()
                if not entry.is_dir()
            ]
        return _sorted_out(self.location, entries)

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        archive = _open_zip(self.location)
        entries = {entry.header_offset: entry for entry in archive.infolist()}
        for file in files:
            try:
                yield archive.read(entries[file.offset])
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                yield ImageError("damaged", f"{file.path}: cannot be unpacked ({error})")


@dataclass(frozen=True)
class TarSource:
    """A tar archive; a compressed one can be listed, and must be unpacked to be read.

    Attributes:
        unpacked: location of the same archive without its compression.
    """

    location: str
    unpacked: str | None = None

    def list(self) -> Listing:
        with (
            _damage_named(self.location),
            self._decompressed() as (stream, compressed),
            # Only a plain file can be skipped through.
            tarfile.open(fileobj=stream, mode="r|" if compressed else "r:") as archive,
        ):
            return _sorted_out(self.location, _tar_entries(archive))

    def needs_unpacking(self) -> bool:
        """Whether it is compressed, and so can be read from its start only."""
        with self._decompressed() as (_, compressed):
            return compressed

    def unpack(self, location: str) -> "TarSource":
        """Write the archive to a location without its compression, to be read from there."""
        with _damage_named(self.location), self._decompressed() as (stream, _):
            storage.write_chunks(location, iter(lambda: stream.read(_COPY_BYTES), b""))
        return TarSource(self.location, location)

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        with storage.open_input(self.unpacked or self.location) as stream:
            for file in files:
                stream.seek(file.offset)
                data = stream.read(file.size)
                if len(data) == file.size:
                    yield data
                else:
                    yield ImageError("damaged", f"{file.path}: the archive ends within it")

    @contextmanager
    def _decompressed(self) -> "Iterator[tuple[IO[bytes], bool]]":
        with storage.open_input(self.location) as stream:
            start = stream.peek(8)
            for magic, decompress in _DECOMPRESSORS:
                if start.startswith(magic):
                    with decompress(stream) as plain:
                        yield plain, True
                    return
            yield stream, False


# The directory of a large archive takes seconds to parse: a worker does so once.
@lru_cache(maxsize=2)
def _open_zip(location: str) -> zipfile.ZipFile:
    stream: BufferedReader = storage.open_input(location)
    return zipfile.ZipFile(stream)


@contextmanager
def _damage_named(location: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(
            f"{location}: the archive cannot be read to its end ({error}); copy or download it again"
        ) from error


def _zip_refusal(entry: zipfile.ZipInfo) -> tuple[str, str] | None:
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "link", "is a symbolic link, which may lead out of the archive"
    if entry.flag_bits & 1:
        return "encrypted", "is encrypted"
    return None


def _tar_entries(archive: tarfile.TarFile) -> Iterator[tuple[SourceFile, tuple[str, str] | None]]:
    for member in archive:
        # It would keep far more of each member than is needed; typeshed does not know of the list.
        archive.members.clear()  # type: ignore[attr-defined]
        if not member.isdir():
            # Most have one time, which is kept once.
            stamp = sys.intern(f"{member.mtime}")
            yield SourceFile(member.name, member.size, stamp, member.offset_data), _tar_refusal(member)


def _tar_refusal(member: tarfile.TarInfo) -> tuple[str, str] | None:
    if member.issym() or member.islnk():
        return "link", "is a link, which may lead out of the archive"
    if not member.isreg() or member.issparse():
        return "not_a_file", "is not an ordinary file"
    return None


def _sorted_out(location: str, entries: Iterable[tuple[SourceFile, tuple[str, str] | None]]) -> Listing:
    """Tell files from rejects: those refused already, unsafe paths, too large ones, second ones of a name."""
    files: dict[str, SourceFile] = {}
    rejects = []
    for file, refusal in entries:
        parts = [part for part in file.path.split("/") if part != "."]
        if parts[0] == _SHADOW_FOLDER:
            continue
        path = "/".join(parts)
        if refusal is None and (".." in parts or "" in parts or "\\" in path):
            refusal = "unsafe_path", "has a path that leads out of the archive, or is no path"
        if refusal is None and file.size > MAX_FILE_BYTES:
            refusal = "too_large", f"has {file.size} bytes; at most {MAX_FILE_BYTES} are read"
        if refusal is None and path in files:
            refusal = "duplicate", "is in the archive more than once; the first is taken"
        if refusal:
            rejects.append(Reject(path, file.size, refusal[0], f"{path}: {refusal[1]}"))
        else:
            files[path] = SourceFile(path, file.size, file.stamp, file.offset)
    if not files and not rejects:
        raise ValueError(f"{location}: there are no files here; correct the path")
    return list(files.values()), rejects
