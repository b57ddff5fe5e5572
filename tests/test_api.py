"""What Python offers: the names of the package, and calls that need no cluster."""

import inspect
import subprocess
import sys

import pytest

import rdmldg_ray
from rdmldg_ray import api
from rdmldg_ray.runtime.errors import RunFailedError
from rdmldg_ray.runtime.session import connected
from tests.helpers.openai_endpoint import Endpoint, completion, serving
from tests.helpers.repository import ROOT
from tools import mini


def test_every_name_that_is_offered_is_there():
    for name in rdmldg_ray.__all__:
        assert getattr(rdmldg_ray, name).__name__ == name


def test_importing_the_package_is_instant_and_imports_nothing_of_it():
    script = "import sys, rdmldg_ray; print([n for n in sys.modules if n.startswith('rdmldg_ray.')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


OWN = [name for name, found in vars(api).items() if getattr(found, "__module__", "") == api.__name__]


@pytest.mark.parametrize("name", [name for name in OWN if not name.startswith("_")])
def test_every_function_is_explained_and_its_options_are_named(name):
    found = getattr(api, name)
    assert found.__doc__
    if inspect.isfunction(found):
        positional = [
            p for p in inspect.signature(found).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD
        ]
        assert len(positional) <= 3


def test_a_plan_writes_nothing(tmp_path):
    config = rdmldg_ray.load_config("demo", [f"storage={tmp_path}/new"])
    plan = api.plan(config)
    assert [stage.name for stage in plan.stages][:2] == ["sketch/evaluation/zero-shot", "sketch/mtct"]
    assert plan.estimate is None and not any(stage.complete for stage in plan.stages)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_is_asked_through_the_same_function_as_by_the_command(tmp_path, monkeypatch):
    mini.write_mini(str(tmp_path))
    rows = api.teacher_chains("mini", storage=str(tmp_path)).table.to_pylist()
    images = {row["id"]: row["image"] for row in mini_samples(tmp_path)}
    rows = [{"id": row["id"], "image": images[row["id"]], "chain": row["text"]} for row in rows]
    endpoint = Endpoint(rows, lambda row, before: completion(row["chain"]))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")
    with serving(endpoint):
        options = {"base_url": endpoint.url, "storage": str(tmp_path)}
        outcome = rdmldg_ray.annotate("mini", "gpt-4o", max_samples=4, **options)
        assert (outcome.accepted, outcome.teacher) == (4, "gpt-4o")
        assert outcome.location == f"{tmp_path}/datasets/mini/chains/gpt-4o"
        assert rdmldg_ray.annotate("mini", "gpt-4o", max_samples=4, **options).accepted == 0, (
            "nothing is left to do"
        )


def mini_samples(root):
    from rdmldg_ray.storage import read_table

    return read_table(f"{root}/datasets/mini/samples").to_pylist()


def test_arguments_of_vllm_are_for_a_model_that_is_served_here(tmp_path):
    mini.write_mini(str(tmp_path))
    annotation = api.plan_annotation("mini", api.make_request("gpt-4o"), storage=str(tmp_path))
    with pytest.raises(ValueError, match="go with --teacher vllm"):
        api.run_annotation(annotation, vllm_arguments=["--dtype", "float32"])
    served = api.make_request("vllm", model="tiny", name="mine", candidates=2)
    assert (served.model, served.teacher, served.candidates, served.price.answer) == ("tiny", "mine", 2, 0)


def test_what_is_wrong_once_ray_is_there_is_work_that_failed(monkeypatch):
    from contextlib import nullcontext

    from rich.console import Console

    from rdmldg_ray.runtime import session

    monkeypatch.setattr(session, "ray_session", lambda config: nullcontext("logs"))
    config = rdmldg_ray.load_config("demo")
    with pytest.raises(RunFailedError, match="no room"), connected(config, Console(quiet=True)):
        raise ValueError("no room")
    with pytest.raises(KeyError), connected(config, Console(quiet=True)):
        raise KeyError("a bug")
