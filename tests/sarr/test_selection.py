import pyarrow as pa
import pytest

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.config.schema import FilterConfig, SarrConfig
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA
from rdmldg_ray.sarr.selection import select_chains, write_candidates
from rdmldg_ray.storage import read_table

CLASSES = ["cat", "dog"]


def row(sample_id, candidate, conclusion, label="dog", **scores):
    chain = render_chain({**dict.fromkeys(SECTIONS, f"words {candidate}"), "CONCLUSION": conclusion})
    return {
        "id": sample_id,
        "label": label,
        "domain": sample_id.split("/")[0],
        "candidate": candidate,
        "text": chain,
        "conclusion": conclusion,
        "accepted": conclusion == label,
        "reason": None if conclusion == label else "wrong_class",
        "error": None,
        "num_tokens": 10,
        "finished": True,
        "mean_logprob": -0.5,
        "label_prob": 0.5,
        "agreement": None,
        "repetition": 0.0,
        **scores,
    }


@pytest.fixture
def round_(tmp_path):
    """A round of three images, its candidates in two parts, as engines leave them."""
    parts = [
        [row("d/a", 0, "dog"), row("d/b", 0, "dog", "cat"), row("e/c", 0, "dog", mean_logprob=-0.9)],
        [
            row("d/b", 1, "dog", "cat", num_tokens=30),
            row("e/c", 1, "dog", num_tokens=20),
            row("e/c", 2, "cat"),
        ],
    ]
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA)
        write_candidates(str(tmp_path), number, table.append_column("model", pa.array(["m"] * len(rows))))
    return str(tmp_path)


def kept(location):
    rows = read_table(f"{location}/selected").to_pylist()
    assert all(r["model"] == "m" for r in rows)
    return [(r["id"], r["candidate"]) for r in rows]


def select(round_, target=None, **settings):
    return select_chains(round_, target or round_, CLASSES, SarrConfig(**settings))


def test_the_summary_counts_images_candidates_tokens_and_reasons(round_):
    assert select(round_) == {
        "images": 3,
        "images_with_chain": 2,
        "draws_left": 1,
        "bad_images": 0,
        "candidates": 6,
        "accepted": 3,
        "tokens": 90,
        "tokens_per_selected": 45.0,
        "rejected": {"wrong_class": 3},
    }


@pytest.mark.parametrize(("best_by", "candidate"), [("logprob", 1), ("num_tokens", 0), ("repetition", 0)])
def test_of_an_images_accepted_chains_the_best_is_kept(round_, best_by, candidate):
    select(round_, best_by=best_by)
    assert kept(round_) == [("d/a", 0), ("e/c", candidate)]


def test_agreement_is_stored_and_may_be_bounded(round_):
    summary = select(round_, filter=FilterConfig(min_agreement=0.7))
    found = {
        (r["id"], r["candidate"]): r["agreement"] for r in read_table(f"{round_}/candidates").to_pylist()
    }
    assert found[("d/a", 0)] == found[("d/b", 1)] == 1
    assert found[("e/c", 0)] == found[("e/c", 1)] == pytest.approx(2 / 3)
    assert found[("e/c", 2)] == pytest.approx(1 / 3)
    assert summary["rejected"] == {"wrong_class": 3, "low_agreement": 2}
    assert kept(round_) == [("d/a", 0)]


def test_rejections_are_counted_by_class_and_domain(round_):
    select(round_)
    assert read_table(f"{round_}/rejections.parquet").to_pylist() == [
        {"domain": "d", "label": "cat", "reason": "wrong_class", "candidates": 2},
        {"domain": "d", "label": "dog", "reason": None, "candidates": 1},
        {"domain": "e", "label": "dog", "reason": None, "candidates": 2},
        {"domain": "e", "label": "dog", "reason": "wrong_class", "candidates": 1},
    ]


def test_other_bounds_give_another_kept_set_elsewhere_and_leave_the_old_one(round_, tmp_path):
    select(round_)
    target = str(tmp_path / "anew")
    assert select(round_, target, filter=FilterConfig(min_logprob=-0.6, max_tokens=15))["accepted"] == 1
    assert kept(target) == [("d/a", 0)]
    assert kept(round_) == [("d/a", 0), ("e/c", 1)]
    assert len(read_table(f"{target}/candidates")) == len(read_table(f"{round_}/candidates"))


def test_selecting_again_with_looser_bounds_brings_chains_back(round_):
    select(round_, filter=FilterConfig(max_tokens=5))
    assert kept(round_) == []
    select(round_)
    assert kept(round_) == [("d/a", 0), ("e/c", 1)]
