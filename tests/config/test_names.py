import pytest
from pydantic import ValidationError

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.names import check_name, check_path

BAD = [
    "",
    " ",
    ".",
    "..",
    "/",
    "a/b",
    "../a",
    "/abs/x",
    "a/",
    "a\\b",
    "..\\a",
    "a\0b",
    "a\nb",
    "\x7f",
    "\ud800",
    "x" * 201,
    "é" * 101,
    None,
    7,
    ["a"],
]
GOOD = ["a", "gpt-4o", "llama3.2:3b", "Real World", "...", ".hidden", "..a", "é" * 100, "x" * 200, "日本"]


@pytest.mark.parametrize("name", BAD)
def test_what_leads_elsewhere_or_is_no_folder_is_no_name(name):
    with pytest.raises(
        ValueError, match=r"^the teacher .* cannot be named so: the name .*; give another name"
    ):
        check_name("the teacher", name)


@pytest.mark.parametrize("name", GOOD)
def test_a_name_comes_back_as_it_is(name):
    assert check_name("the teacher", name) == name
    assert check_path("the file", f"{name}/{name}") == f"{name}/{name}"


@pytest.mark.parametrize("path", ["", "a/../b", "../a", "a/..", "/a", "a//b", "a/./b", "a/b\\c", "a/\0"])
def test_a_path_is_made_of_names(path):
    with pytest.raises(ValueError, match=r"^the file .* leads out of its folder, .*; remove or rename it"):
        check_path("the file", path)


@pytest.mark.parametrize("setting", ["data.dataset", "data.chains"])
@pytest.mark.parametrize("name", ["..", "../rules", "a/b", "''", "/abs"])
def test_a_config_names_data_sets_and_teachers_and_no_paths(setting, name):
    with pytest.raises((ValueError, ValidationError), match=setting):
        load_config("demo", [f"{setting}={name}"])
