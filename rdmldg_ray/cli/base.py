"""What every command shares: the app, common options, how mistakes end, the way to Ray."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from rdmldg_ray.config import Config
from rdmldg_ray.errors import WorkFailed, user_mistake

app = typer.Typer(
    help="Fine-tune multimodal LLMs for domain generalization by reasoning (RD-MLDG), on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name, or a path to a .yaml file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key.path=value, such as sarr.rounds=2.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, and stop.")]
Storage = Annotated[str | None, typer.Option(help="Local path or s3://bucket/prefix; sets 'storage'.")]
Trials = Annotated[
    str | None,
    typer.Option(help="DomainBed's trial seeds, such as 0,1,2: a run of each, named <name>-trial-<seed>."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def mistakes_explained(debug: bool) -> Iterator[None]:
    """End a user's mistake with its message and exit code 2, a failure that explains itself with 1.

    All else passes, with its traceback and exit code 1.
    """
    try:
        yield
    except Exception as error:
        failed = isinstance(error, WorkFailed)
        mistake = error if failed else user_mistake(error)
        if mistake is None or debug:
            raise
        Console(stderr=True).print(
            f"error: {mistake}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        raise typer.Exit(1 if failed else 2) from None


def absolute(location: str) -> str:
    """A location that means the same place everywhere."""
    # Workers run in other folders, where a relative path would mean another place.
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Ray for the time of the block; says where its logs are."""
    from rdmldg_ray.ray_session import ray_session

    with ray_session(config) as logs:
        console.print(f"logs of Ray, DeepSpeed and vLLM: {logs}", highlight=False, soft_wrap=True)
        try:
            yield
        except Exception as error:
            # Before Ray is there, what is wrong is what was asked for; from here on it is the work.
            mistake = user_mistake(error)
            if mistake is None:
                raise
            raise WorkFailed(str(mistake)) from error
