"""What an engine tells of its node, without starting vLLM."""

import resource
import shutil
from types import SimpleNamespace

import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import ModelConfig
from rdmldg_ray.engines import engine as engine_module
from rdmldg_ray.engines.engine import Engine, EngineLostError, _failures_named, _Work, _wrap_disk_errors
from rdmldg_ray.engines.pool import engine_environment
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


class Served:
    """vLLM's own block pool, with requests that hold a block each and end one after the other."""

    def __init__(self, requests, frees=True):
        from vllm.v1.core.block_pool import BlockPool

        self.pool = BlockPool(num_gpu_blocks=8, enable_caching=True, hash_block_size=16)
        self.held = [(name, self.pool.get_new_blocks(1)) for name in requests]
        self.frees = frees
        self.llm_engine = self
        self.reset_prefix_cache = self.pool.reset_prefix_cache
        # As what a request's prompt has computed.
        self.pool.cached_block_hashes_by_block[7] = ["of the weights before"]

    def has_unfinished_requests(self):
        return bool(self.held)

    def step(self):
        name, blocks = self.held.pop(0)
        if self.frees:
            self.pool.free_blocks(blocks)
        return [SimpleNamespace(request_id=name)]


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(engine_module, "_RESET_TIMEOUT_S", 0.3)
    return Engine(load_config("demo"), ["cat", "dog"])


@pytest.mark.parametrize("requests", [[], ["a"], ["a", "b", "c"]])
def test_requests_end_before_what_earlier_weights_computed_is_forgotten(engine, requests):
    work = _Work([{}] * len(requests), [None] * len(requests))
    engine._asked = {name: (work, number) for number, name in enumerate(requests)}
    engine.llm = Served(requests)
    engine._reset_prefix_cache()
    assert not engine.llm.pool.cached_block_hashes_by_block
    assert work.complete and [work.answers[n].request_id for n in range(len(requests))] == requests


def test_an_engine_that_would_answer_by_earlier_weights_is_lost(engine):
    engine._asked = {"a": (_Work([{}], [None]), 0)}
    engine.llm = Served(["a"], frees=False)
    with pytest.raises(EngineLostError, match="prefix cache"), _failures_named():
        engine._reset_prefix_cache()
    assert engine.llm.pool.cached_block_hashes_by_block


def test_engines_on_gpus_have_the_model_runner_that_is_tested():
    import vllm.envs

    assert engine_environment(load_config("pacs-internvl3-8b").engines) == {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    assert "VLLM_USE_V2_MODEL_RUNNER" in vllm.envs.environment_variables
