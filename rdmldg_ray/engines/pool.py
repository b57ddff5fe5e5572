"""A pool of engines, fed from Ray Data, that continues when some of them are lost."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError

from rdmldg_ray.config.schema import Config, EnginesConfig
from rdmldg_ray.datasets.schema import question_columns
from rdmldg_ray.engines.engine import Engine, EngineError, GenerationRequest, LoadReport
from rdmldg_ray.engines.shared_llm import EngineLostError
from rdmldg_ray.runtime.placement import describe_cluster, wait_for_room
from rdmldg_ray.storage import read_images

_READ_CPUS = 0.25
_POLL_S = 1.0
# One that an engine works on and one that fills its end; see SharedLlm.run.
_BATCHES_AT_ONCE = 2
_STOP_TIMEOUT_S = 30

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Member:
    """One engine and what it does now."""

    actor: Any
    replaces: bool
    """Whether it stands in for a lost one."""
    serves: bool = False
    """Whether it has the pool's model and computes what the trainer computes."""
    loading: Any = None
    batches: dict[Any, Any] = field(default_factory=dict)
    """What it works on: the batch by the task."""
    since: float = 0.0
    """When it last began or ended something."""


class EnginePool:
    """Engines that all serve the same model and outlive the stages that use them.

    Starting an engine costs far more than loading new weights into it, so a pool is started once
    for a run and reloaded after each training. It asks the cluster for ``num_engines`` and works
    with those that there are, if they are ``min_engines`` or more: an engine joins as soon as it
    has the model and has passed the parity check, and one that is lost is asked for anew. Its batch
    is given to another, whole: answers depend on the sample's id, the draw and the seed alone.

    Why not ``ray.data.llm`` (Ray 2.60)? It overlaps batches as this does, and takes sampling parameters
    with each row. But its engines live within one execution of a data set: every further draw would
    start them again, with no way between to reload weights or to check them. Images would travel
    decoded, and its answers do not tell whether they ended by themselves. Once warm it is about as fast
    (``benchmarks/bench_ray_llm.py``).
    """

    def __init__(self, config: Config, class_names: list[str]):
        self.config = config
        self._engines = config.engines
        self._class_names = class_names
        self._least = self._engines.min_engines or self._engines.num_engines
        self._adapter: str | None = None
        self._reports: list[LoadReport] = []
        self._losses: list[str] = []
        self._lost_batches: deque[Any] = deque()
        self._short_since = 0.0
        self._members = [self._new_member(replaces=False) for _ in range(self._engines.num_engines)]

    def load(self, adapter: str | None) -> LoadReport:
        """Serve base plus adapter; returns the slowest report of the engines that it waited for.

        Raises:
            ParityError: when an engine does not compute what was trained.
            EngineError: when an engine cannot start, or more were lost than may be.
            TimeoutError: when fewer than ``min_engines`` were ready in ``engines.start_timeout_s``.
            All of them say what was asked for.
        """
        while any(member.batches for member in self._members):  # of a caller who has gone
            self._wait()
        self._lost_batches.clear()
        self._adapter, self._reports, self._losses = adapter, [], []
        self._short_since = time.monotonic()
        for member in self._members:
            self._load(member)
        while sum(member.serves for member in self._members) < self._least:
            self._wait()
        return max(self._reports, key=lambda report: report.seconds)

    def generate(self, samples: pa.Table, request: GenerationRequest) -> Iterator[pa.Table]:
        """Answers for the samples of an index, batch by batch as engines finish, in any order.

        Every sample is answered exactly once, whatever happens to engines. The driver holds no more
        than two batches of encoded images for each engine. Raises as ``load`` does.
        """
        # Ray Data would wait for ever for a reader that finds no core, as where engines take them all.
        wait_for_room([{"CPU": _READ_CPUS}], self._engines.start_timeout_s, "engines.start_timeout_s")
        batches = iter(self._batches(samples, request))
        batch = next(batches, None)
        answers: list[pa.Table] = []
        while True:
            # Engines get their next batches before the answers are looked at.
            for member in self._members:
                while member.serves and len(member.batches) < _BATCHES_AT_ONCE:
                    if self._lost_batches:
                        self._submit(member, self._lost_batches.popleft(), request)
                    elif batch is not None:
                        self._submit(member, ray.put(batch), request)
                        batch = next(batches, None)
                    else:
                        break
            yield from answers
            if batch is None and not self._lost_batches and not any(m.batches for m in self._members):
                return
            answers = self._wait()

    def close(self) -> None:
        """End the engines and free what they hold."""
        stopped = [member.actor.stop.remote() for member in self._members if member.serves]
        if stopped:
            ray.wait(stopped, num_returns=len(stopped), timeout=_STOP_TIMEOUT_S)
        for member in self._members:
            ray.kill(member.actor)
        self._members = []

    def _batches(self, samples: pa.Table, request: GenerationRequest) -> Any:
        size = self._engines.batch_size
        columns = ["id", "file", "row_group", "row", *(["label"] if request.score_label else [])]
        index = samples.select([*columns, *question_columns(samples)])
        # One block for each batch, so that no reader takes more of the images than a batch at once.
        blocks = [index.slice(start, size) for start in range(0, len(index), size)]
        # Unlike from_arrow, from_blocks starts no task for each block, for which a whole core must be free:
        # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/data/read_api.py#L4986-L4990
        return (
            ray.data.from_blocks(blocks)
            .map_batches(_with_images, batch_size=size, batch_format="pyarrow", num_cpus=_READ_CPUS)
            .iter_batches(batch_size=size, batch_format="pyarrow")
        )

    def _new_member(self, replaces: bool) -> _Member:
        engines = self._engines
        actor: Any = ray.remote(Engine)
        options = actor.options(
            max_concurrency=_BATCHES_AT_ONCE,
            num_cpus=engines.cpus_per_engine,
            num_gpus=engines.gpus_per_engine,
            # Not what a pool inside a Tune trial would inherit: the trial's placement group, which has
            # room for the trial's driver alone. https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/air/execution/resources/placement_group.py#L35
            scheduling_strategy="DEFAULT",
            runtime_env={"env_vars": engine_environment(engines)},
        )
        return _Member(options.remote(self.config, self._class_names), replaces)

    def _load(self, member: _Member) -> None:
        member.serves = False
        member.loading = member.actor.load.remote(self._adapter)

    def _submit(self, member: _Member, batch: Any, request: GenerationRequest) -> None:
        if not member.batches:
            member.since = time.monotonic()
        member.batches[member.actor.generate.remote(batch, request)] = batch

    def _wait(self) -> list[pa.Table]:
        """Wait a moment for engines; returns the answers of those that have finished a batch."""
        working = {task: member for member in self._members for task in member.batches}
        working |= {member.loading: member for member in self._members if member.loading}
        done, _ = ray.wait(list(working), timeout=_POLL_S)
        answers = [self._finish(working[task], task) for task in done]
        self._check_times()
        return [table for table in answers if table is not None]

    def _finish(self, member: _Member, task: Any) -> pa.Table | None:
        try:
            result = ray.get(task)
        except RayTaskError as error:
            self._failed(member, error.cause)
            return None
        except RayError as error:  # the actor, its worker or its node has died
            self._lose(member, error)
            return None
        member.since = time.monotonic()
        if task in member.batches:
            del member.batches[task]
            return result
        member.loading, member.serves = None, True
        self._reports.append(result)
        if member.replaces:
            _log.warning("an engine stands in for the lost one, after %.0f s", result.seconds)
        return None

    def _failed(self, member: _Member, cause: Exception) -> None:
        """Lose an engine whose work another can do; raise what is wrong for all of them."""
        member.loading = None
        if isinstance(cause, EngineLostError):
            self._lose(member, cause)
        elif isinstance(cause, EngineError):
            # Where others run, one that does not start may still find what the lost one leaves.
            if not member.replaces:
                raise EngineError(f"{cause}; {self._asked()}") from cause
            self._lose(member, cause)
        else:
            raise cause

    def _lose(self, member: _Member, why: object) -> None:
        reason = " ".join(str(why).split())[:400]
        self._losses.append(reason)
        self._lost_batches.extend(member.batches.values())
        if sum(other.serves for other in self._members) == self._least:
            self._short_since = time.monotonic()
        member.serves = False
        ray.kill(member.actor)
        if len(self._losses) > self._engines.max_restarts:
            raise EngineError(
                f"{len(self._losses)} engines were lost, and engines.max_restarts is "
                f"{self._engines.max_restarts}; the last one: {reason}; {self._asked()}; if memory ran out, "
                "lower model.max_length, engines.batch_size or engines.num_engines"
            )
        _log.warning("an engine is lost and asked for anew: %s", reason)
        replacement = self._new_member(replaces=True)
        self._members[self._members.index(member)] = replacement
        self._load(replacement)

    def _check_times(self) -> None:
        now = time.monotonic()
        for member in list(self._members):
            limit = self._engines.batch_timeout_s
            if member.batches and now - member.since > limit:
                self._lose(member, f"no answer to a batch in {limit} s (engines.batch_timeout_s)")
        ready = sum(member.serves for member in self._members)
        timeout = self._engines.start_timeout_s
        if ready < self._least and now - self._short_since > timeout:
            raise TimeoutError(
                f"{ready} of {self._least} engines were ready in {timeout} s: {self._asked()}; "
                "raise engines.start_timeout_s, or ask for less"
            )

    def _asked(self) -> str:
        engines = self._engines
        memory = (
            f"{engines.gpu_memory_utilization:g} of the GPU's memory"
            if engines.gpus_per_engine
            else f"{engines.cpu_kv_cache_gib} GiB of KV cache"
        )
        return (
            f"asked for {engines.num_engines} x {engines.cpus_per_engine:g} CPU and "
            f"{engines.gpus_per_engine} GPU, {memory} and {self.config.model.max_length} tokens "
            f"in {engines.dtype} each; {describe_cluster()}"
        )


def _with_images(rows: pa.Table) -> pa.Table:
    images = pa.array(read_images(rows), pa.binary())
    return rows.drop_columns(["file", "row_group", "row"]).append_column("image", images)


def engine_environment(engines: EnginesConfig) -> dict[str, str]:
    """What vLLM reads from the environment of an engine."""
    if engines.gpus_per_engine > 0:
        # The model runner of CPUs as well, with which reloading, scores and seeds are tested. By itself vLLM
        # takes its second one where there is Triton; that one has not been run with this package.
        # https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/config/vllm.py#L703-L737
        return {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(engines.cpu_kv_cache_gib),
        # In the actor's own process: two more that import vLLM take most of an engine's start.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # By itself vLLM binds its threads to the node's first cores, and so would the next engine there.
        # https://github.com/vllm-project/vllm/pull/27953
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, int(engines.cpus_per_engine))),
    }
