"""A command of ``rdmldg`` as a job on a Ray cluster: what is sent there, and how its end is awaited."""

import asyncio
import hashlib
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rdmldg_ray
from rdmldg_ray.runtime.errors import RunFailedError
from rdmldg_ray.storage import absolute

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Job = Literal["run", "ingest", "annotate", "evaluate", "sweep"]

_POLL_S = 1.0


def stage_files(folder: Path, arguments: list[str]) -> list[str]:
    """Put this package, and the YAML files that the arguments name, into an empty folder.

    The package is sent, so that a job runs the code of whoever submits it; what else lies in the
    folder that they work in is not.

    Returns:
        The arguments, with the files by the names that they have in the folder.

    Raises:
        ValueError: when two files have the same name.
    """
    package = Path(rdmldg_ray.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    staged = []
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        path = Path(value)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            if (folder / path.name).exists():
                raise ValueError(f"{value}: another file of the same name is sent; rename one of them")
            shutil.copy(path, folder / path.name)
            argument = f"{option}{equals}{path.name}"
        staged.append(argument)
    return staged


def check_shared(what: str, location: str) -> None:
    """Raise ValueError for a location that means another place on each node, naming what it is of."""
    if "://" not in location and not location.startswith("/"):
        raise ValueError(
            f"{what}: '{location}' would be a folder of the job's own, gone with it; give "
            "s3://bucket/prefix, or an absolute path that all nodes share"
        )
    absolute(location)  # raises for what no node could open


def connect(address: str) -> "JobSubmissionClient":
    """The job server of a Ray cluster.

    Raises:
        ValueError: when it does not answer, or refuses.
    """
    if not re.match(r"https?://[^/]", address):
        raise ValueError(
            f"--address (or RAY_ADDRESS): '{address}' is not a URL; give the dashboard's, as http://host:8265"
        )
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        client.list_jobs()  # the version, which the client asks for by itself, is told without a token
        return client
    # KeyError, ValueError: what answers is another kind of server.
    except (AuthenticationError, ConnectionError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"no job server at {address}: {reason}; is the tunnel to the dashboard open, and the cluster's "
            "token set (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)?"
        ) from error


class RemoteJob:
    """A job on a cluster: its log, its end.

    Args:
        found: whether it was there before it was asked for.
    """

    def __init__(self, client: "JobSubmissionClient", job_id: str, address: str, found: bool = True):
        self.id = job_id
        self.found = found
        self.attach_command = f"rdmldg attach {job_id} --address {address}"
        self._client = client

    def status(self) -> str:
        """Ray's word for how it is, such as RUNNING or STOPPED."""
        return str(self._client.get_job_info(self.id).status)

    def follow(self, write: Callable[[str], Any]) -> int:
        """Show the log, from its beginning, until the job has ended.

        Returns:
            The exit code of the job's script; 1 where it has none, being stopped or lost.

        Raises:
            RunFailedError: when the connection is lost.
        """
        from aiohttp import ClientError

        async def show() -> None:
            async for text in self._client.tail_job_logs(self.id):
                write(text)

        try:
            asyncio.run(show())
            return self._wait()
        except (ClientError, ConnectionError, RuntimeError) as error:
            raise RunFailedError(
                f"the connection to the job is lost ({error}), the job is not: {self.attach_command}"
            ) from error

    def stop(self) -> int:
        """Stop the job and wait for its end; returns as ``follow`` does."""
        self._client.stop_job(self.id)
        return self._wait()

    def _wait(self) -> int:
        while not (info := self._client.get_job_info(self.id)).status.is_terminal():
            time.sleep(_POLL_S)
        if info.status == "SUCCEEDED":
            return 0
        # A negative one is a signal's.
        code = info.driver_exit_code or 1
        return code if code > 0 else 1


def submit_job(address: str, job: Job, arguments: list[str], name: str = "") -> RemoteJob:
    """Start a command as a job on the cluster at an address, with this package and the YAML files named.

    Where a job of the same command is alive there, it is that one.

    Args:
        name: what the job is to be known by, such as the run's name.

    Raises:
        ValueError: when there is no job server, or two of the files have the same name.
    """
    client = connect(address)
    with tempfile.TemporaryDirectory() as folder:
        staged = stage_files(Path(folder), arguments)
        entrypoint = shlex.join(["python", "-m", "rdmldg_ray", job, *staged])
        stem = job_stem(Path(folder), job, name, entrypoint)
        while True:
            ended = {info.submission_id: info.status.is_terminal() for info in client.list_jobs()}
            job_id = next_job_id(stem, ended)
            if job_id in ended:
                return RemoteJob(client, job_id, address)
            try:
                client.submit_job(
                    entrypoint=entrypoint, runtime_env={"working_dir": folder}, submission_id=job_id
                )
            except RuntimeError:
                if job_id not in {info.submission_id for info in client.list_jobs()}:
                    raise
                continue  # the same command was submitted elsewhere in this moment
            return RemoteJob(client, job_id, address, found=False)


def job_stem(folder: Path, job: Job, name: str, entrypoint: str) -> str:
    """What the ids of a command's jobs begin with: the same for the same command with the same YAML files."""
    digest = hashlib.sha256(entrypoint.encode())
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(file.read_bytes())
    return "-".join(part for part in (job, name, digest.hexdigest()[:8]) if part)


def next_job_id(stem: str, ended: Mapping[str | None, bool]) -> str:
    """The id of a command's job that is alive, else the first that is free, with a number from the second on.

    Args:
        ended: whether each job of the cluster has ended, by its id.
    """
    number, job_id = 1, stem
    while ended.get(job_id, False):
        number += 1
        job_id = f"{stem}-{number}"
    return job_id


def find_job(address: str, job_id: str) -> RemoteJob:
    """A job that was submitted to the cluster at an address.

    Raises:
        ValueError: when there is no job server, or no such job.
    """
    client = connect(address)
    try:
        client.get_job_info(job_id)
    except RuntimeError:
        raise ValueError(f"{address}: no job '{job_id}'; `ray job list` has all of them") from None
    return RemoteJob(client, job_id, address)
