import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.evaluation.probe import Probe, probe
from rdmldg_ray.mtct.collate import MicroBatch
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out


@pytest.fixture(scope="module")
def config(random_base):
    settings = load_config("demo")
    model = settings.model.model_copy(update={"path": str(random_base)})
    return settings.model_copy(update={"model": model})


@pytest.fixture(scope="module")
def measured(config, info):
    return Probe(config, list(info.classes), adapter=None)


@pytest.fixture(scope="module")
def row(rows):
    return rows[0]


def scores(measured, row):
    image = decode_image(row["id"], row["image"])
    found = list(measured.score(image, row["chain"], row["label"]))
    return {name: [token for token in found if token["target"] == name] for name in ("chain", "class")}


def test_tokens_are_the_targets_in_order_with_the_end_of_the_turn(measured, row, prompts):
    found = scores(measured, row)
    for name, text in (("chain", row["chain"]), ("class", row["label"].replace("_", " "))):
        ids = prompts.processor.tokenizer.convert_tokens_to_ids([token["token"] for token in found[name]])
        assert ids == prompts.target_ids(text)
        assert [token["position"] for token in found[name]] == list(range(len(ids)))


def test_logprobs_are_those_that_training_sees(measured, row, load_random_base):
    """Against the shared-prefix layout, another way to the same numbers."""
    prompts = measured.prompts
    encoded = prompts.encode([decode_image(row["id"], row["image"])])
    branches = [
        Branch(0, prompts.direct_tail, prompts.target_ids(row["label"].replace("_", " "))),
        Branch(1, prompts.reasoning_tail, prompts.target_ids(row["chain"])),
    ]
    layout = lay_out(encoded.prefixes, [branches], prompts.processor.tokenizer.pad_token_id)
    micro = MicroBatch([row["id"]], layout, encoded.model_inputs)
    with torch.inference_mode():
        logits = load_random_base()(
            input_ids=layout.input_ids,
            attention_mask=additive_mask(layout.segments, torch.float32),
            position_ids=layout.position_ids,
            logits_to_keep=layout.keep,
            **micro.model_inputs,
        ).logits[0]
    logprobs = logits.log_softmax(-1)
    found = scores(measured, row)
    for pathway, name in ((0, "class"), (1, "chain")):
        mine = layout.target_pathway[0] == pathway
        expected = logprobs[mine].gather(1, layout.targets[0][mine][:, None]).flatten()
        torch.testing.assert_close(
            torch.tensor([token["logprob"] for token in found[name]]), expected, atol=1e-4, rtol=1e-4
        )
        entropy = torch.distributions.Categorical(logits=logits[mine]).entropy()
        torch.testing.assert_close(
            torch.tensor([token["entropy"] for token in found[name]]), entropy, atol=1e-4, rtol=1e-4
        )


def test_entropy_is_at_most_that_of_the_uniform_distribution(measured, row):
    size = measured.model.config.text_config.vocab_size
    assert all(
        0 <= token["entropy"] <= math.log(size) for part in scores(measured, row).values() for token in part
    )


def test_embeddings_have_unit_length_and_depend_on_what_is_embedded(measured, rows):
    images = [decode_image(row["id"], row["image"]) for row in rows[:2]]
    first, second = (measured.embed_image(image) for image in images)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(first, measured.embed_image(images[0]), atol=1e-6)
    texts = [measured.embed_text(row["chain"]) for row in rows[:2]]
    assert np.linalg.norm(texts[0]) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(*texts)


def test_a_model_is_measured_on_the_samples_of_an_index(config, info, store, rows):
    from rdmldg_ray.datasets.index import sample_index

    index = sample_index(store, info, ["flat"]).slice(0, 2)
    samples = index.append_column("chain", pa.array([rows[0]["chain"]] * 2))
    samples = samples.append_column("held_out", pa.array([True, False]))
    tokens, embeddings = probe(config, list(info.classes), "zero-shot", None, samples)
    assert set(tokens["model"].to_pylist()) == {"zero-shot"}
    assert tokens["id"].unique().to_pylist() == index["id"].to_pylist()
    assert [(row["id"], row["kind"]) for row in embeddings.to_pylist()] == [
        (id, kind) for id in index["id"].to_pylist() for kind in ("image", "chain")
    ]
