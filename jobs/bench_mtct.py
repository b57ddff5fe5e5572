"""Times a training step with the shared prefix against what it replaces: in one run, alternating.

    OMP_NUM_THREADS=1 python jobs/bench_mtct.py --rounds 5 > bench.json

At two shapes: IconBed's (16 image tokens, 12 class names, the teacher of rules' chains), and the paper's
(256 image tokens, 65 class names, chains of about 300 tokens). For two models with random weights: the
shape of the tiny base, and one of 105 million parameters. On every step each variant trains the paper's
LoRA on the same images, each once for either pathway (``chains_only``: for the one):

    shared       both pathways in one sequence, as MTCT trains
    two_pass     a forward and backward pass for labels, another for chains
    padded       one pass over a batch of both, padded to the longest chain
    chains_only  the reasoning pathway alone
    trl          TRL's SFTTrainer with its collator for vision and language, over the same rows

A step's time is that of forward, backward, clipping and optimizer. Making the batch is left out, which
MTCT does ahead of the step. Beside it stands the processor's time, which other work on the machine
disturbs less. Peak memory is what a step took beyond what the process held before it.
"""

import argparse
import copy
import ctypes
import gc
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.chains.prompts import display_name
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.domainbed.samples import iconbed_file, iconbed_samples
from rdmldg_ray.models.families import FAMILIES
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import add_lora, load_processor
from rdmldg_ray.mtct.collate import MicroBatch
from rdmldg_ray.mtct.layout import Branch, additive_mask, lay_out
from rdmldg_ray.mtct.loss import DIRECT, REASONING, pathway_losses
from rdmldg_ray.settings import LoraConfig

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


def train_with_trl(
    model: PreTrainedModel,
    lora: Any,
    data: Data,
    batches: list[list[Row]],
    between: Callable[[list[Row]], None],
) -> Timings:
    """Let TRL's trainer take a step on each batch; after each step ``between`` runs on the same batch."""
    try:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as error:
        raise SystemExit("this compares with TRL: pip install 'rdmldg_ray[dev]'") from error
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    timings = Timings()

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            timings.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            timings.end()
            between(batches[state.global_step - 1])

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder,
            per_device_train_batch_size=2 * data.batch_size,
            max_steps=len(batches),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            train_sampling_strategy="sequential",
            max_length=None,
            # As the others: float32, all activations kept.
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model,
            settings,
            train_dataset=Dataset.from_list([row for batch in batches for row in data.sequences(batch)]),
            processing_class=data.processor,
            peft_config=lora,
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)  # it prints where the result goes
        for inputs in trainer.get_train_dataloader():
            timings.padding.append(1 - float(inputs["attention_mask"].float().mean()))
        trainer.train()
    return timings


def measure(model_name: str, shape: Shape, rounds: int) -> dict[str, Any]:
    """All variants of one model at one shape."""
    data = Data(shape, shape.batch[model_name])
    base = build(model_name, shape)
    adapted = add_lora(copy.deepcopy(base), FAMILIES["idefics3"], LoraConfig())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # at its start of zero, half of the gradients are
            torch.nn.init.normal_(parameter, std=0.02)
    ours = Ours(adapted.train(), data)
    batches = [data.batch() for _ in range(rounds + 1)]
    error = ours.gradient_error(batches[0])
    trl = train_with_trl(base, adapted.peft_config["default"], data, batches, ours.round)
    results = {name: t.summary(data.batch_size) for name, t in (ours.timings | {"trl": trl}).items()}
    [micro] = data.passes(batches[0], "shared")

    def over_shared(measure: str) -> dict[str, float]:
        return {name: r[measure] / results["shared"][measure] for name, r in results.items()}

    return {
        "parameters": sum(p.numel() for p in base.parameters()),
        "images": data.batch_size,
        "tokens_per_image": round(int(micro.layout.segments.ge(0).sum()) / data.batch_size, 1),
        "prefix_tokens": int((micro.layout.segments[0] == 0).sum()),
        "grad_rel_err": error,
        **results,
        **{f"{name}_over_shared": round(ratio, 3) for name, ratio in over_shared("step_s").items()},
        "cpu_over_shared": {name: round(ratio, 3) for name, ratio in over_shared("step_cpu_s").items()},
    }


def main() -> int:
    """Print one JSON object: ``models.<model>.<shape>``, and under ``shapes`` the last model's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="tiny,105m", help="which, separated by commas")
    parser.add_argument("--shapes", default="iconbed,paper", help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant")
    args = parser.parse_args()
    models: dict[str, dict[str, Any]] = {}
    for name in args.models.split(","):
        models[name] = {}
        for shape in args.shapes.split(","):
            with redirect_stdout(sys.stderr):  # of libraries that print
                models[name][shape] = measure(name, SHAPES[shape], args.rounds)
            print(name, shape, json.dumps(models[name][shape]), file=sys.stderr)
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "models": models,
        "shapes": list(models.values())[-1],
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
