import math

import pyarrow as pa
import pytest

from rdmldg_ray.config.load import dump_config, load_config
from rdmldg_ray.datasets.builtin.iconbed import write_iconbed
from rdmldg_ray.datasets.builtin.questions import write_iconbed_vqa
from rdmldg_ray.evaluation.analyses import EMBEDDING_SCHEMA, TOKEN_SCHEMA
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.storage import write_bytes, write_json, write_table
from tests.helpers.cli import error_of, rdmldg, rows_of
from tests.helpers.run_files import write_run

pytest.importorskip("matplotlib")

MODELS = ("zero-shot", "mtct", "sarr-1")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished run of the demo, with small tables in the place of what models would have said."""
    root = str(tmp_path_factory.mktemp("analyses"))
    write_iconbed(root)
    write_bytes(f"{root}/runs/demo/config.yaml", dump_config(load_config("demo")).encode())
    state = {f"flat/evaluation/{model}": {"seconds": 1.0, "accuracy": {}} for model in MODELS}
    state["flat/sarr-1/candidates"] = {
        "candidates": 10,
        "kept": 4,
        "images": 8,
        "images_with_chain": 4,
        "seconds": 1.0,
    }
    write_json(f"{root}/runs/demo/state.json", state)
    tokens, embeddings = [], []
    for number, model in enumerate(MODELS):
        for target in ("chain", "class"):
            for held_out in (False, True):
                for position in range(20):
                    tokens.append(
                        {
                            "model": model,
                            "target": target,
                            "held_out": held_out,
                            "position": position % 2,
                            "token": f"t{position % 2}",
                            "logprob": math.log(0.2 + 0.3 * number),
                            "entropy": 3.0 - number,
                        }
                    )
        for domain, x in (("flat", 0.0), ("paint", 1.0)):
            for kind in ("image", "chain"):
                embeddings.append({"model": model, "domain": domain, "kind": kind, "vector": [x, 0.0]})
    folder = f"{root}/runs/demo/flat/analyses"
    write_table(f"{folder}/tokens.parquet", pa.Table.from_pylist(tokens, schema=TOKEN_SCHEMA))
    write_table(f"{folder}/embeddings.parquet", pa.Table.from_pylist(embeddings, schema=EMBEDDING_SCHEMA))
    predictions = [
        {
            "id": f"{held_out}{number}",
            "held_out": held_out,
            "pathway": pathway,
            "correct": pathway == "reasoning" or number % 2 == 0,
            "num_tokens": 100 if pathway == "reasoning" else 2,
            "logprob": math.log(0.9 if number % 2 == 0 else 0.1),
        }
        for held_out in (False, True)
        for number in range(10)
        for pathway in ("direct", "reasoning")
    ]
    table = pa.Table.from_pylist(predictions, schema=PREDICTION_SCHEMA)
    write_table(f"{root}/runs/demo/flat/evaluation/sarr-1/predictions.parquet", table)
    return root


def analyze(root, what, *options):
    result = rdmldg("analyze", what, "demo", *options, "--storage", root)
    assert result.exit_code == 0, result.output
    return result.output


def written(root, name, folder="flat/analyses"):
    from pathlib import Path

    place = Path(root, "runs/demo", folder)
    assert (place / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return (place / f"{name}.csv").read_text().splitlines()


def test_token_shares_by_stage(root):
    output = analyze(root, "tokens")
    assert ["mtct", "chain", "no", "20", "0.0", "0.0", "0.0", "0.0"] in rows_of(output)
    assert ["zero-shot", "class", "yes", "20", "100.0", "0.0", "100.0", "0.0"] in rows_of(output)
    columns = "model,target,held_out,tokens,low,high,low_without_end,high_without_end"
    assert written(root, "tokens")[0] == columns


def test_tokens_whose_entropy_fell(root):
    assert rows_of(analyze(root, "entropy", "--limit", "1"))[-1] == ["t0", "20", "3", "1", "2"]
    assert len(written(root, "entropy-zero-shot-sarr-1")) == 3
    analyze(root, "entropy", "--before", "mtct", "--after", "sarr-1")
    assert written(root, "entropy-mtct-sarr-1")[1] == "t0,20,2.0,1.0,1.0"


def test_distances_between_domains(root):
    assert ["mtct", "chain", "flat", "paint", "1"] in rows_of(analyze(root, "mmd"))
    assert len(written(root, "mmd")) == 1 + 2 * len(MODELS)


def test_chains_rejected_by_round(root):
    assert rows_of(analyze(root, "rejected"))[-1] == ["flat", "1", "10", "60.0", "50.0", "-"]
    draws = pa.table({"candidate": [0] * 8 + [1, 2], "accepted": [True] * 2 + [False] * 6 + [True] * 2})
    write_table(f"{root}/runs/demo/flat/sarr-1/candidates/part-00000.parquet", draws)
    assert rows_of(analyze(root, "rejected"))[-1] == ["flat", "1", "10", "60.0", "50.0", "75.0"]
    assert written(root, "rejected", "analyses")[1] == "flat,1,10,0.6,0.5,0.75"


def test_new_classes_need_a_run_that_left_some_out(root):
    message = error_of("analyze", "new-classes", "demo", "--storage", root)
    assert "was trained on all classes; run with data.classes=base" in message


def test_adaptive_reasoning(root):
    rows = rows_of(analyze(root, "adaptive"))
    assert [row[:1] + row[2:] for row in rows[1:]] == [
        ["direct", "50.0", "15.8", "2", "0.0"],
        ["reasoning", "100.0", "0.0", "100.0", "100.0"],
        ["adaptive", "100.0", "0.0", "52.0", "50.0"],
    ]
    assert written(root, "adaptive-sarr-1")[0] == "threshold,accuracy,error,tokens,reasoned"


def test_a_run_or_a_domain_that_is_not_there_is_named(root):
    assert "runs/gone: no run here" in error_of("analyze", "mmd", "gone", "--storage", root)
    message = error_of("analyze", "mmd", "demo", "--held-out", "paint", "--storage", root)
    assert "no evaluation of paint; there is flat" in message


def test_questions_are_told_apart_and_a_run_on_classes_has_none(tmp_path, root):
    write_iconbed_vqa(str(tmp_path))
    write_run(str(tmp_path), dataset="iconbed-vqa")
    result = rdmldg("analyze", "questions", "small", "--storage", str(tmp_path))
    assert result.exit_code == 0, result.output
    rows = (tmp_path / "runs/small/flat/analyses/questions.csv").read_text().splitlines()
    assert rows[0] == "model,question,pathway,rows,accuracy,error,chance,commonest"
    assert len(rows) == 1 + 3 * 3 * 2, "stages, questions, pathways"
    assert "asks the same about every image" in error_of("analyze", "questions", "demo", "--storage", root)
