"""Requests of several callers in one vLLM, and what has to go before its weights change."""

from types import SimpleNamespace

import pytest

from rdmldg_ray.engines import shared_llm
from rdmldg_ray.engines.shared_llm import EngineLostError, SharedLlm, _Work


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

    def reset_mm_cache(self):
        pass

    reset_encoder_cache = reset_mm_cache

    def has_unfinished_requests(self):
        return bool(self.held)

    def step(self):
        name, blocks = self.held.pop(0)
        if self.frees:
            self.pool.free_blocks(blocks)
        return [SimpleNamespace(request_id=name)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(shared_llm, "_RESET_TIMEOUT_S", 0.3)


@pytest.mark.parametrize("requests", [[], ["a"], ["a", "b", "c"]])
def test_requests_end_before_what_earlier_weights_computed_is_forgotten(requests):
    work = _Work([{}] * len(requests), [None] * len(requests))
    served = Served(requests)
    llm = SharedLlm(served)
    llm._asked = {name: (work, number) for number, name in enumerate(requests)}
    with llm.emptied() as emptied:
        assert emptied is served
    assert not served.pool.cached_block_hashes_by_block
    assert work.complete and [work.answers[n].request_id for n in range(len(requests))] == requests


def test_an_engine_that_would_answer_by_earlier_weights_is_lost():
    served = Served(["a"], frees=False)
    llm = SharedLlm(served)
    llm._asked = {"a": (_Work([{}], [None]), 0)}
    with pytest.raises(EngineLostError, match="prefix cache"), llm.emptied():
        pytest.fail("weights would be changed")
    assert served.pool.cached_block_hashes_by_block
