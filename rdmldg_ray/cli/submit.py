"""``rdmldg submit`` and ``attach``: commands as jobs on a Ray cluster elsewhere."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rdmldg_ray.cli.base import Debug, app, console, mistakes_explained
from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.runtime.errors import WorkFailed
from rdmldg_ray.runtime.submission import Job, check_shared, connect, follow, stage_files, submit_job, wait

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, such as http://127.0.0.1:8265."
    ),
]
# What `timeout` and shells give to a program that Ctrl-C has ended.
_INTERRUPTED = 130


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    address: Address,
    job: Annotated[Job, typer.Option(help="The command to run there.")] = "run",
    debug: Debug = False,
) -> None:
    """Run a recipe, or another command, as a job on a cluster: RECIPE and all else as for that command.

    Sends this package and the YAML files that are named. Shows the log, and ends with the job's own exit
    code: 0 done, 1 failed, 2 wrong usage. Ctrl-C asks whether to stop the job.
    """
    with mistakes_explained(debug):
        check_shared(_storage(context, job, context.args))
        client = connect(address)
        with tempfile.TemporaryDirectory() as folder:
            arguments = stage_files(Path(folder), context.args)
            job_id = submit_job(client, Path(folder), job, arguments)
        console.print(f"job {job_id}: {_attach(address, job_id)}", highlight=False, soft_wrap=True)
        raise typer.Exit(_follow(client, address, job_id))


@app.command()
def attach(
    job_id: Annotated[str, typer.Argument(help="What `submit` printed.")],
    address: Address,
    debug: Debug = False,
) -> None:
    """Show the log of a job that was submitted, from its beginning, and end as `submit` does."""
    with mistakes_explained(debug):
        client = connect(address)
        try:
            client.get_job_info(job_id)
        except RuntimeError:
            raise ValueError(f"{address}: no job '{job_id}'; `ray job list` has all of them") from None
        raise typer.Exit(_follow(client, address, job_id))


def _storage(context: typer.Context, job: Job, arguments: list[str]) -> str:
    """Where the job would write, once its command line is found to be right."""
    assert context.parent
    group = context.parent.command
    command = group.get_command(context.parent, job)  # type: ignore[attr-defined]
    given = command.make_context(job, list(arguments), parent=context.parent).params
    if "recipe" not in given:
        return given["storage"] or Config().storage
    config = load_config(given["recipe"], given["overrides"])
    return given["storage"] or config.storage


def _follow(client: "JobSubmissionClient", address: str, job_id: str) -> int:
    from aiohttp import ClientError

    try:
        return follow(client, job_id, lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        return _interrupted(client, address, job_id)
    except (ClientError, ConnectionError, RuntimeError) as error:
        raise WorkFailed(
            f"the connection to the job is lost ({error}), the job is not: {_attach(address, job_id)}"
        ) from error


def _interrupted(client: "JobSubmissionClient", address: str, job_id: str) -> int:
    try:
        stop = typer.confirm("\nstop the job?")
    except typer.Abort:  # a second Ctrl-C, or nobody to ask
        stop = False
    if not stop:
        console.print(f"the job goes on: {_attach(address, job_id)}", highlight=False, soft_wrap=True)
        return _INTERRUPTED
    client.stop_job(job_id)
    code = wait(client, job_id)
    status = client.get_job_info(job_id).status
    console.print(f"job {job_id} has ended: {status}; the same command goes on with it", highlight=False)
    return code


def _attach(address: str, job_id: str) -> str:
    return f"rdmldg attach {job_id} --address {address}"
