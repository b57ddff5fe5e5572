"""Jobs on a real head that listens on loopback and asks for a token."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.repository import ROOT

pytestmark = pytest.mark.slow

HEAD = "127.0.0.2"  # Ray puts the network card's address in the place of 127.0.0.1
START_TIMEOUT_S = 120
JOB_TIMEOUT_S = 300


def free_ports(count):
    """Ports below those that Ray gives to its workers."""
    with ExitStack() as stack:
        found = []
        for port in range(7000, 9900):
            taken = stack.enter_context(socket.socket())
            try:
                taken.bind((HEAD, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The address of a head, and the environment of a client of it."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "COLUMNS": "200",
    }
    gcs, dashboard, agent, agent_grpc, client = free_ports(5)
    command = ["ray", "start", "--head", "--block", f"--node-ip-address={HEAD}", f"--port={gcs}"]
    command += [f"--dashboard-host={HEAD}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += [f"--ray-client-server-port={client}", "--object-store-memory=200000000"]
    address = f"http://{HEAD}:{dashboard}"
    # A socket's path may be no longer than 107 bytes, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as out:
            ray = subprocess.Popen(
                [*command, f"--temp-dir={folder}"], env=environment, stdout=out, stderr=out
            )
        try:
            until = time.monotonic() + START_TIMEOUT_S
            while not answers(f"{address}/api/gcs_healthz"):
                assert ray.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(1)
            yield address, environment
        finally:
            ray.terminate()
            ray.wait(60)


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def start(head, *arguments, **more):
    address, environment = head
    command = [sys.executable, "-m", "rdmldg_ray", *arguments]
    environment = environment | {"RAY_API_SERVER_ADDRESS": address} | more
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def rdmldg(head, *arguments, **more):
    process = start(head, *arguments, **more)
    out, err = process.communicate(timeout=JOB_TIMEOUT_S)
    return process.returncode, out, err


def pictures(folder, data):
    for domain in ("sketch", "photo"):
        for label in ("cat", "dog"):
            (folder / domain / label).mkdir(parents=True)
            for number in range(3):
                (folder / domain / label / f"{number}.png").write_bytes(data)
    return str(folder)


def ingest(source, store):
    return [
        "submit",
        "--job",
        "ingest",
        source,
        "--dataset",
        "custom",
        "--name",
        "few",
        "--storage",
        str(store),
    ]


def test_a_job_ends_with_its_own_code(head, tmp_path, png):
    store = tmp_path / "store"
    code, out, err = rdmldg(head, *ingest(pictures(tmp_path / "good", png()), store))
    assert code == 0, out + err
    assert "rdmldg attach ingest-" in out and (store / "datasets/few/dataset.json").exists()

    code, out, err = rdmldg(head, *ingest(pictures(tmp_path / "bad", b"no picture"), tmp_path / "other"))
    assert code == 1, out + err
    assert "error: " in out

    code, out, err = rdmldg(head, *ingest(str(tmp_path / "nothing"), tmp_path / "other"))
    assert code == 2, out + err
    assert f"{tmp_path}/nothing" in out


def test_a_client_without_the_token_is_refused(head, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    code, _, err = rdmldg(head, *ingest(str(tmp_path), tmp_path / "store"), **wrong)
    assert code == 2 and "no job server at" in err and "0" * 64 not in err


def test_ctrl_c_leaves_a_job_or_stops_it(head, tmp_path):
    process = start(head, "submit", "demo", "--storage", str(tmp_path / "store"))
    job_id = process.stdout.readline().split()[1].rstrip(":")
    process.stdout.readline()  # the log flows
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("n\n", timeout=JOB_TIMEOUT_S)
    assert process.returncode == 130, out + err
    assert "stop the job?" in out and f"rdmldg attach {job_id}" in out

    # The same command is the same job, as long as that is alive.
    process = start(head, "submit", "demo", "--storage", str(tmp_path / "store"))
    assert process.stdout.readline().startswith(f"job {job_id} runs this command already")
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate("n\n", timeout=JOB_TIMEOUT_S)

    process = start(head, "attach", job_id)
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("y\n", timeout=JOB_TIMEOUT_S)
    assert process.returncode == 1, out + err
    assert f"job {job_id} has ended: STOPPED" in out

    code, _, err = rdmldg(head, "attach", job_id)
    assert code == 1, err
    code, _, err = rdmldg(head, "attach", "raysubmit_none")
    assert code == 2 and "no job 'raysubmit_none'" in err
