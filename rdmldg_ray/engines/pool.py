"""A pool of engines, fed from Ray Data."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import GetTimeoutError
from ray.util import ActorPool

from rdmldg_ray.config import Config, EnginesConfig
from rdmldg_ray.engines.engine import Engine, LoadReport, Request
from rdmldg_ray.storage import read_images

_READ_CPUS = 0.25
_STOP_TIMEOUT_S = 30


class EnginePool:
    """``num_engines`` engines that all serve the same model and outlive the stages that use them.

    Starting an engine costs far more than loading new weights into it, so a pool is started once
    for a run and reloaded after each training.
    """

    def __init__(self, config: Config, class_names: list[str]):
        self.config = config
        engines = config.engines
        on_gpu = engines.gpus_per_engine > 0
        actor = ray.remote(
            num_cpus=engines.cpus_per_engine,
            num_gpus=engines.gpus_per_engine,
            runtime_env={"env_vars": {} if on_gpu else _cpu_environment(engines)},
        )(Engine)
        self._actors: list[Any] = [actor.remote(config, class_names) for _ in range(engines.num_engines)]

    def load(self, adapter: str | None) -> LoadReport:
        """Serve base plus adapter in every engine; returns the slowest engine's report.

        Raises:
            ParityError: when an engine does not compute what was trained.
            TimeoutError: when an engine has not started in ``engines.start_timeout_s``; the message
                says what was asked for and what the cluster has.
        """
        timeout = self.config.engines.start_timeout_s
        try:
            reports = ray.get([actor.load.remote(adapter) for actor in self._actors], timeout=timeout)
        except GetTimeoutError:
            engines = self.config.engines
            raise TimeoutError(
                f"engines were not ready in {timeout} s: asked for {engines.num_engines} x "
                f"{engines.cpus_per_engine} CPU and {engines.gpus_per_engine} GPU; the cluster has "
                f"{_totals(ray.cluster_resources())}, of it free {_totals(ray.available_resources())}; "
                "raise engines.start_timeout_s, or ask for less"
            ) from None
        return max(reports, key=lambda report: report.seconds)

    def generate(self, samples: pa.Table, request: Request) -> Iterator[pa.Table]:
        """Answers for the samples of an index, batch by batch as engines finish, in any order.

        The driver holds no more than one batch of encoded images for each engine.
        """
        columns = ["id", "file", "row_group", "row", *(["label"] if request.score_label else [])]
        batches = (
            ray.data.from_arrow(samples.select(columns))
            .map_batches(
                _with_images,
                batch_size=self.config.engines.batch_size,
                batch_format="pyarrow",
                num_cpus=_READ_CPUS,
            )
            .iter_batches(batch_size=self.config.engines.batch_size, batch_format="pyarrow")
        )
        pool = ActorPool(self._actors)
        for batch in batches:
            if not pool.has_free():
                yield pool.get_next_unordered()
            pool.submit(lambda actor, images: actor.generate.remote(images, request), batch)
        while pool.has_next():
            yield pool.get_next_unordered()

    def close(self) -> None:
        """End the engines and free what they hold."""
        stopped = [actor.stop.remote() for actor in self._actors]
        ray.wait(stopped, num_returns=len(stopped), timeout=_STOP_TIMEOUT_S)
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def _with_images(rows: pa.Table) -> pa.Table:
    images = pa.array(read_images(rows), pa.binary())
    return rows.drop_columns(["file", "row_group", "row"]).append_column("image", images)


def _cpu_environment(engines: EnginesConfig) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(engines.cpu_kv_cache_gib),
        # In the actor's own process: two more that import vLLM take most of an engine's start, and
        # outlive a killed actor.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # By itself vLLM binds its threads to the node's first cores, and so would the next engine there.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, int(engines.cpus_per_engine))),
    }


def _totals(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
