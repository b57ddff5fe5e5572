import gzip
import io
import lzma
import os
import shutil
import tarfile
import zipfile

import pytest

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import ImageError
from rdmldg_ray.datasets.ingest import archives as sources
from rdmldg_ray.datasets.ingest.archives import ReadLimits, open_source
from rdmldg_ray.storage import StorageError

FILES = {
    "top/photo/dog/1.png": b"first",
    "top/photo/dog/2.png": b"second" * 1000,
    "top/Real World/ä #1.png": b"",
}
COMPRESSIONS = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz"}


def zipped(files, change=lambda entry: None):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("top")
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            change(entry)
            archive.writestr(entry, data)
    return sink.getvalue()


def tarred(files, compression="", members=()):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{compression}") as archive:
        archive.addfile(_folder("top"))
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return sink.getvalue()


def _folder(name):
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member


def lay_down(root, kind, files=FILES):
    """Put the files below ``root`` in one of the kinds, and return the source's location."""
    if kind == "folder":
        for name, data in files.items():
            storage.write_bytes(storage.join(root, "source", name), data)
        return storage.join(root, "source/")
    location = storage.join(root, f"source{kind}")
    data = zipped(files) if kind == ".zip" else tarred(files, COMPRESSIONS[kind])
    storage.write_bytes(location, data)
    return location


def contents(source, files):
    return dict(zip([file.path for file in files], source.read(files), strict=True))


@pytest.mark.parametrize("kind", ["folder", ".zip", *COMPRESSIONS])
def test_every_kind_lists_and_reads_the_same_files(root, kind):
    source = open_source(lay_down(root, kind))
    files = source.list().files
    assert source.list().rejects == []
    assert {file.path: file.size for file in files} == {name: len(data) for name, data in FILES.items()}
    if kind in COMPRESSIONS:
        assert source.needs_unpacking() == bool(COMPRESSIONS[kind])
        if source.needs_unpacking():
            source = source.unpack(storage.join(root, "unpacked.tar"))
    assert contents(source, files) == FILES
    assert contents(source, files[::-1]) == FILES


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar"])
def test_a_changed_file_has_another_stamp(tmp_path, kind):
    def stamps():
        files = open_source(lay_down(str(tmp_path), kind, {"a/b/1.png": data})).list().files
        return [file.stamp for file in files]

    data = b"one"
    before = stamps()
    data = b"two"
    if kind != ".tar":  # which has the times of packing, and the test packs without any
        assert stamps() != before


def test_what_does_not_exist_is_named(root):
    location = storage.join(root, "nothing")
    with pytest.raises(ValueError, match="nothing: there are no files here; correct the path"):
        open_source(location).list()


def test_a_file_that_is_no_archive_is_named(root):
    storage.write_bytes(storage.join(root, "a.rar"), b"")
    with pytest.raises(ValueError, match=r"a\.rar: neither a folder nor an archive; known are \.zip, \.tar"):
        open_source(storage.join(root, "a.rar"))


@pytest.mark.parametrize("kind", [".zip", *COMPRESSIONS])
def test_a_truncated_archive_is_named_with_the_remedy(tmp_path, kind):
    location = lay_down(str(tmp_path), kind)
    data = storage.read_bytes(location)
    storage.write_bytes(location, data[: len(data) // 4])
    with pytest.raises(ValueError, match=r"the archive cannot be read to its end .* download it again"):
        open_source(location).list()


def refused(location):
    found = open_source(location).list()
    return {file.path for file in found.files}, {reject.path: reject.reason for reject in found.rejects}


UNSAFE = ["../out.png", "a/../../out.png", "/etc/passwd.png", "a\\..\\out.png", "a//b.png"]


@pytest.mark.parametrize("path", UNSAFE)
@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_a_path_that_leads_out_of_an_archive_is_rejected(tmp_path, kind, path):
    location = lay_down(str(tmp_path), kind, {"a/b/1.png": b"x", path: b"x"})
    assert refused(location) == ({"a/b/1.png"}, {path: "unsafe_path"})


def test_links_and_devices_of_a_tar_are_rejected(tmp_path):
    members = []
    for name, kind in (
        ("a/b/sym.png", tarfile.SYMTYPE),
        ("a/b/hard.png", tarfile.LNKTYPE),
        ("a/b/device.png", tarfile.CHRTYPE),
        ("a/b/pipe.png", tarfile.FIFOTYPE),
    ):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        members.append(member)
    (tmp_path / "a.tar").write_bytes(tarred({"a/b/1.png": b"x"}, members=members))
    assert refused(str(tmp_path / "a.tar")) == (
        {"a/b/1.png"},
        {
            "a/b/sym.png": "link",
            "a/b/hard.png": "link",
            "a/b/device.png": "not_a_file",
            "a/b/pipe.png": "not_a_file",
        },
    )


def test_links_of_a_zip_are_rejected(tmp_path):
    def change(entry):
        if "sym" in entry.filename:
            entry.external_attr = 0o120777 << 16

    (tmp_path / "a.zip").write_bytes(zipped({"a/b/1.png": b"x", "a/b/sym.png": b"/etc/passwd"}, change))
    assert refused(str(tmp_path / "a.zip")) == ({"a/b/1.png"}, {"a/b/sym.png": "link"})


def test_encrypted_entries_are_rejected(tmp_path):
    data = bytearray(zipped({"a/b/1.png": b"x", "a/b/2.png": b"y"}))
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the directory's last entry
    (tmp_path / "a.zip").write_bytes(data)
    assert refused(str(tmp_path / "a.zip")) == ({"a/b/1.png"}, {"a/b/2.png": "encrypted"})


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_the_second_of_a_name_is_rejected(tmp_path, kind):
    twice = {"a/b/1.png": b"x", "./a/b/1.png": b"y"}
    assert refused(lay_down(str(tmp_path), kind, twice)) == ({"a/b/1.png"}, {"a/b/1.png": "duplicate"})


def test_what_macos_puts_beside_the_files_is_passed_over(tmp_path):
    location = lay_down(str(tmp_path), ".zip", {"a/b/1.png": b"x", "__MACOSX/a/b/._1.png": b"y"})
    assert refused(location) == ({"a/b/1.png"}, {})


def test_a_file_too_large_is_rejected_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 99)
    location = lay_down(str(tmp_path), ".zip", {"a/b/1.png": b"x" * 99, "a/b/2.png": b"x" * 100})
    assert refused(location) == ({"a/b/1.png"}, {"a/b/2.png": "too_large"})


def test_an_entry_that_is_damaged_is_an_error_in_its_place(tmp_path):
    packed = bytearray(zipped({"a/b/1.png": bytes(range(256)), "a/b/2.png": b"whole"}))
    packed[60] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(packed)
    source = open_source(str(tmp_path / "a.zip"))
    files = source.list().files
    first, second = source.read(files)
    assert isinstance(first, ImageError) and first.reason == "damaged"
    assert "a/b/1.png" in str(first)
    assert second == b"whole"


def test_a_file_that_vanished_is_named(tmp_path):
    location = lay_down(str(tmp_path), "folder", {"a/b/1.png": b"x"})
    source = open_source(location)
    files = source.list().files
    storage.delete_file(storage.join(location, "a/b/1.png"))
    with pytest.raises(StorageError, match=r"a/b/1\.png: cannot be read"):
        list(source.read(files))


LITTER = [
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._1.png",
    "Icon\r",
    ".git/objects/1.png",
    "__MACOSX/a.png",
]
LITTER += ["@eaDir/1.png", "$RECYCLE.BIN/1.png", ".ipynb_checkpoints/1.png", "THUMBS.DB"]


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar"])
@pytest.mark.parametrize("folder", ["", "a/", "a/b/"])
def test_what_systems_leave_is_passed_over(tmp_path, kind, folder):
    files = {"a/b/1.png": b"x", "a/b/.hidden.png": b"y"}
    location = lay_down(str(tmp_path), kind, files | {folder + name: b"z" for name in LITTER})
    assert refused(location) == (set(files), {})


def test_links_are_followed_to_files_of_the_folder_alone(tmp_path):
    source = tmp_path / "source"
    (source / "art/dog").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/2.png").write_bytes(b"out")
    (source / "art/dog/1.png").write_bytes(b"one")
    links = {
        "art/dog/same.png": "1.png",
        "art/dog/loop": "..",
        "art/self": "self",
        "photo": "art",
        "out": str(tmp_path / "outside"),
        "art/dog/out.png": str(tmp_path / "outside/2.png"),
        "art/dog/gone.png": "nothing.png",
    }
    for name, target in links.items():
        (source / name).symlink_to(target)
    os.mkfifo(source / "art/dog/pipe.png")
    (tmp_path / "link").symlink_to(source)
    for location in (source, tmp_path / "link"):
        found = open_source(str(location)).list()
        assert contents(open_source(str(location)), found.files) == {
            "art/dog/1.png": b"one",
            "art/dog/same.png": b"one",
        }
        assert {reject.path: reject.reason for reject in found.rejects} == {
            **dict.fromkeys(set(links) - {"art/dog/same.png"}, "link"),
            "art/dog/pipe.png": "not_a_file",
        }
        assert all(reject.message.startswith(f"{reject.path}: is ") for reject in found.rejects)


def test_names_that_are_not_in_utf8_are_rejected_one_by_one(tmp_path):
    folder = os.fsencode(tmp_path) + b"/source/a/caf\xe9"
    os.makedirs(folder)
    for name in (b"1.png", b"\xff.png"):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(b"x")
    (tmp_path / "source/a/2.png").write_bytes(b"x")
    assert refused(str(tmp_path / "source")) == (
        {"a/2.png"},
        {"a/caf\\xe9/1.png": "not_utf8", "a/caf\\xe9/\\xff.png": "not_utf8"},
    )


def test_names_of_a_tar_that_are_not_in_utf8_are_rejected_one_by_one(tmp_path):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as archive:
        for name in ("a/b/1.png", "a/b/caf\u00e9.png"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "a.tar").write_bytes(sink.getvalue())
    assert refused(str(tmp_path / "a.tar")) == ({"a/b/1.png"}, {"a/b/caf\\xe9.png": "not_utf8"})


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("name", [".", "./.", "./"])
def test_an_entry_without_a_name_is_no_file(tmp_path, kind, name):
    location = lay_down(str(tmp_path), kind, {"a/b/1.png": b"x", name: b""})
    found = open_source(location).list()
    assert [file.path for file in found.files] == ["a/b/1.png"]
    assert [reject.reason for reject in found.rejects] in ([], ["unsafe_path"])


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is an empty file, not an archive; download or copy it again"),
        (b"<html>moved</html>", "is a web page, not an archive"),
        (b"<!DOCTYPE html>", "is a web page, not an archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer file of Git LFS"),
        (b"nothing of the kind", "the archive cannot be read to its end"),
        (b"PK\3\4" * 9, "the archive cannot be read to its end"),
    ],
)
def test_what_is_no_archive_is_called_what_it_is(tmp_path, kind, data, message):
    (tmp_path / f"a.{kind}").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.{kind}: {message}"):
        open_source(str(tmp_path / f"a.{kind}")).list()


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda data, place: data[:place] + b"x" * 512 + data[place + 512 :],
            "(bad checksum|invalid header)",
        ),
        (lambda data, place: data[: place + 300], "truncated header"),
        (lambda data, place: data[:place], "empty header"),
    ],
)
def test_a_tar_that_is_damaged_between_its_files_is_not_taken_to_end_there(tmp_path, kind, damage, message):
    data = tarred({"a/b/1.png": b"1", "a/b/2.png": b"2"})
    data = damage(data, data.index(b"a/b/2.png"))
    (tmp_path / f"a{kind}").write_bytes(gzip.compress(data) if kind == ".tar.gz" else data)
    with pytest.raises(
        ValueError, match=rf"a{kind}: the archive cannot be read to its end \({message} at byte"
    ):
        open_source(str(tmp_path / f"a{kind}")).list()


def without_the_sign_of_utf8(data):
    """As macOS packs a folder: the names are in UTF-8, and the archive does not say so."""
    data = bytearray(data)
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(start)
        while place >= 0:
            data[place + flags + 1] &= ~0x08
            place = data.find(start, place + 4)
    return bytes(data)


@pytest.mark.parametrize("name", ["caf\u00e9", "cafe\u0301", "\u0938\u0947\u092c", "dog", "\U0001f436"])
def test_names_of_a_zip_are_in_utf8_whether_or_not_it_says_so(tmp_path, name):
    place = tmp_path / "a.zip"
    place.write_bytes(without_the_sign_of_utf8(zipped({f"art/{name}/1.png": b"1"})))
    source = open_source(str(place))
    files = source.list().files
    assert contents(source, files) == {f"art/{name}/1.png": b"1"}


def test_other_names_of_a_zip_are_in_the_encoding_of_the_format(tmp_path):
    data = without_the_sign_of_utf8(zipped({"art/cXf/1.png": b"1"})).replace(b"cXf", b"c\x82f")
    (tmp_path / "a.zip").write_bytes(data)
    assert [file.path for file in open_source(str(tmp_path / "a.zip")).list().files] == ["art/c\u00e9f/1.png"]


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_an_archive_of_nothing_is_told(tmp_path, kind):
    data = io.BytesIO()
    if kind == ".zip":
        zipfile.ZipFile(data, "w").close()
    else:
        tarfile.open(fileobj=data, mode="w").close()
    (tmp_path / f"a{kind}").write_bytes(data.getvalue())
    with pytest.raises(ValueError, match=rf"a\{kind}: there are no files here"):
        open_source(str(tmp_path / f"a{kind}")).list()


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar", ".tar.gz"])
def test_a_source_of_too_many_files_is_refused_with_the_option(tmp_path, kind):
    location = lay_down(str(tmp_path), kind, {f"a/b/{number}.png": b"x" for number in range(4)})
    assert len(open_source(location, ReadLimits(files=4)).list().files) == 4
    with pytest.raises(ValueError, match=r"holds more than 3 files; .* raise --max-files"):
        open_source(location, ReadLimits(files=3)).list()


ZEROS = {"a/b/1.png": bytes(600_000), "a/b/2.png": bytes(600_000)}


@pytest.mark.parametrize("kind", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, kind, monkeypatch):
    location = lay_down(str(tmp_path), kind, ZEROS)
    message = r"source\S+: has \d+ bytes and unpacks to more than .* raise --max-unpacked-gb"
    with pytest.raises(ValueError, match=message):
        open_source(location, ReadLimits(unpacked_bytes=1_000_000)).list()
    assert len(open_source(location, ReadLimits(unpacked_bytes=2_000_000)).list().files) == 2
    # Without a ceiling of its own, an archive has one by its size.
    assert len(open_source(location).list().files) == 2
    monkeypatch.setattr(sources, "_ALWAYS_UNPACKED", 1000)
    with pytest.raises(ValueError, match=message):
        open_source(location).list()


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_what_follows_the_last_entry_counts_too(tmp_path, kind):
    plain = tarred({"a/b/1.png": b"x"}) + bytes(5_000_000)
    (tmp_path / f"a.tar.{kind}").write_bytes((gzip if kind == "gz" else lzma).compress(plain))
    source = open_source(str(tmp_path / f"a.tar.{kind}"), ReadLimits(unpacked_bytes=1_000_000))
    with pytest.raises(ValueError, match="raise --max-unpacked-gb"):
        source.list()
    with pytest.raises(ValueError, match="raise --max-unpacked-gb"):
        source.unpack(str(tmp_path / "unpacked.tar"))
    assert [entry.name for entry in tmp_path.iterdir()] == [f"a.tar.{kind}"]


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar"])
def test_empty_folders_are_told(tmp_path, kind):
    location = lay_down(str(tmp_path), "folder", {"a/b/1.png": b"x"})
    for folder in ("a/c", "d/e", ".git/refs"):
        (tmp_path / "source" / folder).mkdir(parents=True)
    if kind != "folder":
        location = shutil.make_archive(str(tmp_path / "packed"), kind[1:], tmp_path / "source")
    assert open_source(location).list().empty == ["a/c", "d", "d/e"]
