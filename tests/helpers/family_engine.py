"""A tiny random model of a family, an adapter for it, and a real engine that serves both: prints JSON.

A process of its own, since transformers chooses other image processors where torchvision is installed.
"""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    LlavaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from rdmldg_ray.chains.prompts import QUESTION, reasoning_prompt
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.builtin.iconbed import iconbed_samples
from rdmldg_ray.engines.engine import Engine, GenerationRequest
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import save_published
from tests.helpers import adapters, families
from tests.helpers.prefix_space import prefix_space_tokenizer

CLASSES = ["bird", "building", "vehicle"]
# vLLM's attention on CPU has kernels for heads of 32 and more.
_TEXT = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def _internvl(tokenizer):
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    _add(tokenizer, names)
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(),
        image_seq_length=4,
    )
    return processor, "<IMG_CONTEXT>", names, {"image_token_id": tokenizer.context_image_token_id}


def _llava(tokenizer):
    _add(tokenizer, {"image_token": "<image>"})
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return processor, "<image>", {}, {"image_token_index": tokenizer.image_token_id}


def _qwen2_5_vl(tokenizer):
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    _add(tokenizer, names)
    pixels = {"shortest_edge": 56 * 84, "longest_edge": 56 * 84}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=pixels), tokenizer, Qwen2VLVideoProcessor(size=pixels)
    )
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in names}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    text = {"rope_parameters": rope}
    return processor, "<|vision_start|><|image_pad|><|vision_end|>", {}, ids | {"text_config": text}


_MAKE = {"internvl": _internvl, "llava": _llava, "qwen2_5_vl": _qwen2_5_vl}


def _add(tokenizer, names):
    tokenizer.add_special_tokens({"additional_special_tokens": list(names.values())})
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))


def write_base(family: str, folder: Path) -> None:
    """Processor and random weights, under the names of published checkpoints."""
    # LLaVA-1.5's tokenizer is of another kind than the others'.
    tokenizer = (
        prefix_space_tokenizer([reasoning_prompt(CLASSES, QUESTION), *CLASSES] * 3)
        if family == "llava"
        else AutoTokenizer.from_pretrained(TINY_BASE)
    )
    processor, image, names, changes = _MAKE[family](tokenizer)
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + image + "\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    processor.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"extra_special_tokens": names}))

    config, _, _ = families._PARTS[family]()
    for key in ("image_token_id", "image_token_index", "vision_start_token_id"):
        config.pop(key, None)
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text = config["text_config"] | _TEXT | own | changes.pop("text_config", {})
    vision = config["vision_config"]
    if "out_hidden_size" in vision:
        vision["out_hidden_size"] = _TEXT["hidden_size"]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(family, **config | {"text_config": text} | changes), dtype=torch.float32
    )
    save_published(model, folder)


def main(family: str, folder: Path) -> None:
    """Load base, then adapter, and answer by both pathways."""
    base = folder / "base"
    write_base(family, base)
    found = iconbed_samples()
    samples = found.filter(pc.is_in(found["label"], pa.array(CLASSES))).slice(0, 8).to_pylist()
    chain = "<SUMMARY>a bird with wings</SUMMARY>"
    columns = ("id", "image", "label")
    rows = [{name: row[name] for name in columns} | {"chain": chain} for row in samples]
    adapters.write_adapter(folder / "adapter", base, CLASSES, rows)

    engine = Engine(load_config("demo", [f"model.path={base}"]), CLASSES)
    engine.load(None)
    report = engine.load(str(folder / "adapter"))
    batch = pa.table({name: [row[name] for row in rows] for name in ("id", "image")})
    answers = {
        pathway: engine.generate(batch, GenerationRequest(pathway, 0, 0.0, 1.0, 8, 0)).to_pylist()
        for pathway in ("direct", "reasoning")
    }
    asked = [row | {"pathway": "direct", "target": option} for row in rows for option in CLASSES]
    tokens = engine.score_answers(pa.Table.from_pylist(asked))
    scores = iter(sum(one) for one in tokens)
    options = [{option: next(scores) for option in CLASSES} for _ in rows]
    result = {
        "how": report.how,
        "parity": report.parity,
        "direct": [row["text"] for row in answers["direct"]],
        "direct_logprobs": [row["logprob"] for row in answers["direct"]],
        "options": options,
        "reasoning_tokens": [row["num_tokens"] for row in answers["reasoning"]],
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # vLLM's own threads are not waited for


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
