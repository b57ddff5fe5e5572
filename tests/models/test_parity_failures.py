"""What the parity check is for: each way to serve something else is refused, in float32 and in bfloat16.

The adapters are really trained, in a few steps; in the engine's place is the merged model.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import PeftModel
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.config.schema import EnginesConfig, LoraConfig, ModelConfig, PathwayWeights
from rdmldg_ray.datasets.builtin.iconbed import RULES
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import chains_location, read_dataset_info
from rdmldg_ray.models.families import family_of
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import add_lora, load_base, load_merged, load_processor, save_trained
from rdmldg_ray.models.parity import ParityError, check_parity, known_answers
from rdmldg_ray.mtct.collate import pathway_branches
from rdmldg_ray.mtct.loss import pathway_losses
from rdmldg_ray.mtct.shared_prefix import additive_mask, lay_out
from rdmldg_ray.storage import read_images
from tests.helpers.adapters import WEIGHTS, decoder_layers_permuted, score, without
from tools import mini

pytestmark = pytest.mark.slow

CLASSES = list(mini.CLASSES)
STEPS = 15


@pytest.fixture(scope="module")
def samples(mini_root):
    root = str(mini_root)
    location = chains_location(root, mini.NAME, RULES)
    index = sample_index(root, read_dataset_info(root, mini.NAME), mini.DOMAINS)
    chosen = attach_chains(index, read_chains(root, mini.NAME, RULES, mini.DOMAINS), location)
    chosen = chosen.take(list(range(0, len(chosen), len(chosen) // 8))[:8])
    images = read_images(chosen)
    return [row | {"image": image} for row, image in zip(chosen.to_pylist(), images, strict=True)]


@pytest.fixture(scope="module")
def trained(samples, tmp_path_factory):
    """Folders of two trainings, one after the other: an adapter, and the one before it."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    lora = LoraConfig(rank=8, alpha=16, parts=["vision", "connector", "decoder"])
    model = add_lora(load_base(TINY_BASE, ModelConfig(dtype="float32")), family_of(TINY_BASE), lora)
    prompts = PathwayPrompts(load_processor(TINY_BASE), CLASSES)
    encoded = prompts.encode([decode_image(row["id"], row["image"]) for row in samples])
    branches = [pathway_branches(PathwayWeights(), row["label"], row["chain"], prompts) for row in samples]
    layout = lay_out(encoded.prefixes, branches, prompts.processor.tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for stage in ("before", "after"):
        for _ in range(STEPS):
            logits = model(
                input_ids=layout.input_ids,
                position_ids=layout.position_ids,
                attention_mask=additive_mask(layout.segments, torch.float32),
                logits_to_keep=layout.keep,
                use_cache=False,
                **encoded.model_inputs,
            ).logits
            losses = pathway_losses(logits, layout.targets, layout.target_pathway, "sum")
            (losses.weighted_sum(1.0, 1.0) / len(samples)).backward()
            optimizer.step()
            optimizer.zero_grad()
        save_trained(model, folder / stage)
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def served(request, trained, samples):
    """Checks a model and its inputs as an engine in one dtype would."""
    dtype = request.param
    model_config = ModelConfig(dtype=dtype)
    prompts = PathwayPrompts(load_processor(TINY_BASE), CLASSES)

    def model_of(adapter):
        return load_merged(TINY_BASE, adapter, model_config).eval()

    known = known_answers(samples, CLASSES)
    score(load_base(TINY_BASE, model_config).eval(), prompts, known, "base_logprobs")
    score(model_of(trained / "before"), prompts, known, "start_logprobs")
    # The trainer has its adapter beside the base.
    beside = PeftModel.from_pretrained(load_base(TINY_BASE, model_config), trained / "after").eval()
    score(beside, prompts, known, "logprobs")
    score(beside, prompts, known, "blank_logprobs", lambda image: Image.new("RGB", image.size, "gray"))
    merged = model_of(trained / "after")

    def check(model=None, prompts=prompts, change=lambda image: image):
        model = merged if model is None else model_of(model)
        answers = [dict(row) for row in known]
        score(model, prompts, answers, "found", change)
        found = [row["found"] for row in answers]
        return check_parity(pa.Table.from_pylist(known), found, EnginesConfig(dtype=dtype))

    return check


def test_the_trained_model_passes(served):
    served()


def edited(adapter: Path, folder: Path, change) -> Path:
    copy = shutil.copytree(adapter, folder / "edited")
    save_file(change(load_file(copy / WEIGHTS)), copy / WEIGHTS)
    return copy


@pytest.mark.parametrize(
    "change",
    [without("vision_model"), without("text_model"), without("connector"), decoder_layers_permuted],
    ids=["no vision", "no decoder", "no connector", "decoder layers permuted"],
)
def test_an_adapter_of_which_a_part_is_lost_is_refused(served, trained, tmp_path, change):
    with pytest.raises(ParityError):
        served(edited(trained / "after", tmp_path, change))


def test_the_adapter_before_and_the_base_are_refused(served, trained, tmp_path):
    with pytest.raises(ParityError, match="the model that training began with"):
        served(trained / "before")
    with pytest.raises(ParityError, match="the base model"):
        served(edited(trained / "after", tmp_path, without("")))


def test_another_prompt_is_refused(served):
    with pytest.raises(ParityError):
        served(prompts=PathwayPrompts(load_processor(TINY_BASE), CLASSES[::-1]))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: Image.fromarray(np.asarray(image)[:, :, ::-1].copy()),
        ImageOps.mirror,
        lambda image: image.resize((image.width // 2, image.height // 2)),
        lambda image: image.resize((image.width // 2, image.height // 2)).resize(image.size),
        lambda image: image.resize((image.width, image.height // 2)),
        lambda image: Image.new("RGB", image.size, "white"),
    ],
    ids=["BGR", "mirrored", "half the size", "half the resolution", "other shape", "white"],
)
def test_other_pixels_are_refused(served, change):
    with pytest.raises(ParityError):
        served(change=change)
