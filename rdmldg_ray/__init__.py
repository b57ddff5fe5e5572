"""RD-MLDG on Ray: domain generalization of multimodal LLMs by reasoning.

    from rdmldg_ray import load_config, run

    results = run(load_config("demo", ["sarr.rounds=2"]))

The names below are loaded when they are first used: importing the package imports neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmldg_ray.api import annotate, evaluate, ingest, read_run, run
    from rdmldg_ray.config.load import load_config
    from rdmldg_ray.config.schema import Config
    from rdmldg_ray.runs.results import RunResults

__version__ = "0.1.0"
__all__ = ["Config", "RunResults", "annotate", "evaluate", "ingest", "load_config", "read_run", "run"]

_HOMES = {"Config": "config.schema", "load_config": "config.load", "RunResults": "runs.results"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rdmldg_ray' has no attribute '{name}'")
    return getattr(import_module(f"rdmldg_ray.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
