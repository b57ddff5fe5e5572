"""One writer at a time: a file that says who writes to a folder, and since when."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
    mine = {
        "holder": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": now,
        "renewed": now,
    }
    written = _take(location, mine)
    ended = threading.Event()

    def renew() -> None:
        nonlocal written
        while not ended.wait(_RENEW_EVERY_S):
            renewed = storage.json_bytes({**mine, "renewed": time.time()})
            try:
                if not storage.write_if_unchanged(location, renewed, written):
                    # An earlier renewal that seemed to fail, or another has taken it, as after a long sleep.
                    found = storage.read_if_there(location)
                    if _parsed(found).get("holder") != mine["holder"]:
                        return
                    renewed = found or renewed
            except ValueError:
                continue  # what cannot be written now is tried again; others wait for longer than this
            written = renewed

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if _parsed(storage.read_if_there(location)).get("holder") == mine["holder"]:
            storage.delete_file(location)


def _take(location: str, mine: dict[str, Any]) -> bytes:
    """Write the lock where it is free, and return what was written."""
    data = storage.json_bytes(mine)
    while True:
        before = storage.read_if_there(location)
        _check(location, _parsed(before), mine["since"])
        if storage.write_if_unchanged(location, data, before):
            return data
        # Another has taken it in this moment, or given it up.


def _check(location: str, held: dict[str, Any], now: float) -> None:
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


def _parsed(data: bytes | None) -> dict[str, Any]:
    try:
        value = storage.parse_json(data or b"{}")
    except ValueError:
        return {}  # not written whole
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
