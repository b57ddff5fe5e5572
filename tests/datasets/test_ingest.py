import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdmldg_ray import storage
from rdmldg_ray.datasets.builtin.iconbed import iconbed_samples
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.index import repeated_images, sample_index, take_split
from rdmldg_ray.datasets.ingest import plan as ingest_plan
from rdmldg_ray.datasets.ingest.archives import ReadLimits
from rdmldg_ray.datasets.ingest.plan import plan_ingest
from rdmldg_ray.datasets.ingest.writing import ingest, is_ingested, read_rejects, write_shard
from rdmldg_ray.datasets.schema import SAMPLE_SCHEMA, dataset_location, read_dataset_info, samples_location
from rdmldg_ray.domainbed.splits import split_indices
from rdmldg_ray.storage import read_images
from tests.helpers.killed import killed_at_each_step


def run_here(source, target, shards):
    """Run the shards in this process, one after the other."""
    for shard in shards:
        yield write_shard(source, target, shard)


def picture(number=0, format="PNG", size=(6, 4)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format)
    return sink.getvalue()


PETS = {
    f"{environment}/{label}/{number}.png": picture(number)
    for environment in ("art", "photo")
    for label in ("cat", "dog")
    for number in range(5)
}


def write_tree(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


@pytest.fixture
def pets(tmp_path):
    return write_tree(tmp_path / "pets", PETS)


def ingest_pets(source, root, run_shards=run_here, replace_other=False, **settings):
    return ingest(plan_ingest(source, root, "pets", **settings), replace_other, run_shards=run_shards)


def samples_of(root, name="pets"):
    table = storage.read_table(storage.join(dataset_location(root, name), "samples"))
    assert table.schema.equals(SAMPLE_SCHEMA)
    return table


def written(root):
    return {entry.location: entry.mtime_ns for entry in storage.list_entries(root)}


def test_a_tree_becomes_samples(root, pets):
    info = ingest_pets(pets, root)
    assert info == read_dataset_info(root, "pets")
    assert (info.environments, info.classes) == (("art", "photo"), ("cat", "dog"))
    assert info.counts == {"art": 10, "photo": 10}
    rows = samples_of(root).to_pylist()
    assert [row["id"] for row in rows] == [f"pets/{name}" for name in PETS]
    for row in rows:
        name = row["id"].removeprefix("pets/")
        assert row["image"] == PETS[name]
        assert row["sha256"] == hashlib.sha256(PETS[name]).hexdigest()
        assert (row["domain"], row["label"]) == tuple(name.split("/")[:2])
        assert row["label_id"] == info.classes.index(row["label"])
        assert (row["width"], row["height"]) == (6, 4)
    assert [row["index"] for row in rows] == [*range(10), *range(10)]
    assert len(read_rejects(root, "pets")) == 0
    left = {location.removeprefix(dataset_location(root, "pets") + "/") for location in written(root)}
    parts = {
        f"{kind}/{domain}/part-00000-{info.version}.parquet"
        for kind in ("samples", "index")
        for domain in ("art", "photo")
    }
    assert left == {"dataset.json", *parts}


def packed(kind, files):
    sink = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(sink, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=sink, mode="w:gz" if kind == ".tar.gz" else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return sink.getvalue()


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz", "folder"])
def test_every_kind_of_source_gives_the_same_samples(root, pets, tmp_path, kind):
    ingest_pets(pets, str(tmp_path / "plain"))
    # In an archive below a folder of its own, and in another order.
    files = {f"PETS v1/{name}": PETS[name] for name in sorted(PETS, reverse=True)}
    source = storage.join(root, f"source{kind}")
    if kind == "folder":
        for name, data in files.items():
            storage.write_bytes(storage.join(source, name), data)
    else:
        storage.write_bytes(source, packed(kind, files))
    ingest_pets(source, storage.join(root, "store"))
    assert samples_of(storage.join(root, "store")).equals(samples_of(str(tmp_path / "plain")))
    assert not [name for name in written(storage.join(root, "store")) if "unpacked" in name]


def test_iconbed_from_a_tree_is_the_embedded_one(store, tmp_path):
    embedded = iconbed_samples().to_pylist()
    files = {row["id"].removeprefix("iconbed/"): row["image"] for row in embedded}
    plan = plan_ingest(write_tree(tmp_path / "tree", files), str(tmp_path), "icons")
    info = ingest(plan, run_shards=run_here)
    rows = samples_of(str(tmp_path), "icons").to_pylist()
    assert [row | {"id": row["id"].replace("icons/", "iconbed/", 1)} for row in rows] == embedded
    assert info.counts == read_dataset_info(store, "iconbed").counts


@pytest.mark.parametrize("name", ["iconbed", "iconbed-vqa"])
def test_the_name_of_an_embedded_data_set_is_not_for_others(pets, tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' is the data set in the package.*under another name"):
        plan_ingest(pets, str(tmp_path), name)


def test_a_second_run_writes_nothing(root, pets):
    info = ingest_pets(pets, root)
    before = written(root)
    plan = plan_ingest(pets, root, "pets")
    assert is_ingested(plan)
    assert ingest(plan, run_shards=None) == info
    assert written(root) == before


def test_an_interrupted_ingest_goes_on_where_it_stopped(root, pets, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_plan, "_SHARD_FILES", 3)

    def killed_after_three(source, target, shards):
        for number, report in enumerate(run_here(source, target, shards)):
            if number == 3:
                raise KeyboardInterrupt
            yield report

    with pytest.raises(KeyboardInterrupt):
        ingest_pets(pets, root, killed_after_three)
    with pytest.raises(ValueError, match=r"dataset\.json.*ingest the data set again"):
        read_dataset_info(root, "pets")
    parts = {place: time for place, time in written(root).items() if place.endswith(".parquet")}
    assert len([place for place in parts if "/samples/" in place]) == 4

    ingest_pets(pets, root)
    after = written(root)
    assert {place: after[place] for place in parts} == parts, "a part was written twice"
    monkeypatch.setattr(ingest_plan, "_SHARD_FILES", 2048)
    ingest_pets(pets, str(tmp_path / "unbroken"))
    assert samples_of(root).equals(samples_of(str(tmp_path / "unbroken")).combine_chunks())


def test_a_domain_of_several_parts_keeps_its_order(root, pets, monkeypatch):
    monkeypatch.setattr(ingest_plan, "_SHARD_BYTES", 3 * len(picture()) + 20)
    ingest_pets(pets, root)
    assert len(storage.list_files(samples_location(root, "pets", "art"))) == 4
    assert samples_of(root)["index"].to_pylist() == [*range(10), *range(10)]
    index = sample_index(root, read_dataset_info(root, "pets"), ["photo"])
    assert read_images(index) == [data for name, data in PETS.items() if name.startswith("photo/")]


def test_other_content_is_refused_and_replaced_when_told(root, pets):
    ingest_pets(pets, root)
    before = written(root)
    Path(pets, "art/cat/0.png").unlink()
    for name in ("1.png", "2.png"):
        Path(pets, "photo/dog", name).write_bytes(picture(7, size=(3, 3)))
    with pytest.raises(ValueError, match=r"dataset\.json: there is a data set 'pets' with other .*--replace"):
        ingest_pets(pets, root)
    assert written(root) == before
    info = ingest_pets(pets, root, replace_other=True)
    assert info.counts == {"art": 9, "photo": 10}
    assert samples_of(root)["width"].to_pylist().count(3) == 2


def test_what_an_ingest_of_other_files_left_is_removed(root, pets, tmp_path):
    def killed_at_once(source, target, shards):
        yield next(run_here(source, target, shards))
        raise KeyboardInterrupt

    other = write_tree(tmp_path / "other", {f"aaa/cat/{n}.png": picture(n) for n in range(3)})
    with pytest.raises(KeyboardInterrupt):
        ingest_pets(other, root, killed_at_once)
    ingest_pets(pets, root)
    assert len(samples_of(root)) == len(PETS)


BAD = {
    "art/cat/2.png": (b"", "empty"),
    "art/cat/3.png": (b"<html>not found</html>", "undecodable"),
    "art/dog/1.png": (picture(1, "JPEG", (64, 64))[:-200], "truncated"),
    "photo/cat/0.png": ("bomb", "too_large"),
    "photo/cat/notes.txt": (b"x", "extension"),
    "photo/readme.png": (picture(), "place"),
}


@pytest.fixture
def bad_pets(tmp_path):
    sink = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(sink, "PNG")
    bad = {name: sink.getvalue() if data == "bomb" else data for name, (data, _) in BAD.items()}
    return write_tree(tmp_path / "bad", PETS | bad)


def test_rejects_are_listed_with_reasons_and_the_rest_keeps_its_places(root, bad_pets):
    info = ingest_pets(bad_pets, root, max_rejects=0.5)
    rejects = read_rejects(root, "pets").to_pylist()
    assert {row["path"]: row["reason"] for row in rejects} == {name: why for name, (_, why) in BAD.items()}
    for row in rejects:
        assert row["path"] in row["message"]
        read = row["reason"] not in ("extension", "place")
        assert row["domain"] == (row["path"].split("/")[0] if read else None)
    assert info.counts == {"art": 7, "photo": 9}
    assert info.sizes == {"art": 10, "photo": 10}
    rows = samples_of(root).to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 4, 5, 7, 8, 9, *range(1, 10)]


def test_splits_are_those_of_all_that_image_folder_lists(root, bad_pets):
    info = ingest_pets(bad_pets, root, max_rejects=0.5)
    index = sample_index(root, info, info.environments)
    for part, which in (("in", 0), ("out", 1)):
        taken = take_split(index, info, part, trial_seed=0, holdout_fraction=0.2).to_pylist()
        for number, domain in enumerate(info.environments):
            found = {row["index"] for row in index.to_pylist() if row["domain"] == domain}
            expected = found & set(split_indices(10, 0, number)[which])
            assert {row["index"] for row in taken if row["domain"] == domain} == expected


def test_too_many_rejects_stop_the_ingest_and_a_larger_share_lets_it_go_on(root, bad_pets):
    # Two are known before anything is read, six in the end, of 22 files.
    with pytest.raises(
        ValueError, match=r"2 of 22 files are rejected, more than the share of 0\.01"
    ) as early:
        ingest_pets(bad_pets, root)
    assert "photo/cat/notes.txt: not a name of an image" in str(early.value)
    assert written(root) == {}
    with pytest.raises(ValueError, match=r"of 22 files are rejected, more than the share of 0\.2 ") as late:
        ingest_pets(bad_pets, root, max_rejects=0.2)
    assert "art/cat/2.png: the image has no bytes" in str(late.value)
    assert str(late.value).endswith("mend or remove them, or raise the share (--max-rejects)")
    version = plan_ingest(bad_pets, root, "pets", max_rejects=0.2).target.version
    assert len(read_rejects(root, "pets", version)) >= 5
    assert not storage.exists(storage.join(dataset_location(root, "pets"), "dataset.json"))
    assert ingest_pets(bad_pets, root, max_rejects=0.3).counts == {"art": 7, "photo": 9}


def test_a_damaged_entry_of_an_archive_is_rejected(tmp_path):
    data = bytearray(packed(".zip", PETS))
    data[data.index(PETS["art/cat/1.png"]) + 20] ^= 0xFF
    (tmp_path / "pets.zip").write_bytes(data)
    ingest_pets(str(tmp_path / "pets.zip"), str(tmp_path), max_rejects=0.1)
    [reject] = read_rejects(str(tmp_path), "pets").to_pylist()
    assert (reject["path"], reject["reason"]) == ("art/cat/1.png", "damaged")


def kinds():
    """One image of each kind that a data set may hold."""
    red = Image.new("RGB", (5, 3), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "grey.png": (Image.new("L", (5, 3), 9), {}),
        "palette.png": (red.quantize(2), {}),
        "cmyk.jpg": (Image.new("CMYK", (5, 3), (0, 255, 255, 0)), {}),
        "alpha.png": (Image.new("RGBA", (5, 3), (0, 0, 0, 0)), {}),
        "sideways.jpg": (red, {"exif": exif}),
        "pixel.png": (Image.new("RGB", (1, 1)), {}),
        "deep.png": (Image.fromarray(np.full((3, 5), 60_000, np.uint16)), {}),
        "deep.tif": (Image.fromarray(np.full((3, 5), 60_000, np.uint16)), {}),
        "float.tif": (Image.new("F", (5, 3)), {}),
    }


def test_each_kind_of_image_comes_out_as_it_will_be_decoded_or_is_rejected(tmp_path):
    files = {}
    for name, (image, settings) in kinds().items():
        sink = io.BytesIO()
        image.save(sink, {"jpg": "JPEG", "png": "PNG", "tif": "TIFF"}[name[-3:]], **settings)
        files |= {f"art/cat/{name}": sink.getvalue(), f"photo/cat/{name}": sink.getvalue()}
    ingest_pets(write_tree(tmp_path / "kinds", files), str(tmp_path), max_rejects=0.5)
    rows = {row["id"].removeprefix("pets/art/cat/"): row for row in samples_of(str(tmp_path)).to_pylist()}
    seen = {name: decode_image(name, rows[name]["image"]) for name in kinds() if name in rows}
    for name, image in seen.items():
        assert image.size == (rows[name]["width"], rows[name]["height"])
        assert rows[name]["image"] == files[f"art/cat/{name}"]
    centre = {name: image.getpixel((0, 0)) for name, image in seen.items()}
    assert centre["grey.png"] == (9, 9, 9)
    assert centre["palette.png"] == (255, 0, 0)
    assert centre["alpha.png"] == (255, 255, 255)
    assert centre["deep.png"] == centre["deep.tif"] == (233, 233, 233)
    assert np.subtract(centre["cmyk.jpg"], (255, 0, 0)).tolist() == pytest.approx([0, 0, 0], abs=4)
    assert seen["sideways.jpg"].size == (3, 5)
    assert seen["pixel.png"].size == (1, 1)
    rejects = {row["path"]: row["reason"] for row in read_rejects(str(tmp_path), "pets").to_pylist()}
    assert rejects == {"art/cat/float.tif": "unsupported", "photo/cat/float.tif": "unsupported"}


ALIKE = [("C", "C++"), ("Alarm_Clock", "alarm clock"), ("caf\u00e9", "cafe\u0301"), ("TV", "tv")]


@pytest.mark.parametrize("pair", ALIKE)
@pytest.mark.parametrize("kind", [".zip", ".tar", "folder"])
@pytest.mark.parametrize("place", ["{domain}/{name}/1.png", "{name}/dog/1.png"])
def test_classes_and_domains_that_cannot_be_told_apart_are_refused(tmp_path, pair, kind, place):
    # Each in a domain of its own, which a listing of one domain would not show.
    files = {
        place.format(domain=domain, name=name): picture()
        for domain, name in zip(("art", "photo"), pair, strict=True)
        if "+" not in name or "{domain}" in place
    }
    if len(files) < 2:
        return
    source = str(tmp_path / f"source{kind}")
    if kind == "folder":
        write_tree(Path(source), files)
    else:
        Path(source).write_bytes(packed(kind, files))
    with pytest.raises(
        ValueError, match=r"'.+' and '.+'.* are one when letters and digits.* rename one"
    ) as told:
        plan_ingest(source, str(tmp_path), "pets")
    assert all(f"'{name}'" in str(told.value) for name in pair)


def test_a_class_that_reads_as_a_list_with_another_is_refused(tmp_path):
    source = write_tree(tmp_path / "pets", {f"art/{name}/1.png": picture() for name in ("cat", "cat, dog")})
    with pytest.raises(ValueError, match=r"class 'cat, dog' reads as a list .* 'cat' is another .* rename"):
        plan_ingest(str(source), str(tmp_path), "pets")


def test_why_an_archive_holds_no_data_set_is_told(tmp_path):
    data = bytearray(packed(".zip", {"art/dog/1.png": picture()}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    (tmp_path / "pets.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"no image is in <env(.|\n)*art/dog/1\.png: is encrypted; unpack"):
        plan_ingest(str(tmp_path / "pets.zip"), str(tmp_path), "pets")


def test_a_data_set_without_a_good_image_is_refused_whatever_share_is_allowed(tmp_path):
    source = write_tree(tmp_path / "bad", {f"{e}/dog/1.png": b"bad" for e in ("art", "photo")})
    with pytest.raises(ValueError, match="2 of 2 files are rejected"):
        ingest_pets(source, str(tmp_path), max_rejects=1.0)
    assert not storage.exists(storage.join(dataset_location(str(tmp_path), "pets"), "dataset.json"))


def test_the_ceiling_on_pixels_is_the_plans(tmp_path, pets):
    with pytest.raises(ValueError, match=r"has 6 x 4 pixels; at most 23 are decoded; .* raise --max-pixels"):
        ingest_pets(pets, str(tmp_path), limits=ReadLimits(pixels=23))
    assert ingest_pets(pets, str(tmp_path), limits=ReadLimits(pixels=24)).counts == {"art": 10, "photo": 10}


def test_images_that_occur_again_are_counted(tmp_path):
    files = {
        "art/cat/1.png": picture(1),
        "art/cat/2.png": picture(1),
        "art/dog/3.png": picture(2),
        "photo/cat/4.png": picture(2),
        "photo/dog/5.png": picture(3),
    }
    info = ingest_pets(write_tree(tmp_path / "pets", files), str(tmp_path))
    assert repeated_images(str(tmp_path), info) == {"domains": 1, "labels": 1, "all": 2}


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(pets, tmp_path, name):
    with pytest.raises(ValueError, match="no name for a data set"):
        plan_ingest(pets, str(tmp_path), name)


OTHER_PETS = {name: picture(100 + number) for number, name in enumerate(PETS) if "/4" not in name}


def images_of(root):
    """The images as a stage reads them, by id."""
    info = read_dataset_info(root, "pets")
    index = sample_index(root, info, info.environments)
    return dict(zip(index["id"].to_pylist(), read_images(index), strict=True))


def as_read(files):
    return {f"pets/{name}": data for name, data in files.items()}


def parts_of(root):
    return [file for file in storage.list_files(dataset_location(root, "pets")) if file.endswith(".parquet")]


@pytest.mark.parametrize("kind", ["folder", ".tar.gz"])
def test_wherever_a_replacing_ingest_dies_there_is_the_old_data_set_or_the_new(tmp_path, pets, kind):
    before = tmp_path / "before"
    ingest_pets(pets, str(before))
    source = str(tmp_path / f"other{kind}")
    if kind == "folder":
        write_tree(tmp_path / "otherfolder", OTHER_PETS)
    else:
        Path(source).write_bytes(packed(kind, OTHER_PETS))
    seen = []
    for root in killed_at_each_step(before, lambda root: ingest_pets(source, root, replace_other=True)):
        seen.append(images_of(root))
        assert seen[-1] in (as_read(PETS), as_read(OTHER_PETS))
        ingest_pets(source, root, replace_other=True)
        assert images_of(root) == as_read(OTHER_PETS)
        version = read_dataset_info(root, "pets").version
        assert len(parts_of(root)) == 4 and all(version in part for part in parts_of(root))
        assert len(storage.list_files(dataset_location(root, "pets"))) == 5
    assert seen[0] == as_read(PETS) and seen[-1] == as_read(OTHER_PETS) and len(seen) > 8


def test_a_replacement_that_is_refused_leaves_the_data_set_that_there_was(root, pets, bad_pets):
    ingest_pets(pets, root)
    with pytest.raises(ValueError, match=r"are rejected, more than the share of 0\.2 "):
        ingest_pets(bad_pets, root, replace_other=True, max_rejects=0.2)
    assert images_of(root) == as_read(PETS)
    assert len(read_rejects(root, "pets")) == 0
    ingest_pets(bad_pets, root, replace_other=True, max_rejects=0.3)
    assert len(images_of(root)) == 16 and len(read_rejects(root, "pets")) == 6


def test_a_data_set_of_an_earlier_release_is_read_and_replaced(tmp_path, pets):
    root = str(tmp_path / "root")
    ingest_pets(pets, root)
    version = read_dataset_info(root, "pets").version
    for file in parts_of(root):
        Path(file).rename(file.replace(f"-{version}", ""))
    described = Path(dataset_location(root, "pets"), "dataset.json")
    told = storage.read_json(str(described))
    described.write_text(json.dumps({key: value for key, value in told.items() if key != "version"}))
    Path(dataset_location(root, "pets"), "ingest.json").write_text("{}")
    assert images_of(root) == as_read(PETS)
    assert is_ingested(plan_ingest(pets, root, "pets"))
    other = write_tree(tmp_path / "other", OTHER_PETS)
    with pytest.raises(ValueError, match=r"there is a data set 'pets' with other content.*--replace"):
        ingest_pets(other, root)
    ingest_pets(other, root, replace_other=True)
    assert images_of(root) == as_read(OTHER_PETS)
    assert len(storage.list_files(dataset_location(root, "pets"))) == 5


@pytest.mark.parametrize("replaces", [False, True])
def test_of_two_ingests_at_once_the_first_one_to_end_stays(tmp_path, pets, replaces):
    root, other = str(tmp_path / "root"), write_tree(tmp_path / "other", OTHER_PETS)
    if replaces:
        ingest_pets(write_tree(tmp_path / "old", {**PETS, "art/cat/9.png": picture(9)}), root)

    def another_meanwhile(source, target, shards):
        yield from run_here(source, target, shards)
        ingest_pets(other, root, replace_other=True)

    with pytest.raises(ValueError, match="another ingest wrote the data set 'pets' meanwhile"):
        ingest_pets(pets, root, another_meanwhile, replace_other=True)
    assert images_of(root) == as_read(OTHER_PETS)
    ingest_pets(pets, root, replace_other=True)
    assert images_of(root) == as_read(PETS)


def test_two_ingests_of_the_same_at_once_both_end_well(tmp_path, pets):
    root = str(tmp_path / "root")

    def the_same_meanwhile(source, target, shards):
        yield from run_here(source, target, shards)
        about_to_be = f"{target.part(shards[0])}.0123.tmp"
        storage.write_bytes(about_to_be, b"")
        ingest_pets(pets, root)
        assert storage.exists(about_to_be), "a file that another process writes was removed"
        storage.delete_file(about_to_be)

    ingest_pets(pets, root, the_same_meanwhile)
    assert images_of(root) == as_read(PETS)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_like_an_unbroken_one(s3_root, tmp_path):
    """The whole command, with Ray, from a tar.gz on S3 to S3."""
    files = {
        f"{environment}/{label}/{number:03d}.jpg": picture(number, "JPEG", (640, 480))
        for environment in ("art", "photo")
        for label in ("cat", "dog")
        for number in range(60)
    }
    write_tree(tmp_path / "plain", files)
    storage.write_bytes(storage.join(s3_root, "pets.tar.gz"), packed(".tar.gz", files))
    root = storage.join(s3_root, "store")
    command = [*(sys.executable, "-m", "rdmldg_ray", "ingest", storage.join(s3_root, "pets.tar.gz"))]
    command += ["--dataset", "custom", "--name", "pets", "--storage", root]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not storage.list_files(storage.join(dataset_location(root, "pets"), "samples")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()

    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr
    assert "240" in finished.stdout
    ingest_pets(str(tmp_path / "plain"), str(tmp_path))
    assert samples_of(root).equals(samples_of(str(tmp_path)))
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert "nothing to do" in again.stdout
