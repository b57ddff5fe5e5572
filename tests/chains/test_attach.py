import pyarrow as pa
import pytest

from rdmldg_ray.chains.attach import attach_chains
from rdmldg_ray.chains.format import SECTIONS, render_chain

SAMPLES = pa.table({"id": ["a", "b", "c"], "label": ["cat", "dog", "dog"], "sha256": ["1", "2", "3"]})


def chain(text):
    return render_chain(dict.fromkeys(SECTIONS, text))


def chains(*rows):
    """Rows of id, candidate, text, accepted, and the image's hash where it is known."""
    columns = pa.schema(
        [
            ("id", pa.string()),
            ("candidate", pa.int32()),
            ("text", pa.string()),
            ("accepted", pa.bool_()),
            ("image_sha256", pa.string()),
        ]
    )
    return pa.Table.from_pylist([dict(zip(columns.names, row, strict=False)) for row in rows], schema=columns)


def attached(table):
    joined = attach_chains(SAMPLES, table, "s3://bucket/chains")
    return list(zip(joined["id"].to_pylist(), joined["chain"].to_pylist(), strict=True))


def test_a_sample_without_an_accepted_chain_takes_no_part():
    table = chains(
        ("c", 0, chain("c"), True),
        ("a", 0, chain("a"), True),
        ("b", 0, "x", False),
    )
    assert attached(table) == [("a", chain("a")), ("c", chain("c"))]


def test_of_several_accepted_chains_the_first_candidate_is_taken():
    table = chains(("a", 2, chain("third"), True), ("a", 1, chain("second"), True), ("a", 0, "x", False))
    assert attached(table) == [("a", chain("second"))]


def test_chains_of_other_samples_bring_none_in():
    table = chains(("z", 0, chain("z"), True), ("b", 0, chain("b"), True))
    assert attached(table) == [("b", chain("b"))]


@pytest.mark.parametrize(("id", "accepted"), [("a", False), ("z", True)])
def test_no_accepted_chain_at_all_names_the_location(id, accepted):
    with pytest.raises(
        ValueError, match="s3://bucket/chains: no sample of the source domains has an accepted"
    ):
        attached(chains((id, 0, chain("x"), accepted)))


def test_where_none_is_needed_no_accepted_chain_leaves_no_sample():
    joined = attach_chains(SAMPLES, chains(("z", 0, chain("z"), True)), "there", may_be_none=True)
    assert joined.column_names == ["id", "label", "sha256", "chain"]
    assert len(joined) == 0


def test_a_chain_without_a_conclusion_is_named_with_its_row_and_the_remedy():
    broken = chain("x").split("<CONCLUSION>")[0]
    with pytest.raises(ValueError, match=r"s3://bucket/chains: row b: the chain has no <CONCLUSION>; mend"):
        attached(chains(("b", 0, broken, True)))


@pytest.mark.parametrize("candidates", [(0, 1), (1, 0)])
def test_a_chain_that_was_written_for_another_image_is_left_out_and_told(candidates, caplog):
    there = f"s3://bucket/{candidates}"
    of_now, of_before = candidates
    table = chains(
        ("a", of_now, chain("now"), True, "1"),
        ("a", of_before, chain("before"), True, "9"),
        ("b", 0, chain("before"), True, "9"),
        ("c", 0, chain("unknown"), True, None),
        ("z", 0, chain("no sample's"), True, "9"),
    )
    for _ in range(2):  # told once
        joined = attach_chains(SAMPLES, table, there)
    assert joined.select(["id", "chain"]).to_pylist() == [
        {"id": "a", "chain": chain("now")},
        {"id": "c", "chain": chain("unknown")},
    ]
    assert caplog.messages == [
        f"{there}: 2 chains are not used, since they were written for other images than the data set has "
        "now; write or import chains for these"
    ]


def test_no_chain_left_for_the_images_of_now_is_an_error():
    with pytest.raises(ValueError, match="has an accepted chain"):
        attached(chains(("a", 0, chain("x"), True, "9")))


@pytest.mark.parametrize(("lost", "told"), [("dog", True), ("cat", True), ("", False)])
def test_classes_that_are_left_with_fewer_images_are_told(lost, told, caplog):
    labels = ["cat", "dog", "rat"] * 20
    numbers = [str(number) for number in range(60)]
    samples = pa.table({"id": numbers, "label": labels, "sha256": numbers})
    rows = [(str(number), 0, chain("x"), label != lost) for number, label in enumerate(labels)]
    joined = attach_chains(samples, chains(*rows), f"here, without {lost}")
    assert len(joined) == (40 if told else 60)
    words = (
        f"without {lost}: classes lose images unequally: without an accepted chain are 20 of 20 of '{lost}'"
    )
    assert (words in caplog.text) == told == bool(caplog.records)


@pytest.mark.parametrize("mark", ["<image>", "<|im_end|>", "<IMG_CONTEXT>"])
def test_a_chain_with_a_models_own_mark_is_named_before_a_training_meets_it(mark):
    with pytest.raises(
        ValueError, match=r"row b: the chain holds .*, which a model does not read as text; mend"
    ):
        attached(chains(("b", 0, chain(f"an {mark} of it"), True)))
