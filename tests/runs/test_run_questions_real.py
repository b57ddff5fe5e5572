"""The whole method on questions: ingested from a file of rows, chains imported, nothing replaced."""

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rdmldg_ray.chains.imports import import_chains
from rdmldg_ray.cli import app
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.ingest.opening import plan_questions
from rdmldg_ray.datasets.ingest.writing import ingest
from rdmldg_ray.evaluation.questions import by_question
from rdmldg_ray.runs.run import Run
from rdmldg_ray.storage import join, read_table
from tests.helpers.questions_file import DOMAINS, RELATIONS, STATEMENT, chain_table, write_questions

pytestmark = pytest.mark.slow

NAME, HELD_OUT = "asked", "flat"
SETTINGS = [
    f"data.dataset={NAME}",
    "mtct.epochs=12",
    "mtct.batch_size=16",
    "mtct.micro_batch_size=8",
    "sarr.max_attempts=3",
    "sarr.temperatures=[0.3, 0.6]",
    "sarr.filter.min_label_prob=0.001",
    "sarr.without_chain=teacher",
    "sarr.training.epochs=1",
    "sarr.training.batch_size=8",
    "sarr.training.micro_batch_size=4",
    "evaluation.zero_shot=false",
    # One of each: this is about questions.
    "workers.num_workers=1",
    "engines.num_engines=1",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared_ray):
    """A finished run on 3 domains with 18 questions and 2 statements in each."""
    folder = tmp_path_factory.mktemp("questions")
    root = str(folder / "root")
    file, rows = write_questions(folder, each=6)
    info = ingest(plan_questions(str(file), root, NAME))
    pairs = [pair for domain in DOMAINS for pair in rows[domain]]
    pq.write_table(chain_table(NAME, pairs), folder / "chains.parquet")
    assert import_chains(str(folder / "chains.parquet"), root, NAME, "rules") == {"accepted": len(pairs)}
    done = CliRunner().invoke(app, ["run", "iconbed-vqa", *SETTINGS, "--storage", root])
    assert done.exit_code == 0, done.output
    config = load_config("iconbed-vqa", [*SETTINGS, f"storage={root}"])
    return Run(config, info, Console())


def test_every_stage_is_complete(finished):
    assert list(finished.state()) == [stage.name for stage in finished.stages]
    adapter = read_table(join(finished.location, HELD_OUT, "mtct/adapter/parity.parquet"))
    assert {"question", "options", "logprobs"} <= set(adapter.column_names)


def test_chains_are_judged_by_their_own_rows_options(finished):
    rows = read_table(join(finished.location, HELD_OUT, "sarr-1/candidates")).to_pylist()
    assert {row["question"] for row in rows} > {STATEMENT}
    for row in rows:
        assert row["label"] in row["options"]
        assert row["label_prob"] is not None
        assert not row["accepted"] or row["conclusion"] == row["label"]
        if row["reason"] == "wrong_class":
            assert row["conclusion"] in row["options"]
    assert any(row["accepted"] for row in rows)


def test_direct_answers_are_among_their_own_rows_options(finished):
    samples = sample_index(finished.config.storage, finished.info, finished.info.environments)
    asked = {row["id"]: row for row in samples.to_pylist()}
    predictions = read_table(join(finished.location, HELD_OUT, "evaluation/sarr-1/predictions.parquet"))
    direct = [row for row in predictions.to_pylist() if row["pathway"] == "direct"]
    # The target's 20 rows, and a fifth of 20 in each of two sources.
    assert len(direct) == 20 + 2 * 4
    assert all(row["prediction"] in asked[row["id"]]["options"] for row in direct)
    entailed = [row for row in direct if asked[row["id"]]["question"] == STATEMENT]
    assert entailed and {row["prediction"] for row in entailed} <= set(RELATIONS)
    found = by_question(predictions, samples)
    assert {row["question"] for row in found} == {row["question"] for row in asked.values()}
    assert sum(row["rows"] for row in found) == 2 * 20


def test_the_analysis_of_questions_is_printed(finished):
    command = ["analyze", "questions", "iconbed-vqa", "--storage", finished.config.storage]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert STATEMENT in done.output and "questions.csv and .png" in done.output
