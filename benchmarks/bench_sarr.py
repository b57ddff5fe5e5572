"""Times the engine pool against bare vLLM and transformers: in one run, alternating.

    python -m benchmarks.bench_sarr --adapter <run>/flat/mtct/adapter > bench.json

Three ways write chains for the same images, under the same prompt, sampling and number of threads:

    pool          EnginePool with one engine, from the images on storage to the table of answers
    vllm          vllm.LLM.generate over all prompts at once, its images decoded before
    transformers  generate() in batches, its images processed within

Every turn has images of its own, so that no cache of an earlier turn helps. A rate is generated tokens
by wall time, a ratio the median over turns. Then one round of SARR is drawn twice, until accepted and
with a fixed number of draws, to compare the price of an accepted chain.

    python -m benchmarks.bench_sarr --driver-memory 1000 20000

measures something else: the driver's memory in rounds of so many images (IconBed's, repeated under
other ids, with chains of four tokens).

With ``engines.gpus_per_engine=1`` each of the three takes a GPU of its own. On a machine with one they share
it, where Ray is told of three and that it leaves CUDA_VISIBLE_DEVICES alone:

    export RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1
    ray start --head --num-gpus 3
    RAY_ADDRESS=127.0.0.1:6379 python -m benchmarks.bench_sarr engines.gpus_per_engine=1 \\
        workers.gpus_per_worker=1 engines.gpu_memory_utilization=0.3
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import ray

from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config, SarrConfig
from rdmldg_ray.datasets.builtin.iconbed import iconbed_info, write_iconbed
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.index import sample_index, take_split
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.engines.engine import GenerationRequest
from rdmldg_ray.engines.pool import EnginePool, engine_environment
from rdmldg_ray.models.folder import model_folder
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.runtime.session import ray_session
from rdmldg_ray.sarr.round import generate_round
from rdmldg_ray.storage import read_images

TEMPERATURE = 0.7
SEED = 0
WARM_UP_IMAGES = 16
MIB = 2**20


class BareVllm:
    """``vllm.LLM`` as anyone would use it."""

    def __init__(self, config: Config, model: str, class_names: list[str]):
        from vllm import LLM, SamplingParams

        from rdmldg_ray.chains.pathways import PathwayPrompts
        from rdmldg_ray.models.loading import load_processor

        self.prompt = PathwayPrompts(load_processor(Path(model)), class_names).reasoning_text
        self.sampling = SamplingParams(
            temperature=TEMPERATURE, max_tokens=config.sarr.max_new_tokens, logprobs=0, seed=SEED
        )
        started = time.perf_counter()
        self.llm = LLM(
            model,
            dtype=config.engines.dtype,
            max_model_len=config.model.max_length,
            limit_mm_per_prompt={"image": 1},
            mm_processor_kwargs=config.model.mm_processor_kwargs or None,
            disable_log_stats=True,
            **(
                {"gpu_memory_utilization": config.engines.gpu_memory_utilization}
                if config.engines.gpus_per_engine
                else {"enforce_eager": True, "enable_chunked_prefill": False}
            ),
        )
        self.cold_start = time.perf_counter() - started

    def generate(self, images: list[bytes]) -> tuple[int, float]:
        """Generated tokens, and seconds."""
        prompts: Any = [
            {"prompt": self.prompt, "multi_modal_data": {"image": decode_image("", image)}}
            for image in images
        ]
        started = time.perf_counter()
        outputs = self.llm.generate(prompts, self.sampling, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs), time.perf_counter() - started

    def seconds_to_start(self) -> float:
        """What it took to be ready."""
        return self.cold_start


class Transformers:
    """``generate()`` of transformers, in batches."""

    def __init__(self, config: Config, model: str, class_names: list[str]):
        import torch

        from rdmldg_ray.chains.pathways import PathwayPrompts
        from rdmldg_ray.models.loading import load_base, load_processor

        torch.manual_seed(SEED)
        self.batch_size = config.engines.batch_size
        self.max_new_tokens = config.sarr.max_new_tokens
        self.settings = config.model.mm_processor_kwargs
        self.device = "cuda" if config.engines.gpus_per_engine else "cpu"
        base: Any = load_base(Path(model), config.model)
        self.model = base.to(self.device).eval()
        self.processor = load_processor(Path(model))
        self.processor.tokenizer.padding_side = "left"
        self.prompt = PathwayPrompts(self.processor, class_names).reasoning_text

    def generate(self, images: list[bytes]) -> tuple[int, float]:
        """Generated tokens, and seconds."""
        import torch

        started = time.perf_counter()
        tokens = 0
        for first in range(0, len(images), self.batch_size):
            batch = [[decode_image("", image)] for image in images[first : first + self.batch_size]]
            inputs = self.processor(
                text=[self.prompt] * len(batch),
                images=batch,
                padding=True,
                return_tensors="pt",
                **self.settings,
            ).to(self.device, self.model.dtype)
            with torch.inference_mode():
                ids = self.model.generate(
                    **inputs, do_sample=True, temperature=TEMPERATURE, max_new_tokens=self.max_new_tokens
                )
            answers = ids[:, inputs["input_ids"].shape[1] :]
            ended = (answers == self.processor.tokenizer.eos_token_id).int()
            # Each answer up to and with its end, as vLLM counts; what follows it is padding.
            tokens += int((ended.cumsum(dim=1) - ended == 0).sum())
        return tokens, time.perf_counter() - started


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--recipe", default="iconbed")
    parser.add_argument("--held-out", default="flat")
    parser.add_argument("--adapter", help="an adapter that a training left; without it the base")
    parser.add_argument("--images", type=int, default=128, help="images in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--round-images", type=int, default=192, help="images in the two rounds")
    parser.add_argument("--driver-memory", type=int, nargs="+", help="numbers of images")
    parser.add_argument("--engines", type=int, default=1, help="for --driver-memory")
    arguments = parser.parse_args()
    engines = arguments.engines if arguments.driver_memory else 1
    with tempfile.TemporaryDirectory() as root:
        write_iconbed(root)
        overrides = [
            f"storage={root}",
            f"engines.num_engines={engines}",
            f"data.held_out={arguments.held_out}",
            *arguments.overrides,
        ]
        config = load_config(arguments.recipe, overrides)
        with ray_session(config):
            what = driver_memory if arguments.driver_memory else measure
            result = what(config, arguments, Path(root))
    print(json.dumps(result, indent=2))


def measure(config: Config, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures, by name."""
    info = iconbed_info()
    samples = source_images(config, info, arguments.held_out)
    classes = list(info.classes)
    merged = merged_model(config, arguments.adapter, folder)

    started = time.perf_counter()
    pool = EnginePool(config, classes)
    cold = pool.load(arguments.adapter)
    pool_start = time.perf_counter() - started
    reloads = [pool.load(arguments.adapter).seconds for _ in range(3)]
    say(f"pool: start {pool_start:.1f} s, of it the engine {cold.seconds:.1f} s; reloads {reloads}")

    options: dict[str, Any] = {
        "num_cpus": config.engines.cpus_per_engine,
        "num_gpus": config.engines.gpus_per_engine,
        "runtime_env": {
            "env_vars": engine_environment(config.engines) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        },
    }
    say("vllm starts")
    bare: Any = ray.remote(BareVllm).options(**options).remote(config, merged, classes)
    bare_start = ray.get(bare.seconds_to_start.remote())
    plain: Any = ray.remote(Transformers).options(**options).remote(config, merged, classes)

    ways = {
        "pool": lambda part: run_pool(pool, part, config.sarr),
        "vllm": lambda part: ray.get(bare.generate.remote(read_images(part))),
        "transformers": lambda part: ray.get(plain.generate.remote(read_images(part))),
    }
    warm_up = samples.slice(0, WARM_UP_IMAGES)
    for way in ways.values():
        way(warm_up)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.turns):
        part = samples.slice(WARM_UP_IMAGES + turn * arguments.images, arguments.images)
        for name, way in ways.items():
            tokens, seconds = way(part)
            rates[name].append(tokens / seconds)
            say(f"turn {turn}: {name} {tokens} tokens in {seconds:.1f} s, {tokens / seconds:.0f}/s")
    for actor in (bare, plain):
        ray.kill(actor)

    rounds = {}
    chosen = samples.slice(0, arguments.round_images)
    for name, sampling in (("until_accepted", "until_accepted"), ("fixed_k", "fixed")):
        sarr = config.sarr.model_copy(update={"sampling": sampling, "max_attempts": 4})
        location = str(folder / name)
        rounds[name] = generate_round(
            writer=pool,
            samples=chosen,
            class_names=classes,
            config=sarr,
            seed=SEED,
            model="bench",
            location=location,
            progress=lambda *_: None,
        )
        say(f"{name}: {rounds[name]}")
    pool.close()

    def ratio(other: str) -> float:
        pairs = zip(rates["pool"], rates[other], strict=True)
        return round(statistics.median(ours / theirs for ours, theirs in pairs), 3)

    return {
        "pool_over_vllm": ratio("vllm"),
        "pool_over_transformers": ratio("transformers"),
        "reload_over_cold": round(statistics.median(reloads) / cold.seconds, 4),
        "tokens_per_selected": {name: summary["tokens_per_selected"] for name, summary in rounds.items()},
        "images_covered": {
            name: round(summary["images_with_chain"] / summary["images"], 3)
            for name, summary in rounds.items()
        },
        "tokens_per_s": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "pool_start_s": round(pool_start, 1),
        "engine_cold_start_s": round(cold.seconds, 1),
        "vllm_cold_start_s": round(bare_start, 1),
        "reload_s": [round(seconds, 2) for seconds in reloads],
        "parity": cold.parity,
        "images_per_turn": arguments.images,
        "cpus": os.cpu_count(),
    }


def driver_memory(config: Config, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The driver's own memory, in MiB, before a round and at most within it, by number of images."""
    info = iconbed_info()
    samples = source_images(config, info, arguments.held_out)
    sarr = config.sarr.model_copy(update={"max_attempts": 1, "max_new_tokens": 4})
    pool = EnginePool(config, list(info.classes))
    pool.load(arguments.adapter)
    result = {}
    for size in arguments.driver_memory:
        rows = samples.take([number % len(samples) for number in range(size)])
        ids = [f"{sample_id}#{number}" for number, sample_id in enumerate(rows["id"].to_pylist())]
        rows = rows.set_column(rows.column_names.index("id"), "id", pa.array(ids))
        location = str(folder / str(size))
        gc.collect()
        with peak_memory() as memory:
            summary = generate_round(
                writer=pool,
                samples=rows,
                class_names=list(info.classes),
                config=sarr,
                seed=SEED,
                model="bench",
                location=location,
                progress=lambda *_: None,
            )
        assert summary["candidates"] == size
        result[str(size)] = {name: round(mib) for name, mib in memory.items()}
        say(f"{size} images: {result[str(size)]}")
    pool.close()
    return result


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Memory of this process in MiB: ``before``, the ``peak`` so far, and the ``seconds``.

    Resident memory without what it shares, which is Ray's object store: pages of it count as soon as an
    image has passed through them.
    """
    process = psutil.Process()

    def own() -> float:
        memory = process.memory_info()
        return float(memory.rss - memory.shared) / MIB

    memory = {"before": own(), "peak": 0.0}
    ended = threading.Event()
    started = time.perf_counter()

    def watch() -> None:
        while not ended.wait(0.1):
            memory["peak"] = max(memory["peak"], own())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()
        memory["seconds"] = time.perf_counter() - started


def source_images(config: Config, info: DatasetInfo, held_out: str) -> pa.Table:
    """The source domains' training images, mixed the same way every time."""
    sources = [domain for domain in info.environments if domain != held_out]
    index = sample_index(config.storage, info, sources)
    index = take_split(
        index=index,
        info=info,
        split="in",
        trial_seed=config.data.trial_seed,
        holdout_fraction=config.data.holdout_fraction,
    )
    # Neighbours are of one class and domain; steps of a prime number of rows mix them.
    return index.take([number * 97 % len(index) for number in range(len(index))])


def merged_model(config: Config, adapter: str | None, folder: Path) -> str:
    """The model folder that bare vLLM and transformers load."""
    if adapter is None:
        return str(model_folder(config.model.path))
    from rdmldg_ray.models.loading import save_merged

    save_merged(model_folder(config.model.path), Path(adapter), config.model, folder / "merged")
    return str(folder / "merged")


def run_pool(pool: EnginePool, part: pa.Table, config: SarrConfig) -> tuple[int, float]:
    """Generated tokens, and seconds."""
    request = GenerationRequest(
        pathway="reasoning",
        candidate=0,
        temperature=TEMPERATURE,
        top_p=1.0,
        max_new_tokens=config.max_new_tokens,
        seed=SEED,
    )
    started = time.perf_counter()
    tokens = sum(sum(answers["num_tokens"].to_pylist()) for answers in pool.generate(part, request))
    return tokens, time.perf_counter() - started


def say(text: str) -> None:
    """A line on how it goes; the result alone goes to the standard output."""
    plain_console(file=sys.stderr).print(text)


if __name__ == "__main__":
    main()
