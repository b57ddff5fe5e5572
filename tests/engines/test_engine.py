"""What an engine tells of its node, without starting vLLM."""

import resource
import shutil

import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import ModelConfig
from rdmldg_ray.engines.engine import _wrap_disk_errors
from rdmldg_ray.engines.pool import engine_environment
from rdmldg_ray.engines.shared_llm import EngineLostError
from rdmldg_ray.models.loading import load_base, save_published


@pytest.fixture
def no_room():
    """Has the system refuse files beyond 100 kB, in the place of a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_weights_that_find_no_room_on_the_node_lose_the_engine_alone(load_random_base, tmp_path, no_room):
    model = load_random_base()
    with pytest.raises(EngineLostError, match=r"SafetensorError on .*os error"), _wrap_disk_errors():
        save_published(model, tmp_path / "merged")


def test_a_file_that_finds_no_room_does_so_too(tmp_path, no_room):
    with pytest.raises(EngineLostError, match=r"OSError on .*File too large"), _wrap_disk_errors():
        (tmp_path / "adapter").write_bytes(bytes(200_000))


def test_what_a_models_folder_lacks_is_no_matter_of_the_node(random_base, tmp_path):
    shutil.copytree(random_base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"), _wrap_disk_errors():
        load_base(tmp_path / "base", ModelConfig(dtype="float32"))


def test_engines_on_gpus_have_the_model_runner_that_is_tested():
    import vllm.envs

    assert engine_environment(load_config("pacs-internvl3-8b").engines) == {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    assert "VLLM_USE_V2_MODEL_RUNNER" in vllm.envs.environment_variables
