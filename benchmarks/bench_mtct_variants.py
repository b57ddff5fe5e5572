"""The models, data and variants that ``bench_mtct`` times, but for TRL's trainer."""

import ctypes
import gc
import io
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from rdmldg_ray.chains.format import display_name
from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.datasets.builtin.iconbed import iconbed_file, iconbed_samples
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import load_processor
from rdmldg_ray.mtct.collate import MicroBatch
from rdmldg_ray.mtct.loss import DIRECT, REASONING, pathway_losses
from rdmldg_ray.mtct.shared_prefix import Branch, additive_mask, lay_out

OURS = ("shared", "two_pass", "padded", "chains_only")
LEARNING_RATE = 5e-4
MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """What a sample looks like."""

    image_size: int
    """Pixels of a side; a patch is 12 pixels wide, and four patches are an image token."""
    num_classes: int
    chain_tokens: tuple[int, int] | None
    """Least and most tokens of a chain; None for the chains as they are."""
    batch: dict[str, int]
    """Images in a step, by model."""


SHAPES = {
    "iconbed": Shape(96, 12, None, {"tiny": 8, "105m": 4}),
    "paper": Shape(384, 65, (240, 360), {"tiny": 2, "105m": 2}),
}

# The large one has SmolVLM-256M's proportions: 38 million parameters in the vision encoder, 42 million in
# the decoder's layers, and its vocabulary.
MODELS: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {"vision": {}, "text": {}},
    "105m": {
        "vision": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
        },
        "text": {
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 14,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 49280,
        },
    },
}


@dataclass(frozen=True)
class Row:
    """A sample; all texts end with the end of the turn."""

    id: str
    image: Image.Image
    label: str
    chain: str


class Data:
    """Batches of a shape, with one processor for all variants."""

    def __init__(self, shape: Shape, batch_size: int):
        processor = load_processor(TINY_BASE)
        processor.image_processor.size = {"longest_edge": shape.image_size}
        processor.image_processor.max_image_size = {"longest_edge": shape.image_size}
        processor.image_seq_len = (shape.image_size // 24) ** 2
        self.shape, self.processor, self.batch_size = shape, processor, batch_size
        samples = iconbed_samples().to_pylist()
        assert ICONBED.class_names is not None
        names = list(ICONBED.class_names)
        if shape.num_classes > len(names):
            drawings = pq.read_table(io.BytesIO(iconbed_file("iconbed.parquet")))["cldr_name"].to_pylist()
            # The shortest, for a vocabulary as small as this cuts words into more tokens than most do.
            others = sorted(set(drawings) - set(names), key=lambda name: (len(self.tokens(name)), name))
            names += others[: shape.num_classes - len(names)]
        self.prompts = PathwayPrompts(processor, names)
        chains = pq.read_table(io.BytesIO(iconbed_file("chains.parquet")), columns=["id", "text"])
        self.texts = dict(zip(chains["id"].to_pylist(), chains["text"].to_pylist(), strict=True))
        self.samples = samples
        self.rng = np.random.default_rng(0)

    def batch(self) -> list[Row]:
        """Random samples."""
        chosen = self.rng.choice(len(self.samples), self.batch_size, replace=False)
        return [self._row(self.samples[number]) for number in chosen]

    def _row(self, sample: dict[str, Any]) -> Row:
        image = Image.open(io.BytesIO(sample["image"])).convert("RGB")
        end = self.processor.tokenizer.eos_token
        return Row(sample["id"], image, display_name(sample["label"]) + end, self._chain(sample["id"]) + end)

    def _chain(self, sample_id: str) -> str:
        if self.shape.chain_tokens is None:
            return self.texts[sample_id]
        # As long as a language model's, of the teacher's words: several chains in a row, cut.
        tokenizer = self.processor.tokenizer
        others = self.rng.choice(list(self.texts.values()), 4)
        ids = tokenizer(" ".join([self.texts[sample_id], *others]), add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(ids[: self.rng.integers(*self.shape.chain_tokens)]))

    def tokens(self, text: str) -> list[int]:
        """Token ids of a target."""
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def passes(self, rows: list[Row], variant: str) -> list[MicroBatch]:
        """The forward passes of a step."""
        encoded = self.prompts.encode([row.image for row in rows])
        direct = [[Branch(DIRECT, self.prompts.direct_tail, self.tokens(row.label))] for row in rows]
        reasoning = [[Branch(REASONING, self.prompts.reasoning_tail, self.tokens(row.chain))] for row in rows]
        once, twice = encoded.model_inputs, {k: torch.cat([v, v]) for k, v in encoded.model_inputs.items()}
        ids, prefixes = [row.id for row in rows], encoded.prefixes
        pad_id = self.processor.tokenizer.pad_token_id
        match variant:
            case "shared":
                both = [a + b for a, b in zip(direct, reasoning, strict=True)]
                return [MicroBatch(ids, lay_out(prefixes, both, pad_id), once)]
            case "two_pass":
                return [MicroBatch(ids, lay_out(prefixes, one, pad_id), once) for one in (direct, reasoning)]
            case "padded":
                rows_of_both = lay_out(prefixes * 2, direct + reasoning, pad_id)
                return [MicroBatch(ids * 2, rows_of_both, twice)]
            case "chains_only":
                return [MicroBatch(ids, lay_out(prefixes, reasoning, pad_id), once)]
        raise AssertionError(variant)

    def sequences(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The same as prompts with completions, mixed, as TRL takes them."""
        direct = [self._sequence(row, self.prompts.direct_text, row.label) for row in rows]
        reasoning = [self._sequence(row, self.prompts.reasoning_text, row.chain) for row in rows]
        return direct + reasoning

    def _sequence(self, row: Row, prompt: str, completion: str) -> dict[str, Any]:
        return {"images": [row.image], "prompt": prompt, "completion": completion}


def build(model: str, shape: Shape) -> PreTrainedModel:
    """A model with random weights for a shape's images."""
    config = AutoConfig.from_pretrained(TINY_BASE, local_files_only=True)
    sizes = MODELS[model]
    config.vision_config.update(sizes["vision"] | {"image_size": shape.image_size})
    config.text_config.update(sizes["text"])
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def loss_of(model: torch.nn.Module, micro: MicroBatch, shared: bool) -> torch.Tensor:
    """Sum of the samples' losses; a single pathway is a plain causal sequence with a plain mask."""
    layout = micro.layout
    mask = additive_mask(layout.segments, torch.float32) if shared else layout.segments.ge(0).long()
    logits = model(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=mask,
        logits_to_keep=layout.keep,
        use_cache=False,
        **micro.model_inputs,
    ).logits
    return pathway_losses(logits, layout.targets, layout.target_pathway, "sum").weighted_sum(1.0, 1.0)


@dataclass
class Timings:
    """What was measured of a variant, by step; the first step warms up."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a step."""
        self.begin()
        yield
        self.end()

    def begin(self) -> None:
        """Return freed memory to the system and forget the peak before."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._held = psutil.Process().memory_info().rss
        self._started = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Note time and peak since ``begin``."""
        self.seconds.append(time.perf_counter() - self._started[0])
        self.cpu_seconds.append(time.process_time() - self._started[1])
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        self.peak_mib.append((peak - self._held) / MIB)

    def summary(self, images: int) -> dict[str, float]:
        """Medians."""
        seconds = statistics.median(self.seconds[1:])
        return {
            "step_s": round(seconds, 4),
            "step_cpu_s": round(statistics.median(self.cpu_seconds[1:]), 4),
            "samples_per_s": round(images / seconds, 3),
            "padding_share": round(statistics.mean(self.padding[1:]), 4),
            "peak_mib": round(statistics.median(self.peak_mib[1:]), 1),
        }


class Ours:
    """The variants that run through this package's layout, on one model."""

    def __init__(self, model: torch.nn.Module, data: Data):
        self.model, self.data = model, data
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE)
        self.timings = {variant: Timings() for variant in OURS}

    def round(self, rows: list[Row]) -> None:
        """A step of each variant on the same rows."""
        for variant in OURS:
            passes = self.data.passes(rows, variant)
            segments = [micro.layout.segments for micro in passes]
            real = sum(int(s.ge(0).sum()) for s in segments)
            timings = self.timings[variant]
            timings.padding.append(1 - real / sum(s.numel() for s in segments))
            with timings.step():
                self._backward(passes, variant)
                torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
                self.optimizer.step()
            self.optimizer.zero_grad()

    def _backward(self, passes: list[MicroBatch], variant: str) -> None:
        for micro in passes:
            (loss_of(self.model, micro, variant == "shared") / self.data.batch_size).backward()

    def gradient_error(self, rows: list[Row]) -> float:
        """Relative difference of the gradients of ``shared`` and ``two_pass``."""
        found = []
        for variant in ("shared", "two_pass"):
            self._backward(self.data.passes(rows, variant), variant)
            found.append(torch.cat([p.grad.flatten() for p in self.trained if p.grad is not None]))
            self.optimizer.zero_grad()
        return float((found[0] - found[1]).norm() / found[1].norm())
