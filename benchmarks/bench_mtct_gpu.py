"""Times a training step on a GPU, at InternVL3's true sizes: in one run, alternating.

    python -m benchmarks.bench_mtct_gpu --sizes 1b,2b,8b > gpu.json

Weights are random and tokens are too, which changes no time; so nothing is downloaded. On every step each
variant trains the paper's LoRA in bfloat16 on the same images of 256 tokens with a question of 65 options
and chains of about 300 tokens:

    shared    both pathways in one sequence, with a dense mask
    flex      the same by FlexAttention
    two_pass  a forward and backward pass for labels, another for chains

A step's time is that of forward, backward, clipping and optimizer, in one process without DeepSpeed. MFU is
what training logs: operations that the model needs for the tokens, padding left out, over the device's peak.
Attention counts as if it were not masked, for all variants alike. ``grad_rel_err`` is the relative difference
of gradients to those of two passes, in bfloat16. ``predicted_gib`` is what the doctor's memory model says of
the step's peak, for chains of the longest length.

    python -m benchmarks.bench_mtct_gpu --sizes 8b --largest > memory.json

finds the most images of the longest chains that a step can have on a GPU of 48 and of 80 GB, by limiting what
the allocator may take. Without a GPU all but ``flex`` and memory is shown, as ``--sizes tiny`` does.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import LoraConfig
from rdmldg_ray.models.families import FAMILIES
from rdmldg_ray.models.loading import add_lora
from rdmldg_ray.mtct.flex import block_mask, use_flex_attention
from rdmldg_ray.mtct.loss import DIRECT, REASONING, reduce_token_losses
from rdmldg_ray.mtct.metrics import passes_of, peak_flops
from rdmldg_ray.mtct.output_layer import TargetLoss
from rdmldg_ray.mtct.shared_prefix import Branch, Layout, additive_mask, lay_out
from rdmldg_ray.runs.memory import CONTEXT, GPUS, TrainingMemory, model_shape, training_memory

IMAGE_SIZE, IMAGE_TOKENS, IMAGE_TOKEN = 448, 256, 5
# As many tokens as the prompts have with 65 class names, and as many as a label and a chain.
QUESTION, DIRECT_TAIL, REASONING_TAIL, LABEL, CHAIN = 230, 8, 16, 4, (240, 360)
# FlexAttention compiles anew for the first few lengths.
WARM_UP = 3
GIB = 2**30
# Of a GPU's memory that is CUDA's own, and not the allocator's.
CUDA_GIB = 0.6

# Qwen2.5's decoders. The vision encoder is InternViT-300M in all, transformers' default.
DECODERS = {
    "tiny": (64, 128, 2, 4, 2),
    "1b": (896, 4864, 24, 14, 2),
    "2b": (1536, 8960, 28, 12, 2),
    "8b": (3584, 18944, 28, 28, 4),
}


def model_config(size: str) -> PreTrainedConfig:
    """The config of an InternVL3, or of a tiny one."""
    hidden, intermediate, layers, heads, key_heads = DECODERS[size]
    text = {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": 1000 if size == "tiny" else 151674,
        "tie_word_embeddings": False,
    }
    vision: dict[str, Any] = {"attention_bias": True}
    if size == "tiny":
        vision |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return AutoConfig.for_model(
        "internvl",
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=False,
    )


@dataclass
class Timings:
    """What was measured of a variant, by step; memory on a GPU only."""

    seconds: list[float] = field(default_factory=list)
    peak_gib: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    """Operations that the model needs for a step."""

    def summary(self, images: int, peak: float | None) -> dict[str, Any]:
        """Medians of the steps after warming up, and MFU over all of them."""
        seconds = statistics.median(self.seconds[WARM_UP:])
        busy = sum(self.flops[WARM_UP:]) / sum(self.seconds[WARM_UP:])
        return {
            "step_s": round(seconds, 4),
            "samples_per_s": round(images / seconds, 3),
            "mfu": round(busy / peak, 4) if peak else None,
            "peak_gib": round(statistics.median(self.peak_gib[WARM_UP:]), 2) if self.peak_gib else None,
        }


class Bench:
    """One model, and the variants of its step."""

    def __init__(self, size: str, checkpointing: bool, device: str, question: int = QUESTION):
        self.device, self.question = torch.device(device), question
        torch.manual_seed(0)
        with self.device:
            self.plain = AutoModelForImageTextToText.from_config(
                model_config(size), dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        self.parameters = self.plain.num_parameters()
        if checkpointing:
            self.plain.gradient_checkpointing_enable({"use_reentrant": False})
        # Adapters in bfloat16 too, as DeepSpeed has them.
        self.model = add_lora(self.plain, FAMILIES["internvl"], LoraConfig()).to(torch.bfloat16).train()
        self.target_loss = TargetLoss(self.plain)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:  # at its start of zero, half of the gradients are
                torch.nn.init.normal_(parameter, std=0.02)
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-4)
        on_gpu = self.device.type == "cuda"
        self.variants = ["shared", "flex", "two_pass"] if on_gpu else ["shared", "two_pass"]
        self.timings = {variant: Timings() for variant in self.variants}
        self.rng = np.random.default_rng(0)

    def batch(
        self, images: int, chain: tuple[int, int] = CHAIN
    ) -> tuple[torch.Tensor, dict[str, list[Layout]]]:
        """Pixels, and for each variant what its passes lay out; chains have ``chain[0]`` tokens or more."""
        shape = (images, 3, IMAGE_SIZE, IMAGE_SIZE)
        pixels = torch.randn(shape, device=self.device, dtype=torch.bfloat16)
        # All rows have the same question, as all images of a data set have.
        prefix = [IMAGE_TOKEN] * IMAGE_TOKENS + self._tokens(self.question)
        direct_tail, reasoning_tail = self._tokens(DIRECT_TAIL), self._tokens(REASONING_TAIL)
        direct = [[Branch(DIRECT, direct_tail, self._tokens(LABEL))] for _ in range(images)]
        reasoning = [
            [Branch(REASONING, reasoning_tail, self._tokens(int(self.rng.integers(*chain))))]
            for _ in range(images)
        ]
        prefixes = [prefix] * images
        both = lay_out(prefixes, [a + b for a, b in zip(direct, reasoning, strict=True)], pad_id=0)
        alone = [lay_out(prefixes, one, pad_id=0) for one in (direct, reasoning)]
        return pixels, {"shared": [both], "flex": [both], "two_pass": alone}

    def _tokens(self, count: int) -> list[int]:
        return list(map(int, self.rng.integers(100, 1000, count)))

    def loss(self, pixels: torch.Tensor, layout: Layout, variant: str) -> torch.Tensor:
        """Mean of the samples' losses; a single pathway is a plain causal sequence with a plain mask."""
        segments = layout.segments.to(self.device)
        match variant:
            case "shared":
                mask: Any = additive_mask(segments, torch.bfloat16)
            case "flex":
                mask = block_mask(segments)
            case "two_pass":
                mask = segments.ge(0).long()
        with self.target_loss.of(layout.targets.to(self.device)):
            token_losses = self.model(
                input_ids=layout.input_ids.to(self.device),
                position_ids=layout.position_ids.to(self.device),
                attention_mask=mask,
                logits_to_keep=layout.keep.to(self.device),
                pixel_values=pixels,
                use_cache=False,
            ).logits
        losses = reduce_token_losses(token_losses, layout.target_pathway.to(self.device), "sum")
        return losses.weighted_sum(1.0, 1.0) / len(pixels)

    def round(self, images: int) -> None:
        """A step of each variant on the same images."""
        pixels, layouts = self.batch(images)
        for variant in self.variants:
            timings = self.timings[variant]
            timings.flops.append(sum(self._needed(pixels, layout, variant) for layout in layouts[variant]))
            self._choose(variant)
            started = self._start()
            self.step(pixels, layouts[variant], variant)
            self._finish(started, timings)

    def step(self, pixels: torch.Tensor, layouts: list[Layout], variant: str) -> None:
        """Forward, backward, clipping and optimizer."""
        self._backward(pixels, layouts, variant)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def largest(self, gib: float, predicted: int) -> int:
        """The most images of the longest chains that a step may have in so much memory."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))

        def fits(images: int) -> bool:
            gc.collect()
            torch.cuda.empty_cache()
            try:
                pixels, layouts = self.batch(images, (CHAIN[1], CHAIN[1] + 1))
                self.step(pixels, layouts["shared"], "shared")
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad()
                return False
            return True

        images = max(1, predicted)
        if fits(images):
            while fits(images + 1):
                images += 1
        else:
            images -= 1
            while images and not fits(images):
                images -= 1
        torch.cuda.set_per_process_memory_fraction(1.0)
        return images

    def gradient_errors(self, images: int) -> dict[str, float]:
        """Relative differences of the variants' gradients to those of two passes."""
        pixels, layouts = self.batch(images)
        found = {}
        for variant in self.variants:
            self._choose(variant)
            self._backward(pixels, layouts[variant], variant)
            found[variant] = torch.cat([p.grad.flatten().float() for p in self.trained if p.grad is not None])
            self.optimizer.zero_grad()
        plain = found.pop("two_pass")
        return {variant: float((ours - plain).norm() / plain.norm()) for variant, ours in found.items()}

    def _backward(self, pixels: torch.Tensor, layouts: list[Layout], variant: str) -> None:
        for layout in layouts:
            self.loss(pixels, layout, variant).backward()

    def _choose(self, variant: str) -> None:
        self.plain.set_attn_implementation("sdpa")
        if variant == "flex":
            use_flex_attention(self.plain)

    def _needed(self, pixels: torch.Tensor, layout: Layout, variant: str) -> float:
        # Torch's counter does not get through FlexAttention, which needs what the dense mask needs.
        # https://github.com/pytorch/pytorch/issues/134385
        counted = "shared" if variant == "flex" else variant
        self._choose(counted)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.loss(pixels, layout, counted)
        real = float(layout.segments.ge(0).float().mean())
        return passes_of(self.model) * counter.get_total_flops() * real

    def _start(self) -> float:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        return time.perf_counter()

    def _finish(self, started: float, timings: Timings) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            timings.peak_gib.append(torch.cuda.max_memory_allocated() / GIB)
        timings.seconds.append(time.perf_counter() - started)


def predicted(size: str, checkpointing: bool, question: int) -> TrainingMemory:
    """What the memory model says of a step with the longest chains."""
    described = model_config(size).to_dict()
    tokens = IMAGE_TOKENS + question + DIRECT_TAIL + LABEL + REASONING_TAIL + CHAIN[1]
    config = load_config(
        "pacs-internvl3-8b",
        [
            f"workers.gradient_checkpointing={checkpointing}",
            "workers.num_workers=1",
            f"model.max_length={tokens}",
            f"sarr.max_new_tokens={CHAIN[1]}",
            f"evaluation.max_new_tokens={CHAIN[1]}",
        ],
    )
    # Without DeepSpeed, whose buffers and copies it counts from stage 1 on.
    workers = config.workers.model_copy(update={"zero_stage": 0})
    config = config.model_copy(update={"workers": workers})
    return training_memory(config, model_shape(config, described), config.mtct)


def measure(
    size: str, images: int, rounds: int, checkpointing: bool, device: str, question: int = QUESTION
) -> dict[str, Any]:
    """All variants of one size."""
    bench = Bench(size, checkpointing, device, question)
    errors = bench.gradient_errors(images)
    for _ in range(WARM_UP + rounds):
        bench.round(images)
    peak = peak_flops(torch.cuda.get_device_name()) if bench.device.type == "cuda" else None
    results = {variant: t.summary(images, peak) for variant, t in bench.timings.items()}
    [layout] = bench.batch(images)[1]["shared"]
    memory = predicted(size, checkpointing, question)
    return {
        "parameters": bench.parameters,
        "images": images,
        "gradient_checkpointing": checkpointing,
        "tokens_per_image": round(int(layout.segments.ge(0).sum()) / images, 1),
        "prefix_tokens": int((layout.segments[0] == 0).sum()),
        "grad_rel_err": errors,
        # The allocator's own figure knows nothing of CUDA's context.
        "predicted_gib": round((memory.total(images) - CONTEXT) / GIB, 2),
        **results,
        **{
            f"{variant}_over_shared": round(result["step_s"] / results["shared"]["step_s"], 3)
            for variant, result in results.items()
            if variant != "shared"
        },
    }


def largest(size: str, checkpointing: bool, device: str, question: int) -> dict[str, Any]:
    """Of one size, the largest micro-batches, as found and as the memory model says, by kind of GPU."""
    bench = Bench(size, checkpointing, device, question)
    memory = predicted(size, checkpointing, question)
    found: dict[str, Any] = {"gradient_checkpointing": checkpointing, "tokens": memory.tokens}
    room = torch.cuda.get_device_properties(bench.device).total_memory / GIB
    for kind, gib in GPUS.items():
        if gib <= room + 1:
            said = memory.largest_micro_batch(gib * GIB)
            found[kind] = {"predicted": said, "found": bench.largest(gib - CUDA_GIB, said)}
            print(size, kind, found[kind], file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Print one JSON object, ``sizes.<size>.<variant>``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="1b,2b,8b", help=f"of {', '.join(DECODERS)}, separated by commas")
    parser.add_argument("--images", type=int, default=4, help="in a step")
    parser.add_argument("--question", type=int, default=QUESTION, help="tokens of the prompt's text")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each variant, after warming up")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="as the setting")
    parser.add_argument("--largest", action="store_true", help="find the largest micro-batches instead")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {}
    for size in args.sizes.split(","):
        if args.largest:
            sizes[size] = largest(size, args.gradient_checkpointing, device, args.question)
        else:
            sizes[size] = measure(
                size, args.images, args.rounds, args.gradient_checkpointing, device, args.question
            )
        print(size, json.dumps(sizes[size]), file=sys.stderr, flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(json.dumps({"torch": torch.__version__, "device": name, "sizes": sizes}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
