"""The benchmark's variants do the same work, and its shapes are what it says."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks import bench_mtct_gpu
from benchmarks import bench_mtct_variants as bench


def test_all_variants_of_both_pathways_have_the_same_loss():
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


def test_trl_gets_the_very_same_tokens():
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


def test_the_papers_shape_has_its_image_tokens_and_chains():
    shape = bench.SHAPES["paper"]
    data = bench.Data(shape, 2)
    rows = data.batch()
    [micro] = data.passes(rows, "chains_only")
    assert (micro.layout.input_ids == data.processor.image_token_id).sum(dim=1).tolist() == [256, 256]
    assert all(240 <= len(data.tokens(row.chain)) <= 365 for row in rows)
    with torch.no_grad():
        assert bench.loss_of(bench.build("tiny", shape), micro, shared=False) > 0


@pytest.mark.parametrize(("size", "billions"), [("1b", 0.94), ("2b", 2.09), ("8b", 7.94)])
def test_the_sizes_on_a_gpu_are_the_published_ones(size, billions):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(bench_mtct_gpu.model_config(size))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_gpus_benchmark_goes_without_one_but_for_flex():
    found = bench_mtct_gpu.measure("tiny", images=1, rounds=1, checkpointing=True, device="cpu")
    assert found["shared"]["samples_per_s"] > 0 and found["two_pass_over_shared"] > 0
    assert found["shared"]["mfu"] is None, "no known GPU"
    assert found["grad_rel_err"]["shared"] < 0.05, "in bfloat16"
    assert found["tokens_per_image"] > found["prefix_tokens"] > 256
    assert "flex" not in found
