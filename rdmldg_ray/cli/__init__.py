"""``rdmldg``: a thin door. Parses, calls, prints."""

from rdmldg_ray.cli.base import app

# Importing a module adds its commands; --help lists them in this order.
# isort: off
from rdmldg_ray.cli import runs
from rdmldg_ray.cli import status
from rdmldg_ray.cli import report
from rdmldg_ray.cli import sarr
from rdmldg_ray.cli import protocol
from rdmldg_ray.cli import sweep
from rdmldg_ray.cli import analyze
from rdmldg_ray.cli import data
from rdmldg_ray.cli import annotate
from rdmldg_ray.cli import estimates
from rdmldg_ray.cli import submit
from rdmldg_ray.cli import doctor
# isort: on

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
    "status",
    "submit",
    "sweep",
]
