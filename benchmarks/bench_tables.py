"""Prints the tables of BENCHMARKS.md from what the benchmarks printed.

    python -m benchmarks.bench_tables mtct.json data.json sarr.json ray_llm.json > tables.md

Which benchmark a file is of is seen from its keys. Ratios of times are medians' (or medians of ratios, where
the benchmark takes turns), and above 1 what is named first takes longer.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MTCT_VARIANTS = {
    "shared": "shared prefix",
    "two_pass": "two passes",
    "padded": "one padded batch of both",
    "chains_only": "chains only",
    "trl": "TRL's SFTTrainer",
}


def mtct_tables(result: dict[str, Any]) -> str:
    """A table for each model and shape, a row for each variant."""
    parts = []
    for shapes in result["models"].values():
        for shape, found in shapes.items():
            rows = [
                [
                    title,
                    f"{found[name]['step_s']:.3f}",
                    f"{found[f'{name}_over_shared']:.2f}",
                    f"{found['cpu_over_shared'][name]:.2f}",
                    f"{found[name]['samples_per_s']:.2f}",
                    f"{found[name]['padding_share']:.1%}",
                    f"{found[name]['peak_mib']:.0f}",
                ]
                for name, title in MTCT_VARIANTS.items()
            ]
            title = (
                f"{found['parameters'] / 1e6:.1f} million parameters, {shape}'s shape: {found['images']} "
                f"images in a step, {found['tokens_per_image']:.0f} tokens each, "
                f"{found['prefix_tokens']} of them the prefix; gradients of shared and two passes differ "
                f"by {found['grad_rel_err']:.1e} (relative)"
            )
            header = [
                "variant",
                "step, s",
                "over shared",
                "CPU over shared",
                "images/s",
                "padding",
                "peak, MiB",
            ]
            parts.append(f"{title}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def data_table(result: dict[str, Any]) -> str:
    """A row for each way over each set, and the growth of the stream's memory."""
    rows = [
        [
            f"{result[size]['mb']:.0f} MB",
            way,
            f"{found['images_per_s']:.0f}",
            f"{result[size]['stream']['images_per_s'] / found['images_per_s']:.2f}",
            f"{found['cpu_ms_per_image']:.1f}",
            f"{found['driver_mb'] + found['workers_mb']:.0f}",
        ]
        for size in ("small", "large")
        for way, found in result[size].items()
        if isinstance(found, dict)
    ]
    header = ["set", "way", "images/s", "stream over it", "CPU ms for an image", "peak memory, MB"]
    growth = f"Peak memory of the stream, large set over small one: {result['memory_growth']:.2f}."
    return f"{markdown(header, rows)}\n\n{growth}"


def sarr_tables(result: dict[str, Any]) -> str:
    """Rates and times, then the price of an accepted chain."""
    rates = [[name, ", ".join(str(rate) for rate in found)] for name, found in result["tokens_per_s"].items()]
    numbers = [
        ["pool over bare vLLM", f"{result['pool_over_vllm']:.2f}"],
        ["pool over transformers", f"{result['pool_over_transformers']:.2f}"],
        ["reload over cold start", f"{result['reload_over_cold']:.4f}"],
        ["cold start of an engine, s", f"{result['engine_cold_start_s']}"],
        ["reloads, merge included, s", ", ".join(map(str, result["reload_s"]))],
    ]
    price = [
        [name, f"{tokens:.0f}", f"{result['images_covered'][name]:.1%}"]
        for name, tokens in result["tokens_per_selected"].items()
    ]
    return "\n\n".join(
        [
            markdown(["who writes", "generated tokens/s, by turn"], rates),
            markdown(["what", "measured"], numbers),
            markdown(["sampling", "tokens for each accepted chain", "images with one"], price),
        ]
    )


def ray_llm_table(result: dict[str, Any]) -> str:
    """A row for each of the two that write."""
    rows = [
        [
            name,
            *(
                str(found[key])
                for key in ("first_batch_s", "tokens_per_s", "warm_tokens_per_s", "next_draw_s")
            ),
        ]
        for name, found in (("pool", result["pool"]), ("ray.data.llm", result["ray_llm"]))
    ]
    header = ["who writes", "first batch after, s", "tokens/s over all", "tokens/s after the first batch"]
    return markdown([*header, "a further draw of 8 images, s"], rows)


def memory_table(result: dict[str, Any]) -> str:
    """The driver's memory by number of images."""
    rows = [[size, *map(str, found.values())] for size, found in result.items()]
    return markdown(["images", *(f"{name}" for name in next(iter(result.values())))], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "models": mtct_tables,
    "stream_over_bare": data_table,
    "pool_over_vllm": sarr_tables,
    "pool_over_ray_llm": ray_llm_table,
    "1000": memory_table,
}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def last_object(text: str) -> dict[str, Any]:
    """The JSON object that ends a text; libraries may have printed lines before it."""
    return dict(json.loads(text[text.index("\n{") if not text.startswith("{") else 0 :]))


def main() -> int:
    """Print the tables of each file, under its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files with what benchmarks printed")
    for path in parser.parse_args().results:
        result = last_object(path.read_text())
        makers = [make for key, make in TABLES.items() if key in result]
        if not makers:
            parser.error(f"{path}: not of a benchmark that this knows; one has a key of {list(TABLES)}")
        print(f"### {path.name}\n\n{makers[0](result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
