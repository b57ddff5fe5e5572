import dataclasses
import hashlib
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdmldg_ray import storage
from rdmldg_ray.chains.format import display_name, match_class, parse_chain
from rdmldg_ray.chains.prompts import PROMPT_VERSION
from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.datasets import schema as samples
from rdmldg_ray.datasets.builtin import iconbed
from rdmldg_ray.datasets.builtin.embedded import write_embedded
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, SAMPLE_SCHEMA, DatasetInfo, read_dataset_info
from rdmldg_ray.domainbed.catalogue import ICONBED
from tests.helpers.killed import killed_at_each_step


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("storage"))
    iconbed.write_iconbed(root)
    return root


def read(location, schema):
    table = storage.read_table(location)
    assert table.schema.equals(schema)
    return table.to_pylist()


def test_the_shipped_images_are_the_pinned_ones():
    digest = hashlib.sha256(iconbed.iconbed_file("iconbed.parquet")).hexdigest()
    assert digest == "b9e6520c7e9e7917004529afa477015f5fd49188635c365091b66efab516b1fd"


def test_the_info_tells_what_lies_on_storage(root):
    info = read_dataset_info(root, "iconbed")
    assert (info.name, info.environments, info.classes) == (
        ICONBED.name,
        ICONBED.environments,
        ICONBED.class_names,
    )
    assert info.counts == dict.fromkeys(ICONBED.environments, 287)


@pytest.mark.parametrize("domain", ICONBED.environments)
def test_samples_lie_in_image_folder_order(root, domain):
    rows = read(samples.samples_location(root, "iconbed", domain), SAMPLE_SCHEMA)
    assert [row["index"] for row in rows] == list(range(287))
    paths = [row["id"].removeprefix(f"iconbed/{domain}/") for row in rows]
    assert [tuple(path.split("/")) for path in paths] == sorted(tuple(path.split("/")) for path in paths)
    assert {row["domain"] for row in rows} == {domain}
    for row, path in zip(rows, paths, strict=True):
        assert path.startswith(row["label"] + "/") and path.endswith(".png")
        assert ICONBED.class_names[row["label_id"]] == row["label"]
        assert (row["width"], row["height"]) == (96, 96)


def test_ids_are_unique_and_images_unchanged(root):
    rows = read(storage.join(samples.dataset_location(root, "iconbed"), "samples"), SAMPLE_SCHEMA)
    assert len({row["id"] for row in rows}) == len(rows) == ICONBED.num_images
    packed = pq.read_table(io.BytesIO(iconbed.iconbed_file("iconbed.parquet"))).to_pylist()
    assert {row["id"]: row["image"] for row in rows} == {iconbed.iconbed_id(r): r["image"] for r in packed}


def test_files_have_small_row_groups(root):
    for file in storage.list_files(storage.join(samples.dataset_location(root, "iconbed"), "samples")):
        metadata = pq.ParquetFile(file).metadata
        assert all(metadata.row_group(i).num_rows <= 4 for i in range(metadata.num_row_groups))


@pytest.mark.parametrize(("size", "groups"), [(1_000, 3), (40_000, 10), (200_000, 10), (0, 3)])
def test_a_group_has_few_bytes_since_it_is_read_for_one_image(tmp_path, size, groups):
    images = [bytes([number]) * size for number in range(10)]
    blank = dict.fromkeys(SAMPLE_SCHEMA.names)
    rows = [blank | {"id": f"a/x/{number}", "image": image} for number, image in enumerate(images)]
    samples.write_samples(str(tmp_path), "a", "x", 0, pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    [file] = storage.list_files(samples.samples_location(str(tmp_path), "a", "x"))
    assert pq.ParquetFile(file).metadata.num_row_groups == groups
    index = storage.read_table(samples.index_location(str(tmp_path), "a", "x"))
    index = index.append_column("file", pa.array([file] * 10)).take([7, 0, 9, 3])
    assert storage.read_images(index) == [images[place] for place in (7, 0, 9, 3)]


def test_every_sample_has_a_chain_that_concludes_with_its_label(root):
    rows = read(storage.join(samples.dataset_location(root, "iconbed"), "samples"), SAMPLE_SCHEMA)
    chains = read(samples.chains_location(root, "iconbed", "rules"), CHAIN_SCHEMA)
    labels = {row["id"]: row["label"] for row in rows}
    assert sorted(chain["id"] for chain in chains) == sorted(labels)
    for chain in chains:
        label = labels[chain["id"]]
        parsed = parse_chain(chain["text"])
        assert parsed.conclusion == chain["conclusion"] == display_name(label)
        assert match_class(parsed.conclusion, [label]) == 0
        assert (chain["candidate"], chain["accepted"], chain["reason"]) == (0, True, None)
        assert (chain["prompt_version"], chain["model"]) == (PROMPT_VERSION, "rules")


def test_no_chain_tells_the_label_before_its_conclusion(root):
    for chain in read(samples.chains_location(root, "iconbed", "rules"), CHAIN_SCHEMA):
        parsed = parse_chain(chain["text"])
        before = " ".join([parsed.summary, parsed.caption, parsed.reasoning, parsed.reflection]).lower()
        assert not [word for word in parsed.conclusion.split() if word in before], chain["text"]


def test_writing_again_does_nothing(tmp_path):
    iconbed.write_iconbed(str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    iconbed.write_iconbed(str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("text", ['{"content": "older"}', "[]", "{", "[" * 100_000])
def test_other_content_is_replaced_whole(tmp_path, root, text):
    stale = tmp_path / "datasets/iconbed/samples/flat/part-00001.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    (tmp_path / "datasets/iconbed/dataset.json").write_text(text)
    iconbed.write_iconbed(str(tmp_path))
    assert not stale.exists()
    assert read_dataset_info(str(tmp_path), "iconbed") == read_dataset_info(root, "iconbed")


@pytest.mark.parametrize("name", ["iconbed", "iconbed-vqa"])
def test_a_data_set_of_another_origin_is_never_replaced_by_the_embedded_one(tmp_path, name):
    file = tmp_path / f"datasets/{name}/dataset.json"
    (file.parent / "samples/flat").mkdir(parents=True)
    file.write_text(json.dumps({"name": name, "content": "mine", "source": "/home/me/pictures"}))
    (file.parent / "samples/flat/part-00000.parquet").write_bytes(b"mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"ingested from /home/me/pictures .* is not replaced; .*--storage"):
        write_embedded(str(tmp_path), name)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def small(content):
    """A data set as of the package, of two samples, each with a chain that tells the content."""
    domains = ("flat", "paint")
    info = DatasetInfo("small", domains, ("cat",), dict.fromkeys(domains, 1), content=content * 64)
    info = dataclasses.replace(info, version=info.content[:12])
    same = {"label": "cat", "label_id": 0, "index": 0, "width": 1, "height": 1, "sha256": content}
    rows = [{"id": domain, "domain": domain, "image": content.encode()} | same for domain in domains]
    told = {"text": content, "conclusion": "cat", "prompt_version": "1", "teacher": "rules"}
    chains = [{"id": domain} | told for domain in domains]
    return info, lambda: (pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), pa.Table.from_pylist(chains))


def contents(root):
    info = read_dataset_info(root, "small")
    images = storage.read_images(sample_index(root, info, info.environments))
    chains = read_chains(root, "small", "rules", info.environments)["text"].to_pylist()
    return [image.decode() for image in images] + chains


def test_wherever_the_writing_of_an_embedded_data_set_dies_there_is_the_old_one_or_the_new(tmp_path):
    before = tmp_path / "before"
    iconbed.write_builtin(str(before), *small("a"))
    seen = []
    for root in killed_at_each_step(before, lambda root: iconbed.write_builtin(root, *small("b"))):
        seen.append(contents(root))
        assert seen[-1] in (["a"] * 4, ["b"] * 4)
        iconbed.write_builtin(root, *small("b"))
        assert contents(root) == ["b"] * 4
    assert seen[0] == ["a"] * 4 and seen[-1] == ["b"] * 4 and len(seen) > 7


def test_chains_that_were_imported_as_the_rules_stay(tmp_path):
    root = str(tmp_path)
    iconbed.write_builtin(root, *small("a"))
    mine = read_chains(root, "small", "rules", ["flat"]).set_column(2, "text", pa.array(["mine"]))
    write_chains(root, "small", "rules", {"flat": mine})
    iconbed.write_builtin(root, *small("b"))
    assert contents(root) == ["b", "b", "mine"]


@pytest.mark.parametrize(
    "told",
    [
        {"name": "other"},
        {"environments": ["a", "../b"]},
        {"environments": [".."]},
        {"environments": [7]},
        {"environments": [""]},
        {"environments": []},
        {"environments": "xy"},
        {"environments": ["x", "x"]},
        {"classes": "catdog"},
        {"classes": [1, 2]},
        {"classes": [None]},
        {"classes": []},
        {"classes": ["c", "c"]},
        {"classes": ["\ud800"]},
        {"counts": {"x": float("inf")}},
        {"counts": {"x": -1}},
        {"counts": {}},
        {"counts": [1]},
        {"sizes": []},
        {"sizes": None},
        {"sizes": {"x": 0}},
    ],
)
def test_an_info_that_was_edited_is_told_with_its_remedy(tmp_path, told):
    described = {"name": "a", "environments": ["x"], "classes": ["c"], "counts": {"x": 1}} | told
    storage.write_json(samples.info_location(str(tmp_path), "a"), described)
    with pytest.raises(
        ValueError, match=r"a/dataset\.json: does not describe a data set .*; ingest the data"
    ):
        read_dataset_info(str(tmp_path), "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"a"', "[" * 100_000, "\ufffe"])
def test_an_info_that_is_damaged_is_told_with_its_remedy(tmp_path, text):
    storage.write_bytes(samples.info_location(str(tmp_path), "a"), text.encode())
    with pytest.raises(
        ValueError, match=r"a/dataset\.json: does not describe a data set .*; ingest the data"
    ):
        read_dataset_info(str(tmp_path), "a")


@pytest.mark.parametrize(
    "told",
    [
        {"environments": "x"},
        {"environments": {"x": 1}},
        {"environments": []},
        {"environments": ["x", "x"]},
        {"classes": "cat"},
        {"classes": [1, 2]},
        {"classes": [None]},
        {"classes": [["c"]]},
        {"classes": ["c", "c"]},
        {"classes": []},
        {"counts": [1]},
        {"counts": {}},
        {"counts": {"x": -1}},
        {"counts": {"x": 1.5}},
        {"counts": {"x": "1"}},
        {"counts": {"x": True}},
        {"counts": {"x": float("inf")}},
        {"sizes": [1]},
        {"sizes": None},
        {"sizes": {"x": float("nan")}},
        {"sizes": {"x": 0}},
    ],
)
def test_an_info_that_was_edited_is_never_taken_for_another_data_set(tmp_path, told):
    described = {"name": "a", "environments": ["x"], "classes": ["c"], "counts": {"x": 1}}
    storage.write_json(samples.info_location(str(tmp_path), "a"), described)
    assert read_dataset_info(str(tmp_path), "a") == DatasetInfo("a", ("x",), ("c",), {"x": 1})
    storage.write_json(samples.info_location(str(tmp_path), "a"), described | told)
    with pytest.raises(ValueError, match=r"a/dataset\.json: does not describe a data set .* ingest the data"):
        read_dataset_info(str(tmp_path), "a")


@pytest.mark.parametrize("bad", ["", "..", "a/b", "a\\b"])
@pytest.mark.parametrize(
    "place",
    [
        lambda bad: samples.dataset_location("/s", bad),
        lambda bad: samples.samples_location("/s", "a", bad),
        lambda bad: samples.index_location("/s", "a", bad),
        lambda bad: samples.chains_location("/s", "a", bad),
        lambda bad: samples.chains_location("/s", "a", "t", bad),
    ],
)
def test_no_place_of_a_data_set_is_made_of_another_path(place, bad):
    with pytest.raises(ValueError, match="give another name"):
        place(bad)


def test_an_interrupted_writing_leaves_no_info(tmp_path, monkeypatch):
    write = storage.write_table

    def fail_at_chains(location, table):
        if "/chains/" in location:
            raise storage.StorageError(f"{location}: disk full")
        write(location, table)

    monkeypatch.setattr(storage, "write_table", fail_at_chains)
    with pytest.raises(ValueError, match="disk full"):
        iconbed.write_iconbed(str(tmp_path))
    with pytest.raises(ValueError, match=r"dataset\.json.*ingest the data set again"):
        read_dataset_info(str(tmp_path), "iconbed")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", "null", "[" * 100_000, '{"name": "pacs", "environments": ["x"], "classes": ["c"]}'],
)
def test_a_broken_info_is_named_with_its_remedy(tmp_path, text):
    file = tmp_path / "datasets/pacs/dataset.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"pacs/dataset\.json: does not describe .* ingest the data set again"
    ):
        read_dataset_info(str(tmp_path), "pacs")


def test_the_licences_travel_with_the_images():
    notice = iconbed.iconbed_file("NOTICE").decode()
    packed = pq.read_table(io.BytesIO(iconbed.iconbed_file("iconbed.parquet")), columns=["license", "domain"])
    for licence in set(packed["license"].to_pylist()) - {"MIT"}:
        assert licence in notice
        assert len(iconbed.iconbed_file(f"LICENSES/{licence}.txt")) > 1000
    for domain in ICONBED.environments:
        assert f'domain "{domain}"' in notice
