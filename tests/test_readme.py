"""What the README shows is what there is."""

import re
from pathlib import Path

import mini
import pytest
from openai_endpoint import Endpoint, completion, serving
from test_run_real import SETTINGS

from rdmldg_ray.config import dump_config, load_config
from rdmldg_ray.storage import read_table

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.M | re.S)


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """An endpoint that answers with the rules' chains, and a folder ``photos`` of the images it knows."""
    mini.write_mini(str(tmp_path / "made"))
    samples = read_table(str(tmp_path / "made/datasets/mini/samples")).to_pylist()
    chains = read_table(str(tmp_path / "made/datasets/mini/chains/rules")).to_pylist()
    texts = {row["id"]: row["text"] for row in chains}
    for number, row in enumerate(samples):
        folder = tmp_path / "photos" / row["domain"] / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(row["image"])
    with serving(Endpoint(samples, lambda row, before: completion(texts[row["id"]]))) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")
        yield endpoint


@pytest.mark.slow
def test_the_python_snippet_runs(teacher, tmp_path, monkeypatch, ray_cluster, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [setting for setting in SETTINGS if not setting.startswith("data.")]
    Path("my.yaml").write_text(dump_config(load_config("demo", [*settings, "name=mine"])))
    [snippet] = blocks("python")
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    results = names["results"]
    assert len(teacher.requests) == len(teacher.samples)
    assert results.held_out == ["flat"] and results.models("flat") == ["zero-shot", "mtct", "sarr-1"]
    assert "flat sarr-1 {'direct': {'target_in': " in capsys.readouterr().out
    assert names["answers"].num_rows == 2 * (30 + 2 * 6)
