"""Work on tables as large as a data set is done in a Ray task, so that the driver stays small."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_task(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function in a Ray worker, and return what it returns.

    What the function takes of memory is the worker's. A table that it returns lies in the object store,
    where it is read without a copy, and stays for as long as it is used. Ray must be connected.

    Raises:
        RayTaskError: when the function fails; it is also of the class of what was raised, and has that as
            ``cause``.
    """
    import ray

    # DEFAULT, and not what a trial of Tune would hand down: its own placement group, which has no room.
    task: Any = ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")(_call)
    result: T = ray.get(task.remote(function, arguments, named))
    return result


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return function(*arguments, **named)
