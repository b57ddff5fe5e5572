"""Sample until accepted: draw a chain for every image, then again only where none was kept."""

from collections.abc import Callable

import pyarrow as pa

from rdmldg_ray.config import SarrConfig
from rdmldg_ray.engines.engine import Request
from rdmldg_ray.engines.pool import EnginePool
from rdmldg_ray.sarr.filter import judge

CANDIDATE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("domain", pa.string()),
        ("candidate", pa.int32()),
        ("text", pa.string()),
        ("conclusion", pa.string()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("num_tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("finished", pa.bool_()),
    ]
)


def sample_until_accepted(
    pool: EnginePool,
    samples: pa.Table,
    class_names: list[str],
    config: SarrConfig,
    seed: int,
    write: Callable[[pa.Table], None],
    progress: Callable[[int, int, str], None],
) -> None:
    """Draw candidates for the samples of an index and hand them to ``write`` as they come.

    Every candidate is written, kept or not, so that other thresholds can be tried without
    generating again.
    """
    pending = samples
    drawn = kept = 0
    total = len(samples)
    for attempt in range(config.max_attempts):
        temperature = config.temperatures[min(attempt, len(config.temperatures) - 1)]
        request = Request("reasoning", attempt, temperature, config.top_p, config.max_new_tokens, seed)
        accepted: set[str] = set()
        for answers in pool.generate(pending, request):
            candidates = judge_answers(answers, pending, class_names, config)
            write(candidates)
            accepted.update(candidates.filter(candidates["kept"])["id"].to_pylist())
            drawn += len(candidates)
            kept_now = kept + len(accepted)
            progress(drawn, total, f"attempt {attempt + 1}, {kept_now}/{len(samples)} images with a chain")
        kept += len(accepted)
        rejected = [sample_id not in accepted for sample_id in pending["id"].to_pylist()]
        pending = pending.filter(pa.array(rejected, pa.bool_()))
        if not len(pending):
            break
        total = drawn + len(pending)


def judge_answers(
    answers: pa.Table, samples: pa.Table, class_names: list[str], config: SarrConfig
) -> pa.Table:
    """Answers of an engine with the filter's verdict beside each, in ``CANDIDATE_SCHEMA``."""
    known = {row["id"]: row for row in samples.select(["id", "label", "domain"]).to_pylist()}
    rows = []
    for answer in answers.to_pylist():
        sample = known[answer["id"]]
        verdict = judge(
            answer["text"],
            sample["label"],
            class_names,
            answer["num_tokens"],
            answer["logprob"],
            answer["finished"],
            config.filter,
        )
        rows.append(
            {
                **sample,
                "candidate": answer["attempt"],
                "text": answer["text"],
                "conclusion": verdict.conclusion,
                "kept": verdict.kept,
                "reason": verdict.reason,
                "num_tokens": answer["num_tokens"],
                "logprob": answer["logprob"],
                "finished": answer["finished"],
            }
        )
    return pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA)


def summarize_round(candidates: pa.Table, num_images: int) -> dict[str, object]:
    """Shares and counts of one round, for the state file and the tables."""
    kept = candidates.filter(candidates["kept"])
    reasons = candidates["reason"].drop_null().value_counts().to_pylist()
    return {
        "images": num_images,
        "images_with_chain": len(kept["id"].unique()),
        "candidates": len(candidates),
        "kept": len(kept),
        "tokens": sum(candidates["num_tokens"].to_pylist()),
        "rejected": {item["values"]: item["counts"] for item in reasons},
    }
