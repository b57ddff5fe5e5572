import subprocess
import sys

import pytest

from rdmldg_ray.domainbed.catalogue import DATASETS, Dataset, get_dataset


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_complete(name):
    dataset = get_dataset(name)
    assert dataset.name == name
    assert len(dataset.environments) == len(set(dataset.environments)) == 4
    assert dataset.class_names is None or list(dataset.class_names) == sorted(set(dataset.class_names))


def test_the_literatures_counts():
    counts = {d.name: (d.num_classes, d.num_images) for d in DATASETS.values()}
    assert counts == {
        "iconbed": (12, 1148),
        "pacs": (7, 9991),
        "vlcs": (5, 10729),
        "officehome": (65, 15588),
        "terraincognita": (10, 24788),
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pac", "did you mean pacs"),
        ("OfficeHome", "did you mean officehome"),
        ("TerraInc", "did you mean terraincognita"),
        ("xyz", "known are iconbed, pacs, vlcs, officehome, terraincognita"),
        ("", "known are"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, hint):
    with pytest.raises(ValueError, match=hint):
        get_dataset(name)


def test_the_catalogue_is_light_to_import():
    code = "import sys, rdmldg_ray.domainbed.catalogue; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("classes", [("C", "C++"), ("Alarm_Clock", "alarm clock")])
def test_classes_that_answers_cannot_tell_apart_are_no_data_set(classes):
    with pytest.raises(AssertionError):
        Dataset("x", "X", ("a", "b"), 2, 9, class_names=classes)


@pytest.mark.parametrize(
    ("dataset", "folder", "environment"),
    [
        ("officehome", "Real_World", "Real World"),
        ("officehome", "real-world", "Real World"),
        ("vlcs", "CALTECH", "Caltech101"),
        ("vlcs", "voc2007", "VOC2007"),
        ("pacs", "Art", "art_painting"),
        ("terraincognita", "Location 38", "location_38"),
        ("pacs", "infograph", None),
        ("pacs", "", None),
    ],
)
def test_a_folder_is_known_in_other_spellings(dataset, folder, environment):
    assert DATASETS[dataset].environment(folder) == environment
