import io
from collections import Counter

import pyarrow.parquet as pq
import pytest

from rdmldg_ray.chains.format import judge_text
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.datasets.builtin.iconbed import iconbed_file, iconbed_samples
from rdmldg_ray.datasets.builtin.questions import NAME, iconbed_vqa_info, write_iconbed_vqa
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.ingest.rows import check_row
from rdmldg_ray.datasets.schema import info_location, read_dataset_info
from rdmldg_ray.domainbed.catalogue import ICONBED
from rdmldg_ray.storage import list_entries, read_images
from tools.iconbed.build_questions import EAT, KIND, WHICH, build_questions


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("vqa"))
    write_iconbed_vqa(root)
    return root


@pytest.fixture(scope="module")
def index(root):
    info = read_dataset_info(root, NAME)
    return sample_index(root, info, info.environments)


@pytest.fixture(scope="module")
def rows(index):
    return index.to_pylist()


def test_what_is_written_is_what_is_told_without_writing(root):
    info = read_dataset_info(root, NAME)
    assert info == iconbed_vqa_info()
    assert info.environments == ICONBED.environments and set(info.counts.values()) == {288}


def test_the_shipped_rows_are_what_the_rules_make():
    assert build_questions().equals(pq.read_table(io.BytesIO(iconbed_file("questions.parquet"))))


def test_it_is_written_once(root):
    before = list_entries(root)
    write_iconbed_vqa(root)
    assert list_entries(root) == before
    assert info_location(root, NAME) in {entry.location for entry in before}


def test_images_are_those_of_iconbed(index, rows):
    known = {row["id"]: row["image"] for row in iconbed_samples().to_pylist()}
    for row, image in zip(rows, read_images(index), strict=True):
        folder, file = row["id"].removeprefix(f"{NAME}/").rsplit("/", 1)
        assert image == known[f"iconbed/{folder}/{file[:-13]}.png"]


def test_answers_are_as_frequent_in_every_domain(rows):
    counts = Counter((row["domain"], row["question"], row["label"]) for row in rows)
    assert {n for (_, question, _), n in counts.items() if question == EAT} == {48}
    assert {n for (_, question, _), n in counts.items() if question == KIND} == {12}
    assert {n for (_, question, _), n in counts.items() if question == WHICH} == {1}
    places = Counter((r["domain"], r["options"].index(r["label"])) for r in rows if r["question"] == WHICH)
    assert set(places.values()) == {24}


def test_rows_are_as_an_ingest_takes_them_and_their_ids_stable(rows):
    for row in rows:
        image = f"{row['id'].split('/')[2]}/{row['id'].split('/')[3][:-13]}.png"
        given = {"image": image, "answer": row["label"]} | {
            name: row[name] for name in ("question", "options", "domain")
        }
        assert check_row(given).sample_id(NAME) == row["id"]
    assert "iconbed-vqa/flat/produce/1F95C-fb719a52.png" in {row["id"] for row in rows}


def test_chains_conclude_with_the_answer_and_name_it_there_alone(root, rows):
    chains = {row["id"]: row for row in read_chains(root, NAME, "rules", ICONBED.environments).to_pylist()}
    assert chains.keys() == {row["id"] for row in rows}
    for row in rows:
        text = chains[row["id"]]["text"]
        assert judge_text(text, row["label"], row["options"]).accepted
        if row["question"] != EAT:
            before = text.split("<REFLECTION>")[0].lower().replace("-", " ")
            assert f" {row['label'].lower()} " not in before


def test_words_alone_do_not_tell_which_is_drawn(rows):
    """The wrong names are drawn anew in every domain, from those that are right elsewhere."""
    mine = [row for row in rows if row["question"] == WHICH]
    right = {row["label"] for row in mine}
    assert {option for row in mine for option in row["options"]} <= right
    options = {(row["label"], frozenset(row["options"])) for row in mine}
    assert len(options) > 0.99 * len(mine)
