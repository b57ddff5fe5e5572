import json
import os
import re
import shutil
import socket
from contextlib import suppress

import pyarrow as pa
import pytest

from rdmldg_ray import storage
from rdmldg_ray.chains.imports import import_chains
from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, chains_location, read_dataset_info
from rdmldg_ray.storage import StorageError
from tests.helpers.killed import killed_at_each_step
from tools import mini

DOMAINS = ("flat", "paint")


@pytest.fixture
def mini_store(mini_root, tmp_path):
    return shutil.copytree(mini_root, str(tmp_path / "root"))


def table(*texts, **columns):
    rows = [{"id": f"s{number}", "candidate": 0, "text": text} for number, text in enumerate(texts)]
    return pa.Table.from_pylist([row | {"accepted": True} | columns for row in rows], schema=CHAIN_SCHEMA)


def texts(root, teacher="gpt", domains=DOMAINS):
    return read_chains(root, "mini", teacher, domains)["text"].to_pylist()


def files(root, teacher="gpt"):
    folder = chains_location(root, "mini", teacher)
    prefix = storage.folder_prefix(folder)
    return [file.removeprefix(prefix) for file in storage.list_files(folder)]


OLD = {"flat": table("a", "b"), "paint": table("c")}
NEW = {"flat": table("d")}


def plain_parts(root):
    """Chains as an annotation writes them, in several parts, and as earlier releases wrote all."""
    for part, text in enumerate("ab"):
        place = f"{chains_location(root, 'mini', 'gpt', 'flat')}/part-{part:05d}.parquet"
        storage.write_table(place, table(text))
    storage.write_table(f"{chains_location(root, 'mini', 'gpt', 'paint')}/part-00000.parquet", table("c"))
    storage.write_json(f"{chains_location(root, 'mini', 'gpt')}/annotation.json", {})


@pytest.mark.parametrize("write_old", [plain_parts, lambda root: write_chains(root, "mini", "gpt", OLD)])
def test_wherever_a_replacement_dies_there_are_the_old_chains_or_the_new(tmp_path, write_old):
    before = tmp_path / "before"
    write_old(str(before))
    seen = []
    for root in killed_at_each_step(before, lambda root: write_chains(root, "mini", "gpt", NEW)):
        seen.append(texts(root))
        assert seen[-1] in (["a", "b", "c"], ["d"])
        write_chains(root, "mini", "gpt", NEW)
        assert texts(root) == ["d"]
    assert seen[0] == ["a", "b", "c"] and seen[-1] == ["d"] and len(seen) > 4


def test_a_replacement_leaves_nothing_of_what_it_replaced(tmp_path):
    plain_parts(str(tmp_path))
    write_chains(str(tmp_path), "mini", "gpt", OLD)
    write_chains(str(tmp_path), "mini", "gpt", NEW)
    [commit, part] = files(str(tmp_path))
    assert commit == "chains.json" and part.startswith("flat/part-00000-")
    with pytest.raises(StorageError, match="no chains for paint"):
        read_chains(str(tmp_path), "mini", "gpt", ["paint"])


def test_the_first_chains_that_die_are_none(tmp_path):
    (tmp_path / "before").mkdir()
    for root in killed_at_each_step(tmp_path / "before", lambda root: write_chains(root, "mini", "gpt", OLD)):
        with suppress(StorageError):  # there are none yet
            assert texts(root) == ["a", "b", "c"]
        write_chains(root, "mini", "gpt", OLD)
        assert texts(root) == ["a", "b", "c"]


@pytest.mark.parametrize("first", [False, True])
def test_of_two_writers_at_once_one_is_told_who_the_other_is(root, monkeypatch, first):
    write = storage.write_if_unchanged
    if not first:
        write_chains(root, "mini", "gpt", OLD)

    def another_meanwhile(location, data, before):
        monkeypatch.setattr(storage, "write_if_unchanged", write)
        write_chains(root, "mini", "gpt", NEW)
        return write(location, data, before)

    monkeypatch.setattr(storage, "write_if_unchanged", another_meanwhile)
    who = f"by process {os.getpid()} on {re.escape(socket.gethostname())}; write these again"
    with pytest.raises(ValueError, match=f"other chains were written here meanwhile {who}"):
        write_chains(root, "mini", "gpt", {"flat": table("x"), "paint": table("y")})
    assert texts(root) == ["d"] and len(files(root)) == 2


def test_parts_of_a_killed_writer_are_removed_by_the_next_and_answers_are_not(root):
    write_chains(root, "mini", "gpt", OLD)
    folder = chains_location(root, "mini", "gpt")
    for part in ("paint/part-00000-0123456789ab.parquet", "paint/part-00000-cdef.parquet"):
        storage.write_table(storage.join(folder, part), table("z"))  # killed, and an annotation's
    write_chains(root, "mini", "gpt", NEW)
    [commit, part, answers] = files(root)
    assert commit == "chains.json" and part.startswith("flat/part-00000-")
    assert answers == "paint/part-00000-cdef.parquet"
    assert texts(root) == ["d"]


def test_of_two_writers_of_which_one_ends_between_the_others_parts_one_wins(root, monkeypatch):
    write = storage.write_table

    def another_meanwhile(location, chains):
        write(location, chains)
        monkeypatch.setattr(storage, "write_table", write)
        write_chains(root, "mini", "gpt", NEW)  # removes the part of a writer at work, who is told

    monkeypatch.setattr(storage, "write_table", another_meanwhile)
    with pytest.raises(ValueError, match="other chains were written here meanwhile"):
        write_chains(root, "mini", "gpt", OLD)
    assert texts(root) == ["d"] and len(files(root)) == 2


def test_a_failure_leaves_nothing_of_what_was_begun(tmp_path, monkeypatch):
    root, write = str(tmp_path), storage.write_table
    write_chains(root, "mini", "gpt", OLD)
    before = files(root)

    def full(location, chains):
        if "/paint/" in location:
            raise StorageError(f"{location}: cannot be written (No space left on device)")
        write(location, chains)

    monkeypatch.setattr(storage, "write_table", full)
    with pytest.raises(StorageError, match="No space left"):
        write_chains(root, "mini", "gpt", OLD)
    assert files(root) == before and texts(root) == ["a", "b", "c"]


def test_a_commit_that_raises_and_yet_came_to_pass_keeps_its_chains(tmp_path, monkeypatch):
    root, write = str(tmp_path), storage.write_if_unchanged
    write_chains(root, "mini", "gpt", OLD)

    def answer_lost(location, data, before):
        write(location, data, before)
        raise StorageError(f"{location}: cannot be written (timeout)")

    monkeypatch.setattr(storage, "write_if_unchanged", answer_lost)
    with pytest.raises(StorageError, match="timeout"):
        write_chains(root, "mini", "gpt", NEW)
    assert texts(root) == ["d"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 1}', "{"])
def test_a_broken_commit_is_named_with_its_remedy(tmp_path, text):
    write_chains(str(tmp_path), "mini", "gpt", OLD)
    storage.write_bytes(f"{chains_location(str(tmp_path), 'mini', 'gpt')}/chains.json", text.encode())
    with pytest.raises(ValueError, match=r"gpt/chains\.json: does not name a version.*\(--replace\)"):
        texts(str(tmp_path))
    write_chains(str(tmp_path), "mini", "gpt", NEW)
    assert texts(str(tmp_path)) == ["d"] and len(files(str(tmp_path))) == 2


def line(root, **fields):
    """A chain of the first sample, with other fields."""
    [row] = read_chains(root, "mini", "rules", ["flat"]).slice(0, 1).to_pylist()
    return row | fields


def write_lines(folder, *rows):
    schema = CHAIN_SCHEMA.set(1, pa.field("candidate", pa.int64()))
    storage.write_table(f"{folder}/lines.parquet", pa.Table.from_pylist(rows, schema=schema))
    return f"{folder}/lines.parquet"


@pytest.mark.parametrize("candidate", [2**31, 2**40, -1, -(2**31) - 1])
def test_a_row_that_cannot_be_written_is_named_and_replaces_nothing(mini_store, tmp_path, candidate):
    before = texts(mini_store, "rules", mini.DOMAINS)
    place = write_lines(tmp_path, line(mini_store), line(mini_store, candidate=candidate))
    with pytest.raises(ValueError, match=r"lines\.parquet, row 2: .* is out of range"):
        import_chains(place, mini_store, "mini", "rules", replace=True)
    assert texts(mini_store, "rules", mini.DOMAINS) == before


@pytest.mark.parametrize("field", ["text", "prompt_version", "model"])
def test_half_of_a_surrogate_pair_replaces_nothing(mini_store, tmp_path, field):
    before = texts(mini_store, "rules", mini.DOMAINS)
    row = line(mini_store)
    row[field] = row[field].replace("<SUMMARY>", "<SUMMARY>\ud800") if field == "text" else "\ud800"
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": row.pop("text")}]
    given = row | {"messages": turns, "images": [row["id"]]}
    (tmp_path / "a.jsonl").write_text(json.dumps(given) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: "):
        import_chains(str(tmp_path / "a.jsonl"), mini_store, "mini", "rules", replace=True)
    assert texts(mini_store, "rules", mini.DOMAINS) == before


@pytest.mark.parametrize("teacher", ["", " ", ".", "..", "../../../runs", "/abs", "a/b", "a\\b", "\0"])
@pytest.mark.parametrize("replace", [False, True])
def test_chains_are_imported_below_the_data_set_and_nowhere_else(mini_store, tmp_path, teacher, replace):
    before = {entry.location: entry.mtime_ns for entry in storage.list_entries(mini_store)}
    place = write_lines(tmp_path, line(mini_store))
    with pytest.raises(ValueError, match=r"the teacher .*; give another name"):
        import_chains(place, mini_store, "mini", teacher, replace)
    assert {entry.location: entry.mtime_ns for entry in storage.list_entries(mini_store)} == before


@pytest.mark.parametrize("replace", [False, True])
def test_answers_that_were_paid_for_are_not_replaced(mini_store, tmp_path, replace):
    answer = f"{chains_location(mini_store, 'mini', 'gpt')}/_journal/0123.json"
    storage.write_json(answer, {"domain": "flat", "row": {}})
    with pytest.raises(ValueError, match=r"holds answers of a teacher.* run the annotation again"):
        import_chains(write_lines(tmp_path, line(mini_store)), mini_store, "mini", "gpt", replace)
    assert storage.exists(answer)


def test_imported_chains_know_their_image(mini_store, tmp_path):
    index = sample_index(mini_store, read_dataset_info(mini_store, "mini"), ["flat"])
    import_chains(write_lines(tmp_path, line(mini_store)), mini_store, "mini", "theirs")
    chains = read_chains(mini_store, "mini", "theirs", ["flat"], ["id", "image_sha256"])
    assert chains["image_sha256"].to_pylist() == index["sha256"].to_pylist()[:1]
    place = write_lines(tmp_path, line(mini_store, image_sha256="0" * 64))
    with pytest.raises(ValueError, match="row 1: the chain was written for another image"):
        import_chains(place, mini_store, "mini", "others")


def test_chains_of_earlier_releases_know_no_image(tmp_path):
    root = str(tmp_path)
    place = f"{chains_location(root, 'mini', 'gpt', 'flat')}/part-00000.parquet"
    storage.write_table(
        place, table("a").drop_columns(["image_sha256"]).append_column("cost", pa.array([1.0]))
    )
    other = place.replace("00000", "00001")
    storage.write_table(other, table("b", image_sha256="1").append_column("cost", pa.array([1.0])))
    assert read_chains(root, "mini", "gpt", ["flat"])["image_sha256"].to_pylist() == [None, "1"]
    few = read_chains(root, "mini", "gpt", ["flat"], ["id", "image_sha256"])
    assert few.to_pylist() == [{"id": "s0", "image_sha256": None}, {"id": "s0", "image_sha256": "1"}]


@pytest.mark.parametrize("column", ["id", "candidate", "text", "accepted", "reason"])
def test_chains_that_lack_a_column_are_named(tmp_path, column):
    place = f"{chains_location(str(tmp_path), 'mini', 'gpt', 'flat')}/part-00000.parquet"
    storage.write_table(place, table("a").drop_columns([column]))
    with pytest.raises(
        storage.StorageError, match=rf"flat/part-00000\.parquet: has not one column '{column}'"
    ):
        read_chains(str(tmp_path), "mini", "gpt", ["flat"])


@pytest.mark.parametrize("column", ["id", "candidate", "text", "accepted"])
def test_chains_that_lack_values_are_named(tmp_path, column):
    place = f"{chains_location(str(tmp_path), 'mini', 'gpt', 'flat')}/part-00000.parquet"
    rows = table("a")
    nulls = pa.nulls(len(rows), rows[column].type)
    storage.write_table(place, rows.set_column(rows.column_names.index(column), column, nulls))
    with pytest.raises(storage.StorageError, match=f"its column '{column}' lacks values"):
        read_chains(str(tmp_path), "mini", "gpt", ["flat"])
