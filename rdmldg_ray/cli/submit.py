"""``rdmldg submit`` and ``attach``: commands as jobs on a Ray cluster elsewhere."""

from typing import Annotated, Any

import typer

from rdmldg_ray import api
from rdmldg_ray.cli.base import Ended, app, command, console, read_recipe, say
from rdmldg_ray.models.folder import looks_local
from rdmldg_ray.runs.resolve import DEFAULT_STORAGE
from rdmldg_ray.runtime.submission import Job, RemoteJob, check_shared

Address = Annotated[
    str,
    typer.Option(
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],  # as `ray job` takes them
        help="The cluster's dashboard, such as http://127.0.0.1:8265.",
    ),
]
# What `timeout` and shells give to a program that Ctrl-C has ended.
_INTERRUPTED = 130


@command(app, allow_extra_args=True, ignore_unknown_options=True)
def submit(
    context: typer.Context,
    address: Address,
    job: Annotated[Job, typer.Option(help="The command to run there.")] = "run",
) -> Any:
    """Run a recipe, or another command, as a job on a cluster: RECIPE and all else as for that command.

    Sends this package and the YAML files that are named. Shows the log, and ends with the job's own exit
    code: 0 done, 1 failed, 2 wrong usage. Ctrl-C asks whether to stop the job. The same command that runs
    there already is not started again: its log is shown.
    """
    storage, name = _storage_and_name(context, job, context.args)
    submitted = api.submit(context.args, address=address, storage=storage, job=job, name=name)
    if submitted.found:
        say(f"job {submitted.id} runs this command already, and is not started again; its log:")
    say(f"job {submitted.id}: {submitted.attach_command}")
    return _follow(submitted)


@command(app)
def attach(job_id: Annotated[str, typer.Argument(help="What `submit` printed.")], address: Address) -> Any:
    """Show the log of a job that was submitted, from its beginning, and end as `submit` does."""
    return _follow(api.attach(job_id, address=address))


def _storage_and_name(context: typer.Context, job: Job, arguments: list[str]) -> tuple[str, str]:
    """Where the job would write and what it is about, once its command line is found to be right."""
    assert context.parent
    group = context.parent.command
    command = group.get_command(context.parent, job)  # type: ignore[attr-defined]
    given = command.make_context(job, list(arguments), parent=context.parent).params
    for name in ("source", "adapter", "calibration", "model"):
        # A model that is no folder is one of the hub.
        if given.get(name) and (name != "model" or looks_local(given[name])):
            check_shared(name.upper() if name == "source" else f"--{name}", str(given[name]))
    if "recipe" in given:
        config = read_recipe(given["recipe"], given["overrides"], given["storage"])
        if looks_local(config.model.path):
            check_shared("model.path", config.model.path)
        trials = "-trial-" + given["trials"].replace(",", "-") if given.get("trials") else ""
        return config.storage, config.name + trials
    return DEFAULT_STORAGE if given["storage"] is None else given["storage"], ""


def _follow(job: RemoteJob) -> dict[str, Any]:
    try:
        code = job.follow(lambda text: console.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        code = _interrupted(job)
    document = {"job_id": job.id, "exit_code": code}
    if code:
        raise Ended(code, document)
    return document


def _interrupted(job: RemoteJob) -> int:
    try:
        stop = typer.confirm("\nstop the job?")
    except typer.Abort:  # a second Ctrl-C, or nobody to ask
        stop = False
    if not stop:
        say(f"the job goes on: {job.attach_command}")
        return _INTERRUPTED
    code = job.stop()
    say(f"job {job.id} has ended: {job.status()}; the same command resumes it")
    return code
