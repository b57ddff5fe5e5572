"""The tiny base model's architecture, tokenizer and processor: all of them transformers' own classes."""

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

from rdmldg_ray.chains.format import TAGS

IMAGE_SIZE, PATCH, SHUFFLE = 96, 12, 2  # pixels, pixels, patches on a side that become one token
IMAGE_TOKENS = (IMAGE_SIZE // PATCH // SHUFFLE) ** 2
VOCABULARY = 2048
CONTEXT = 1024  # tokens
WIDTH = 192  # of the decoder
VISION_WIDTH, VISION_LAYERS = 192, 6

END = "<end_of_utterance>"  # Idefics3's own name for it, which its processor adds in any case
SPECIAL = ("<pad>", END, "<|user|>", "<|assistant|>", "<image>", "<fake_token_around_image>", "<global-img>")

# A turn's images come before its text, so that all questions about an image share their prefix.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}"
    "{{- '" + END + "' -}}"
    "{%- if message['role'] == 'user' -%}{{- '\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_processor(corpus: Iterable[str]) -> Idefics3Processor:
    """Image processor, chat template and a byte-level BPE learned from the corpus."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        eos_token=END,
        additional_special_tokens=list(SPECIAL[2:]),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    # Not special: a chain decoded with skip_special_tokens keeps its tags.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    image_processor = Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": IMAGE_SIZE},
        max_image_size={"longest_edge": IMAGE_SIZE},
    )
    return Idefics3Processor(
        image_processor, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE
    )


def build_model(processor: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    """The model with random weights."""
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    config = Idefics3Config(
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 4 * VISION_WIDTH,
            "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": VISION_WIDTH // 64,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": WIDTH // 3,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
            **ids,
        },
        scale_factor=SHUFFLE,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    model = Idefics3ForConditionalGeneration(config)
    _start_like_trained(model.model.vision_model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _start_like_trained(encoder: Idefics3VisionTransformer) -> None:
    """Begin where trained encoders end up: tokens attend to like tokens, positions are waves."""
    layers: Any = encoder.encoder.layers
    for layer in layers:
        layer.self_attn.q_proj.weight.normal_(0, 0.04)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    positions = encoder.embeddings.position_embedding.weight
    grid, quarter = IMAGE_SIZE // PATCH, positions.shape[1] // 4
    angles = torch.arange(grid).unsqueeze(1) * torch.pi / 2 ** torch.linspace(0, 4, quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    both = torch.cat([waves.repeat_interleave(grid, 0), waves.repeat(grid, 1)], dim=1)
    positions.copy_(0.3 * both)


@torch.no_grad()
def begin_with(model: Idefics3ForConditionalGeneration, folder: Path) -> None:
    """Take over the weights of a saved model; layers that it has not begin by passing on what they get."""
    own, theirs = model.state_dict(), Idefics3ForConditionalGeneration.from_pretrained(folder).state_dict()
    model.load_state_dict(own | theirs)
    added = [*model.model.vision_model.encoder.layers, *model.model.text_model.layers]
    known = [
        f"model.vision_model.encoder.layers.{i}." for i in range(len(model.model.vision_model.encoder.layers))
    ]
    known += [f"model.text_model.layers.{i}." for i in range(len(model.model.text_model.layers))]
    for layer, prefix in zip(added, known, strict=True):
        if not any(name.startswith(prefix) for name in theirs):
            for name, value in layer.named_parameters():
                if "out_proj" in name or "o_proj" in name or "fc2" in name or "down_proj" in name:
                    value.zero_()


def cached_processor(folder: Path, corpus: Callable[[], Iterable[str]] | None = None) -> Idefics3Processor:
    """The processor saved in the folder, or a new one from the corpus, saved there."""
    if corpus and not folder.exists():
        build_processor(corpus()).save_pretrained(folder)
    return Idefics3Processor.from_pretrained(folder)


def save(model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, folder: Path) -> None:
    """Write model and processor for ``from_pretrained``: weights in float16, to be loaded as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    halved = copy.deepcopy(model).half()
    halved.save_pretrained(folder)
    processor.save_pretrained(folder)
    # Half precision saves space on disk; for computing, this small a model wants single precision.
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
