"""One finished run for all tests that look at one: what the documents' Python snippet makes of photos."""

import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from rdmldg_ray.config.load import dump_config, load_config
from rdmldg_ray.storage import read_table
from tests.helpers import documented
from tests.helpers.openai_endpoint import Endpoint, completion, serving
from tools import mini

DATASET = "mine"
SMALL = [setting for setting in mini.SETTINGS if not setting.startswith("data.")]
# Of the demo, without its name.
SETTINGS = [*SMALL, f"data.dataset={DATASET}", "data.held_out=flat", "data.chains=gpt-4o"]


@dataclass(frozen=True)
class FinishedRun:
    folder: Path
    """Where the snippet ran: with ``photos``, ``my.yaml`` and ``rdmldg-store``."""
    names: dict[str, Any]
    """What it left in its names."""
    printed: str
    asked: int
    """How often it asked the teacher."""

    @property
    def results(self) -> Any:
        return self.names["results"]


def write_photos(folder: Path) -> list[dict[str, Any]]:
    """Images as ``photos/<domain>/<class>/<file>``; returns them as rows with the rules' chains."""
    made = folder / "made"
    mini.write_mini(str(made))
    samples = read_table(str(made / "datasets/mini/samples")).to_pylist()
    texts = {r["id"]: r["text"] for r in read_table(str(made / "datasets/mini/chains/rules")).to_pylist()}
    for number, row in enumerate(samples):
        photos = folder / "photos" / row["domain"] / row["label"]
        photos.mkdir(parents=True, exist_ok=True)
        (photos / f"{number:03d}.png").write_bytes(row["image"])
    shutil.rmtree(made)
    return [{**row, "chain": texts[row["id"]]} for row in samples]


def run_the_snippet(folder: Path) -> FinishedRun:
    """Run it in a folder, with Ray as the process has it, and a teacher that knows the photos' chains."""
    endpoint = Endpoint(write_photos(folder), lambda row, before: completion(row["chain"]))
    config = load_config("demo", [*SETTINGS, f"name={DATASET}"])
    (folder / "my.yaml").write_text(dump_config(config))
    [snippet] = documented.blocks("docs/python.md", "python")
    names: dict[str, Any] = {}
    printed = StringIO()
    with serving(endpoint), pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("OPENAI_BASE_URL", endpoint.url)
        patch.setenv("OPENAI_API_KEY", "sk-of-a-test-0123456789")
        exec(compile(snippet, "docs/python.md", "exec"), names)
    return FinishedRun(folder, names, printed.getvalue(), len(endpoint.requests))
