"""How many of a driver's engines or workers are alive, for those who watch."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_LOOK_EVERY_S = 5.0
_TIMEOUT_S = 5


@contextmanager
def count_alive(actor_class: str, wanted: int, called: str) -> Iterator[Callable[[], str]]:
    """Yields what tells how many actors of a class this driver has, such as ``2 of 2 engines alive``.

    Ray is asked every few seconds, beside the work; until it has answered there is nothing to tell.

    Args:
        actor_class: its qualified name, as Ray knows it.
    """
    import ray
    from ray.util.state import list_actors

    context = ray.get_runtime_context()
    wanted_ones: list[tuple[str, str, str | bool | int | float]] = [
        ("class_name", "=", actor_class),
        ("state", "=", "ALIVE"),
        ("job_id", "=", context.get_job_id()),
    ]
    told = ""
    finished = threading.Event()

    def look() -> None:
        nonlocal told
        while not finished.is_set():
            # Of many kinds, such as that the cluster has no dashboard; none of them is worth a run.
            with suppress(Exception):
                # By its address, since there may be another cluster on this machine.
                alive = list_actors(
                    address=context.gcs_address, filters=wanted_ones, limit=10_000, timeout=_TIMEOUT_S
                )
                told = f"{len(alive)} of {wanted} {called} alive"
            finished.wait(_LOOK_EVERY_S)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: told
    finally:
        finished.set()
        thread.join()
