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
    "datasets.images",
    "datasets.index",
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
    "chains.questions",
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
        "sarr.candidates",
        "sarr.filter",
        "sarr.round",
        "sarr.sampling",
        "sarr.scores",
        "sarr.selection",
    ),
    "evaluate": (*_ENGINES, "evaluation.predict", "evaluation.predictions"),
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
