"""``rdmldg``: a thin door. Parses, calls, prints."""

from rdmldg_ray.cli.base import app

# Importing a module adds its commands; --help lists them in this order.
from rdmldg_ray.cli import runs, report, sarr, protocol, sweep, analyze  # isort: skip
from rdmldg_ray.cli import data, annotate, submit, estimates, doctor  # isort: skip

__all__ = [
    "analyze",
    "annotate",
    "app",
    "data",
    "doctor",
    "estimates",
    "protocol",
    "report",
    "runs",
    "sarr",
    "submit",
    "sweep",
]
