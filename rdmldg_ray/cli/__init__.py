"""``rdmldg``: parses, calls ``rdmldg_ray.api``, prints."""

from rdmldg_ray.cli.base import app

# Importing a module adds its commands; --help lists them in this order.
# isort: off
from rdmldg_ray.cli import runs
from rdmldg_ray.cli import listing
from rdmldg_ray.cli import status
from rdmldg_ray.cli import report
from rdmldg_ray.cli import outputs
from rdmldg_ray.cli import protocol
from rdmldg_ray.cli import sweep
from rdmldg_ray.cli import analyze
from rdmldg_ray.cli import data
from rdmldg_ray.cli import annotate
from rdmldg_ray.cli import submit
from rdmldg_ray.cli import doctor
from rdmldg_ray.cli import settings
# isort: on

__all__ = [
    "analyze",
    "annotate",
    "app",
    "data",
    "doctor",
    "listing",
    "outputs",
    "protocol",
    "report",
    "runs",
    "settings",
    "status",
    "submit",
    "sweep",
]
