"""What every command shares: the app, the wrapper around a command, and common options."""

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from rdmldg_ray import __version__
from rdmldg_ray.config.load import load_config, recipe_names
from rdmldg_ray.config.schema import Config
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.runtime.errors import RunFailedError, user_error
from rdmldg_ray.storage import absolute

app = typer.Typer(
    help="Fine-tune multimodal LLMs for domain generalization by reasoning (RD-MLDG), on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = plain_console()

Function = TypeVar("Function", bound=Callable[..., Any])


def complete_recipe(incomplete: str) -> list[str]:
    """What a shell offers for a recipe that is half typed."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def check_prices(given: tuple[float, float] | None) -> tuple[float, float] | None:
    """What is given as ``--prices``; refuses what is no amount."""
    if given and not all(math.isfinite(price) and price >= 0 for price in given):
        raise typer.BadParameter(f"{given[0]} {given[1]}: give two amounts of 0 or more")
    return given


Recipe = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe's name, or a path to a .yaml file.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings, such as sarr.rounds=2.", metavar="[KEY.PATH=VALUE]..."),
]
Run = Annotated[
    str,
    typer.Argument(help="Name of a run, or path of its folder: rdmldg-store/runs/demo.", metavar="RUN"),
]
Runs = Annotated[
    list[str],
    typer.Argument(
        help="Names of runs, or paths of their folders; both may hold wildcards: 'pacs-*'.",
        metavar="RUN...",
    ),
]
HeldOut = Annotated[str | None, typer.Option(help="Held-out domain; the run's first by default.")]
Stage = Annotated[str | None, typer.Option(help="mtct, sarr-1, ...; the last by default.")]
Round = Annotated[int, typer.Option("--round", min=1, help="Round of SARR.")]
Trials = Annotated[
    str | None,
    typer.Option(help="DomainBed's trial seeds, such as 0,1,2: a run of each, named <name>-trial-<seed>."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")]
Prices = Annotated[
    tuple[float, float],
    typer.Option(
        help="US dollars for an hour of a worker or engine, and for a GB and month.",
        metavar="HOUR GB",
        callback=check_prices,
    ),
]
# Those that the wrapper adds.
_Storage = Annotated[str | None, typer.Option("--storage", help="Local path or s3://bucket/prefix.")]
_Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, for scripts; all else goes to stderr.")
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Ended(typer.Exit):
    """Ends a command with an exit code other than 0; ``--json`` prints its document all the same."""

    def __init__(self, code: int, document: Any):
        super().__init__(code)
        self.document = document


def command(
    group: typer.Typer, name: str | None = None, **context_settings: Any
) -> Callable[[Function], Function]:
    """Register a function as a command of a group, with ``--json`` and ``--debug``.

    A function with a parameter named ``storage`` has ``--storage`` as well. What it returns is the
    document that ``--json`` prints; then everything else that it prints goes to stderr.
    """

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def wrapped(*, as_json: bool, debug: bool, **given: Any) -> None:
            with report_errors(debug), _document_alone(as_json) as write_document:
                if given.get("storage") is not None:
                    absolute(given["storage"])  # raises for what is no place, before anything else is done
                try:
                    write_document(function(**given))
                except Ended as ended:
                    write_document(ended.document)
                    raise

        # Typer reads the options of a command from its signature.
        wrapped.__signature__ = _with_common_options(inspect.signature(function))  # type: ignore[attr-defined]
        group.command(name, context_settings=context_settings)(wrapped)
        return function

    return register


def _with_common_options(signature: inspect.Signature) -> inspect.Signature:
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "storage"]
    common: list[tuple[str, Any, Any]] = [("as_json", _Json, False), ("debug", _Debug, False)]
    if "storage" in signature.parameters:
        common.insert(0, ("storage", _Storage, None))
    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in common
    ]
    return signature.replace(parameters=[*own, *added])


@contextmanager
def report_errors(debug: bool) -> Iterator[None]:
    """End a user's error with its message and exit code 2, work that failed with its message and 1.

    Other errors pass, with their traceback and exit code 1.
    """
    try:
        yield
    except Exception as error:
        told = error if isinstance(error, RunFailedError) else user_error(error)
        if isinstance(error, FileNotFoundError) and not _has_working_folder():
            told = RunFailedError("the folder that this was started in is gone; change to another")
        if told is None and isinstance(error, OSError) and error.strerror:
            # A file or folder of the user's, a full disk, a closed terminal.
            where = "" if error.filename is None else f"{error.filename}: "
            told = RunFailedError(f"{where}{error.strerror}")
        if told is None or debug:
            raise
        print_error(str(told))
        raise typer.Exit(1 if isinstance(told, RunFailedError) else 2) from None


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def print_error(message: str) -> None:
    """Print an error's message to stderr."""
    plain_console(stderr=True).print(f"error: {message}", style="red", soft_wrap=True)


def say(message: str) -> None:
    """Print a line that is not wrapped, since it may hold paths."""
    console.print(message, soft_wrap=True)


@contextmanager
def _document_alone(as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Yields what takes a command's document: it prints it with ``--json``, alone on stdout."""
    stdout = sys.stdout

    def write_document(document: Any) -> None:
        if as_json:
            print(json.dumps(_plain(document), indent=2), file=stdout)

    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield write_document


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_recipe(recipe: str, settings: list[str] | None, storage: str | None) -> Config:
    """The config of a recipe with settings changed; ``--storage`` stands for the setting of that name."""
    config = load_config(recipe, settings)
    return config if storage is None else config.model_copy(update={"storage": storage})


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
