"""Who may import whom: the rooms of the package, from the lowest to the highest."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import rdmldg_ray

PACKAGE = Path(rdmldg_ray.__file__).parent
# A room may import what stands before it, and its own modules.
ROOMS = (
    "config",
    "storage",
    "runtime",
    "domainbed",
    "datasets",
    "chains",
    "teacher",
    "models",
    "mtct",
    "engines",
    "sarr",
    "evaluation",
    "runs",
    "sweeps",
    "report",
    "api",
    "cli",
)
# The chain format imports nothing of ours, and an ingest refuses names that a chain could not hold.
LEAVES = ("chains.format",)
HEAVY = {"torch", "ray", "vllm", "deepspeed", "transformers"}
LIGHT = ("config", "storage", "domainbed", "report", "api", "cli")
# Where Ray is used at all.
USES_RAY = ("runtime", "mtct", "engines.pool", "runs", "sweeps")
FILES = sorted(PACKAGE.rglob("*.py"))


def module(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(file): ast.parse(file.read_text()) for file in FILES}


def imports(tree: ast.Module, top_only: bool = False) -> Iterator[str]:
    """Absolute names that a module imports; relative imports are not used here."""
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """Modules of the package that a module imports, without the package's name."""
    found = {i.removeprefix("rdmldg_ray.") for i in imports(MODULES[name]) if i.startswith("rdmldg_ray.")}
    return {i for i in found if i in MODULES and i != "cli" and (i == "api" or i not in ROOMS)}


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_imports_only_what_is_below_it(name):
    if room(name) not in ROOMS:  # the package's own door
        return
    for other in own_imports(name):
        assert (
            room(other) == room(name) or other in LEAVES or ROOMS.index(room(other)) < ROOMS.index(room(name))
        ), f"{name} imports {other}, which is higher up"


def test_leaves_import_nothing_of_the_package():
    assert all(not own_imports(name) for name in LEAVES)


def test_no_module_imports_itself_through_others():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in own_imports(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(n for n in MODULES if room(n) in LIGHT))
def test_light_rooms_import_nothing_heavy_at_their_top(name):
    assert not HEAVY & {i.split(".")[0] for i in imports(MODULES[name], top_only=True)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_ray_stays_where_it_belongs(name):
    if "ray" in {i.split(".")[0] for i in imports(MODULES[name])}:
        assert name.startswith(USES_RAY)


def test_few_modules_lie_at_the_top():
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}


# Names in a run's layout.
LAYOUT = {"runs", "state.json", "config.yaml", "predictions.parquet", "training_set.parquet", "analyses"}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"runs.store"}))
def test_paths_below_runs_are_made_by_their_owner_alone(name):
    """``runs.store`` makes them, from the names that trainings and rounds give to what they leave."""
    calls = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)]
    joined = [call for call in calls if ast.unparse(call.func).split(".")[-1] == "join"]
    parts = {
        argument.value for call in joined for argument in call.args if isinstance(argument, ast.Constant)
    }
    assert not parts & LAYOUT
    made = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.JoinedStr)]
    assert not [text for text in map(ast.unparse, made) if "sarr-{" in text or "/evaluation/{" in text]
