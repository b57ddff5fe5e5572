import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from rdmldg_ray import storage
from rdmldg_ray.runtime.errors import RunFailedError
from rdmldg_ray.runtime.lease import Lease, LeaseHeldError, read_holder
from rdmldg_ray.storage import StorageError

LONG = 1000.0
FAST = {"renew_every_s": 0.02, "expires_after_s": 0.2}
SLOW = {"renew_every_s": LONG, "expires_after_s": LONG}


@pytest.fixture
def location(tmp_path):
    return str(tmp_path / "runs/demo/flat/lease.json")


def lease(location, periods=SLOW, out=None):
    console = Console(file=out or io.StringIO(), width=60)
    return Lease(location, "run 'demo', fold flat", "rdmldg status demo --watch", console, **periods)


def written(location, **changes):
    """A lease of this process, with changes, as nobody renews it."""
    with lease(location).held():
        value = storage.read_json(location)
    storage.write_json(location, value | changes)
    return value | changes


ELSEWHERE = {"user": "ada", "host": "node-7", "pid": 7, "machine": "another"}


def take(location, change):
    """Another takes the lease of one who sleeps, or what is left there is damaged."""
    while True:
        found = storage.read_bytes(location)
        if storage.write_if_unchanged(location, changed := change(found), found):
            return changed


def as_another(found):
    return storage.json_bytes(json.loads(found) | ELSEWHERE | {"token": "other"})


def hold_while(mine, work):
    with mine.held():
        work()


# Taking, refusing, giving back.


def test_a_lease_is_held_for_the_time_of_a_block(location):
    with lease(location).held():
        value = storage.read_json(location)
        assert (value["version"], value["pid"], value["renewals"]) == (1, os.getpid(), 1)
        assert value["taken"] == value["renewed"] < value["expires"]
        assert read_holder(location).pid == os.getpid()
        with pytest.raises(LeaseHeldError), lease(location).held():
            raise AssertionError("held twice")
        assert storage.read_json(location) == value
    assert read_holder(location) is None and not storage.exists(location)
    with lease(location).held():
        pass


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_it_is_given_back_after_an_error_which_passes(location, error):
    with pytest.raises(type(error)) as caught, lease(location).held():
        raise error
    assert caught.value is error
    assert not storage.exists(location)


def test_inside_its_own_block_it_is_held_already(location):
    mine = lease(location)
    with mine.held():
        before = storage.read_json(location)
        with mine.held():
            assert storage.read_json(location) == before
        assert storage.read_json(location) == before
    assert not storage.exists(location)


@pytest.mark.parametrize(
    ("environment", "who", "attach"),
    [
        ({}, "", False),
        ({"RAY_JOB_ID": "0a000000"}, ", job 0a000000", False),
        (
            {
                "RAY_JOB_ID": "0a000000",
                "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "run-demo-1"}}',
            },
            ", job run-demo-1",
            True,
        ),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": null}'}, "", False),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{"}, "", False),
    ],
)
def test_who_is_refused_is_told_who_works_and_how_to_watch(location, monkeypatch, environment, who, attach):
    for name in ("RAY_JOB_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with lease(location).held(), pytest.raises(LeaseHeldError) as error, lease(location).held():
        pass
    told = str(error.value)
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.match(
        rf"run 'demo', fold flat: \S+@\S+ \(process {os.getpid()}{who}\) works on it since {when}, and was "
        rf"last heard of at {when}; watch it with `rdmldg status demo --watch`",
        told,
    )
    assert ("`rdmldg attach run-demo-1`" in told) == attach
    assert "1000 s after it was killed, the same command resumes" in told


def test_a_holder_elsewhere_is_refused_as_soon_as_it_renews(location):
    value = written(location, **ELSEWHERE)
    out = io.StringIO()

    def renew():
        while "taking over" not in out.getvalue():
            time.sleep(0.01)
        storage.write_json(location, value | {"renewals": 2})

    thread = threading.Thread(target=renew)
    thread.start()
    with (
        pytest.raises(LeaseHeldError, match=r"ada@node-7 \(process 7\) works on it"),
        lease(location, {"renew_every_s": 0.1, "expires_after_s": LONG}, out).held(),
    ):
        pass
    thread.join()
    assert storage.read_json(location)["renewals"] == 2


# Renewing.


def test_it_is_renewed_while_it_is_held_and_only_then(location):
    with lease(location, FAST).held():
        first = storage.read_json(location)
        while (now := storage.read_json(location))["renewals"] < 3:
            time.sleep(0.01)
        assert {key for key in now if now[key] != first[key]} <= {"renewals", "renewed", "expires"}
    time.sleep(0.1)
    assert not storage.exists(location)


@pytest.mark.parametrize("happens", ["nothing is written", "the answer is lost"])
def test_a_renewal_that_fails_is_done_again(location, monkeypatch, happens):
    write, failed = storage.write_if_unchanged, threading.Event()

    def failing(*arguments):
        monkeypatch.setattr(storage, "write_if_unchanged", write)
        if happens == "the answer is lost":
            assert write(*arguments)
        failed.set()
        raise StorageError("no answer")

    with lease(location, FAST).held():
        monkeypatch.setattr(storage, "write_if_unchanged", failing)
        failed.wait()
        before = storage.read_json(location)["renewals"]
        while storage.read_json(location)["renewals"] < before + 2:
            time.sleep(0.01)
    assert not storage.exists(location)


# Taking over.


@pytest.mark.parametrize(
    "changes",
    [
        ELSEWHERE,
        {"machine": None},
        {"machine": None, "started": None},
        {"version": 99, "pid": 0},
        {"pid": "7"},
        {"pid": -1},
        {"pid": 1},  # alive, and of another start
        {"renewed": "2020-01-01T00:00:00Z"} | ELSEWHERE,
        {"renewed": "2099-01-01T00:00:00Z", "expires": "2099-01-01T00:01:30Z"} | ELSEWHERE,
    ],
    ids=str,
)
def test_one_that_is_silent_is_taken_over_and_no_clock_matters(location, changes):
    certain = changes == {"pid": 1}
    written(location, **changes)
    out = io.StringIO()
    with lease(location, FAST, out).held():
        assert storage.read_json(location)["pid"] == os.getpid()
    told = out.getvalue().splitlines()
    assert len(told) == (0 if certain else 1)
    assert certain or (
        told[0].startswith("run 'demo', fold flat: ") and "; taking over in 0 s, unless" in told[0]
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"version": 1}',
        b'{"token": "x", "pid": 7}',
        b"9" * 9999,
        b"[" * 99999,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_lease_is_taken_over_when_nobody_renews_it(location, content):
    storage.write_bytes(location, content)
    assert read_holder(location) is None
    out = io.StringIO()
    with lease(location, FAST, out).held():
        assert storage.read_json(location)["pid"] == os.getpid()
    [told] = out.getvalue().splitlines()
    assert f"{location} cannot be read, and does not tell who works on it; taking over in" in told


SCRIPT = """
import sys, time
from rich.console import Console
from rdmldg_ray.runtime.lease import Lease
with Lease(sys.argv[1], "w", "x", Console(stderr=True), 1000, 1000).held():
    print("held", flush=True)
    time.sleep(60)
"""


def holding(location):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, location], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_of_a_process_of_this_machine_it_is_known_at_once_whether_it_is_alive(location):
    with holding(location) as process:
        with (
            pytest.raises(LeaseHeldError, match=rf"\(process {process.pid}\) works on it"),
            lease(location).held(),
        ):
            pass
        process.kill()
        # Until its parent takes notice it is a zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        content = storage.read_bytes(location)
        with lease(location).held():
            pass
        process.wait()
        storage.write_bytes(location, content)
        with lease(location).held():
            pass


def test_what_this_process_has_left_behind_holds_up_nothing(location):
    written(location)
    with lease(location).held():
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_gives_it_back(location, number, code):
    with holding(location) as process:
        process.send_signal(number)
        assert process.wait(30) == code
    assert not storage.exists(location)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# A holder that slept.


@pytest.mark.parametrize("left", [as_another, lambda found: found[:99], None])
def test_one_whose_lease_was_taken_enters_nothing_more(location, left):
    mine, entered = lease(location), []

    def work():
        mine.confirm()
        assert storage.read_json(location)["renewals"] == 2
        if left:
            take(location, left)
        else:
            storage.delete_file(location)
        mine.confirm()
        entered.append("x")

    with pytest.raises(RunFailedError) as error:
        hold_while(mine, work)
    assert not entered
    who = r"ada@node-7 \(process 7\) has taken over at " if left == as_another else "another has taken over"
    assert re.match(rf"run 'demo', fold flat: {who}", str(error.value))
    assert "the same command resumes" in str(error.value)
    # What is another's, or was deleted, stays as it is.
    assert (storage.read_if_there(location) is None) == (left is None)


@pytest.mark.parametrize("left", [as_another, lambda found: found[:99]])
def test_what_it_does_is_interrupted_in_the_main_thread(location, left):
    def work():
        changed.append(take(location, left))
        time.sleep(60)

    changed = []
    with pytest.raises(RunFailedError, match="has taken over"):
        hold_while(lease(location, FAST), work)
    assert changed == [storage.read_bytes(location)]


def test_in_another_thread_it_ends_at_the_next_confirmation(location):
    mine, told = lease(location, FAST), []

    def work():
        take(location, as_another)
        time.sleep(0.1)
        mine.confirm()

    def thread_work():
        try:
            hold_while(mine, work)
        except RunFailedError as error:
            told.append(str(error))

    thread = threading.Thread(target=thread_work)
    thread.start()
    thread.join()
    assert len(told) == 1 and "ada@node-7 (process 7) has taken over" in told[0]


# Races.


def race(root, rounds, together, decided, results):
    """A process that tries to take each round's lease at the same time as the others."""
    for number in range(rounds):
        location = storage.join(root, f"{number}/lease.json")
        together.wait(60)
        try:
            with lease(location).held():
                decided.wait(60)  # the others have tried
                results.put((number, json.loads(storage.read_bytes(location))["pid"] == os.getpid()))
        except LeaseHeldError:
            decided.wait(60)


def winners(root, processes, rounds, content=None):
    for number in range(rounds):
        if content is not None:
            storage.write_bytes(storage.join(root, f"{number}/lease.json"), content)
    context = multiprocessing.get_context("spawn")
    together, decided, results = context.Barrier(processes), context.Barrier(processes), context.Queue()
    arguments = (root, rounds, together, decided, results)
    started = [context.Process(target=race, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    found = [results.get(timeout=120) for _ in range(rounds)]
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert results.empty()
    return sorted(found)


@pytest.mark.parametrize("dead", [False, True])
def test_of_processes_that_begin_in_one_moment_one_gets_it(tmp_path, dead):
    content = None
    if dead:
        written(str(tmp_path / "x.json"), pid=2**22 + 1)  # beyond what Linux gives to a process
        content = (tmp_path / "x.json").read_bytes()
    found = winners(str(tmp_path / "root"), 3, 30, content)
    assert found == [(number, True) for number in range(30)]
    assert storage.list_files(str(tmp_path / "root")) == []


def test_on_s3_one_of_them_gets_it(s3_root):
    assert winners(s3_root, 2, 15) == [(number, True) for number in range(15)]
    assert storage.list_files(s3_root) == []
