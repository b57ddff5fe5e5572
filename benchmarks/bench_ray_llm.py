"""Times the engine pool against Ray's own ``ray.data.llm``: in one run, one after the other.

    python -m benchmarks.bench_ray_llm --adapter <run>/flat/mtct/adapter > ray_llm.json

Both have one engine with the same settings and write chains for the same images, in batches of the same
size. ``ray.data.llm`` starts its engine within each execution of a data set and ends it there, so two
rates are told of each: ``tokens_per_s`` over all, from nothing to the last answer, and ``warm_tokens_per_s``
after the first batch of answers. ``next_draw_s`` is what a further draw of a few images takes.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.bench_sarr import SEED, TEMPERATURE, merged_model, say, source_images
from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.iconbed import iconbed_info, write_iconbed
from rdmldg_ray.datasets.images import decode_image
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.engines.engine import GenerationRequest
from rdmldg_ray.engines.pool import EnginePool, engine_environment
from rdmldg_ray.runtime.session import ray_session
from rdmldg_ray.storage import read_images

HELD_OUT = "flat"
SETTINGS = ["engines.num_engines=1", "engines.batch_size=64"]
NEXT_DRAW = 8


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--adapter", help="an adapter that a training left; without it the base")
    parser.add_argument("--images", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        write_iconbed(root)
        config = load_config("iconbed", [f"storage={root}", f"data.held_out={HELD_OUT}", *SETTINGS])
        info = iconbed_info()
        samples = source_images(config, info, HELD_OUT).slice(0, arguments.images)
        with ray_session(config):
            ours = time_pool(config, info, arguments.adapter, samples)
            say(f"pool: {ours}")
            model = merged_model(config, arguments.adapter, Path(root))
            theirs = time_ray_llm(config, info, model, samples)
            say(f"ray.data.llm: {theirs}")
    result = {
        "pool_over_ray_llm": round(ours["tokens_per_s"] / theirs["tokens_per_s"], 3),
        "warm_pool_over_ray_llm": round(ours["warm_tokens_per_s"] / theirs["warm_tokens_per_s"], 3),
        "images": arguments.images,
        "pool": ours,
        "ray_llm": theirs,
    }
    print(json.dumps(result, indent=1))


def time_pool(config: Config, info: DatasetInfo, adapter: str | None, samples: pa.Table) -> dict[str, Any]:
    """From the start of an engine to the last answer, and a further draw."""

    def draw(attempt: int, rows: pa.Table) -> Iterator[int]:
        request = GenerationRequest(
            pathway="reasoning",
            candidate=attempt,
            temperature=TEMPERATURE,
            top_p=1.0,
            max_new_tokens=config.sarr.max_new_tokens,
            seed=SEED,
        )
        for answers in pool.generate(rows, request):
            yield sum(answers["num_tokens"].to_pylist())

    started = time.perf_counter()
    pool = EnginePool(config, list(info.classes))
    pool.load(adapter)
    result = timed(started, draw(0, samples))
    started = time.perf_counter()
    timed(started, draw(1, samples.slice(0, NEXT_DRAW)))
    next_draw = time.perf_counter() - started
    pool.close()
    return {**result, "next_draw_s": round(next_draw, 1)}


def time_ray_llm(config: Config, info: DatasetInfo, model: str, samples: pa.Table) -> dict[str, Any]:
    """The same with Ray's processor, the images decoded on their way to it."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from rdmldg_ray.chains.pathways import PathwayPrompts
    from rdmldg_ray.models.loading import load_processor

    batch_size = config.engines.batch_size
    prompt = PathwayPrompts(load_processor(Path(model)), list(info.classes)).reasoning_text
    sampling = {"temperature": TEMPERATURE, "max_tokens": config.sarr.max_new_tokens, "seed": SEED}
    # Images are put in by the prompt's own tokens, and nothing is left to template or tokenize.
    no_stages = dict.fromkeys(
        ("prepare_multimodal_stage", "chat_template_stage", "tokenize_stage", "detokenize_stage"), False
    )
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=model,
            engine_kwargs={
                "dtype": config.engines.dtype,
                "max_model_len": config.model.max_length,
                "limit_mm_per_prompt": {"image": 1},
                "enforce_eager": True,
                "enable_chunked_prefill": False,
                "distributed_executor_backend": "mp",
            },
            runtime_env={
                "env_vars": engine_environment(config.engines) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
            },
            placement_group_config={"bundle_per_worker": {"CPU": 0.25}},
            batch_size=batch_size,
            concurrency=1,
            # Ray 2.60 takes its own vLLM metrics for missing otherwise:
            # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/llm/_internal/serve/engines/vllm/vllm_engine.py#L622-L628
            log_engine_metrics=False,
            **no_stages,
        ),
        preprocess=lambda row: {
            "prompt": prompt,
            "multimodal_data": {"image": decode_image(row["id"], row["image"])},
            "sampling_params": {**sampling, "logprobs": 0},
        },
        postprocess=lambda row: {"tokens": row["num_generated_tokens"]},
    )

    def draw(rows: pa.Table) -> Iterator[int]:
        table = pa.table({"id": rows["id"], "image": pa.array(read_images(rows), pa.binary())})
        blocks = [table.slice(start, batch_size) for start in range(0, len(table), batch_size)]
        for batch in processor(ray.data.from_blocks(blocks)).iter_batches(batch_size=None):
            yield int(batch["tokens"].sum())

    started = time.perf_counter()
    result = timed(started, draw(samples))
    started = time.perf_counter()
    timed(started, draw(samples.slice(0, NEXT_DRAW)))
    return {**result, "next_draw_s": round(time.perf_counter() - started, 1)}


def timed(started: float, token_counts: Iterable[int]) -> dict[str, float]:
    """Rates of a way that yields the tokens of its batches as they come."""
    arrivals = [(count, time.perf_counter()) for count in token_counts]
    first, last = arrivals[0][1], arrivals[-1][1]
    total = sum(count for count, _ in arrivals)
    result = {
        "tokens": total,
        "first_batch_s": round(first - started, 1),
        "seconds": round(last - started, 1),
        "tokens_per_s": round(total / (last - started), 1),
    }
    if last > first:
        result["warm_tokens_per_s"] = round((total - arrivals[0][0]) / (last - first), 1)
    return result


if __name__ == "__main__":
    main()
