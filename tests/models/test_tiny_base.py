"""The shipped tiny base model is what its card says: small, loadable, and taught IconBed's concepts."""

from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor

import rdmldg_ray
from rdmldg_ray.chains.format import SECTIONS, TAGS, render_chain
from rdmldg_ray.chains.prompts import direct_prompt
from rdmldg_ray.config.load import load_config
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import load_base, make_trainable

ICONBED = Path(rdmldg_ray.__file__).parent / "datasets/builtin/iconbed_data/iconbed.parquet"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY_BASE, local_files_only=True)


@pytest.mark.parametrize("size", [(96, 96), (300, 200), (40, 90)])
def test_an_image_of_any_size_is_sixteen_tokens(processor, size):
    content = [{"type": "text", "text": direct_prompt(["cat", "dog"])}, {"type": "image"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt], images=[[Image.new("RGB", size, "red")]], return_tensors="pt")

    assert inputs["input_ids"][0].tolist().count(processor.image_token_id) == 16
    assert inputs["pixel_values"].shape == (1, 1, 3, 96, 96)


def test_a_turn_starts_with_the_image_and_ends_with_the_end_token(processor):
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]

    end = processor.tokenizer.eos_token
    expected = f"<|user|><image>What is this?{end}\n<|assistant|>a cat{end}"
    assert processor.apply_chat_template(turns) == expected


def test_stage_tags_are_single_tokens_that_decoding_keeps(processor):
    tokenizer = processor.tokenizer
    assert all(len(tokenizer(tag)["input_ids"]) == 1 for tag in TAGS)

    chain = render_chain({stage: f"what {stage.lower()} says" for stage in SECTIONS})
    ids = tokenizer(chain + tokenizer.eos_token)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == chain


def test_weights_are_small_and_match_the_config():
    weights = TINY_BASE / "model.safetensors"
    tensors = load_file(weights)
    count = sum(tensor.numel() for tensor in tensors.values())

    assert weights.stat().st_size < 16e6
    assert 3e6 < count < 8e6
    config = AutoConfig.from_pretrained(TINY_BASE, local_files_only=True)
    embedding = tensors["model.text_model.embed_tokens.weight"]
    assert list(embedding.shape) == [config.text_config.vocab_size, config.text_config.hidden_size]


def test_iconbeds_concepts_are_among_those_that_were_learned():
    """From other artists' drawings; that none is IconBed's, tests/tools/test_tiny_base_sources.py holds."""
    learned = set((TINY_BASE / "concepts.txt").read_text().splitlines())
    rows = pyarrow.parquet.read_table(ICONBED, columns=["cldr_name"]).to_pylist()
    names = {row["cldr_name"].lower() for row in rows}

    assert len(learned) > 5000
    assert len(learned & names) > 0.9 * len(names)


def test_what_a_checkpoint_of_the_demo_holds_is_below_5_mb():
    config = load_config("demo")
    model = make_trainable(load_base(TINY_BASE, config.model), family_of(TINY_BASE), config.lora)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # For each weight its own value and Adam's two.
    assert 3 * 4 * trained < 5_000_000
