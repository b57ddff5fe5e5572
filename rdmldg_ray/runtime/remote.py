"""Work outside the driver: a function in a Ray task, several at once, or one over rows by Ray Data."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, ParamSpec, TypeVar

import rdmldg_ray

Said = list[tuple[str, int, str]]
"""What was logged: the logger's name, the level, the message."""

P = ParamSpec("P")
T = TypeVar("T")


def in_task(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function in a Ray worker, and return what it returns.

    What it logs as a warning is logged here, once, for a worker's log is one of hundreds on another node.
    What the function takes of memory is the worker's. A table that it returns lies in the object store,
    where it is read without a copy, and stays for as long as it is used. Ray must be connected.

    Raises:
        RayTaskError: when the function fails; it is also of the class of what was raised, and has that as
            ``cause``.
    """
    import ray

    # DEFAULT, and not what a trial of Tune would hand down: its own placement group, which has no room.
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/air/execution/resources/placement_group.py#L35
    task: Any = ray.remote(num_cpus=0, num_returns=2, scheduling_strategy="DEFAULT")(_call)
    result: T
    result, said = ray.get(task.remote(function, arguments, named))
    _tell(said)
    return result


class _Listener(logging.Handler):
    """Keeps the warnings of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: Said = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.name, record.levelno, record.getMessage()))


def _call(
    function: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any] | None = None
) -> tuple[T, Said]:
    """What a function returns, and the warnings of this package's that it logs."""
    listener, logger = _Listener(), logging.getLogger(rdmldg_ray.__name__)
    logger.addHandler(listener)
    try:
        return function(*arguments, **(named or {})), listener.said
    finally:
        logger.removeHandler(listener)


def _tell(said: Said) -> None:
    for one in said:
        _tell_once(*one)


# Folds and stages read the same files.
@lru_cache(maxsize=1024)
def _tell_once(logger: str, level: int, message: str) -> None:
    logging.getLogger(logger).log(level, "%s", message)


def in_tasks(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], num_cpus: float, num_gpus: float
) -> list[T]:
    """Call a function with each tuple of arguments, as Ray tasks; returns their results in order.

    Warnings are told as by ``in_task``.
    """
    import ray

    task: Any = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(_call)
    results: list[tuple[T, Said]] = ray.get([task.remote(function, arguments) for arguments in calls])
    for _, said in results:
        _tell(said)
    return [result for result, _ in results]


def map_rows(
    function: Callable[[dict[str, Any]], dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Apply a function to each row by Ray Data, in a task of one core; yields the results as they come."""
    import pyarrow as pa
    import ray.data

    # A block for each row makes a task for each.
    blocks = [pa.Table.from_pylist([row]) for row in rows]
    results = ray.data.from_arrow(blocks).map_batches(
        partial(_map_block, function=function), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    yield from results.iter_rows()


def _map_block(block: Any, function: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist([function(row) for row in block.to_pylist()])
