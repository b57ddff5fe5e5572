"""FlexAttention over the shared-prefix layout has the dense mask's loss and gradients."""

import importlib
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import create_mask
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForImageTextToText, LlavaConfig

from rdmldg_ray.mtct.flex import block_mask, use_flex_attention
from rdmldg_ray.mtct.loss import DIRECT, REASONING
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out
from tests.helpers import families

EVERY_FAMILY = pytest.mark.parametrize("model_type", families.EXAMPLES)


def laid_out(example, pathways=(DIRECT, REASONING)):
    """Two rows over three blocks of 128 tokens, the last one not full; the second row is padded."""
    numbers = torch.Generator().manual_seed(0)

    def tokens(count):
        return torch.randint(10, 64, (count,), generator=numbers).tolist()

    targets = [{DIRECT: 9, REASONING: 120}, {DIRECT: 4, REASONING: 90}]
    branches = [[Branch(pathway, tokens(3), tokens(row[pathway])) for pathway in pathways] for row in targets]
    return lay_out([example.prefix(tokens(length)) for length in (125, 110)], branches, pad_id=0)


def dense(example, layout):
    return example.losses(layout, additive_mask(layout.segments, torch.float32))


def flex(example, layout):
    return example.losses(layout, block_mask(layout.segments))


def assert_equal_losses(ours, theirs, rtol=1e-5):
    torch.testing.assert_close(ours.direct.cpu(), theirs.direct, rtol=rtol, atol=0)
    torch.testing.assert_close(ours.reasoning.cpu(), theirs.reasoning, rtol=rtol, atol=0)


def assert_flex_is_as_dense(example, layout):
    """In loss and gradients; leaves the model with FlexAttention, and returns the gradients without."""
    plain = dense(example, layout)
    theirs = example.gradients(plain)
    use_flex_attention(example.model)
    losses = flex(example, layout)
    assert_equal_losses(losses, plain)
    assert families.relative_difference(example.gradients(losses), theirs) < 1e-5
    return theirs


@pytest.fixture
def cpu_trains(monkeypatch):
    """Lifts torch's refusal to train FlexAttention on CPU, and runs it as it stands instead of compiled.

    What is refused is a compiled backward pass. The operator as it stands has one, in plain operations
    over the whole matrix: the definition of what the GPU's kernels compute.
    """
    torch_flex = importlib.import_module("torch.nn.attention.flex_attention")
    their_flex = importlib.import_module("transformers.integrations.flex_attention")
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(their_flex.WrappedFlexAttention, "__call__", lambda _: torch_flex.flex_attention)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_query_sees_what_the_dense_mask_shows_it():
    layout = laid_out(families.make("internvl"))
    rows, length = layout.segments.shape
    assert length % 128 != 0 and (layout.segments == -1).any()
    seen = create_mask(block_mask(layout.segments).mask_mod, rows, None, length, length, device="cpu")
    assert torch.equal(seen, additive_mask(layout.segments, torch.float32) == 0)


def test_blocks_that_are_hidden_whole_are_left_out():
    segments = torch.tensor([0] * 128 + [1] * 128 + [2] * 200)[None]
    blocks = block_mask(segments).to_dense()[0, 0]
    assert blocks.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


@EVERY_FAMILY
def test_loss_and_gradients_equal_those_of_the_dense_mask(model_type, cpu_trains):
    example = families.make(model_type)
    example.model.train()
    layout = laid_out(example)
    theirs = assert_flex_is_as_dense(example, layout)

    example.model.gradient_checkpointing_enable({"use_reentrant": False})
    again = example.gradients(flex(example, layout))
    assert families.relative_difference(again, theirs) < 1e-5


@pytest.mark.parametrize("pathways", [[DIRECT], [REASONING]])
def test_a_pathway_alone_has_the_dense_masks_loss_and_gradients(pathways, cpu_trains):
    example = families.make("internvl")
    assert_flex_is_as_dense(example, laid_out(example, pathways))


def test_adapters_get_the_dense_masks_gradients(cpu_trains):
    found = []
    for losses in (dense, flex):
        example = families.make("internvl")
        torch.manual_seed(1)
        get_peft_model(  # in place
            example.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        )
        if losses is flex:
            use_flex_attention(example.model)
        found.append(example.gradients(losses(example, laid_out(example))))
    assert all("lora_" in name for name in found[0])
    assert families.relative_difference(found[1], found[0]) < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_the_compiled_forward_pass_has_the_dense_masks_loss():
    example = families.make("internvl")
    layout = laid_out(example)
    with torch.no_grad():
        plain = dense(example, layout)
        use_flex_attention(example.model)
        assert_equal_losses(flex(example, layout), plain)


@EVERY_FAMILY
def test_the_vision_encoder_keeps_its_attention(model_type):
    model = families.make(model_type).model
    use_flex_attention(model)
    assert model.config.text_config._attn_implementation == "flex_attention"
    assert model.config.vision_config._attn_implementation == model.config._attn_implementation == "sdpa"
    assert "flex_attention" not in str(model.config.to_dict()), "it is no part of what is saved"


def test_batches_of_other_sizes_do_not_each_compile_anew():
    torch_flex = importlib.import_module("torch.nn.attention.flex_attention")
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    attention = torch.compile(torch_flex.flex_attention, backend=backend)
    torch._dynamo.reset()
    for rows, length in ((4, 810), (4, 790), (4, 640), (4, 900), (2, 811), (4, 1025), (3, 300), (4, 812)):
        segments = torch.zeros(rows, length, dtype=torch.long)
        segments[:, length // 2 :] = 1
        states = torch.randn(rows, 2, length, 16)
        attention(states, states, states, block_mask=block_mask(segments))
    torch._dynamo.reset()
    assert len(compiled) <= 4, "torch gives up after eight, and computes over the whole matrix"


def test_a_decoder_with_attention_of_its_own_is_refused():
    text = {"model_type": "stablelm", "vocab_size": 64, "hidden_size": 48, "intermediate_size": 64}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 3}
    vision = {**families._VISION, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8}
    model = AutoModelForImageTextToText.from_config(
        LlavaConfig(vision_config=vision, text_config=text | heads)
    )
    with pytest.raises(ValueError, match=r"StableLmModel.*as that of Llama, Qwen2 and Qwen2.5-VL can"):
        use_flex_attention(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@EVERY_FAMILY
def test_a_gpus_kernels_have_the_cpus_loss_and_gradients(model_type, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    example = families.make(model_type)
    example.model.train()
    layout = laid_out(example)
    plain = dense(example, layout)
    theirs = example.gradients(plain)
    on_gpu = tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), vars(layout))
    images = tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), example.model_inputs)
    example = families.Example(example.model_type, example.model.cuda(), example.image_tokens, images)
    use_flex_attention(example.model)
    losses = flex(example, type(layout)(**on_gpu))
    assert_equal_losses(losses, plain, rtol=1e-4)
    assert families.relative_difference(example.gradients(losses), theirs) < 1e-4
