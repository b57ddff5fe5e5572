"""An extension type of Arrow decides how its values are read, and Ray Data's for Python objects unpickles."""

import os
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  (registers its types)

from rdmldg_ray import storage
from rdmldg_ray.chains.imports import import_chains
from rdmldg_ray.chains.store import read_chain_file, read_chains
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.ingest.opening import plan_questions
from rdmldg_ray.datasets.ingest.writing import read_rejects
from rdmldg_ray.datasets.schema import chains_location, dataset_location, read_dataset_info
from rdmldg_ray.evaluation.predictions import read_predictions
from rdmldg_ray.sarr.candidates import read_candidates
from rdmldg_ray.storage import StorageError
from tools import mini

PICKLED = "ray.data.arrow_pickled_object"
NEVER_SEEN = "somebody.elses"


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def extended(name):
    """A field's type and metadata as a file has them for a column of an extension type."""
    return pa.field(
        "x",
        pa.large_binary(),
        metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": b""},
    )


def named(field, name):
    return field.with_name(name)


def nested(kind, name):
    """A column of a kind that has values of the extension type in it, and one row's value by the content."""
    inner = extended(name)
    match kind:
        case "plain":
            return inner, lambda value: value
        case "struct":
            return pa.field("x", pa.struct([named(inner, "y")])), lambda value: {"y": value}
        case "list":
            return pa.field("x", pa.list_(named(inner, "item"))), lambda value: [value]
        case "fixed list":
            return pa.field("x", pa.list_(named(inner, "item"), 1)), lambda value: [value]
        case "large list":
            return pa.field("x", pa.large_list(named(inner, "item"))), lambda value: [value]
        case "map":
            key = pa.field("key", pa.string(), nullable=False)
            return pa.field("x", pa.map_(key, named(inner, "value"))), lambda value: [("k", value)]
        case "dictionary":
            kind = pa.dictionary(pa.int32(), pa.large_binary())
            return pa.field("x", kind, metadata=inner.metadata), lambda value: value
        case "deep":
            deep = pa.list_(pa.field("item", pa.struct([pa.field("z", pa.list_(named(inner, "item")))])))
            return pa.field("x", deep), lambda value: [{"z": [value]}]


KINDS = ("plain", "struct", "list", "fixed list", "large list", "map", "dictionary", "deep")


def plant(file, place, like=None, kind="plain", name=PICKLED, column="x"):
    """Write a file with the columns of another, one of which runs code when its values are read."""
    field, wrap = nested(kind, name)
    field = field.with_name(column)
    content = wrap(pickle.dumps(Planted(place)))
    columns = {} if like is None else {n: like[n].slice(0, 1) for n in like.column_names if n != column}
    fields = [] if like is None else [f for f in like.schema if f.name != column]
    arrays = [*columns.values(), pa.array([content], field.type)]
    os.makedirs(os.path.dirname(file), exist_ok=True)
    pq.write_table(pa.table(arrays, schema=pa.schema([*fields, field])), file)


def test_what_is_planted_here_runs_where_it_is_read_without_a_check(tmp_path):
    plant(str(tmp_path / "a.parquet"), tmp_path / "ran")
    pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (tmp_path / "ran").exists()


READERS = {
    "file": storage.read_table,
    "folder": lambda file: storage.read_table(str(Path(file).parent), ["image"]),
    "opened": lambda file: storage.open_parquet(file).__enter__(),
    "images": lambda file: storage.read_images(pa.table({"file": [file], "row_group": [0], "row": [0]})),
}


@pytest.mark.parametrize("name", [PICKLED, NEVER_SEEN])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["file", "folder", "opened", "images"])
def test_an_extension_type_is_refused_at_any_depth(tmp_path, kind, name, how):
    file = str(tmp_path / "a.parquet")
    plant(file, tmp_path / "ran", kind=kind, name=name, column="image")
    with pytest.raises(StorageError, match=rf"a\.parquet: not read.*column 'image' is of {name}.*write the"):
        READERS[how](file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("parameters", [b"", b"cos\nsystem\n(S'x'\ntR.", b"{", b"[1]"])
def test_parameters_that_a_known_type_does_not_take_are_a_bad_file(tmp_path, parameters):
    metadata = {"ARROW:extension:name": "ray.data.arrow_tensor_v2", "ARROW:extension:metadata": parameters}
    field = pa.field("x", pa.large_list(pa.int64()), metadata=metadata)
    pq.write_table(pa.table([pa.array([[1]], field.type)], schema=pa.schema([field])), tmp_path / "a.parquet")
    with pytest.raises(StorageError, match=r"a\.parquet: .*; write the file again with columns of"):
        storage.read_table(str(tmp_path))


@pytest.fixture
def root(mini_root, tmp_path):
    return shutil.copytree(mini_root, str(tmp_path / "root"))


def part(root, kind):
    [file] = storage.list_files(storage.join(dataset_location(root, mini.NAME), kind, "flat"), ".parquet")
    return file


def read_planted(root, what):
    """Plant a file in the place of what the product reads, and read it as the product does."""
    name, ran = mini.NAME, f"{root}/ran"
    info = read_dataset_info(root, name)
    other = f"{root}/other/part-00000.parquet"
    match what:
        case "samples":
            index = sample_index(root, info, ["flat"])
            plant(part(root, "samples"), ran, storage.read_table(part(root, "samples")), column="image")
            storage.read_images(index)
        case "index":
            plant(part(root, "index"), ran, storage.read_table(part(root, "index")), column="label")
            sample_index(root, info, ["flat"])
        case "chains":
            file = part(root, "chains/rules")
            plant(file, ran, storage.read_table(file), column="text")
            read_chains(root, name, "rules", ["flat"], ["id", "text"])
        case "one file of chains":
            plant(other, ran, column="text")
            read_chain_file(other)
        case "chains to import":
            plant(other, ran, pa.table({"id": [""], "text": [""]}), column="text")
            import_chains(other, root, name, "theirs")
        case "rows to ingest":
            table = pa.table({n: [""] for n in ("image", "question", "options", "answer", "domain")})
            plant(other, ran, table, column="question")
            plan_questions(other, root, "asked")
        case "rejects":
            plant(f"{dataset_location(root, name)}/rejects/flat/part-00000.parquet", ran, column="path")
            read_rejects(root, name)
        case "candidates":
            plant(other, ran, column="text")
            read_candidates(f"{root}/other")
        case "predictions":
            plant(other, ran, column="answer")
            read_predictions(other)


@pytest.mark.parametrize(
    "what",
    [
        "samples",
        "index",
        "chains",
        "one file of chains",
        "chains to import",
        "rows to ingest",
        "rejects",
        "candidates",
        "predictions",
    ],
)
def test_nothing_that_the_product_reads_runs_what_was_planted(root, what):
    with pytest.raises(ValueError, match=rf"\.parquet: not read.*{PICKLED}.*remove it"):
        read_planted(root, what)
    assert not Path(root, "ran").exists()
    assert not storage.list_files(chains_location(root, mini.NAME, "theirs"))
