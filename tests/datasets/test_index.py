import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from rdmldg_ray.datasets.index import base_classes, sample_index, take_split
from rdmldg_ray.datasets.schema import (
    INDEX_SCHEMA,
    SAMPLE_SCHEMA,
    DatasetInfo,
    index_location,
    samples_location,
    write_samples,
)
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.storage import StorageError, read_images, read_table, write_table

DOMAINS = ("art", "photo", "sketch")
SIZES = {"art": 20, "photo": 31, "sketch": 12}
INFO = DatasetInfo("pets", DOMAINS, ("cat", "dog"), SIZES)


def sample(domain, index):
    id = f"pets/{domain}/{'cat' if index < 10 else 'dog'}/{index:02d}.png"
    return {
        "id": id,
        "image": id.encode(),
        "label": "cat" if index < 10 else "dog",
        "label_id": int(index >= 10),
        "domain": domain,
        "index": index,
        "width": 1,
        "height": 1,
    }


@pytest.fixture
def root(tmp_path):
    """Each domain in two files of several row groups; a file's bytes stand for an image."""
    for domain in DOMAINS:
        rows = [sample(domain, index) for index in range(SIZES[domain])]
        for number, part in enumerate((rows[:9], rows[9:])):
            table = pa.Table.from_pylist(part, schema=SAMPLE_SCHEMA)
            write_samples(str(tmp_path), INFO.name, domain, number, table)
    return str(tmp_path)


def first_part(root):
    location = index_location(root, INFO.name, "art") + "/part-00000.parquet"
    return location, read_table(location)


@pytest.mark.parametrize("column", INDEX_SCHEMA.names)
def test_a_part_without_a_column_is_named_with_the_column(root, column):
    location, table = first_part(root)
    write_table(location, table.drop_columns([column]))
    with pytest.raises(StorageError, match=rf"art/part-00000\.parquet: has not one column '{column}'"):
        sample_index(root, INFO, ["art"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label_id", pa.array(["x"] * 9), "its column 'label_id' is not of int32"),
        ("label_id", pa.array([1] * 9), "its labels are not numbered as the classes"),
        ("label", pa.array(["Cat"] * 9), "its labels are not numbered as the classes"),
        ("label", pa.nulls(9, pa.string()), "its column 'label' lacks values"),
        ("id", pa.array([["x"]] * 9), "its column 'id' is not of string"),
    ],
)
def test_a_part_that_was_edited_is_named(root, column, values, message):
    location, table = first_part(root)
    write_table(location, table.set_column(table.column_names.index(column), column, values))
    with pytest.raises(StorageError, match=rf"art/part-00000\.parquet: {message}"):
        sample_index(root, INFO, ["art"])


def test_a_part_that_another_program_wrote_anew_is_read_in_its_types(root):
    location, table = first_part(root)
    before = sample_index(root, INFO, ["art"])
    others = {
        "id": table["id"].cast(pa.large_string()),
        "label_id": table["label_id"].cast(pa.int64()),
        "domain": table["domain"].dictionary_encode(),
    }
    for name, column in others.items():
        table = table.set_column(table.column_names.index(name), name, column)
    write_table(location, table)
    assert sample_index(root, INFO, ["art"]).equals(before)


def ids(table):
    return table["id"].to_pylist()


def test_an_index_has_every_sample_of_its_domains_in_order_and_no_image(root):
    index = sample_index(root, INFO, ["sketch", "art"])
    expected = [sample(domain, i)["id"] for domain in ("sketch", "art") for i in range(SIZES[domain])]
    assert ids(index) == expected
    known = ["id", "label", "label_id", "domain", "index", "sha256"]
    assert index.column_names == [*known, "file", "row_group", "row"]


def test_images_come_in_the_order_of_the_rows_that_ask_for_them(root):
    index = sample_index(root, INFO, DOMAINS)
    order = [40, 3, 3, 62, 0, 25, 8, 9]
    chosen = index.take(order)
    assert read_images(chosen) == [id.encode() for id in ids(chosen)]
    assert read_images(index) == [id.encode() for id in ids(index)]


@pytest.mark.skipif(sys.platform != "linux", reason="counts the open files in /proc")
def test_reading_images_leaves_no_file_of_a_disk_open(root):
    assert read_images(sample_index(root, INFO, DOMAINS)) != []
    opened = [str(number.resolve()) for number in Path("/proc/self/fd").iterdir()]
    assert [file for file in opened if file.startswith(root)] == []


def test_parts_are_domainbeds_with_each_domains_own_number(root):
    index = sample_index(root, INFO, ["art", "sketch"])
    for part, which in (("in", 0), ("out", 1)):
        taken = take_split(index, INFO, part, trial_seed=1, holdout_fraction=0.2)
        # sketch is environment 2 although photo is left out.
        expected = {
            sample(domain, i)["id"]
            for number, domain in ((0, "art"), (2, "sketch"))
            for i in split_indices(SIZES[domain], 1, number)[which]
        }
        assert set(ids(taken)) == expected and len(taken) == len(expected)


def test_the_parts_of_a_domain_do_not_depend_on_which_other_is_held_out(root):
    parts = []
    for sources in (["art", "photo"], ["art", "sketch"], ["art"]):
        taken = take_split(sample_index(root, INFO, sources), INFO, "out", 0, 0.2)
        parts.append(ids(taken.filter(pa.compute.equal(taken["domain"], "art"))))
    assert parts[0] == parts[1] == parts[2] != []


@pytest.mark.parametrize("held_out", DOMAINS)
@pytest.mark.parametrize("how", ["deleted", "corrupted"])
def test_the_held_out_domains_files_are_never_opened(root, held_out, how):
    sources = [domain for domain in DOMAINS if domain != held_out]
    before = sample_index(root, INFO, sources)
    for locate in (samples_location, index_location):
        target = Path(locate(root, INFO.name, held_out))
        shutil.rmtree(target)
        if how == "corrupted":
            target.mkdir()
            (target / "part-00000.parquet").write_bytes(b"opening this would fail")

    index = sample_index(root, INFO, sources)
    assert index.equals(before)
    seen = []
    for part in ("in", "out"):
        taken = take_split(index, INFO, part, 0, 0.2)
        assert read_images(taken) == [id.encode() for id in ids(taken)]
        seen += ids(taken)
    assert sorted(seen) == sorted(ids(index))
    assert not [id for id in seen if f"/{held_out}/" in id]
    with pytest.raises(StorageError):
        sample_index(root, INFO, [held_out])


def test_an_unknown_domain_is_named_with_those_there_are(root):
    with pytest.raises(ValueError, match="pets has no domain 'cartoon'; it has: art, photo, sketch"):
        sample_index(root, INFO, ["art", "cartoon"])


def test_a_domain_without_files_is_named_with_the_remedy(root):
    shutil.rmtree(index_location(root, INFO.name, "photo"))
    with pytest.raises(StorageError, match=r"index/photo: no Parquet files here; write the data set again"):
        sample_index(root, INFO, ["photo"])


def test_an_index_that_lacks_a_part_is_told(root):
    Path(index_location(root, INFO.name, "photo"), "part-00001.parquet").unlink()
    with pytest.raises(StorageError, match=r"index/photo: holds 9 samples, and dataset\.json tells of 31"):
        sample_index(root, INFO, ["photo"])


def test_the_middle_class_is_a_base_class():
    assert base_classes(["a", "b", "c"]) == ["a", "b"]
    assert base_classes(["a", "b", "c", "d"]) == ["a", "b"]
