import json

import pytest

from rdmldg_ray.models.families import FAMILIES, family_of
from rdmldg_ray.models.folder import TINY_BASE
from tests.helpers import families


def test_the_packaged_model_is_of_a_known_family():
    assert family_of(TINY_BASE) is FAMILIES["idefics3"]


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_family_is_recognised_by_its_model_type(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert family_of(tmp_path) is FAMILIES[model_type]


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {}])
def test_an_unknown_family_lists_those_there_are(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = ", ".join(sorted(FAMILIES))
    with pytest.raises(ValueError, match=f"model type '(bert|None)' is not supported; these are: {known}"):
        family_of(tmp_path)


@pytest.mark.parametrize("part", ["vision", "connector", "decoder"])
def test_the_prefixes_are_modules_of_the_model(load_random_base, random_base, part):
    for prefix in family_of(random_base).prefixes(part):
        load_random_base().get_submodule(prefix.removesuffix("."))


def test_the_parts_hold_every_weight_but_the_head_once(load_random_base, random_base):
    family = family_of(random_base)
    prefixes = [family.prefixes(part) for part in ("vision", "connector", "decoder")]
    for name, _ in load_random_base().named_parameters():
        assert sum(name.startswith(prefix) for prefix in prefixes) == 1, name


def test_every_family_has_an_example_that_the_exactness_tests_run_on():
    examples = [families.make(name) for name in families.EXAMPLES]
    assert {example.family.name for example in examples} == {family.name for family in FAMILIES.values()}
