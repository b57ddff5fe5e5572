import json
from dataclasses import asdict

import pyarrow as pa
import pytest

from rdmldg_ray import storage
from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.datasets.index import sample_index, take_split
from rdmldg_ray.datasets.ingest.opening import count_questions, plan_questions, plan_source
from rdmldg_ray.datasets.ingest.writing import (
    ShardReport,
    _write_shard_row,
    ingest,
    is_ingested,
    read_rejects,
)
from rdmldg_ray.datasets.schema import QUESTION_SCHEMA, SAMPLE_SCHEMA, dataset_location, read_dataset_info
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.storage import read_images

DAY = {"question": "Is it day?", "options": ["yes", "no"]}
RELATION = {"question": "Two dogs run.", "options": ["entailment", "neutral", "contradiction"]}


def run_here(source, target, shards):
    """Run the shards in this process, each handed over as a table, as to a task of Ray."""
    tables = [pa.Table.from_pylist([asdict(shard)]) for shard in shards]
    rows = [row for table in tables for row in table.to_pylist()]
    return [ShardReport(**_write_shard_row(row, source, target)) for row in rows]


def rows_of(domain, images):
    """A question and a statement about each image."""
    for number in range(images):
        where = {"image": f"{domain}/{number}.png", "domain": domain}
        yield {**where, **DAY, "answer": ("Yes", "no")[number % 2]}
        yield {**where, **RELATION, "answer": RELATION["options"][number % 3]}


@pytest.fixture
def asked(tmp_path, png):
    """A file of good rows: 5 images in each of two domains, each asked about twice."""
    for domain in ("photo", "art"):
        (tmp_path / domain).mkdir()
        for number in range(5):
            (tmp_path / domain / f"{number}.png").write_bytes(png(seed=number))
    file = tmp_path / "rows.jsonl"
    write(file, [*rows_of("photo", 5), *rows_of("art", 5)])
    return file


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_become_samples_with_their_questions(root, asked, png):
    plan = plan_questions(str(asked), root, "asked")
    assert count_questions(plan) == 2
    info = ingest(plan, run_shards=run_here)
    assert info == read_dataset_info(root, "asked")
    assert info.questions and (info.environments, info.counts) == (("art", "photo"), {"art": 10, "photo": 10})
    assert info.classes == ("contradiction", "entailment", "neutral", "no", "yes")
    table = storage.read_table(storage.join(dataset_location(root, "asked"), "samples"))
    assert table.schema.names == [*SAMPLE_SCHEMA.names, *QUESTION_SCHEMA.names]
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == [*range(10)] * 2
    assert len({row["id"] for row in rows}) == 20
    for row in rows:
        number = int(row["id"].split("/")[-1][0])
        entailment = row["question"] == RELATION["question"]
        assert row["options"] == (RELATION if entailment else DAY)["options"]
        assert row["label"] == (RELATION["options"][number % 3] if entailment else ("yes", "no")[number % 2])
        assert info.classes[row["label_id"]] == row["label"]
        assert row["image"] == png(seed=number)
    # Found again by the index, split by DomainBed's rule, and ingested once.
    index = sample_index(root, info, ["photo"])
    assert index["options"].to_pylist() == [row["options"] for row in rows[10:]]
    assert read_images(index) == [row["image"] for row in rows[10:]]
    assert [len(take_split(index, info, part, 0, 0.2)) for part in ("in", "out")] == [8, 2]
    assert is_ingested(plan_questions(str(asked), root, "asked"))


def test_ids_and_order_do_not_depend_on_the_order_of_rows(tmp_path, asked):
    before = plan_questions(str(asked), str(tmp_path), "asked").layout.environments
    write(asked, [*reversed([*rows_of("photo", 5), *rows_of("art", 5)])])
    after = plan_questions(str(asked), str(tmp_path), "asked").layout.environments
    assert {d: [f.row for f in files] for d, files in before.items()} == {
        d: [f.row for f in files] for d, files in after.items()
    }


def test_another_answer_is_another_content(tmp_path, asked):
    before = plan_questions(str(asked), str(tmp_path), "asked")
    write(asked, [row | {"answer": row["options"][0]} for row in rows_of("photo", 5)])
    assert plan_questions(str(asked), str(tmp_path), "asked").content != before.content


def test_bad_rows_and_bad_images_are_rejected_with_their_reasons(tmp_path, asked):
    (tmp_path / "art/4.png").write_bytes(b"no image")
    good = [*rows_of("photo", 5), *rows_of("art", 5)]
    bad = [good[0], good[0] | {"answer": "maybe"}, good[0] | {"image": "photo/9.png"}]
    write(asked, good + bad)
    root = str(tmp_path / "root")
    with pytest.raises(ValueError, match=r"3 of 23 rows are rejected, more than the share of 0\.01"):
        plan_questions(str(asked), root, "asked")
    info = ingest(plan_questions(str(asked), root, "asked", max_rejects=0.5), run_shards=run_here)
    assert info.counts == {"art": 8, "photo": 10}
    assert info.sizes == {"art": 10, "photo": 10}
    rejects = {
        (row["path"], row["reason"]): row["message"] for row in read_rejects(root, "asked").to_pylist()
    }
    assert set(rejects) == {
        ("line 21", "duplicate"),
        ("line 22", "answer"),
        ("line 23", "no_image"),
        ("art/4.png", "undecodable"),
    }
    where = f"{asked}, line 22: "
    assert rejects["line 22", "answer"].startswith(f"{where}the answer 'maybe' is not among the options: yes")


def test_a_file_without_a_good_row_says_what_is_wrong_with_the_first(tmp_path, asked):
    write(asked, [{"image": "photo/0.png"}])
    with pytest.raises(ValueError, match=r"rows\.jsonl: no row can be used: .*line 1: 'options' is None"):
        plan_questions(str(asked), str(tmp_path), "asked")


def test_bad_lines_are_rejected_by_their_place_and_the_rest_is_planned(tmp_path, asked):
    good = [json.dumps(row) for row in [*rows_of("photo", 5), *rows_of("art", 5)]]
    surrogate = json.dumps(next(rows_of("photo", 1)) | {"question": "Is \ud800 day?"})
    place = asked.with_name("ROWS.JSONL")
    place.write_text("\n".join([surrogate, *good, "[" * 20_000]))
    plan = plan_source(str(place), str(tmp_path / "root"), "asked", max_rejects=0.5)
    assert plan.num_files == 22
    assert {reject.path: reject.reason for reject in plan.rejects} == {
        "line 1": "no_text",
        "line 22": "no_object",
    }
    assert all(reject.message.isascii() for reject in plan.rejects)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", "image,question,options,answer,domain\n")],
)
def test_a_file_without_rows_says_what_to_write(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(
        ValueError, match="there are no rows here; write one for each question, with image, quest"
    ):
        plan_questions(str(tmp_path / name), str(tmp_path), "asked")


def test_an_ending_that_is_not_known_names_those_that_are(tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"rows\.json: neither .* \.jsonl \(an object on each line\), \.csv and"
    ):
        plan_source(str(tmp_path / "rows.json"), str(tmp_path), "asked")


def test_a_relative_path_is_one_of_this_folder(tmp_path, asked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan_source("rows.jsonl", str(tmp_path), "asked").num_files == 20


@pytest.mark.parametrize("pair", [("caf\u00e9", "cafe\u0301"), ("Photo", "photo")])
def test_domains_of_rows_that_cannot_be_told_apart_are_refused(tmp_path, asked, pair):
    rows = [{**row, "domain": pair[number % 2]} for number, row in enumerate(rows_of("photo", 5))]
    write(asked, rows)
    with pytest.raises(ValueError, match=r"the domains '.*' and '.*'.* are one"):
        plan_questions(str(asked), str(tmp_path), "asked")


def test_an_image_that_the_folder_rejects_says_why(tmp_path, asked):
    (tmp_path / "photo/link.png").symlink_to("/etc/hostname")
    write(asked, [*rows_of("photo", 5), next(rows_of("photo", 1)) | {"image": "photo/link.png"}])
    [reject] = plan_questions(str(asked), str(tmp_path), "asked", max_rejects=0.5).rejects
    assert reject.reason == "link" and "leads out of the folder" in reject.message


def test_half_of_the_classes_is_no_setting_for_questions(tmp_path, asked):
    info = ingest(plan_questions(str(asked), str(tmp_path / "root"), "asked"), run_shards=run_here)
    config = load_config("demo", ["data.classes=base", "data.held_out=art"])
    with pytest.raises(ConfigError, match=r"data\.classes: 'base' is half of a list .* set it to 'all'"):
        plan_stages(config, info)
