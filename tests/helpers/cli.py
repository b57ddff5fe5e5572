"""Commands as a shell would give them, and what they print."""

from typer.testing import CliRunner

from rdmldg_ray.cli import app


def rdmldg(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def error_of(*arguments):
    """The message of a command that ends with a user error."""
    result = rdmldg(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.output
    return result.stderr.removeprefix("error: ").strip()


def rows_of(output):
    """The cells of a printed table's rows, its heading's too."""
    lines = [line.replace("┃", "│") for line in output.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
