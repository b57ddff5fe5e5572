"""The control path at the size of a large benchmark: what the driver holds as a data set grows.

    python -m tools.scale.control_path --samples 10000 100000

Everything but the models is real: a tar of 1-pixel images is ingested, split as DomainBed splits, given
chains, streamed in the plan's order to two consumers that decode every image, and as many candidates, two for
an image and every third of them wrong, are judged by SARR's filter. Each size runs in a process of its own
with a Ray of its own. Prints one JSON object, last: by size, the seconds of each step and the driver's peak
memory in it (resident, without what it shares with others, in MB), and ``growth``: the peak of the largest
size over that of the smallest.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from PIL import Image

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.chains.prompts import PROMPT_VERSION
from rdmldg_ray.chains.store import write_chains
from rdmldg_ray.config.load import load_config
from rdmldg_ray.config.schema import SarrConfig, TrainingConfig
from rdmldg_ray.datasets.builtin.iconbed import RULES
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.ingest.plan import plan_ingest
from rdmldg_ray.datasets.ingest.writing import ingest
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, DatasetInfo
from rdmldg_ray.mtct.batching import BatchPlan
from rdmldg_ray.runs.stage_data import StageData
from rdmldg_ray.runs.store import Stage
from rdmldg_ray.runtime.remote import in_task
from rdmldg_ray.runtime.session import ray_session
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA, judge_answers
from rdmldg_ray.sarr.selection import select_chains, write_candidates
from rdmldg_ray.storage import join

# As DomainNet, which has 586,575 images of 345 classes in 6 domains.
DOMAINS = tuple(f"domain_{number}" for number in range(6))
CLASSES = tuple(f"class_{number:03d}" for number in range(345))
NAME = "scale"
CONSUMERS = 2
BATCH = 256
WORDS = "the form and the parts that are seen here point to one kind of thing rather than to another"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000], help="sizes to try")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        [samples] = options.samples
        with tempfile.TemporaryDirectory(prefix="scale") as folder:
            print(json.dumps(control_path(folder, samples)))
        return
    results = {samples: in_own_process(samples) for samples in sorted(options.samples)}
    peaks = [result["driver_peak_mb"] for result in results.values()]
    print(json.dumps({"growth": round(peaks[-1] / peaks[0], 3), "sizes": results}, indent=1))


def in_own_process(samples: int) -> dict[str, Any]:
    """So that one size's memory is not another's."""
    command = [sys.executable, "-m", "tools.scale.control_path", "--one", "--samples", str(samples)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def control_path(folder: str, samples: int) -> dict[str, Any]:
    """All steps over so many images; returns seconds and memory."""
    archive = Path(folder) / "images.tar"
    # In another process: what builds the input is no part of the driver.
    if os.fork() == 0:
        write_archive(archive, samples)
        os._exit(0)
    assert os.wait()[1] == 0
    root = str(Path(folder) / "store")
    measured = Measured()
    config = load_config("demo", [f"data.dataset={NAME}", f"storage={root}"])
    with ray_session(config):
        with measured.step("start"):
            time.sleep(1)
        with measured.step("ingest"):
            info = ingest(plan_ingest(str(archive), root, NAME))
        assert sum(info.counts.values()) == samples
        in_task(write_rule_chains, root, info)  # what makes the input is no part of the driver
        with measured.step("split"):
            training_set, _ = in_task(StageData(config, info).training_set, Stage(DOMAINS[0], "mtct", 0))
        with measured.step("stream"):
            seen, checksum = stream(training_set)
        assert seen == len(training_set), f"{seen} of {len(training_set)} images came"
        assert checksum == sum(zlib.crc32(i.as_py().encode()) for i in training_set["id"]), "not each once"
        rounds = join(root, "round")
        in_task(write_rule_candidates, rounds, training_set)
        del training_set
        with measured.step("filter"):
            summary = in_task(select_chains, rounds, rounds, list(info.classes), SarrConfig())
    assert summary["candidates"] == 2 * seen and summary["images_with_chain"] == seen
    shutil.rmtree(root)
    return {
        "trained_on": seen,
        "candidates": summary["candidates"],
        "accepted": summary["accepted"],
        "driver_peak_mb": max(measured.peak_mb.values()),
        "peak_mb": measured.peak_mb,
        "seconds": measured.seconds,
    }


def stream(training_set: pa.Table) -> tuple[int, int]:
    """One epoch to consumers that stand for train workers.

    Returns:
        How many images they decoded, and the sum of their ids' checksums.
    """
    import ray

    from rdmldg_ray.mtct.stream import stream_options, training_stream

    @ray.remote(num_cpus=0.5)
    def consume(shard: Any, rank: int) -> tuple[int, int]:
        from rdmldg_ray.datasets.images import decode_image

        count = checksum = 0
        for row in shard.iter_rows():
            assert row["rank"] == rank
            for sample_id, image in zip(row["id"], row["image"], strict=True):
                decode_image(sample_id, image)
                checksum += zlib.crc32(sample_id.encode())
            count += len(row["id"])
        return count, checksum

    training = TrainingConfig(epochs=1, batch_size=BATCH, micro_batch_size=BATCH // CONSUMERS)
    plan = BatchPlan.make(len(training_set), CONSUMERS, training, seed=0)
    data = training_stream(ray.put(training_set), plan)
    data.context.execution_options = stream_options(CONSUMERS)
    shards = data.streaming_split(CONSUMERS, equal=False)
    done = ray.get([consume.remote(shard, rank) for rank, shard in enumerate(shards)])
    return sum(count for count, _ in done), sum(checksum for _, checksum in done)


def write_archive(archive: Path, samples: int) -> None:
    """A tar of 1-pixel images, spread over domains and classes."""
    sink = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 30, 30)).save(sink, "PNG")
    with tarfile.open(archive, "w") as tar:
        for number in range(samples):
            domain = DOMAINS[number % len(DOMAINS)]
            label = CLASSES[number // len(DOMAINS) % len(CLASSES)]
            entry = tarfile.TarInfo(f"{domain}/{label}/{number:07d}.png")
            entry.size = len(sink.getvalue())
            tar.addfile(entry, io.BytesIO(sink.getvalue()))


def chain(label: str) -> str:
    """A chain of about the length of those of the rules."""
    return render_chain({**dict.fromkeys(SECTIONS, WORDS), "CONCLUSION": label.replace("_", " ")})


def write_rule_chains(root: str, info: DatasetInfo) -> None:
    """A teacher's chains for every sample."""
    tables = {}
    for domain in info.environments:
        index = sample_index(root, info, [domain])
        rows = len(index)
        texts = {label: chain(label) for label in CLASSES}
        columns = {
            "id": index["id"],
            "candidate": pa.array([0] * rows, pa.int32()),
            "text": pa.array([texts[label] for label in index["label"].to_pylist()]),
            "conclusion": index["label"],
            "accepted": pa.array([True] * rows),
            "reason": pa.nulls(rows, pa.string()),
            "prompt_version": pa.array([PROMPT_VERSION] * rows),
            "model": pa.array([RULES] * rows),
            "image_sha256": index["sha256"],
        }
        tables[domain] = pa.table(columns, schema=CHAIN_SCHEMA)
    write_chains(root, NAME, RULES, tables)


def write_rule_candidates(location: str, training_set: pa.Table, draws: int = 2) -> None:
    """Candidates as a round writes them, batch by batch; every third concludes wrongly."""
    part = 0
    for attempt in range(draws):
        for start in range(0, len(training_set), BATCH):
            rows = training_set.slice(start, BATCH).select(["id", "label", "domain"]).to_pylist()
            answers = [
                {
                    "id": row["id"],
                    "candidate": attempt,
                    "text": chain("class 999" if (start + n + attempt) % 3 == 0 else row["label"]),
                    "num_tokens": 100,
                    "logprob": -10.0,
                    "finished": True,
                    "error": None,
                }
                for n, row in enumerate(rows)
            ]
            known = {row["id"]: row for row in rows}
            judged = judge_answers(
                answers=pa.Table.from_pylist(answers),
                samples=known,
                label_probs={},
                class_names=list(CLASSES),
                config=SarrConfig().filter,
            )
            assert judged.schema.names == CANDIDATE_SCHEMA.names
            write_candidates(location, part, judged)
            part += 1


class Measured:
    """Seconds of steps, and this process's peak memory in each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        finished = threading.Event()
        peak = [private_mb()]

        def watch() -> None:
            while not finished.wait(0.05):
                peak.append(max(peak.pop(), private_mb()))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 1)
            finished.set()
            watcher.join()
            self.peak_mb[name] = round(peak[0], 1)
            print(f"{name}: {self.seconds[name]} s, {self.peak_mb[name]} MB", file=sys.stderr, flush=True)


def private_mb() -> float:
    """Resident memory that is not shared: without the object store's, which all processes map."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 1e6


if __name__ == "__main__":
    main()
