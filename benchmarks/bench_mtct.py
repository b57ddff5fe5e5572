"""Times a training step with the shared prefix against what it replaces: in one run, alternating.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_mtct --rounds 5 > bench.json

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
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.bench_mtct_variants import LEARNING_RATE, SHAPES, Data, Ours, Row, Shape, Timings, build
from rdmldg_ray.config.schema import LoraConfig
from rdmldg_ray.models.families import FAMILIES
from rdmldg_ray.models.loading import add_lora


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
    trl = train_with_trl(
        model=base, lora=adapted.peft_config["default"], data=data, batches=batches, between=ours.round
    )
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
