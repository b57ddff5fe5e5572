import io
import tarfile
import zipfile

import pytest

from rdmldg_ray import storage
from rdmldg_ray.datasets.images import ImageError
from rdmldg_ray.datasets.ingest import archives as sources
from rdmldg_ray.datasets.ingest.archives import open_source
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
