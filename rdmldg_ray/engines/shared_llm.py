"""``vllm.LLM`` for several callers at once, and for weights that change."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_RESET_TIMEOUT_S = 30.0
_RESET_POLL_S = 0.1


class EngineLostError(RuntimeError):
    """An engine's own process has ended, or its node's disk fails; another engine can do its work."""


@dataclass
class _Work:
    """What one call asks of vLLM, and the answers so far, by the prompt's number."""

    prompts: list[dict[str, Any]]
    sampling: list[Any]
    answers: dict[int, Any] = field(default_factory=dict)
    """What vLLM puts out, or, for a prompt that it refuses, why."""

    @property
    def complete(self) -> bool:
        return len(self.answers) == len(self.prompts)


class SharedLlm:
    """Works on the requests of all threads that call it together.

    Args:
        llm: a ``vllm.LLM`` that nothing else uses.
    """

    def __init__(self, llm: Any):
        self._llm = llm
        # Taken for whatever is done with vLLM, since two batches are in work at once.
        self._lock = threading.Lock()
        self._incoming: deque[_Work] = deque()
        # Which call's prompt a request of vLLM's is, by vLLM's id.
        self._asked: dict[str, tuple[_Work, int]] = {}

    def run(self, prompts: list[dict[str, Any]], sampling: list[Any]) -> list[Any]:
        """Answers of vLLM, in the order of the prompts; for one that it refuses, why.

        Called from two threads, for one batch each: whoever has the lock adds what is new and takes
        a step for both. So the end of a batch, when few answers are unfinished, is filled with the
        beginning of the next.

        Why not ``AsyncLLM``, which does this itself? Its core always has a process of its own, with which an
        engine on CPU takes 50 s to start instead of 7:
        https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/engine/core_client.py#L109-L115
        """
        work = _Work(prompts, sampling)
        self._incoming.append(work)
        while not work.complete:
            with self._lock, _failures_named():
                while self._incoming:
                    self._enqueue(self._incoming.popleft())
                if not work.complete:
                    self._step()
        return [work.answers[number] for number in range(len(prompts))]

    def _step(self) -> None:
        for output in self._llm.llm_engine.step():
            asking, number = self._asked.pop(output.request_id)
            asking.answers[number] = output

    def _enqueue(self, work: _Work) -> None:
        from vllm.exceptions import VLLMClientError

        states = self._llm.llm_engine.output_processor.request_states
        # One by one, since vLLM drops all of a list when it refuses one:
        # https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/common/offline.py#L549-L564
        for number, (prompt, sampling) in enumerate(zip(work.prompts, work.sampling, strict=True)):
            try:
                [internal_id] = self._llm.enqueue(prompt, sampling, use_tqdm=False)
            except (VLLMClientError, ValueError) as error:
                work.answers[number] = " ".join(str(error).split())
            else:
                # Outputs have another id than the one that is returned:
                # https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/engine/input_processor.py#L354-L371
                self._asked[states[internal_id].external_req_id] = (work, number)

    @contextmanager
    def emptied(self) -> Iterator[Any]:
        """The ``LLM`` without requests in work and with nothing of the present weights in its caches.

        The reload empties the worker's cache of encoded images but not the scheduler's, and an image seen
        earlier would then end the engine; so all caches go first.
        https://github.com/vllm-project/vllm/issues/44910
        https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/worker/gpu_model_runner.py#L5302-L5304

        Raises:
            EngineLostError: when vLLM fails within the block.
        """
        with self._lock, _failures_named():
            self._reset_prefix_cache()
            self._llm.llm_engine.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()
            yield self._llm

    def stop(self) -> None:
        """End vLLM's own processes in an orderly way."""
        self._llm.llm_engine.engine_core.shutdown()

    def _reset_prefix_cache(self) -> None:
        """Have vLLM forget keys and values of earlier weights, once no request uses them.

        It refuses while a block is in use, and says so in its answer alone. With asynchronous scheduling the
        blocks of a request may be in use for a moment after its output.
        https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/v1/core/block_pool.py#L837-L844
        """
        while self._llm.llm_engine.has_unfinished_requests():
            self._step()
        deadline = time.monotonic() + _RESET_TIMEOUT_S
        while not self._llm.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"vLLM did not reset its prefix cache in {_RESET_TIMEOUT_S:g} s; answers would be of "
                    "the weights before"
                )
            time.sleep(_RESET_POLL_S)


@contextmanager
def _failures_named() -> Iterator[None]:
    """Tell vLLM's failures, after which an engine is not to be used, from a request that it refuses."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise EngineLostError(f"{type(error).__name__}: {error}") from error
