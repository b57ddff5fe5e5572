import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdmldg_ray.datasets.ingest.rows import Row, RowError, check_row, read_rows

GIVEN = {
    "image": "photos/1.jpg",
    "question": "Is it day?",
    "options": ["yes", "no"],
    "answer": "yes",
    "domain": "photo",
}
ENTAILMENT = {
    **GIVEN,
    "question": "Two dogs are running in the snow.",
    "options": ["entailment", "neutral", "contradiction"],
    "answer": "neutral",
}
BOTH = [GIVEN, ENTAILMENT]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows):
    lines = ["question,answer,domain,image,options,note"]
    lines += [
        f'"{row["question"]}",{row["answer"]},{row["domain"]},{row["image"]},{"|".join(row["options"])},x'
        for row in rows
    ]
    path.write_text("\n".join(lines), encoding="utf-8-sig")


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist([row | {"note": 1} for row in rows]), path)


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, write):
    file = tmp_path / f"rows.{write.__name__.removeprefix('write_')}"
    write(file, BOTH)
    rows = [check_row(row) for _, row in read_rows(str(file))]
    assert rows == [
        Row("photos/1.jpg", "Is it day?", ("yes", "no"), "yes", "photo"),
        Row(
            "photos/1.jpg",
            "Two dogs are running in the snow.",
            ("entailment", "neutral", "contradiction"),
            "neutral",
            "photo",
        ),
    ]


def test_texts_are_tidied_and_the_answer_is_written_as_the_option():
    row = check_row(GIVEN | {"question": " Is  it\nday? ", "options": [" Yes", "no "], "answer": "YES."})
    assert (row.question, row.options, row.answer) == ("Is it day?", ("Yes", "no"), "Yes")


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"question": None}, "missing", "'question' is empty; fill it in, or remove the row"),
        ({"domain": ""}, "missing", "'domain' is empty"),
        ({"answer": 1}, "no_text", "'answer' has 1, which is no text; write it in quotes"),
        ({"question": " "}, "no_text", "'question' has ' '"),
        ({"options": None}, "options", "give a list of at least two texts"),
        ({"options": ["yes"]}, "options", "give a list of at least two texts"),
        ({"options": "yes"}, "options", "'options' is 'yes'; give a list"),
        ({"options": ["yes", None]}, "missing", "'options' is empty"),
        ({"options": ["yes", "Yes!"]}, "options", "yes and Yes! are not told apart by letters and digits"),
        ({"options": ["yes", "+"]}, "options", "'options' has '+', which has no letter or digit"),
        ({"options": ["caf\u00e9", "cafe\u0301"]}, "options", "are not told apart"),
        ({"options": ["\uff21\uff22", "ab"]}, "options", "are not told apart"),
        ({"options": ["post-it", "Post it", "no"]}, "options", "post-it and Post it are not told apart"),
        ({"options": ["cat", "cat, dog"]}, "options", "'cat, dog' reads as a list of several in a prompt"),
        ({"options": ["x" * 1001, "no"]}, "options", "has 1001 characters; at most 1000"),
        ({"options": ["yes", "n\ud800"]}, "no_text", "with half of a character; correct it"),
        ({"image": "a\udfff.jpg"}, "no_text", "with half of a character; correct it"),
        ({"question": "a" * 20_001}, "too_long", "shorten it to 20000"),
        ({"question": "Is <|im_end|> day?"}, "marks", "'question' has <|im_end|>"),
        ({"answer": "maybe"}, "answer", "the answer 'maybe' is not among the options: yes, no; correct it"),
        ({"question": "<image> Is it day?"}, "marks", "'question' has <image>"),
        (
            {"options": ["yes", "no</CONCLUSION>"]},
            "marks",
            "which has </CONCLUSION>, which prompts and chains use",
        ),
        ({"domain": "a/b"}, "domain", "the name of the domain 'a/b' has a '/'"),
        ({"domain": ".."}, "domain", "begins with a dot"),
        ({"domain": "all"}, "domain", "stands for many folds in data.held_out; give it another"),
        ({"domain": "a\x00"}, "domain", "has the control character \\x00"),
        ({"image": "../1.jpg"}, "path", "leads elsewhere; make it relative to this file"),
        ({"image": "/etc/1.jpg"}, "path", "leads elsewhere"),
        ({"image": "http://a/1.jpg"}, "path", "leads elsewhere"),
    ],
)
def test_a_bad_row_has_its_reason_and_the_remedy(change, reason, message):
    with pytest.raises(RowError) as found:
        check_row(GIVEN | change)
    assert found.value.reason == reason
    assert message in str(found.value)


def test_what_is_no_row_is_told_with_its_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(GIVEN)}\n\n[1]\n{{\n")
    (first, row), (second, no_object), (third, no_json) = read_rows(str(file))
    assert (first, second, third) == ("line 1", "line 3", "line 4")
    assert row == GIVEN
    assert no_object.reason == no_json.reason == "no_object"


@pytest.mark.parametrize("line", ["[" * 20_000, '{"a":' * 20_000, "9" * 5000, "\x00"])
def test_a_line_that_no_parser_takes_is_told_and_the_others_are_read(tmp_path, line):
    file = tmp_path / "rows.JSONL"
    file.write_text(f"{line}\n{json.dumps(GIVEN)}\n")
    (first, bad), (second, row) = read_rows(str(file))
    assert (first, second, bad.reason, row) == ("line 1", "line 2", "no_object", GIVEN)
    assert str(bad).endswith("; write one on each line")


def test_options_keep_their_signs_digits_and_scripts():
    for options in (["1.5", "15"], ["कि", "का"], ["k\u0131rm\u0131z\u0131", "mavi"], ["a, b", "a, c"]):
        row = check_row(GIVEN | {"options": options, "answer": options[1]})
        assert (row.options, row.answer) == (tuple(options), options[1])


def test_a_cell_that_is_no_csv_is_told_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text("image,question,options,answer,domain\n" + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"a\.csv, line \d: is no CSV \(field larger"):
        list(read_rows(str(tmp_path / "a.csv")))


def test_a_file_that_lacks_a_column_or_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,question\n")
    with pytest.raises(ValueError, match=r"a\.csv: has no column options, answer, domain; it has: image"):
        list(read_rows(str(tmp_path / "a.csv")))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"b\.jsonl: is not in UTF-8"):
        list(read_rows(str(tmp_path / "b.jsonl")))


def test_an_id_tells_domain_image_and_question_and_not_the_rows_place():
    day, dogs = check_row(GIVEN), check_row(ENTAILMENT)
    assert day.sample_id("mine") == "mine/photo/photos/1-4a64bce9.jpg"
    assert dogs.sample_id("mine") != day.sample_id("mine")
    assert check_row(GIVEN | {"answer": "no"}).sample_id("mine") == day.sample_id("mine")
