import os
from pathlib import Path

import pytest

from rdmldg_ray.datasets.ingest.archives import FolderSource, SourceFile
from rdmldg_ray.datasets.ingest.image_folder import EXTENSIONS, find_image_folder
from rdmldg_ray.domainbed.catalogue import DATASETS


def layout_of(paths, dataset="pets", empty=()):
    return find_image_folder("the-source", [SourceFile(path, 1, "") for path in paths], dataset, empty)


def listed(layout):
    return {name: [file.path for file in files] for name, files in layout.environments.items()}


def as_image_folder_lists(root):
    """torchvision's own algorithm (find_classes, make_dataset) below each environment of DomainBed's."""
    found = {}
    for environment in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        found[environment] = []
        for label in sorted(entry.name for entry in os.scandir(root / environment) if entry.is_dir()):
            for where, _, names in sorted(os.walk(str(root / environment / label), followlinks=True)):
                for name in sorted(names):
                    if name.lower().endswith(EXTENSIONS):
                        found[environment].append((Path(where) / name).relative_to(root).as_posix())
    return found


def test_the_order_is_image_folders(tmp_path):
    names = ["b.jpg", "B.JPG", "a 1.png", "a-1.png", "10.jpeg", "9.webp", "ä.bmp", "notes.txt", ".x.png"]
    folders = ["dog", "dog-2", "dog 3", "Dog", "dog/nested", "dog/a", "dog/a-b", "dog/a/z", "dog/a.d"]
    for environment in ("photo", "Art", "real world"):
        for folder in folders:
            (tmp_path / environment / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                (tmp_path / environment / folder / name).touch()
    found = FolderSource(str(tmp_path)).list()
    assert (found.rejects, found.empty) == ([], [])
    layout = find_image_folder(str(tmp_path), found.files, "pets")
    assert listed(layout) == as_image_folder_lists(tmp_path)
    assert list(layout.environments) == ["Art", "photo", "real world"]
    assert layout.classes == ("Dog", "dog", "dog 3", "dog-2")
    assert {reject.reason for reject in layout.rejects} == {"extension"}
    assert len(layout.rejects) == 3 * len(folders)


def test_the_order_does_not_depend_on_the_listings(tmp_path):
    paths = [f"{e}/{c}/{n}.png" for e in ("x", "y") for c in ("b", "a") for n in (3, 1, 2)]
    assert listed(layout_of(paths)) == listed(layout_of(reversed(paths)))


@pytest.mark.parametrize("wrapping", ["", "PACS/", "download/PACS/kfold/"])
def test_a_known_data_set_is_found_below_other_folders(wrapping):
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    paths = [f"{wrapping}{e}/{c}/1.jpg" for e in DATASETS["pacs"].environments for c in classes]
    layout = layout_of([*paths, "stray.jpg", "other/dir/a.png"] if wrapping else paths, "pacs")
    assert layout.prefix == wrapping
    assert (tuple(layout.environments), layout.classes) == (DATASETS["pacs"].environments, classes)
    assert layout.place(layout.environments["photo"][0]) == ("photo", "dog", "dog/1.jpg")
    assert [reject.reason for reject in layout.rejects] == (["place", "place"] if wrapping else [])


@pytest.mark.parametrize(
    ("paths", "prefix"),
    [
        (["a/dog/1.png", "b/dog/1.png"], ""),
        (["all/a/dog/1.png", "all/b/dog/1.png"], "all/"),
        (["x/all/a/dog/1.png", "x/all/b/cat/deep/1.png"], "x/all/"),
        # One environment alone is not a wrapping.
        (["a/dog/1.png", "a/cat/1.png"], ""),
    ],
)
def test_a_single_folder_around_a_custom_data_set_is_passed(paths, prefix):
    assert layout_of(paths).prefix == prefix


def test_classes_that_an_environment_lacks_are_told():
    layout = layout_of(["a/dog/1.png", "a/cat/1.png", "b/cat/1.png", "c/dog/1.png"])
    assert layout.missing_classes() == {"b": ["dog"], "c": ["cat"]}


def test_another_data_set_names_what_was_expected_and_found():
    with pytest.raises(ValueError, match=r"the-source: not PACS: expected the folders art_pain.* found a"):
        layout_of(["a/dog/1.png", "b/dog/1.png"], "pacs")


def test_an_environment_too_many_is_named():
    paths = [f"{e}/dog/1.jpg" for e in (*DATASETS["pacs"].environments, "cartoon_copy")]
    with pytest.raises(ValueError, match="not PACS: it has no environment cartoon_copy; remove"):
        layout_of(paths, "pacs")


def test_a_wrong_number_of_classes_is_told():
    paths = [f"{e}/{c}/1.jpg" for e in DATASETS["pacs"].environments for c in ("dog", "house")]
    with pytest.raises(ValueError, match="not PACS: expected 7 classes; found 2: dog, house"):
        layout_of(paths, "pacs")


def test_wrong_names_of_classes_are_told():
    known = DATASETS["iconbed"]
    paths = [f"{e}/{c}/1.png" for e in known.environments for c in (*known.class_names[1:], "birds")]
    with pytest.raises(ValueError, match=r"expected 12 classes \(bird, .*found 12: birds, bug"):
        layout_of(paths, "iconbed")


@pytest.mark.parametrize("paths", [["a.png"], ["a/b.png"], ["a/b/c.txt"]])
def test_a_tree_of_another_shape_is_told(paths):
    with pytest.raises(ValueError, match="the-source: no image is in <environment>/<class>/; give"):
        layout_of(paths)


def below(environments, classes, start=""):
    return [f"{start}{e}/{c}/1.jpg" for e in environments for c in classes]


@pytest.mark.parametrize(
    ("dataset", "folders", "remedies"),
    [
        ("officehome", ("Art", "Clipart", "Product", "Real_World"), ["rename 'Real_World' to 'Real World'"]),
        ("officehome", ("Art", "Clipart", "Product", "RealWorld"), ["rename 'RealWorld' to 'Real World'"]),
        (
            "officehome",
            ("art", "clipart", "product", "real world"),
            ["rename 'art' to 'Art'", "rename 'real world' to 'Real World'"],
        ),
        (
            "vlcs",
            ("CALTECH", "LABELME", "PASCAL", "SUN"),
            [
                "'CALTECH' to 'Caltech101'",
                "'LABELME' to 'LabelMe'",
                "'SUN' to 'SUN09'",
                "'PASCAL' to 'VOC2007'",
            ],
        ),
        ("pacs", ("art", "cartoon", "photo", "sketch"), ["rename 'art' to 'art_painting'"]),
        ("pacs", ("Art Painting", "cartoon", "photo"), ["'Art Painting' to", "add the folder sketch"]),
        ("terraincognita", ("L38", "L43", "L46", "L100"), ["rename 'L100' to 'location_100'"]),
    ],
)
@pytest.mark.parametrize("start", ["", "download/all/"])
def test_domains_of_the_catalogue_in_another_spelling_are_to_be_renamed(dataset, folders, remedies, start):
    with pytest.raises(ValueError, match=r"the-source: not yet .* or ingest it as custom") as told:
        layout_of(below(folders, ("dog", "cat"), start), dataset)
    for remedy in remedies:
        assert remedy in str(told.value)


def test_a_class_that_is_missing_is_to_be_added():
    paths = below(DATASETS["pacs"].environments, ("dog", "house"))
    with pytest.raises(ValueError, match="found 2: dog, house; add what is missing, or ingest"):
        layout_of(paths, "pacs")


def test_the_folder_of_a_data_set_beside_others_is_named():
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    paths = below(DATASETS["pacs"].environments, classes, "PACS/")
    layout = layout_of([*paths, "VLCS/SUN09/bird/1.jpg"], "pacs")
    assert layout.rejects[0].message.endswith("to leave it out, give the folder PACS itself")


@pytest.mark.parametrize(
    "paths",
    [
        below(("CALTECH", "SUN"), ("crossval", "full", "test", "train")),
        below(("CALTECH", "SUN"), ("train/dog", "test/dog")),
        below(("art", "real"), ("train/dog", "train/cat")),
        [*below(("art",), ("Train", "VAL")), "photo/dog/1.jpg"],
        below(("art", "photo"), ("training/x", "validation/x")),
    ],
)
@pytest.mark.parametrize("dataset", ["pets", "vlcs"])
def test_folders_of_splits_are_no_classes(paths, dataset):
    if dataset == "vlcs":
        paths = [path for path in paths if path != "photo/dog/1.jpg"]
        paths = [f"{e}/{path.partition('/')[2]}" for e in DATASETS["vlcs"].environments for path in paths]
    with pytest.raises(ValueError, match=r"splits, not classes; move what is in \S+/<split>/<class>/ to"):
        layout_of(paths, dataset)


def test_a_train_may_be_a_class_and_splits_as_domains_are_noted():
    assert layout_of(below(("art", "photo"), ("train", "dog"))).classes == ("dog", "train")
    assert layout_of(["a/train/1.png", "b/train/1.png", "b/car/1.png"]).notes == []
    assert layout_of(below(("train", "test"), ("dog", "cat"))).notes == [
        "note: test, train are called as splits are, not as domains"
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a+b/dog/1.png", r"the name of the domain 'a\+b' has a '\+'.*; rename its folder"),
        ("no/dog/1.png", r"the name of the domain 'no' is read as something else by YAML"),
        ("b/<CONCLUSION>/1.png", "the name of the class '<CONCLUSION>' has <CONCLUSION>, which prompts"),
        ("b/+/1.png", r"the name of the class '\+' has no letter or digit"),
        ("b/a\nb/1.png", r"the name of the class 'a\\nb' has the control character"),
    ],
)
def test_names_that_cannot_be_used_are_refused(path, message):
    with pytest.raises(ValueError, match=f"the-source: {message}"):
        layout_of(["a/dog/1.png", path])


def test_empty_folders_of_domains_and_classes_are_noted():
    empty = ["x/art/owl", "x/sketch", "x/sketch/dog", "y", "x/art/dog/deep"]
    assert layout_of(below(("art", "photo"), ("dog",), "x/"), empty=empty).notes == [
        "note: the folder art/owl holds no file",
        "note: the folder sketch holds no file, and is no domain",
    ]
