import pyarrow as pa
import pytest

from rdmldg_ray import storage
from rdmldg_ray.storage import StorageError, join


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def names(tmp_path):
    return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())


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


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_bytes_json_and_tables_come_back_as_written(root, prefix):
    root = prefix + root
    storage.write_bytes(join(root, "new/folder/a.bin"), b"\x00\x01")
    storage.write_json(join(root, "b.json"), {"a": [1, None]})
    table = pa.table({"x": [1, 2], "y": ["a", None]})
    storage.write_table(join(root, "c.parquet"), table)
    assert storage.read_bytes(join(root, "new/folder/a.bin")) == b"\x00\x01"
    assert storage.read_json(join(root, "b.json")) == {"a": [1, None]}
    assert storage.read_table(join(root, "c.parquet")).equals(table)
    assert storage.read_table(join(root, "c.parquet"), ["y"]).column_names == ["y"]


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path, root):
    for content in (b"long content", b"short"):
        storage.write_bytes(join(root, "a"), content)
        assert (tmp_path / "a").read_bytes() == content
    assert names(tmp_path) == ["a"]


def test_files_are_listed_in_plain_string_order_with_their_suffix(tmp_path, root):
    for name in ("b/2.parquet", "a.parquet", "B.parquet", "b/10.parquet", "b/x.json"):
        storage.write_bytes(join(root, name), b"")
    listed = storage.list_files(root, ".parquet")
    assert [file.removeprefix(root + "/") for file in listed] == [
        "B.parquet",
        "a.parquet",
        "b/10.parquet",
        "b/2.parquet",
    ]
    assert len(storage.list_files(root)) == 5


def test_a_missing_folder_lists_nothing_and_is_deleted_silently(root):
    missing = join(root, "missing")
    assert storage.list_files(missing) == []
    assert not storage.exists(missing)
    storage.delete_folder(missing)


def test_a_deleted_folder_is_gone_with_what_was_in_it(tmp_path, root):
    storage.write_bytes(join(root, "a/b/c"), b"")
    storage.write_bytes(join(root, "kept"), b"")
    storage.delete_folder(join(root, "a"))
    assert names(tmp_path) == ["kept"]


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


def test_an_unknown_scheme_is_refused_with_the_remedy():
    with pytest.raises(StorageError, match=r"unknown scheme 'gs://'; use a local path or s3://bucket/prefix"):
        storage.exists("gs://bucket/a")


def test_a_path_below_a_file_cannot_be_written_and_says_so(tmp_path, root):
    (tmp_path / "file").write_text("")
    for write in (lambda at: storage.write_bytes(at, b""), storage.check_writable):
        with pytest.raises(
            StorageError, match=r"file/below.*cannot be written .*choose another storage path"
        ):
            write(join(root, "file/below"))
    assert not storage.exists(join(root, "file/below"))


def test_the_write_test_leaves_nothing(tmp_path, root):
    storage.check_writable(join(root, "new"))
    assert names(tmp_path) == []


def test_a_folder_travels_whole_and_replaces_what_was_there(tmp_path, root):
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("a.txt", "deep/er/b.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    target.mkdir()
    (target / "stale").write_text("")
    storage.upload_folder(source, join(root, "there"))
    assert storage.download_folder(join(root, "there/"), target) == target
    assert names(target) == ["a.txt", "deep/er/b.txt"]
    assert (target / "deep/er/b.txt").read_text() == "deep/er/b.txt"


def test_an_empty_location_has_nothing_to_download(tmp_path, root):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/kept").write_text("")
    with pytest.raises(StorageError, match="nowhere: nothing to download here"):
        storage.download_folder(join(root, "nowhere"), tmp_path / "target")
    assert (tmp_path / "target/kept").exists()
