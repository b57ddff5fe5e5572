import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import boto3
import pyarrow as pa
import pytest
from pyarrow import fs

from rdmldg_ray import storage
from rdmldg_ray.storage import StorageError, join
from tests.helpers.s3_counter import s3_counter
from tools import s3_proxy, s3_server


def names(root):
    return [file.removeprefix(root + "/") for file in storage.list_files(root)]


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("/a", "b", "c.txt"), "/a/b/c.txt"),
        (("/a/", "/b/", "c"), "/a/b/c"),
        (("s3://bucket", "a/b"), "s3://bucket/a/b"),
        (("s3://bucket/prefix/", "a"), "s3://bucket/prefix/a"),
        (("a",), "a"),
    ],
)
def test_locations_join_with_single_slashes(parts, joined):
    assert join(*parts) == joined


def test_bytes_json_and_tables_come_back_as_written(root):
    storage.write_bytes(join(root, "new/folder/a.bin"), b"\x00\x01")
    storage.write_json(join(root, "b.json"), {"a": [1, None]})
    table = pa.table({"x": [1, 2], "y": ["a", None]})
    storage.write_table(join(root, "c.parquet"), table)
    assert storage.read_bytes(join(root, "new/folder/a.bin")) == b"\x00\x01"
    assert storage.read_json(join(root, "b.json")) == {"a": [1, None]}
    assert storage.read_table(join(root, "c.parquet")).equals(table)
    assert storage.read_table(join(root, "c.parquet"), ["y"]).column_names == ["y"]


@pytest.mark.parametrize(
    "uri", ["file://{0}", "file://localhost{0}", "file:{0}", "file://{0}/", "file://{0}/new/.."]
)
def test_a_file_uri_is_the_local_path(tmp_path, uri):
    folder = tmp_path / "Real World #1"
    uri = uri.format(quote(str(folder)))
    storage.write_bytes(join(uri, "new/a"), b"x")
    assert (folder / "new/a").read_bytes() == b"x"
    assert storage.list_files(uri) == [f"{folder}/new/a"]
    assert storage.absolute(uri) == str(folder)
    assert storage.folder_prefix(uri) == f"{folder}/"
    storage.delete_folder(join(storage.absolute(uri), "new"))
    assert storage.list_files(uri) == []


@pytest.mark.parametrize(
    "uri", ["file://data", "file://data/a", "file:data", "file://", "file:", "file://localhost"]
)
def test_a_file_uri_that_names_no_path_is_refused(uri):
    for operation in (storage.absolute, storage.exists):
        with pytest.raises(StorageError, match=r"names no path of this machine; write file:///folder"):
            operation(uri)


@pytest.mark.parametrize("name", ["Real World/a b.txt", "ä/#?%20+&.txt", "[x]/*.txt", "a.tar.gz"])
def test_names_with_unusual_characters_are_names(root, name):
    storage.write_bytes(join(root, name), b"x")
    assert names(root) == [name]
    assert storage.read_bytes(join(root, name)) == b"x"


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(root):
    for content in (b"long content", b"short"):
        storage.write_bytes(join(root, "a"), content)
        assert storage.read_bytes(join(root, "a")) == content
    assert names(root) == ["a"]


def test_a_file_of_many_chunks_is_their_sum(root):
    chunks = [bytes([number]) * 3_000_000 for number in range(7)]
    storage.write_chunks(join(root, "a"), iter(chunks))
    assert storage.read_bytes(join(root, "a")) == b"".join(chunks)


def broken(error):
    yield b"x" * 12_000_000
    raise error


@pytest.mark.parametrize("error", [EOFError("cut short"), OSError("disk"), KeyboardInterrupt()], ids=repr)
def test_a_file_whose_chunks_fail_is_not_there(root, error):
    with pytest.raises(type(error)) as caught:
        storage.write_chunks(join(root, "a"), broken(error))
    assert caught.value is error
    assert names(root) == []


def test_what_was_there_survives_a_failing_write(root):
    storage.write_bytes(join(root, "a"), b"old")
    with pytest.raises(EOFError):
        storage.write_chunks(join(root, "a"), broken(EOFError("cut short")))
    assert storage.read_bytes(join(root, "a")) == b"old"
    assert names(root) == ["a"]


def test_a_file_is_written_only_in_the_place_of_what_was_read(root):
    place = join(root, "new/a")
    assert storage.read_if_there(place) is None
    assert not storage.write_if_unchanged(place, b"1", b"0")
    assert storage.write_if_unchanged(place, b"1", None)
    assert not storage.write_if_unchanged(place, b"2", None)
    assert not storage.write_if_unchanged(place, b"2", b"")
    assert storage.read_if_there(place) == b"1"
    assert storage.write_if_unchanged(place, b"3", b"1")
    assert not storage.write_if_unchanged(place, b"2", b"1")
    assert storage.read_if_there(place) == b"3"
    assert names(root) == ["new/a"]


@pytest.mark.parametrize("before", [None, b"before"])
def test_of_several_that_write_at_once_one_does(root, before):
    for place in (join(root, str(number)) for number in range(4)):
        if before is not None:
            storage.write_bytes(place, before)
        together = threading.Barrier(8)

        def write(number, place=place, together=together):
            together.wait()
            return storage.write_if_unchanged(place, b"%d" % number, before)

        with ThreadPoolExecutor(8) as pool:
            wrote = list(pool.map(write, range(8)))
        assert sum(wrote) == 1
        assert storage.read_bytes(place) == b"%d" % wrote.index(True)
    assert len(names(root)) == 4


def test_a_process_that_was_killed_while_it_wrote_holds_up_nobody(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from rdmldg_ray.storage import files\n"
        "files.write_bytes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_if_unchanged(sys.argv[1], b'x', None)\n"
    )
    place = str(tmp_path / "a")
    assert subprocess.run([sys.executable, "-c", script, place]).returncode == -signal.SIGKILL
    assert storage.write_if_unchanged(place, b"y", None)
    assert local_names(tmp_path) == ["a"]


def test_files_are_listed_in_plain_string_order_with_their_suffix(root):
    for name in ("b/2.parquet", "a.parquet", "B.parquet", "b/10.parquet", "b/x.json", "b-.parquet"):
        storage.write_bytes(join(root, name), b"")
    listed = storage.list_files(root, ".parquet")
    assert [file.removeprefix(root + "/") for file in listed] == [
        "B.parquet",
        "a.parquet",
        "b-.parquet",
        "b/10.parquet",
        "b/2.parquet",
    ]
    assert len(storage.list_files(root)) == 6


def test_a_listing_tells_sizes(root):
    storage.write_bytes(join(root, "a"), b"four")
    (entry,) = storage.list_entries(root)
    assert (entry.location, entry.size) == (join(root, "a"), 4)
    assert entry.mtime_ns > 1_600_000_000e9


def test_a_missing_folder_lists_nothing_and_is_deleted_silently(root):
    missing = join(root, "missing")
    assert storage.list_files(missing) == []
    assert not storage.exists(missing)
    storage.delete_folder(missing)
    storage.delete_file(join(missing, "file"))


def test_files_and_folders_exist_and_are_told_apart(root):
    storage.write_bytes(join(root, "a/b"), b"")
    for location, file in ((join(root, "a"), False), (join(root, "a/b"), True), (join(root, "a/"), False)):
        assert storage.exists(location)
        assert storage.is_file(location) == file
    assert storage.list_files(join(root, "a/b")) == []


def test_a_deleted_folder_is_gone_with_what_was_in_it(root):
    for name in ("a/b/c", "a/d", "ab", "accepted"):
        storage.write_bytes(join(root, name), b"")
    storage.delete_folder(join(root, "a"))
    assert not storage.exists(join(root, "a"))
    assert names(root) == ["ab", "accepted"]
    storage.delete_folder(join(root, "accepted"))
    storage.delete_file(join(root, "ab"))
    assert names(root) == ["accepted"]


def test_a_folders_tables_are_read_in_order_and_its_name_is_not_a_column(root):
    for number in (2, 10, 1):
        storage.write_table(join(root, f"key=value/part-{number:05d}.parquet"), pa.table({"n": [number]}))
    table = storage.read_table(join(root, "key=value"))
    assert table.to_pydict() == {"n": [1, 2, 10]}


def test_a_folder_without_tables_is_named(root):
    with pytest.raises(StorageError, match="nowhere: no Parquet files here"):
        storage.read_table(join(root, "nowhere"))


def test_a_missing_file_is_named(root):
    for read in (storage.read_bytes, storage.read_json):
        with pytest.raises(StorageError, match="nowhere: cannot be read"):
            read(join(root, "nowhere"))
    with pytest.raises(StorageError, match=r"nowhere\.parquet: cannot be read"):
        storage.read_table(join(root, "nowhere.parquet"))


def test_a_file_that_is_no_table_is_named(root):
    storage.write_bytes(join(root, "a.parquet"), b"<html>not found</html>")
    with pytest.raises(StorageError, match=r"a\.parquet: cannot be read"):
        storage.read_table(root)


def test_an_unknown_scheme_is_refused_with_the_remedy():
    with pytest.raises(StorageError, match=r"unknown scheme 'gs://'; use a local path or s3://bucket/prefix"):
        storage.exists("gs://bucket/a")


def test_a_path_below_a_file_cannot_be_written_and_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file/below")
    for write in (lambda at: storage.write_bytes(at, b""), storage.check_writable):
        with pytest.raises(
            StorageError, match=r"file/below.*cannot be written .*choose another storage path"
        ):
            write(below)
    assert not storage.exists(below)


def test_the_write_test_leaves_nothing(root):
    storage.check_writable(join(root, "new"))
    assert names(root) == []


def local_names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_travels_whole_and_replaces_what_was_there(tmp_path, root):
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("a.txt", "deep/er/b.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    target.mkdir()
    (target / "stale").write_text("")
    storage.upload_folder(source, join(root, "there"))
    assert storage.download_folder(join(root, "there/"), target) == target
    assert local_names(target) == ["a.txt", "deep/er/b.txt"]
    assert (target / "deep/er/b.txt").read_text() == "deep/er/b.txt"


def test_an_empty_location_has_nothing_to_download(tmp_path, root):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/selected").write_text("")
    with pytest.raises(StorageError, match="nowhere: nothing to download here"):
        storage.download_folder(join(root, "nowhere"), tmp_path / "target")
    assert (tmp_path / "target/selected").exists()


def test_a_folder_is_copied_within_storage_with_what_is_wanted_of_it(root):
    for name in ("a", "b/c d", "b/skipped", "e"):
        storage.write_bytes(join(root, "from", name), name.encode())
    storage.write_bytes(join(root, "to/e"), b"old and longer")
    storage.write_bytes(join(root, "to/stays"), b"")
    copied = storage.copy_folder(
        join(root, "from/"), join(root, "to"), lambda name: not name.endswith("skipped")
    )
    assert copied == ["a", "b/c d", "e"]
    assert names(join(root, "to")) == ["a", "b/c d", "e", "stays"]
    assert all(storage.read_bytes(join(root, "to", name)) == name.encode() for name in copied)
    assert storage.copy_folder(join(root, "nowhere"), join(root, "to")) == []


@pytest.mark.parametrize("size", [0, 5, 20_000_000])
def test_a_file_travels_between_all_kinds_of_storage(root, tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "local").write_bytes(content)
    for source, target in (
        (str(tmp_path / "local"), join(root, "new/there")),
        (join(root, "new/there"), join(root, "beside")),
        (join(root, "beside"), str(tmp_path / "new/back")),
    ):
        storage.copy_file(source, target)
        assert storage.read_bytes(target) == content
    assert names(root) == ["beside", "new/there"]
    assert local_names(tmp_path / "new") == ["back"]


def test_a_copy_of_a_missing_file_says_so_and_leaves_what_was_there(root, tmp_path):
    (tmp_path / "kept").write_text("kept")
    storage.write_bytes(join(root, "kept"), b"kept")
    for target in (str(tmp_path / "kept"), join(root, "kept")):
        with pytest.raises(StorageError, match="nowhere: cannot be "):
            storage.copy_file(join(root, "nowhere"), target)
        assert storage.read_bytes(target) == b"kept"
    assert names(root) == ["kept"]


def test_a_copy_that_finds_no_room_leaves_what_was_there(root, tmp_path, monkeypatch):
    storage.write_bytes(join(root, "from/a"), bytes(200_000))
    (tmp_path / "to").mkdir()
    (tmp_path / "to/a").write_text("kept")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"to/a: cannot be written \(.*too large.*choose another"):
            storage.copy_folder(join(root, "from"), str(tmp_path / "to"))
        # Of this machine and not of the storage: an engine's or a worker's, and another may have room.
        with pytest.raises(OSError, match="too large") as full:
            storage.download_folder(join(root, "from"), tmp_path / "download")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not isinstance(full.value, StorageError)
    assert (tmp_path / "to/a").read_text() == "kept"
    assert local_names(tmp_path / "to") == ["a"] and local_names(tmp_path / "download") == []


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a/./b", "/evil", "..\\evil", ".."])
def test_a_name_that_leads_out_of_the_folder_is_refused_before_anything_is_copied(
    tmp_path, monkeypatch, name
):
    # Not every server keeps such a key; S3 itself does.
    listed = [f"{tmp_path}/from/good", f"{tmp_path}/from/{name}"]
    storage.write_bytes(listed[0], b"")
    monkeypatch.setattr("rdmldg_ray.storage.copy.list_files", lambda location: listed)
    with pytest.raises(StorageError, match=r"leads out of its folder, .*; remove or rename it"):
        storage.download_folder(f"{tmp_path}/from", tmp_path / "to/below")
    with pytest.raises(StorageError, match="leads out of its folder"):
        storage.copy_folder(f"{tmp_path}/from", f"{tmp_path}/to/below")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "place",
    [
        "{root}/a/..",
        "{root}/a/../b",
        "{root}/../b",
        "{root}/a/",
        "{root}/a//b",
        "{root}/a/.",
        "/",
        "a",
        "",
        ".",
        "..",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/..",
        "file:{root}/a/%2e%2e/b",
        "file://{root}/a/%2E./b",
        "s3://../a",
    ],
)
def test_only_a_plain_path_of_a_folder_in_another_is_deleted(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/c", "b/c"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    with pytest.raises(StorageError, match="not deleted, since this is no plain path of a folder"):
        storage.delete_folder(place.format(root=tmp_path))
    assert local_names(tmp_path) == ["a/b/c", "b/c"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json_is_named(tmp_path, content):
    storage.write_bytes(f"{tmp_path}/a.json", content)
    with pytest.raises(ValueError, match=r"/a\.json: is not valid JSON \("):
        storage.read_json(f"{tmp_path}/a.json")


@pytest.mark.parametrize("location", ["", " ", "\n"])
def test_an_empty_path_means_no_place(location):
    with pytest.raises(StorageError, match="an empty path was given"):
        storage.absolute(location)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://", "s3://: no valid bucket name; write s3://bucket/prefix"),
        ("s3:///prefix", "no valid bucket name; write s3://bucket/prefix"),
        ("s3:bucket/prefix", "no valid bucket name; write s3://bucket/prefix"),
        ("s3:/bucket", "no valid bucket name; write s3://bucket/prefix"),
        ("s3://key:secret@bucket/a", "s3://...@...: no valid bucket name"),
        ("S3://bucket", "unknown scheme 'S3://'; use a local path or s3://bucket/prefix"),
        ("gs://bucket/a", "unknown scheme 'gs://'; use a local path or s3://bucket/prefix"),
        ("https://me:secret@host/a", "https://...@...: unknown scheme 'https://'"),
        ("://a", "unknown scheme '://'"),
    ],
)
def test_what_is_no_place_on_s3_is_refused_before_anything_is_made_of_it(location, message):
    for look in (storage.absolute, storage.exists, storage.list_folders):
        with pytest.raises(StorageError) as refused:
            look(location)
        assert message in str(refused.value) and "secret" not in str(refused.value)


# What S3 alone can refuse.


def test_a_copy_within_s3_is_the_servers_work(s3_root, monkeypatch):
    for name in ("a", "b/c"):
        storage.write_bytes(join(s3_root, "from", name), bytes(1000))
    with s3_counter(os.environ["AWS_ENDPOINT_URL"]) as (endpoint, seen), monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage.copy_folder(join(s3_root, "from"), join(s3_root, "to"))
    # A request for each file and no content of any.
    assert seen.requests_of("/to/") == 2 and seen.requests_of("/from/") == 0
    assert names(s3_root) == ["from/a", "from/b/c", "to/a", "to/b/c"]


def test_an_upload_leaves_no_markers_of_folders(s3_root, tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("")
    storage.upload_folder(tmp_path, join(s3_root, "there"))
    prefix = s3_root.removeprefix(f"s3://{s3_server.BUCKET}/")
    found = boto3.client("s3").list_objects_v2(Bucket=s3_server.BUCKET, Prefix=prefix)["Contents"]
    assert [entry["Key"] for entry in found] == [f"{prefix}/there/a/b/c"]


@pytest.mark.parametrize(
    ("size", "refused"),
    [(5, "PUT"), (20_000_000, "partNumber=2"), (20_000_000, "uploads"), (20_000_000, "POST uploadId")],
)
def test_what_was_there_survives_a_write_that_the_server_refuses(s3_root, monkeypatch, size, refused):
    storage.write_bytes(join(s3_root, "a"), b"old")

    def refuse(command, path):
        return all(word in f"{command} {path}" for word in refused.split())

    with s3_counter(os.environ["AWS_ENDPOINT_URL"], refuse) as (endpoint, _), monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match="refused the credentials \\(ACCESS_DENIED\\)"):
            storage.write_bytes(join(s3_root, "a"), b"x" * size)
    assert storage.read_bytes(join(s3_root, "a")) == b"old"
    assert names(s3_root) == ["a"]
    # Parts of an upload that was given up would not be listed, and still be paid for.
    own = s3_root.removeprefix(f"s3://{s3_server.BUCKET}/")  # other tests' killed drivers may have left some
    uploads = boto3.client("s3").list_multipart_uploads(Bucket=s3_server.BUCKET).get("Uploads", [])
    assert [upload["Key"] for upload in uploads if upload["Key"].startswith(own)] == []


OPERATIONS = {
    "exists": storage.exists,
    "list_files": storage.list_files,
    "read_bytes": storage.read_bytes,
    "read_table": lambda at: storage.read_table(at + ".parquet"),
    "write_bytes": lambda at: storage.write_bytes(at, b"x"),
    "delete_folder": storage.delete_folder,
    "check_writable": storage.check_writable,
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


def complaint(operation, location, *secrets):
    """The message of a StorageError, whose traceback repeats no secret."""
    with pytest.raises(StorageError) as caught:
        operation(location)
    shown = "".join(traceback.format_exception(caught.value))
    assert not [secret for secret in secrets if secret in shown]
    assert location in str(caught.value)
    return str(caught.value)


@every_operation
def test_a_missing_bucket_is_named(s3_root, operation):
    message = complaint(operation, "s3://misspelt/a", s3_server.SECRET_KEY, s3_server.ACCESS_KEY)
    assert message.endswith(" has no bucket 'misspelt'; create it, or correct the location")
    with pytest.raises(StorageError):
        storage.exists("s3://misspelt")  # it was not created by the attempt


@every_operation
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_refused_and_not_repeated(s3_root, monkeypatch, operation, variable):
    monkeypatch.setenv(variable, "not-the-right-one")
    secrets = ("not-the-right-one", s3_server.SECRET_KEY, s3_server.ACCESS_KEY)
    message = complaint(operation, s3_root, *secrets)
    assert "refused the credentials" in message
    assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in message


def test_a_server_that_is_down_is_named_without_its_password(s3_root, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:somesecret@127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # where Ray has run, there would be more
    message = complaint(storage.exists, s3_root, "someone", "somesecret", s3_server.SECRET_KEY)
    assert message.endswith("no answer from http://127.0.0.1:9; check that it runs, and AWS_ENDPOINT_URL")


def test_a_server_that_comes_back_is_waited_for(s3_root, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    monkeypatch.setenv("AWS_RETRY_MODE", "standard")
    with s3_proxy.s3_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for operation in (
            lambda: storage.write_bytes(join(s3_root, "a"), b"x"),
            lambda: storage.read_bytes(join(s3_root, "a")),
            lambda: storage.list_files(s3_root),
        ):
            proxy.shut()
            threading.Timer(0.5, proxy.open).start()
            operation()
        assert names(s3_root) == ["a"]


def test_a_file_system_arrives_elsewhere_without_credentials_and_as_patient(s3_root):
    filesystem, path = storage.open_location(s3_root)
    packed = pickle.dumps(filesystem)
    assert s3_server.SECRET_KEY.encode() not in packed
    storage.write_bytes(join(s3_root, "a"), b"x")
    assert pickle.loads(packed).open_input_file(f"{path}/a").read() == b"x"
    # The one that this process has, with its own settings, and not one of pyarrow's making.
    assert pickle.loads(packed) is filesystem


def test_credentials_in_a_location_are_refused_and_not_repeated():
    with pytest.raises(StorageError, match=r"no valid bucket.*give credentials in the environment") as no:
        storage.exists("s3://somekey:somesecret@bucket/a")
    assert "somesecret" not in str(no.value) and "somekey" not in str(no.value)
    with pytest.raises(StorageError, match=r"s3:///a: no valid bucket name"):
        storage.exists("s3:///a")


def test_a_uri_leads_libraries_to_the_same_place(s3_root):
    name = join(s3_root, "Real World/a#1%20.txt")
    storage.write_bytes(name, b"x")
    filesystem, path = fs.FileSystem.from_uri(storage.as_uri(name))
    assert filesystem.open_input_file(path).read() == b"x"
    assert storage.as_uri("/local/Real World") == "/local/Real World"


def test_slashes_too_many_do_not_matter(s3_root):
    storage.write_bytes(s3_root + "//a///b", b"x")
    assert names(s3_root) == ["a/b"]


@pytest.mark.parametrize("where", ["AWS_ENDPOINT_URL_S3", "default profile", "named profile"])
def test_the_endpoint_may_come_from_the_other_usual_places(s3_root, monkeypatch, tmp_path, where):
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    if where == "AWS_ENDPOINT_URL_S3":
        monkeypatch.setenv(where, endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # for other services
    else:
        # Credentials from the file too, as a user has them.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        section = "default" if where == "default profile" else "profile lab"
        if section != "default":
            monkeypatch.setenv("AWS_PROFILE", "lab")
        config = tmp_path / "config"
        config.write_text(
            f"[{section}]\nregion = eu-central-1\nendpoint_url = {endpoint}\n"
            f"aws_access_key_id = {s3_server.ACCESS_KEY}\n"
            f"aws_secret_access_key = {s3_server.SECRET_KEY}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    storage.write_bytes(join(s3_root, "a"), b"x")
    assert storage.read_bytes(join(s3_root, "a")) == b"x"
    # Where pyarrow and Ray's workers look for it; monkeypatch takes it out again.
    assert os.environ["AWS_ENDPOINT_URL"] == endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
