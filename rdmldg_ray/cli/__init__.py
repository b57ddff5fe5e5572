"""``rdmldg``: a thin door. Parses, calls, prints."""

from rdmldg_ray.cli.base import app

# Importing a module adds its commands; --help lists them in this order.
# isort: off
from rdmldg_ray.cli import runs, status, report, sarr, protocol, sweep
from rdmldg_ray.cli import analyze, data, annotate, submit, doctor

# isort: on

__all__ = [
    "analyze",
    "annotate",
    "app",
    "data",
    "doctor",
    "protocol",
    "report",
    "runs",
    "sarr",
    "status",
    "submit",
    "sweep",
]
