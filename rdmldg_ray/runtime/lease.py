"""One at a time: a lease is a small file on storage that says who works on a folder, renewed meanwhile.

Whoever finds the file of another watches it: when it is renewed its holder is alive; when it has not changed
for ``EXPIRES_AFTER_S`` its holder was killed, and the lease is taken over. So no clocks of two machines are
compared. A holder that has slept for longer finds another's token in the file, and stops.
"""

import contextlib
import getpass
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from rdmldg_ray import storage
from rdmldg_ray.runtime.errors import RunFailedError

LEASE_FILE = "lease.json"
RENEW_EVERY_S = 10.0
# Longer than several renewals take that fail or are late.
EXPIRES_AFTER_S = 90.0

_VERSION = 1
# Tokens of the leases that this process holds.
_held_here: set[str] = set()


class LeaseHeldError(ValueError):
    """Another process, which is alive, works on what was asked for."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease; times are the holder's own, in ISO's form and UTC.

    Attributes:
        job: id of the job that was submitted to Ray, or Ray's id of the driver; empty without either.
    """

    user: str
    host: str
    pid: int
    job: str
    taken: str
    renewed: str
    expires: str

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"{self.user}@{self.host} (process {self.pid}{job})"

    @property
    def expired(self) -> bool:
        """Whether it was to be renewed by now, as far as this machine's clock tells."""
        return self.expires < _iso(datetime.now(UTC))


def read_holder(location: str) -> Holder | None:
    """Who holds a lease; None where nobody does, or the file is damaged."""
    return _holder(storage.read_if_there(location))


class Lease:
    """The lease that a file is for; not to be shared by threads.

    Args:
        location: of the file.
        what: the work, for messages.
        watch: the command that shows how far the work is.
        console: where to tell what is waited for.
    """

    def __init__(
        self,
        location: str,
        what: str,
        watch: str,
        console: Console,
        renew_every_s: float = RENEW_EVERY_S,
        expires_after_s: float = EXPIRES_AFTER_S,
    ):
        self._location, self._what, self._watch, self._console = location, what, watch, console
        self._renew_every_s, self._expires_after_s = renew_every_s, expires_after_s
        self._written: bytes | None = None  # the file's content while the lease is held
        self._token = self._taken = ""
        self._renewals = 0
        self._lost = ""  # the message, once another has taken it
        self._renewing = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease for the time of the block, and renew it; inside such a block it is held already.

        Raises:
            LeaseHeldError: when a process that is alive holds it.
            RunFailedError: when another has taken it during the block.
        """
        if self._written is not None:
            yield
            return
        self._lost, self._token, self._taken = "", uuid.uuid4().hex, _iso(datetime.now(UTC))
        _held_here.add(self._token)
        lost, ended = "", threading.Event()
        in_main_thread = threading.current_thread() is threading.main_thread()
        thread = threading.Thread(target=self._keep, args=(ended, in_main_thread), daemon=True)
        try:
            with _exit_on_sigterm(in_main_thread):
                try:
                    self._take()
                    thread.start()
                    yield
                finally:
                    ended.set()
                    if thread.ident is not None:
                        thread.join()
                    lost = self._lost  # before the block's end, not by whoever deletes what it has left
                    self._give_back()
        except BaseException as error:
            if lost or (self._lost and isinstance(error, KeyboardInterrupt)):
                raise RunFailedError(self._lost) from None
            raise
        finally:
            self._written = None
            _held_here.discard(self._token)

    def confirm(self) -> None:
        """Renew the lease, so that nobody takes it before what comes next is written.

        Raises:
            RunFailedError: when another has taken it.
            StorageError: when that cannot be told.
        """
        assert self._written is not None, "the lease is not held"
        with self._renewing:
            while not self._lost:
                renewed = self._content()
                if storage.write_if_unchanged(self._location, renewed, self._written):
                    self._written = renewed
                    return
                found = storage.read_if_there(self._location)
                if _parsed(found).get("token") == self._token:
                    self._written = found  # by an earlier renewal that seemed to fail
                else:
                    self._lost = self._tell_lost(_holder(found))
        raise RunFailedError(self._lost)

    def _keep(self, ended: threading.Event, in_main_thread: bool) -> None:
        while not ended.wait(self._renew_every_s):
            try:
                self.confirm()
            except RunFailedError:
                if in_main_thread and not ended.is_set():
                    # As Ctrl-C does: what runs would go on writing until it is done.
                    main = threading.main_thread().ident
                    assert main is not None
                    signal.pthread_kill(main, signal.SIGINT)
                return
            except ValueError:
                continue  # what cannot be written now is tried again; others wait for longer than this

    def _give_back(self) -> None:
        if self._written is None:
            return
        # Where this fails the lease runs out, or is another's.
        with contextlib.suppress(RunFailedError, ValueError):
            self.confirm()
            storage.delete_file(self._location)

    def _take(self) -> None:
        watched: bytes | None = None
        since = 0.0
        while True:
            found = storage.read_if_there(self._location)
            now = time.monotonic()
            silent = found is not None and found == watched
            if found is None or _has_ended(found) or (silent and now - since >= self._expires_after_s):
                content = self._content()
                if storage.write_if_unchanged(self._location, content, found):
                    self._written = content
                    return
            elif silent:
                time.sleep(self._renew_every_s / 10)
            elif watched is not None or self._works_here(found):
                raise LeaseHeldError(self._tell_held(_holder(found)))
            else:
                watched, since = found, now
                waiting = self._tell_waiting(_holder(found))
                self._console.print(waiting, soft_wrap=True, highlight=False, markup=False)

    def _works_here(self, found: bytes) -> bool:
        """Whether a holder is alive for certain: a process of this machine that has renewed it of late."""
        value, holder = _parsed(found), _holder(found)
        if holder is None or _is_running(value) is not True:
            return False
        silent = datetime.now(UTC) - datetime.fromisoformat(holder.renewed)
        return timedelta(0) <= silent < timedelta(seconds=self._expires_after_s)

    def _content(self) -> bytes:
        now = datetime.now(UTC)
        self._renewals += 1
        return storage.json_bytes(
            {
                "version": _VERSION,
                "user": _user(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": _job(),
                "taken": self._taken,
                "renewed": _iso(now),
                "expires": _iso(now + timedelta(seconds=self._expires_after_s)),
                "token": self._token,
                "renewals": self._renewals,
                "machine": _machine(),
                "started": _started(os.getpid()),
            }
        )

    def _tell_held(self, holder: Holder | None) -> str:
        if holder is None:
            return f"{self._what}: {self._location} changes, but cannot be read; find out who writes it"
        # Ray's own id of a driver is no job that can be attached to.
        job = "" if re.fullmatch("([0-9a-f]{8})?", holder.job) else f", or with `rdmldg attach {holder.job}`"
        return (
            f"{self._what}: {holder} works on it since {_told(holder.taken)}, and was last heard of at "
            f"{_told(holder.renewed)}; watch it with `{self._watch}`{job}. Once it has ended, or "
            f"{self._expires_after_s:.0f} s after it was killed, the same command resumes"
        )

    def _tell_waiting(self, holder: Holder | None) -> str:
        who = f"{self._location} cannot be read, and does not tell who works on it"
        if holder:
            who = f"{holder} has it since {_told(holder.taken)}, renewed {_told(holder.renewed)}"
        return (
            f"{self._what}: {who}; taking over in {self._expires_after_s:.0f} s, unless there is a sign of "
            "life before"
        )

    def _tell_lost(self, holder: Holder | None) -> str:
        who = f"{holder} has taken over at {_told(holder.taken)}" if holder else "another has taken over"
        return (
            f"{self._what}: {who}, since nothing was heard of this process for a while, or {self._location} "
            "was deleted or damaged; it stops, and enters nothing more as complete. Watch the other with "
            f"`{self._watch}`; the same command resumes what remains"
        )


@contextlib.contextmanager
def _exit_on_sigterm(in_main_thread: bool) -> Iterator[None]:
    """Where nobody else handles SIGTERM, have it end the block as an error does."""
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# What a lease holds.


def _parsed(data: bytes | None) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _holder(data: bytes | None) -> Holder | None:
    value = _parsed(data)
    try:
        holder = Holder(**{field.name: value[field.name] for field in fields(Holder)})
        times = map(datetime.fromisoformat, (holder.taken, holder.renewed, holder.expires))
        return holder if all(when.tzinfo for when in times) and isinstance(holder.job, str) else None
    except (KeyError, TypeError, ValueError):
        return None


def _iso(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _told(when: str) -> str:
    return f"{datetime.fromisoformat(when):%Y-%m-%d %H:%M:%S} UTC"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _job() -> str:
    # Ray's job server gives it to the driver that it starts, in this form:
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/dashboard/modules/job/job_supervisor.py#L272
    submitted = _parsed(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "").encode()).get("metadata") or {}
    return str(submitted.get("job_submission_id") or os.environ.get("RAY_JOB_ID", ""))


# Whether a holder that is a process of this machine is alive.


def _has_ended(data: bytes) -> bool:
    return _is_running(_parsed(data)) is False


def _is_running(value: dict[str, Any]) -> bool | None:
    """Whether the process that wrote a lease is there; None where that cannot be told for certain."""
    pid, started = value.get("pid"), value.get("started")
    if value.get("version") != _VERSION or value.get("machine") != _machine() or not started:
        return None
    if not isinstance(pid, int) or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # of another user
    now = _started(pid)
    if now is None or now != started:
        return None if now is None else False
    return pid != os.getpid() or value.get("token") in _held_here


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks since boot; empty for one that has ended and that
    its parent has not taken notice of, None where that cannot be told."""
    try:
        # The name of the program, in brackets, may hold anything.
        state, *after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return "" if state in "ZX" else after[18]


def _machine() -> str | None:
    """What processes have in common whose ids can be compared; None where that cannot be told.

    Host names alone are not enough: containers share their host's, and two machines may have the same.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
