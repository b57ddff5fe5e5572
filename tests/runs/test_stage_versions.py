"""A kind of stage that comes to compute something else has another version, so that no run mixes the two.

After a change of the modules below, decide whether the results of a stage change. If they do, raise the
number of its kind in ``runs.inputs.STAGE_VERSIONS``. Either way record the code as it is now:

    python -m tests.runs.test_stage_versions
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

import rdmldg_ray
from rdmldg_ray.runs.inputs import STAGE_VERSIONS

PACKAGE = Path(rdmldg_ray.__file__).parent
RECORD = Path(__file__).with_name("stage_versions.json")

_ALL = (
    "chains.format",
    "chains.pathways",
    "chains.prompts",
    "chains.questions",
    "chains.store",
    "datasets.images",
    "datasets.index",
    "domainbed.folds",
    "domainbed.splits",
    "models.families",
    "models.loading",
    "runs.stage_data",
)
_TRAINING = (
    *_ALL,
    "chains.attach",
    "mtct.augment",
    "mtct.batching",
    "mtct.collate",
    "mtct.flex",
    "mtct.lengths",
    "mtct.loss",
    "mtct.output_layer",
    "mtct.parameter_groups",
    "mtct.positions",
    "mtct.shared_prefix",
    "mtct.stream",
    "mtct.trainer",
    "mtct.worker",
)
_ENGINES = (
    *_ALL,
    "engines.answer_log",
    "engines.engine",
    "engines.options",
    "engines.reloading",
    "engines.shared_llm",
    "models.merging",
)
# What determines the result of a kind of stage, besides its inputs, its settings and other packages.
MODULES = {
    "mtct": _TRAINING,
    "train": _TRAINING,
    "generate": (
        *_ENGINES,
        "sarr.candidate_cache",
        "sarr.candidates",
        "sarr.filter",
        "sarr.round",
        "sarr.sampling",
        "sarr.scores",
        "sarr.selection",
    ),
    "evaluate": (*_ENGINES, "evaluation.predict", "evaluation.predictions"),
}

# What those import that determines no result: where things lie, how they are read and written, what is
# checked, what goes on meanwhile. Settings are compared by their values, and models by their files.
NO_RESULT = {
    *("chains.coverage", "config.load", "config.names", "config.parse", "config.schema", "config.settings"),
    *("datasets.schema", "domainbed.catalogue", "domainbed.records", "domainbed.selection"),
    *("models.card", "models.folder", "models.parity"),
    *("mtct.checks", "mtct.job", "mtct.metrics", "mtct.ray_trainer", "mtct.safe_loading", "mtct.tracking"),
    *("runs.store", "runtime.errors", "runtime.lease", "runtime.placement", "runtime.progress"),
    *("runtime.remote", "runtime.versions"),
    *("storage", "storage.copy", "storage.files", "storage.s3", "storage.tables"),
}


class _Wordless(ast.NodeTransformer):
    """Leaves out what changes no result: docstrings, imports, and what errors say."""

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Import(self, node):
        return None

    visit_ImportFrom = visit_Import

    def visit_Raise(self, node):
        return ast.Raise()


def code_of(text: str) -> str:
    return _written(_Wordless().visit(ast.parse(text)))


def _written(node: object) -> str:
    """A syntax tree as text, the same for every release of Python: fields that it adds are empty."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_written(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_written, node))}]" if isinstance(node, list) else repr(node)


def source_digest(kind: str) -> str:
    files = [PACKAGE / f"{name.replace('.', '/')}.py" for name in MODULES[kind]]
    return hashlib.sha256("\0".join(code_of(file.read_text()) for file in files).encode()).hexdigest()


def current():
    return {kind: {"version": STAGE_VERSIONS[kind], "code": source_digest(kind)} for kind in MODULES}


@pytest.mark.parametrize("kind", MODULES)
def test_code_that_determines_a_result_does_not_change_unnoticed(kind):
    recorded, now = json.loads(RECORD.read_text())[kind], current()[kind]
    assert recorded == now, (
        f"the code of '{kind}' stages has changed since it was recorded in {RECORD.name} (of: "
        f"{', '.join(MODULES[kind])}). If it computes something else now, raise STAGE_VERSIONS['{kind}'] in "
        "rdmldg_ray/runs/inputs.py. Then record it: python -m tests.runs.test_stage_versions"
    )


def imported(name: str) -> set[str]:
    """Modules of the package that a module imports."""
    file = PACKAGE / f"{name.replace('.', '/')}.py"
    tree = ast.parse((file if file.exists() else file.with_suffix("") / "__init__.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rdmldg_ray."):
            module = node.module.removeprefix("rdmldg_ray.")
            below = {f"{module}.{alias.name}" for alias in node.names}
            modules = {one for one in below if (PACKAGE / f"{one.replace('.', '/')}.py").exists()}
            found |= modules or {module}
    return found


def test_no_module_that_a_stage_imports_is_forgotten():
    known = set().union(*MODULES.values())
    seen: set[str] = set()
    waiting = set(known)
    while waiting:
        seen |= waiting
        waiting = set().union(*map(imported, waiting)) - seen
    assert seen - known == NO_RESULT, "enter it in MODULES, or in NO_RESULT if no result depends on it"


def test_every_kind_of_stage_has_a_version():
    assert STAGE_VERSIONS.keys() == MODULES.keys()
    assert all(version >= 1 for version in STAGE_VERSIONS.values())


BEFORE = '''"""Words."""
import a

def f(x):
    """More."""
    if x:
        raise ValueError("no")
    return x + 1
'''


@pytest.mark.parametrize(
    ("now", "same"),
    [
        (BEFORE.replace("Words", "Other words").replace("More", "Less"), True),
        (BEFORE.replace('"no"', '"not so"').replace("import a", "import b"), True),
        (BEFORE.replace("    return", "    # why\n    return"), True),
        (BEFORE.replace("x + 1", "x + 2"), False),
        (BEFORE.replace("if x", "if not x"), False),
    ],
)
def test_words_do_not_count_and_code_does(now, same):
    assert (code_of(now) == code_of(BEFORE)) == same


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=2) + "\n")
