"""One round of SARR before its training: draw candidates, judge them, keep the best."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from rdmldg_ray.chains.prompts import PROMPT_VERSION
from rdmldg_ray.config.schema import SarrConfig
from rdmldg_ray.engines.answer_log import Writer
from rdmldg_ray.runtime.remote import in_task
from rdmldg_ray.sarr.sampling import draw_candidates
from rdmldg_ray.sarr.selection import CANDIDATES_FOLDER, select_chains, write_candidates
from rdmldg_ray.storage import delete_folder, join


def generate_round(
    writer: Writer,
    samples: pa.Table,
    class_names: list[str],
    config: SarrConfig,
    seed: int,
    model: str,
    location: str,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Let the model write chains for the samples of an index; see ``sarr.selection`` for what it leaves.

    Args:
        writer: an engine pool, or what stands before one.
        model: the name of what writes, which is kept with every candidate.
        location: the round's folder.

    Returns:
        The round's summary.
    """
    delete_folder(join(location, CANDIDATES_FOLDER))  # what an interrupted attempt left
    parts = 0

    def write(candidates: pa.Table) -> None:
        nonlocal parts
        for name, value in (("prompt_version", PROMPT_VERSION), ("model", model)):
            candidates = candidates.append_column(name, pa.array([value] * len(candidates), pa.string()))
        write_candidates(location, parts, candidates)
        parts += 1

    draw_candidates(
        writer=writer,
        samples=samples,
        class_names=class_names,
        config=config,
        seed=seed,
        write=write,
        progress=progress,
    )
    return in_task(select_chains, location, location, class_names, config)
