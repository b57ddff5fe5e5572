"""``rdmldg``: a thin door. Parses, calls, prints."""

from rdmldg_ray.cli.base import app

# Importing a module adds its commands; --help lists them in this order.
from rdmldg_ray.cli import runs, sarr, protocol, sweep, analyze, data, annotate, submit, doctor, estimates  # isort: skip

__all__ = [
    "analyze",
    "annotate",
    "app",
    "data",
    "doctor",
    "estimates",
    "protocol",
    "runs",
    "sarr",
    "submit",
    "sweep",
]
