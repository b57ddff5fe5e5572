"""What the wrapper gives to every command: --json, --debug, -h, --storage, errors and exit codes."""

import inspect
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.cli.base import Ended, command
from rdmldg_ray.runtime.errors import RunFailedError
from tests.helpers.cli import error_of, rdmldg

# What they do is done elsewhere, where the storage is an option of the command that they submit.
WITHOUT_STORAGE = {"submit", "attach", "settings", "init"}


def commands(group, path=()):
    """Every command below a group, by the words that call it."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, (*path, name))
        else:
            yield " ".join((*path, name)), found


ALL = dict(commands(typer.main.get_command(app)))


def options(name):
    return {option: parameter for parameter in ALL[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_the_common_options(name):
    assert {"--json", "--debug"} <= options(name).keys()
    assert ("--storage" in options(name)) == (name not in WITHOUT_STORAGE)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("s3://", "s3://: no valid bucket name; write s3://bucket/prefix"),
        ("s3:///runs", "s3:///runs: no valid bucket name; write s3://bucket/prefix"),
        ("s3:bucket", "s3:bucket: no valid bucket name; write s3://bucket/prefix"),
        ("gs://bucket/x", "gs://bucket/x: unknown scheme 'gs://'; use a local path or s3://bucket/prefix"),
        ("", "an empty path was given"),
    ],
)
@pytest.mark.parametrize("name", sorted(ALL.keys() - WITHOUT_STORAGE))
def test_every_command_refuses_a_storage_that_is_no_place_alike(
    name, storage, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = name.split()
    for parameter in ALL[name].params:
        if parameter.required:
            given += [parameter.opts[0], "x"] if parameter.param_type_name == "option" else ["x"]
    assert error_of(*given, "--storage", storage).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "analyze", "chains", *ALL])
def test_short_and_long_help_are_the_same(name):
    short, long = (rdmldg(*name.split(), how) for how in ("-h", "--help"))
    assert short.exit_code == 0 and short.output == long.output
    assert "Usage: " in short.output


@pytest.mark.parametrize("name", ALL)
def test_an_option_means_the_same_in_every_command(name):
    arguments = {p.name: p for p in ALL[name].params if p.param_type_name == "argument"}
    assert "out" not in arguments, "what is written is --out"
    assert not {"--set", "--source"} & options(name).keys()
    if "overrides" in arguments:
        assert "KEY.PATH=VALUE" in arguments["overrides"].metavar
    for argument in {"run", "runs"} & arguments.keys():
        assert arguments[argument].metavar.startswith("RUN")


@pytest.fixture
def group():
    """Commands that end in every way."""
    group = typer.Typer(pretty_exceptions_enable=False)

    @command(group)
    def works(name: str, storage: str | None = None):
        """Says a name."""
        print(f"to people: {name}")
        return {"name": name, "storage": storage, "infinite": [float("inf")]}

    @command(group, "other-name")
    def ends():
        raise Ended(3, {"half": "done"})

    @command(group)
    def wrong():
        raise ValueError("no such domain")

    @command(group)
    def failed():
        raise RunFailedError("no resources")

    @command(group)
    def writes(file: str):
        Path(file).write_text("")

    @command(group)
    def broken():
        raise KeyError("a bug")

    return group


def call(group, *arguments):
    return CliRunner().invoke(group, list(arguments))


def test_the_document_is_alone_on_stdout(group):
    result = call(group, "works", "x", "--storage", "s3://bucket/x", "--json")
    assert json.loads(result.stdout) == {"name": "x", "storage": "s3://bucket/x", "infinite": [None]}
    assert result.stderr == "to people: x\n"
    assert call(group, "works", "x").stdout == "to people: x\n"


def test_a_command_can_end_with_a_code_and_a_document(group):
    assert call(group, "other-name").exit_code == 3
    result = call(group, "other-name", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (3, {"half": "done"})


@pytest.mark.parametrize(
    ("name", "code", "message"), [("wrong", 2, "no such domain"), ("failed", 1, "no resources")]
)
def test_an_error_ends_with_its_message_and_code(group, name, code, message):
    result = call(group, name, "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {message}\n")
    assert str(call(group, name, "--debug").exception) == message


@pytest.mark.parametrize(
    ("file", "message"), [("/proc/x", "No such file or directory"), ("/", "Is a directory")]
)
def test_a_file_that_cannot_be_written_is_named(group, file, message):
    result = call(group, "writes", file)
    assert (result.exit_code, result.stderr) == (1, f"error: {file}: {message}\n")


def test_a_bug_keeps_its_traceback(group):
    assert isinstance(call(group, "broken").exception, KeyError)


def test_a_wrapped_function_stays_as_it_was():
    from rdmldg_ray.cli.outputs import show

    assert "as_json" not in inspect.signature(show).parameters


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = rdmldg("list")
    assert result.exit_code == 1
    assert result.stderr == "error: the folder that this was started in is gone; change to another\n"


@pytest.mark.parametrize("prices", [("nan", "1"), ("1", "-5"), ("inf", "0")])
def test_prices_are_amounts(prices, tmp_path):
    for arguments in (["report", "demo"], ["run", "demo", "--dry-run"]):
        result = rdmldg(*arguments, "--prices", *prices, "--storage", str(tmp_path))
        assert result.exit_code == 2
        assert "give two amounts of 0 or more" in result.stderr
