"""The benchmark's variants do the same work, and its shapes are what it says."""

import importlib.util
from pathlib import Path

import pytest
import torch

JOB = Path(__file__).parents[2] / "jobs" / "bench_mtct.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_mtct", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_variants_of_both_pathways_have_the_same_loss(bench):
    shape = bench.SHAPES["iconbed"]
    data = bench.Data(shape, 2)
    model = bench.build("tiny", shape)
    rows = data.batch()
    with torch.no_grad():
        shared, two_pass, padded, chains_only = (
            sum(
                bench.loss_of(model, micro, variant == "shared").item()
                for micro in data.passes(rows, variant)
            )
            for variant in bench.OURS
        )
    assert two_pass == pytest.approx(shared, rel=1e-5)
    assert padded == pytest.approx(shared, rel=1e-5)
    assert chains_only < shared


def test_trl_gets_the_very_same_tokens(bench):
    data = bench.Data(bench.SHAPES["iconbed"], 2)
    rows = data.batch()
    [micro] = data.passes(rows, "padded")
    layout = micro.layout
    ours = [ids[kept].tolist() for ids, kept in zip(layout.input_ids, layout.segments >= 0, strict=True)]
    theirs = []
    for row in data.sequences(rows):
        prompt = data.processor(text=[row["prompt"]], images=[row["images"]])["input_ids"][0]
        theirs.append([*prompt, *data.tokens(row["completion"])])
    assert ours == theirs


def test_the_papers_shape_has_its_image_tokens_and_chains(bench):
    shape = bench.SHAPES["paper"]
    data = bench.Data(shape, 2)
    rows = data.batch()
    [micro] = data.passes(rows, "chains_only")
    assert (micro.layout.input_ids == data.processor.image_token_id).sum(dim=1).tolist() == [256, 256]
    assert all(240 <= len(data.tokens(row.chain)) <= 365 for row in rows)
    with torch.no_grad():
        assert bench.loss_of(bench.build("tiny", shape), micro, shared=False) > 0
