"""Where a data set is ingested from: a folder of files, a zip or a tar, on the local disk or on S3.

A source lists its files once and is then read in pieces, by several processes at a time: nothing here
holds more than one piece.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
from pyarrow import fs

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import MAX_PIXELS, ImageError, foreign_kind
from rdmldg_ray.datasets.ingest.names import is_encodable, printable
from rdmldg_ray.storage import StorageError

# No photo is larger; an archive's entry may claim to be.
MAX_FILE_BYTES = 256 * 1024 * 1024
# Reading many small objects from S3 is mostly waiting.
_READERS = 8
_COPY_BYTES = 8 * 1024 * 1024
# What systems and programs leave beside the files of a user: never an image, a class or a domain.
_LITTER = frozenset(
    (".ds_store", ".directory", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)
_LITTER_FOLDERS = frozenset(
    ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
)
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)
# An archive unpacks to at most so many times its size, within these bounds. Encoded images do not shrink;
# drawings that are stored as plain pixels do, to about a fiftieth.
_MAX_RATIO = 100
_ALWAYS_UNPACKED = 2**30
_MAX_UNPACKED = 2**40


@dataclass(frozen=True)
class ReadLimits:
    """Ceilings on what is read: a small archive or image may claim to hold far more than there is room for.

    Attributes:
        files: entries of a folder or an archive.
        unpacked_bytes: of all of an archive; None for 100 times its size, within 1 GiB and 1 TiB.
        pixels: of an image.
    """

    files: int = 10_000_000
    unpacked_bytes: int | None = None
    pixels: int = MAX_PIXELS

    def check_unpacked(self, location: str, size: int, packed: int) -> None:
        """Refuse an archive of ``packed`` bytes that unpacks to ``size`` or more."""
        most = self.unpacked_bytes
        if most is None:
            most = min(max(_MAX_RATIO * packed, _ALWAYS_UNPACKED), _MAX_UNPACKED)
        if size > most:
            raise ValueError(
                f"{location}: has {packed} bytes and unpacks to more than {most}, as an archive does that is "
                "made to fill a disk; if you trust it, raise --max-unpacked-gb"
            )


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that may be read.

    Attributes:
        path: within the source, with single slashes; that of a folder ends with one while it is listed.
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


@dataclass(frozen=True)
class Listing:
    """What a source holds.

    Attributes:
        files: those that may be read.
        rejects: entries that are rejected unread.
        empty: folders without a file in them or below, as far as the source tells of folders.
    """

    files: list[SourceFile]
    rejects: list[Reject]
    empty: list[str]


# An entry with the reason and the words of its rejection.
_Entry = tuple[SourceFile, tuple[str, str] | None]


class Source(Protocol):
    """What a data set is ingested from."""

    @property
    def location(self) -> str: ...

    def list(self) -> Listing:
        """All files, and entries that are rejected unread.

        Raises:
            ValueError: when there is nothing or too much, or an archive is damaged; the message names the
                remedy.
        """
        ...

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        """The files' bytes in the order asked for; an error in the place of one that is damaged."""
        ...


def open_source(location: str, limits: ReadLimits = DEFAULT_LIMITS) -> Source:
    """The source at a location, by its kind.

    Raises:
        ValueError: when there is nothing, or a file of another kind.
    """
    if not storage.is_file(location):
        return FolderSource(location, limits)
    if location.lower().endswith(".zip"):
        return ZipSource(location, limits)
    if location.lower().endswith(_TARS):
        return TarSource(location, limits=limits)
    raise ValueError(
        f"{location}: neither a folder nor an archive; known are .zip, {', '.join(_TARS)}, and for rows with "
        "a question each .jsonl (an object on each line), .csv and .parquet"
    )


@dataclass(frozen=True)
class FolderSource:
    """A folder on the local disk, or a prefix on S3."""

    location: str
    limits: ReadLimits = DEFAULT_LIMITS

    def list(self) -> Listing:
        filesystem, path = storage.open_location(self.location)
        if isinstance(filesystem, fs.LocalFileSystem):
            with storage.errors_explained(self.location, "listed"):
                return _sorted_out(self.location, _disk_entries(path), self.limits)
        root = storage.folder_prefix(self.location)
        files = (
            SourceFile(entry.location.removeprefix(root), entry.size, str(entry.mtime_ns))
            for entry in storage.list_entries(self.location)
        )
        return _sorted_out(self.location, ((file, None) for file in files), self.limits)

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        with ThreadPoolExecutor(_READERS) as readers:
            yield from readers.map(
                lambda file: storage.read_bytes(storage.join(self.location, file.path)), files
            )


@dataclass(frozen=True)
class ZipSource:
    """A zip archive."""

    location: str
    limits: ReadLimits = DEFAULT_LIMITS

    def list(self) -> Listing:
        with _damage_named(self.location), storage.open_input(self.location) as stream:
            packed = _check_archive(self.location, stream)
            # Pyarrow refuses to seek before the start, which zipfile tries in archives of a few bytes.
            small = packed < _COPY_BYTES
            with zipfile.ZipFile(io.BytesIO(stream.read()) if small else stream) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
                self.limits.check_unpacked(self.location, unpacked, packed)
                entries = [
                    (
                        SourceFile(
                            _zip_path(entry), entry.file_size, f"{entry.CRC:08x}", entry.header_offset
                        ),
                        _zip_refusal(entry),
                    )
                    for entry in archive.infolist()
                ]
        return _sorted_out(self.location, entries, self.limits)

    def read(self, files: Iterable[SourceFile]) -> Iterator[bytes | ImageError]:
        archive = _open_zip(self.location)
        entries = {entry.header_offset: entry for entry in archive.infolist()}
        for file in files:
            try:
                yield archive.read(entries[file.offset])
            except (
                zipfile.BadZipFile,
                zlib.error,
                lzma.LZMAError,
                EOFError,
                NotImplementedError,
                RuntimeError,  # encrypted, though the directory does not say so
            ) as error:
                yield ImageError("damaged", f"{file.path}: cannot be unpacked ({error})")


@dataclass(frozen=True)
class TarSource:
    """A tar archive; a compressed one can be listed, and must be unpacked to be read.

    Attributes:
        unpacked: location of the same archive without its compression.
    """

    location: str
    unpacked: str | None = None
    limits: ReadLimits = DEFAULT_LIMITS

    def list(self) -> Listing:
        with (
            _damage_named(self.location),
            self._decompressed() as (stream, compressed),
            # Only a plain file can be skipped through.
            tarfile.open(fileobj=stream, mode="r|" if compressed else "r:", tarinfo=_Member) as archive,
        ):
            listing = _sorted_out(self.location, _tar_entries(archive), self.limits)
            # What follows the last entry would be unpacked too.
            while compressed and stream.read(_COPY_BYTES):
                pass
            return listing

    def needs_unpacking(self) -> bool:
        """Whether it is compressed, and so can be read from its start only."""
        with self._decompressed() as (_, compressed):
            return compressed

    def unpack(self, location: str) -> "TarSource":
        """Write the archive to a location without its compression, to be read from there."""
        with _damage_named(self.location), self._decompressed() as (stream, _):
            storage.write_chunks(location, iter(lambda: stream.read(_COPY_BYTES), b""))
        return replace(self, unpacked=location)

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
    def _decompressed(self) -> Iterator[tuple[Any, bool]]:
        with storage.open_input(self.location) as stream:
            packed = _check_archive(self.location, stream)
            start = stream.peek(8)
            for magic, decompress in _DECOMPRESSORS:
                if start.startswith(magic):
                    with decompress(stream) as plain:
                        yield _Counted(self, plain, packed), True
                    return
            yield stream, False


class _Member(tarfile.TarInfo):
    """A member of a tar, of which a damaged one in the middle is an error: tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from None


class _Counted:
    """A decompressed stream that is read from front to back, up to the ceiling of its archive."""

    def __init__(self, source: TarSource, stream: IO[bytes], packed: int):
        self._source, self._stream, self._packed = source, stream, packed
        self._read = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._read += len(data)
        self._source.limits.check_unpacked(self._source.location, self._read, self._packed)
        return data


# The directory of a large archive takes seconds to parse: a worker does so once.
@lru_cache(maxsize=2)
def _open_zip(location: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(storage.open_input(location))


def _check_archive(location: str, stream: io.BufferedReader) -> int:
    """The size of an archive; what is clearly none is told before a reader stumbles over it."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    kind = foreign_kind(stream.peek(1024)) if size else "an empty file"
    if kind:
        raise ValueError(f"{location}: is {kind}, not an archive; download or copy it again")
    return size


# What the readers of archives raise for bytes that make no sense to them.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    pa.ArrowInvalid,
    UnicodeDecodeError,
    NotImplementedError,
    OverflowError,
    EOFError,
    OSError,
)


@contextmanager
def _damage_named(location: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except _DAMAGE as error:
        raise ValueError(
            f"{location}: the archive cannot be read to its end ({error}); copy or download it again"
        ) from error


def _disk_entries(root: str) -> Iterator[_Entry]:
    """What lies in a folder of this machine. Links to folders are not followed, nor links that lead out."""
    inside = os.path.realpath(root) + os.sep

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, folders, names in os.walk(root, onerror=stop):
        below = "" if folder == root else os.path.relpath(folder, root) + "/"
        for name in sorted(folders):
            linked = Path(folder, name).is_symlink()
            entry = SourceFile(below + name + ("" if linked else "/"), 0, "")
            yield entry, _FOLDER_LINK if linked else None
        for name in sorted(names):
            path = Path(folder, name)
            linked = path.is_symlink()
            if linked and not path.exists():
                yield SourceFile(below + name, 0, ""), ("link", "is a link to nothing; remove it")
            elif linked and not os.path.realpath(path).startswith(inside):
                yield SourceFile(below + name, 0, ""), _LINK_OUT
            else:
                found = path.stat()
                refusal = None if stat.S_ISREG(found.st_mode) else _NO_FILE
                yield SourceFile(below + name, found.st_size, str(found.st_mtime_ns)), refusal


_NO_FILE = ("not_a_file", "is not an ordinary file; remove it")
_LINK_OUT = ("link", "is a link that leads out of the folder; put the file in its place (cp -L)")
_FOLDER_LINK = (
    "link",
    "is a link to a folder, which is not followed; put the folder in its place (cp -rL)",
)


def _zip_path(entry: zipfile.ZipInfo) -> str:
    """The path of an entry, which macOS writes in UTF-8 without saying so."""
    if entry.flag_bits & 0x800:
        return entry.filename
    try:
        return entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename  # in the encoding that the format has for it


def _zip_refusal(entry: zipfile.ZipInfo) -> tuple[str, str] | None:
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "link", "is a symbolic link, which may lead out of the archive"
    if entry.flag_bits & 1:
        return "encrypted", "is encrypted; unpack the archive with its password, and ingest the folder"
    return None


def _tar_entries(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for member in archive:
        # It would keep far more of each member than is needed; typeshed does not know of the list.
        archive.members.clear()  # type: ignore[attr-defined]
        if member.isdir():
            yield SourceFile(member.name + "/", 0, ""), None
        else:
            # Most have one time, which is kept once.
            stamp = sys.intern(f"{member.mtime}")
            yield SourceFile(member.name, member.size, stamp, member.offset_data), _tar_refusal(member)


def _tar_refusal(member: tarfile.TarInfo) -> tuple[str, str] | None:
    if member.issym() or member.islnk():
        return "link", "is a link, which may lead out of the archive"
    if not member.isreg() or member.issparse():
        return _NO_FILE
    return None


def _is_litter(parts: Sequence[str]) -> bool:
    """Whether a path is one of what systems leave; a hidden image is not, since ImageFolder lists it."""
    *folders, name = parts
    return (
        name.startswith("._")
        or name.lower() in _LITTER
        or any(
            folder.lower() in _LITTER_FOLDERS or (folder.startswith(".") and folder != "..")
            for folder in folders
        )
    )


def _sorted_out(location: str, entries: Iterable[_Entry], limits: ReadLimits) -> Listing:
    """Tell files from rejects: those refused already, unsafe paths, too large ones, second ones of a name."""
    files: dict[str, SourceFile] = {}
    rejects: list[Reject] = []
    folders: set[str] = set()
    for file, refusal in entries:
        parts = [part for part in file.path.split("/") if part != "."]
        if _is_litter(parts or [""]):
            continue
        path = "/".join(parts)
        if file.path.endswith("/"):
            folders.add(path.rstrip("/"))
            continue
        if refusal is None and (".." in parts or "" in (parts or [""])):
            refusal = "unsafe_path", "has a path that leads out of the archive, or is no path; rename it"
        if refusal is None and "\\" in path:
            refusal = (
                "unsafe_path",
                "has a backslash, which separates folders elsewhere, in its path; rename it",
            )
        if not is_encodable(path):
            refusal = "not_utf8", "has a name that is not in UTF-8; rename it"
        if refusal is None and not 0 <= file.size <= MAX_FILE_BYTES:
            refusal = "too_large", f"has {file.size} bytes; at most {MAX_FILE_BYTES} are read"
        if refusal is None and path in files:
            refusal = "duplicate", "is in the archive more than once; the first is taken"
        if refusal:
            shown = printable(path) or printable(file.path)
            rejects.append(Reject(shown, file.size, refusal[0], f"{shown}: {refusal[1]}"))
        else:
            files[path] = SourceFile(path, file.size, file.stamp, file.offset)
        if len(files) + len(rejects) > limits.files:
            raise ValueError(
                f"{location}: holds more than {limits.files} files; if that is meant, raise --max-files"
            )
    if not files and not rejects:
        raise ValueError(f"{location}: there are no files here; correct the path")
    return Listing(list(files.values()), rejects, _empty(folders, files, rejects))


def _empty(folders: set[str], files: Iterable[str], rejects: Iterable[Reject]) -> list[str]:
    """Folders that no file lies in or below."""
    filled: set[str] = set()
    for path in (*files, *(reject.path for reject in rejects)):
        folder = path.rpartition("/")[0]
        while folder and folder not in filled:
            filled.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(printable(folder) for folder in folders - filled if folder)
