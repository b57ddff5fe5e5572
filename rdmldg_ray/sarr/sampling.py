"""Draw candidates: for every image once, then again only where none was accepted; or k times for all."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.config.schema import SarrConfig
from rdmldg_ray.datasets.schema import question_columns
from rdmldg_ray.engines.answer_log import Writer
from rdmldg_ray.engines.engine import GenerationRequest
from rdmldg_ray.sarr.candidates import judge_answers, label_probabilities
from rdmldg_ray.sarr.filter import is_hopeless


def draw_candidates(
    writer: Writer,
    samples: pa.Table,
    class_names: list[str],
    config: SarrConfig,
    seed: int,
    write: Callable[[pa.Table], None],
    progress: Callable[[int, int, str], None],
) -> None:
    """Draw candidates for the samples of an index and hand them to ``write`` as they come.

    Every candidate is written, accepted or not, so that other thresholds can be tried without
    generating again. An image that does not decode, or whose label is too improbable for the
    filter, is drawn once: no other draw could be accepted.

    Args:
        samples: an index, with ``label``.
        write: takes a table in ``CANDIDATE_SCHEMA``.
        progress: takes the number of candidates drawn, of those to draw, and a word on how it goes.
    """
    facts = samples.select(["id", "label", "domain", *question_columns(samples)])
    label_probs: dict[str, float] = {}
    with_chain: set[str] = set()
    hopeless: set[str] = set()
    pending, drawn = samples, 0
    for number in range(config.max_attempts):
        temperature = config.temperatures[min(number, len(config.temperatures) - 1)]
        request = GenerationRequest(
            pathway="reasoning",
            candidate=number,
            temperature=temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            seed=seed,
            score_label=number == 0,  # it does not change with the draw
        )
        drawn_before = drawn
        for answers in writer.generate(pending, request):
            label_probs |= label_probabilities(answers)
            # Those of this batch alone: rows of a large index as Python's dicts would fill the driver.
            wanted = facts.filter(pc.is_in(facts["id"], answers["id"].combine_chunks()))
            known = {row["id"]: row for row in wanted.to_pylist()}
            candidates = judge_answers(
                answers=answers,
                samples=known,
                label_probs=label_probs,
                class_names=class_names,
                config=config.filter,
            )
            write(candidates)
            rows = candidates.to_pylist()
            with_chain.update(row["id"] for row in rows if row["accepted"])
            hopeless.update(row["id"] for row in rows if is_hopeless(row, config.filter))
            drawn += len(rows)
            text = f"candidate {number + 1}, {len(with_chain)}/{len(samples)} images with a chain"
            progress(drawn, drawn_before + len(pending), text)
        assert drawn - drawn_before == len(pending), "the engines lost or doubled an image"
        done = hopeless | (with_chain if config.sampling == "until_accepted" else set())
        pending = pending.filter(pa.array([i not in done for i in pending["id"].to_pylist()], pa.bool_()))
        if not len(pending):
            break
