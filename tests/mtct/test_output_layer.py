"""The output layer with the loss in it gives what logits of the whole vocabulary give."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rdmldg_ray.mtct import output_layer
from rdmldg_ray.mtct.loss import DIRECT, REASONING, reduce_token_losses
from rdmldg_ray.mtct.output_layer import TargetLoss
from rdmldg_ray.mtct.positions import decoder_inputs
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out
from tests.helpers import families

VOCABULARY, HIDDEN = 64, 48


def laid_out(example):
    """Two rows with chains of other lengths, so that some positions predict nothing."""
    numbers = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(10, VOCABULARY, (count,), generator=numbers).tolist()

    branches = [
        [Branch(DIRECT, tokens(3), tokens(4)), Branch(REASONING, tokens(3), tokens(length))]
        for length in (20, 31)
    ]
    return lay_out([example.prefix(tokens(9)), example.prefix(tokens(6))], branches, pad_id=0)


def token_losses(example, target_loss, layout):
    with target_loss.of(layout.targets):
        return example.model(
            input_ids=layout.input_ids,
            attention_mask=additive_mask(layout.segments, torch.float32),
            logits_to_keep=layout.keep,
            use_cache=False,
            **example.model_inputs,
            **decoder_inputs(example.family, example.model, layout, example.model_inputs),
        ).logits


@pytest.fixture(params=[1, 7, 10**6], ids=lambda size: f"{size} at once")
def chunks(request, monkeypatch):
    monkeypatch.setattr(output_layer, "CHUNK", request.param * VOCABULARY)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("model_type", families.EXAMPLES)
def test_loss_and_gradients_equal_those_of_logits(model_type, frozen, chunks):
    example = families.make(model_type)
    example.model.get_output_embeddings().weight.requires_grad_(not frozen)
    layout = laid_out(example)
    assert (layout.targets == output_layer.IGNORED).any()
    plain = example.losses(layout, additive_mask(layout.segments, torch.float32))
    theirs = example.gradients(plain)
    found = token_losses(example, TargetLoss(example.model), layout)
    ours = reduce_token_losses(found, layout.target_pathway, "sum")
    torch.testing.assert_close(ours.direct, plain.direct, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.reasoning, plain.reasoning, rtol=1e-6, atol=0)
    assert families.relative_difference(example.gradients(ours), theirs) < 1e-6


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_no_tensor_has_the_logits_of_more_than_a_chunk(frozen, monkeypatch):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            shape = getattr(made, "shape", ())
            # The weights and their gradient have as many columns when transposed.
            if shape[-1:] == (VOCABULARY,) and shape != (HIDDEN, VOCABULARY):
                self.elements = max(self.elements, made.numel())
            return made

    monkeypatch.setattr(output_layer, "CHUNK", 5 * VOCABULARY)
    example = families.make("internvl")
    example.model.get_output_embeddings().weight.requires_grad_(not frozen)
    layout = laid_out(example)
    target_loss = TargetLoss(example.model)
    hidden = torch.randn(*layout.targets.shape, HIDDEN, requires_grad=True)
    with Largest() as largest, target_loss.of(layout.targets):
        example.model.get_output_embeddings()(hidden).sum().backward()
    assert hidden.grad.any()
    assert 0 < largest.elements <= 5 * VOCABULARY < layout.targets.numel() * VOCABULARY


def test_elsewhere_the_model_gives_logits():
    example = families.make("internvl")
    layout = laid_out(example)
    inputs = {
        "input_ids": layout.input_ids,
        "attention_mask": additive_mask(layout.segments, torch.float32),
        "use_cache": False,
        **example.model_inputs,
    }
    with torch.no_grad():
        before = example.model(**inputs).logits
        target_loss = TargetLoss(example.model)
        names = set(example.model.state_dict())
        token_losses(example, target_loss, layout)
        assert torch.equal(example.model(**inputs).logits, before)
    assert names == set(families.make("internvl").model.state_dict())


def test_in_half_precision_losses_are_float32():
    example = families.make("internvl")
    example.model.get_output_embeddings().weight.requires_grad_(False)
    layout = laid_out(example)
    exact = token_losses(example, TargetLoss(example.model), layout).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_losses(example, TargetLoss(example.model), layout)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), exact, rtol=0.05, atol=0.05)
    found.sum().backward()
