"""What every command shares: the app, common options, how mistakes end, the way to Ray."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console

from rdmldg_ray import __version__
from rdmldg_ray.config.load import recipe_names
from rdmldg_ray.config.schema import Config
from rdmldg_ray.runtime.errors import WorkFailed, user_mistake

app = typer.Typer(
    help="Fine-tune multimodal LLMs for domain generalization by reasoning (RD-MLDG), on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()


def complete_recipe(incomplete: str) -> list[str]:
    """What a shell offers for a recipe that is half typed."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe's name, or a path to a .yaml file.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key.path=value, such as sarr.rounds=2.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, and stop.")]
Storage = Annotated[str | None, typer.Option(help="Local path or s3://bucket/prefix; sets 'storage'.")]
Trials = Annotated[
    str | None,
    typer.Option(help="DomainBed's trial seeds, such as 0,1,2: a run of each, named <name>-trial-<seed>."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, for scripts; all else goes to stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"rdmldg_ray {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


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


@contextmanager
def answering(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Yields what takes a command's result: with ``--json`` it prints it, and else does nothing.

    With ``--json`` that alone is printed on stdout; what is meant for people goes to stderr.
    """
    stdout = sys.stdout

    def answer(result: Any) -> None:
        if as_json:
            print(json.dumps(_plain(result), indent=2), file=stdout)

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield answer


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """Ray for the time of the block; says where its logs are."""
    from rdmldg_ray.runtime.session import ray_session

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
