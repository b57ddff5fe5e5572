import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdmldg_ray import storage
from rdmldg_ray.teacher.lock import locked


def hold(location, **changes):
    now = time.time()
    held = {"holder": "x", "host": "another", "pid": 7, "since": now, "renewed": now}
    storage.write_json(location, held | changes)


def test_a_lock_is_held_for_the_time_of_a_block(root):
    location = storage.join(root, "folder/_lock.json")
    with locked(location):
        who = f"process {os.getpid()} on {re.escape(socket.gethostname())}"
        words = rf"_lock\.json: {who} writes .* since 20\d\d-.* UTC; wait"
        with pytest.raises(ValueError, match=words), locked(location):
            raise AssertionError("held twice")
        assert storage.exists(location)
    assert not storage.exists(location)
    with locked(location):
        pass


def test_it_is_free_again_after_an_error(tmp_path):
    location = str(tmp_path / "_lock.json")
    with pytest.raises(KeyError), locked(location):
        raise KeyError
    assert not storage.exists(location)


def test_another_machine_holds_it(tmp_path):
    location = str(tmp_path / "_lock.json")
    hold(location)
    with (
        pytest.raises(ValueError, match=r"process 7 on another .*; wait until it ends, or take another name"),
        locked(location),
    ):
        pass
    assert storage.exists(location)


@pytest.mark.parametrize("ago_s", [200, -200, 10**9])
def test_of_one_that_is_not_renewed_the_holder_is_gone(tmp_path, ago_s):
    location = str(tmp_path / "_lock.json")
    hold(location, renewed=time.time() - ago_s)
    with locked(location):
        pass


def test_a_process_of_this_machine_that_has_ended_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    location = str(tmp_path / "_lock.json")
    hold(location, host=socket.gethostname(), pid=process.pid)
    with locked(location):
        pass


@pytest.mark.parametrize("pid", [None, "7", -1, 0, 1.5])
def test_what_is_no_process_holds_nothing_here(tmp_path, pid):
    location = str(tmp_path / "_lock.json")
    hold(location, host=socket.gethostname(), pid=pid)
    with locked(location):
        pass


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"{}", b'{"renewed": "now", "since": 1}', b"[" * 100_000],
)
def test_a_lock_that_was_not_written_whole_is_free(tmp_path, content):
    location = str(tmp_path / "_lock.json")
    storage.write_bytes(location, content)
    with locked(location):
        assert storage.read_json(location)["pid"] == os.getpid()


def test_a_lock_that_another_took_meanwhile_is_left_to_it(tmp_path):
    location = str(tmp_path / "_lock.json")
    with locked(location):
        hold(location)
    assert storage.read_json(location)["host"] == "another"


def test_of_those_that_begin_in_one_moment_one_gets_it(root):
    location = storage.join(root, "folder/_lock.json")
    together, ended = threading.Barrier(8), threading.Barrier(8)

    def take(number):
        together.wait()
        try:
            with locked(location):
                ended.wait()
                return None
        except ValueError as error:
            ended.wait()
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(take, range(8)))
    others = [message for message in told if message]
    assert len(others) == 7
    assert all(f"process {os.getpid()} on {socket.gethostname()} writes" in message for message in others)
    assert storage.list_files(root) == []


def test_of_those_that_find_a_killed_ones_lock_one_gets_it(root, monkeypatch):
    location = storage.join(root, "_lock.json")
    hold(location, renewed=time.time() - 1000)
    write = storage.write_if_unchanged

    def another_meanwhile(*arguments):
        monkeypatch.setattr(storage, "write_if_unchanged", write)
        hold(location)
        return write(*arguments)

    monkeypatch.setattr(storage, "write_if_unchanged", another_meanwhile)
    with pytest.raises(ValueError, match="process 7 on another"), locked(location):
        raise AssertionError("taken from its holder")


def test_a_lock_is_renewed_while_it_is_held_and_only_then(root, monkeypatch):
    monkeypatch.setattr("rdmldg_ray.teacher.lock._RENEW_EVERY_S", 0.05)
    location = storage.join(root, "_lock.json")
    with locked(location):
        first = storage.read_json(location)
        while (now := storage.read_json(location))["renewed"] == first["renewed"]:
            time.sleep(0.01)
        assert now == first | {"renewed": now["renewed"]}
        hold(location)
        others = storage.read_json(location)
        time.sleep(0.2)
        assert storage.read_json(location) == others
