"""The engine pool of a run, started when it is first needed; engines outlive stages and folds."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rdmldg_ray.config.schema import Config, EnginesConfig
from rdmldg_ray.runtime.liveness import count_alive

if TYPE_CHECKING:
    from rdmldg_ray.engines.pool import EnginePool


def keeps_engines(engines: EnginesConfig) -> bool:
    """Whether idle engines stay while a stage trains.

    An idle engine on CPU costs some memory and saves its start, half a minute; one on a GPU holds
    most of the memory that training needs.
    """
    keep = engines.keep_while_training
    return engines.gpus_per_engine == 0 if keep is None else keep


class Serving:
    """Hands out the pool with the adapter that a stage wants."""

    def __init__(self, config: Config, class_names: list[str], console: Console):
        self._config = config
        self._class_names = class_names
        self._console = console
        self._pool: EnginePool | None = None
        self._served: str | None = None
        self._loading: dict[str, Any] = {}

    def pool(self, adapter: str | None) -> "EnginePool":
        """The pool, serving base plus adapter; raises as ``EnginePool.load`` does."""
        from rdmldg_ray.engines.pool import EnginePool

        started = time.perf_counter()
        fresh = self._pool is None
        if self._pool is None:
            self._pool = EnginePool(self._config, self._class_names)
        if fresh or adapter != self._served:
            with self._console.status("  loading the model into the engines"):
                report = self._pool.load(adapter)
            self._served = adapter
            self._loading = {"loading": report.how, "loading_s": round(time.perf_counter() - started, 1)}
            parity = "" if report.parity is None else f", within {report.parity:.1e} of the trainer"
            self._console.print(
                f"  engines ready ({report.how}, {report.seconds:.1f} s{parity})", highlight=False
            )
        return self._pool

    def take_loading(self) -> dict[str, Any]:
        """How engines were loaded since the last call, and the seconds: no work of the stage's own."""
        loading, self._loading = self._loading, {}
        return loading

    def count_alive(self) -> AbstractContextManager[Callable[[], str]]:
        """For a progress bar: how many engines are alive."""
        return count_alive("Engine", self._config.engines.num_engines, "engines")

    def make_room_for_training(self) -> None:
        """End the engines, where they are not kept while a stage trains."""
        if not keeps_engines(self._config.engines):
            self.close()

    def close(self) -> None:
        """End the engines."""
        if self._pool:
            self._pool.close()
            self._pool = None
