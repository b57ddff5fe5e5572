"""Shared prefix and sequences of their own agree in every supported family."""

import pytest
import torch
from torch.nn import functional

from rdmldg_ray.mtct.loss import DIRECT, REASONING, PathwayLosses
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out
from tests.helpers import families

QUESTIONS = [[10, 11, 12], [13, 14, 15, 16, 17]]
LABELS = [[20, 21, 1], [22, 1]]
CHAINS = [[30, 31, 32, 33, 1], [34, 35, 36, 37, 38, 39, 40, 41, 1]]
DIRECT_TAIL, REASONING_TAIL = [50, 51], [52, 53, 54]


def shared(example):
    branches = [
        [Branch(DIRECT, DIRECT_TAIL, label), Branch(REASONING, REASONING_TAIL, chain)]
        for label, chain in zip(LABELS, CHAINS, strict=True)
    ]
    layout = lay_out([example.prefix(question) for question in QUESTIONS], branches, pad_id=0)
    return example.losses(layout, additive_mask(layout.segments, torch.float32))


def alone(example, row, tail, target, reduction):
    ids = torch.tensor([example.prefix(QUESTIONS[row]) + tail + target])
    logits = example.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        use_cache=False,
        **example.one(row),
        **example.token_types(ids),
    ).logits[0]
    return functional.cross_entropy(logits[-len(target) - 1 : -1], torch.tensor(target), reduction=reduction)


@pytest.mark.parametrize("model_type", families.EXAMPLES)
def test_loss_and_gradients_equal_those_of_separate_sequences(model_type):
    example = families.make(model_type)
    losses = shared(example)
    direct = torch.stack([alone(example, row, DIRECT_TAIL, LABELS[row], "sum") for row in (0, 1)])
    reasoning = torch.stack([alone(example, row, REASONING_TAIL, CHAINS[row], "mean") for row in (0, 1)])
    torch.testing.assert_close(losses.direct, direct, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.reasoning, reasoning, rtol=1e-5, atol=1e-5)

    ours = example.gradients(losses)
    theirs = example.gradients(PathwayLosses(direct, reasoning))
    assert any("vision" in name or "visual" in name for name in ours)
    assert families.relative_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("model_type", families.EXAMPLES)
def test_gradient_checkpointing_computes_again_and_changes_nothing(model_type):
    example = families.make(model_type)
    example.model.train()
    plain = shared(example)
    theirs = example.gradients(plain)

    example.model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    layer = example.model.model.get_decoder().layers[0].self_attn
    layer.register_forward_hook(lambda *_: calls.append(1))
    losses = shared(example)
    ours = example.gradients(losses)
    assert len(calls) == 2, "the backward pass computes a layer's activations again"
    assert torch.equal(losses.direct, plain.direct) and torch.equal(losses.reasoning, plain.reasoning)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6)
