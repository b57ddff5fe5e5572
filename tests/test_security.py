"""What the package must not do, found by reading its own source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rdmldg_ray").rglob("*.py"))


def calls(file):
    """Every call in a file as its dotted name and its keywords."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), keywords


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(file):
    for name, keywords in calls(file):
        assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "np.load"), name
        assert not name.startswith(("pickle.", "cloudpickle.", "marshal.", "joblib.")), name
        assert name != "torch.load", "weights come as safetensors; DeepSpeed's by mtct.safe_loading"
        assert not keywords.get("shell"), name
        assert not keywords.get("trust_remote_code"), name
        assert keywords.get("allow_pickle") is not True, name


def test_base_models_are_loaded_without_their_own_code_and_from_safetensors_alone():
    found = [call for file in FILES for call in calls(file)]
    loading = re.compile(r"LLM|Auto\w+\.from_pretrained")
    auto = [(name, k) for name, k in found if loading.fullmatch(name)]
    assert len(auto) == 4
    assert [name for name, keywords in auto if keywords.get("trust_remote_code") is not False] == []
    models = [(name, k) for name, k in found if re.fullmatch(r"\w*Model\w*\.from_pretrained", name)]
    # An adapter's folder is of our own making.
    plain = [name for name, keywords in models if keywords.get("use_safetensors") is not True]
    assert set(plain) == {"PeftModel.from_pretrained"} and len(models) > len(plain)
    assert [k["load_format"] for name, k in auto if name == "LLM"] == ["safetensors"]


def test_workers_are_not_told_secrets_through_the_dashboard(monkeypatch):
    from rdmldg_ray.config.load import load_config
    from rdmldg_ray.runtime.session import _worker_environment

    secrets = {
        "AWS_SECRET_ACCESS_KEY": "s1",
        "AWS_ACCESS_KEY_ID": "s2",
        "AWS_SESSION_TOKEN": "s3",
        "HF_TOKEN": "s4",
        "WANDB_API_KEY": "s5",
        "MLFLOW_TRACKING_PASSWORD": "s6",
        "MLFLOW_TRACKING_URI": "https://me:s7@mlflow.example.com",
    }
    for name, value in (secrets | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}).items():
        monkeypatch.setenv(name, value)
    told = _worker_environment(load_config("demo"))
    assert told["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert not set(told) & set(secrets)


# What the package itself ships is not from storage.
READ_OF_THE_PACKAGE = {"datasets/builtin/iconbed.py", "datasets/builtin/questions.py"}
ARROW_READERS = re.compile(
    r"(pq|parquet|ds|dataset|feather|ipc|pa\.ipc|orc|ray\.data)\."
    r"(ParquetFile|ParquetDataset|read_\w+|dataset|open_\w+|RecordBatch\w+Reader)"
)


def test_one_place_opens_arrow_files_and_it_refuses_types_that_run_code():
    found = {
        str(file.relative_to(ROOT / "rdmldg_ray"))
        for file in FILES
        for name, _ in calls(file)
        if ARROW_READERS.fullmatch(name)
    }
    assert found == {"storage/tables.py", *READ_OF_THE_PACKAGE}
    tables = ROOT / "rdmldg_ray/storage/tables.py"
    assert [name for name, _ in calls(tables) if ARROW_READERS.fullmatch(name)] == ["pq.ParquetFile"]
