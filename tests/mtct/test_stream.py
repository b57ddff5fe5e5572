"""What is read from object storage for training, as counted on the wire."""

import json
import os
import subprocess
import sys

import pytest

from rdmldg_ray import storage
from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.datasets.builtin.iconbed import write_iconbed
from rdmldg_ray.datasets.index import sample_index, take_split
from rdmldg_ray.datasets.schema import read_dataset_info, samples_location
from tests.helpers import s3_counter
from tests.helpers.repository import ROOT

SOURCES, HELD_OUT = ("flat", "gradient", "sketch"), "paint"

# A process with a cluster of its own, which inherits the endpoint that counts.
STREAM = """
import json, sys
import ray
from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.config.schema import Config
from rdmldg_ray.config.schema import TrainingConfig
from rdmldg_ray.runtime.session import ray_session
from tests.mtct import test_stream
from rdmldg_ray.mtct.batching import BatchPlan
with ray_session(Config(storage=sys.argv[1])):
    from rdmldg_ray.mtct.stream import training_stream
    wanted = test_stream.training_set(sys.argv[1])
    plan = BatchPlan.make(len(wanted), 2, TrainingConfig(epochs=1, batch_size=64), 0)
    shared = ray.put(wanted)
    rows = training_stream(shared, plan).iter_rows()
    print(json.dumps([sample_id for row in rows for sample_id in row["id"]]))
    last = training_stream(shared, plan, first_step=plan.total_steps - 1).iter_rows()
    print(json.dumps([[row["step"] - plan.total_steps, row["rank"]] for row in last]))
"""


@pytest.fixture
def counted(s3_root, monkeypatch):
    """The embedded data set on S3, and what is read of it from now on."""
    write_iconbed(s3_root)
    with s3_counter.s3_counter(os.environ["AWS_ENDPOINT_URL"]) as (endpoint, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield s3_root, counts


def training_set(root):
    """As MTCT makes it: samples of the source domains with the teacher's chains."""
    info = read_dataset_info(root, "iconbed")
    index = take_split(sample_index(root, info, SOURCES), info, "in", 0, 0.2)
    return attach_chains(index, read_chains(root, "iconbed", "rules", SOURCES), root)


def size_of(root, domain):
    return sum(entry.size for entry in storage.list_entries(samples_location(root, "iconbed", domain)))


def check_counts(root, counts):
    """Nothing of the held-out domain was asked for, and all of the others was read."""
    assert counts.requests_of(f"/{HELD_OUT}/") == 0, counts.requests
    for domain in SOURCES:
        assert counts.bytes_of(f"/chains/rules/{domain}/") > 0
        assert counts.bytes_of(f"/samples/{domain}/") > 0.9 * size_of(root, domain)


def test_the_count_counts(counted):
    root, counts = counted
    [file] = storage.list_files(samples_location(root, "iconbed", HELD_OUT))
    size = len(storage.read_bytes(file))
    assert counts.bytes_of(f"/{HELD_OUT}/") == size == size_of(root, HELD_OUT)


def test_an_index_reads_no_file_with_images(counted):
    root, counts = counted
    training_set(root)
    assert counts.requests_of(f"/{HELD_OUT}/") == 0
    assert counts.requests_of("/samples/") == 0
    for domain in SOURCES:
        assert 0 < counts.bytes_of(f"/index/{domain}/") < 0.1 * size_of(root, domain)


def test_images_of_source_domains_alone_are_read(counted):
    root, counts = counted
    storage.read_images(training_set(root).sort_by([("domain", "ascending"), ("index", "ascending")]))
    check_counts(root, counts)
    for domain in SOURCES:
        assert counts.bytes_of(f"/samples/{domain}/") < 1.5 * size_of(root, domain)


@pytest.mark.slow
def test_the_stream_reads_every_source_image_and_nothing_of_the_held_out_domain(counted):
    root, counts = counted
    wanted = training_set(root)["id"].to_pylist()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", STREAM, root], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    seen, last = map(json.loads, done.stdout.splitlines()[-2:])
    assert sorted(seen) == sorted(wanted)
    assert last == [[-1, 0], [-1, 1]]
    check_counts(root, counts)
