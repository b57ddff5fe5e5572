"""One writer at a time: a file that says who writes to a folder, and since when.

Storage has no lock of its own, so two that begin in the same moment may both get this one. It keeps a second
call from asking, and paying, for the same once more; that nothing is lost is up to the files' names.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rdmldg_ray import storage

_RENEW_EVERY_S = 20.0
# Longer than a renewal may take, a slow storage and clocks that differ included.
_STALE_AFTER_S = 120.0


@contextmanager
def locked(location: str) -> Iterator[None]:
    """Hold the lock that a file is for the time of the block, and renew it.

    Raises:
        ValueError: when another process holds it; the message says which one, and since when.
    """
    now = time.time()
    _check(location, now)
    mine = {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": now,
        "renewed": now,
    }
    storage.write_json(location, mine)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_EVERY_S):
            # What cannot be written now is tried again; others wait for longer than this.
            with suppress(ValueError):
                storage.write_json(location, {**mine, "renewed": time.time()})

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _read(location).get("holder") == mine["holder"]:
            storage.delete_file(location)


def _check(location: str, now: float) -> None:
    held = _read(location)
    renewed, since = held.get("renewed"), held.get("since")
    if not isinstance(renewed, int | float) or not isinstance(since, int | float):
        return  # free, or not written whole
    here = held.get("host") == socket.gethostname()
    if abs(now - renewed) > _STALE_AFTER_S or (here and not _is_running(held.get("pid"))):
        return  # its holder was killed
    begun = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M UTC")
    raise ValueError(
        f"{location}: process {held.get('pid')} on {held.get('host')} writes answers of this name since "
        f"{begun}; wait until it ends, or take another name (--name). If it was killed, this passes in "
        f"{_STALE_AFTER_S / 60:.0f} minutes"
    )


def _read(location: str) -> dict[str, Any]:
    try:
        value = storage.read_json(location) if storage.exists(location) else {}
    except ValueError:
        return {}  # gone between the two, or not written whole
    return value if isinstance(value, dict) else {}


def _is_running(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
