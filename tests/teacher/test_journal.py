import re

import pyarrow as pa
import pytest

from rdmldg_ray import storage
from rdmldg_ray.chains.store import read_chain_file, read_chains
from rdmldg_ray.datasets.schema import chains_location
from rdmldg_ray.teacher.journal import TEACHER_ANSWER_SCHEMA, AnswerStore
from tools import mini

IDENTITY = {"model": "m", "prompt_version": "1"}


def open_store(root):
    """As a call does that is killed before its end."""
    location = chains_location(root, "mini", "m")
    storage.write_json(storage.join(location, "annotation.json"), IDENTITY)
    return AnswerStore(root, "mini", "m", mini.DOMAINS, IDENTITY)


def answer(sample_id, candidate=0, accepted=True):
    return {
        "id": sample_id,
        "candidate": candidate,
        "text": "words",
        "conclusion": "bird",
        "accepted": accepted,
        "reason": None if accepted else "wrong_class",
        "prompt_version": "1",
        "model": "m",
        "prompt_tokens": 10,
        "answer_tokens": 5,
        "cost": 0.5,
    }


def parts(root):
    """Without what makes their names unique."""
    location = chains_location(root, "mini", "m")
    files = storage.list_files(location, ".parquet")
    return [re.sub(r"-[0-9a-f]{8}\.", ".", file.removeprefix(f"{location}/")) for file in files]


def state(store):
    return store.answers, store.prompt_tokens, store.answer_tokens, store.cost


def test_an_answer_is_safe_when_it_is_added_and_gathered_into_parts(root):
    store = open_store(root)
    store.add("flat", answer("mini/flat/a", accepted=False))
    store.add("flat", answer("mini/flat/a", 1))
    store.add("paint", answer("mini/paint/Real World/ä.png"))
    # As after a kill: nothing is in a part yet.
    assert parts(root) == []
    again = open_store(root)
    assert state(again) == state(store) == (3, 30, 15, 1.5)
    assert (again.progress("mini/flat/a").candidates, again.progress("mini/flat/a").accepted) == (2, True)
    assert again.progress("mini/flat/b").candidates == 0
    again.flush()
    assert parts(root) == ["flat/part-00000.parquet", "paint/part-00000.parquet"]
    later = open_store(root)
    assert state(later) == (3, 30, 15, 1.5)
    later.add("flat", answer("mini/flat/b"))
    later.flush()
    later.flush()
    assert parts(root)[:2] == ["flat/part-00000.parquet", "flat/part-00001.parquet"]
    chains = read_chains(root, "mini", "m", ["flat", "paint"])
    assert len(chains) == 4 and chains["cost"].to_pylist() == [0.5] * 4


def test_killed_between_part_and_journal_nothing_is_there_twice(root, monkeypatch):
    store = open_store(root)
    store.add("flat", answer("mini/flat/a"))

    def killed(location):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_file", killed)
        with pytest.raises(KeyboardInterrupt):
            store.flush()
    again = open_store(root)
    assert again.answers == 1
    again.flush()
    assert len(read_chains(root, "mini", "m", ["flat"])) == 1
    assert parts(root) == ["flat/part-00000.parquet"]


def test_parts_come_while_answers_do(root, monkeypatch):
    monkeypatch.setattr("rdmldg_ray.teacher.journal._ROWS_PER_FLUSH", 2)
    store = open_store(root)
    for number in range(5):
        store.add("flat", answer(f"mini/flat/{number}"))
    assert parts(root) == ["flat/part-00000.parquet", "flat/part-00001.parquet"]
    assert len(storage.list_files(storage.join(store.location, "_journal"))) == 1


def journal(root):
    return storage.list_files(storage.join(chains_location(root, "mini", "m"), "_journal"))


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_part_that_is_removed_has_no_other_written_over(tmp_path, removed):
    root = str(tmp_path)
    for number in range(3):
        store = open_store(root)
        with store.writing():
            store.add("flat", answer(f"mini/flat/{number}"))
    storage.delete_file(storage.list_files(store.location, ".parquet")[removed])
    store = open_store(root)
    assert store.answers == 2 and not store.progress(f"mini/flat/{removed}").candidates
    with store.writing():
        store.add("flat", answer(f"mini/flat/{removed}"))
    again = open_store(root)
    assert again.answers == 3
    assert {row["id"] for row in read_chains(root, "mini", "m", ["flat"]).to_pylist()} == {
        f"mini/flat/{number}" for number in range(3)
    }


def test_two_that_write_at_once_lose_nothing(tmp_path):
    """As where both found the lock free."""
    root = str(tmp_path)
    first, second = open_store(root), open_store(root)
    for number in range(4):
        first.add("flat", answer("mini/flat/same", number))
        second.add("flat", answer("mini/flat/same", number, accepted=False))
        first.add("paint", answer(f"mini/paint/first{number}"))
        second.add("paint", answer(f"mini/paint/second{number}"))
        if number == 1:
            first.flush()
    second.flush()
    assert len(journal(root)) == 4
    first.flush()
    assert journal(root) == []
    assert len(read_chains(root, "mini", "m", ["flat"])) == 8
    assert len(set(read_chains(root, "mini", "m", ["paint"])["id"].to_pylist())) == 8
    assert open_store(root).cost == 16 * 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"domain": "flat"}',
        b'{"domain": "flat", "row": 5}',
        b'{"domain": "flat", "row": {"id": "mini/flat/a"}}',
        b'{"domain": ["flat"], "row": {}}',
        b"\xff\xfe\xff",
        b"[" * 100_000,
    ],
)
def test_a_broken_entry_of_the_journal_is_named_with_its_remedy(tmp_path, content):
    store = open_store(str(tmp_path))
    store.add("flat", answer("mini/flat/a"))
    broken = storage.join(store.location, "_journal/0.json")
    storage.write_bytes(broken, content)
    with pytest.raises(
        ValueError, match=r"_journal/0\.json: is no answer .*; remove it, and its sample is asked"
    ):
        open_store(str(tmp_path))
    storage.delete_file(broken)
    assert open_store(str(tmp_path)).answers == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"id": None},
        {"candidate": "first"},
        {"candidate": None},
        {"candidate": 2**40},
        {"accepted": None},
        {"accepted": "yes"},
        {"conclusion": {"a": 1}},
        {"cost": "much"},
    ],
)
def test_an_entry_that_holds_no_answer_is_named(tmp_path, odd):
    store = open_store(str(tmp_path))
    entry = {"domain": "flat", "row": answer("mini/flat/a") | odd}
    storage.write_json(storage.join(store.location, "_journal/0.json"), entry)
    with pytest.raises(ValueError, match=r"_journal/0\.json: is no answer that was written whole"):
        open_store(str(tmp_path))


@pytest.mark.parametrize(
    ("odd", "stored"),
    [
        ({"text": "a \ud800 b"}, {"text": "a \ufffd b"}),
        ({"text": {"a": 1}}, {"text": "{'a': 1}"}),
        ({"model": 5}, {"model": "5"}),
        ({"model": "\udfff"}, {"model": "\ufffd"}),
        ({"prompt_tokens": 10**12}, {"prompt_tokens": 2**31 - 1}),
        ({"answer_tokens": -(10**9)}, {"answer_tokens": 0}),
        ({"answer_tokens": 10.5}, {"answer_tokens": 10}),
        ({"prompt_tokens": None}, {"prompt_tokens": 0}),
        ({"conclusion": "\ud800"}, {"conclusion": "\ufffd"}),
    ],
)
def test_what_earlier_releases_could_not_put_into_parts_is_gathered(tmp_path, odd, stored):
    store = open_store(str(tmp_path))
    entry = {"domain": "flat", "row": answer("mini/flat/a") | odd}
    storage.write_json(storage.join(store.location, "_journal/0.json"), entry)
    store = open_store(str(tmp_path))
    assert store.leftovers
    with store.writing():
        pass
    [row] = read_chains(str(tmp_path), "mini", "m", ["flat"]).to_pylist()
    assert stored.items() <= row.items()
    assert not open_store(str(tmp_path)).leftovers


@pytest.mark.parametrize("content", [b"", b"{", b"5", b'["model"]', b"\xff\xfe\xff"])
def test_a_broken_description_is_named_with_its_remedy(tmp_path, content):
    store = open_store(str(tmp_path))
    with store.writing():
        store.add("flat", answer("mini/flat/a"))
    storage.write_bytes(storage.join(store.location, "annotation.json"), content)
    with pytest.raises(ValueError, match=r'annotation\.json: does not say .*write {"model": "m", .*--name'):
        AnswerStore(str(tmp_path), "mini", "m", mini.DOMAINS, IDENTITY)


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1PAR1"])
def test_a_damaged_part_is_named_with_its_remedy(tmp_path, content):
    store = open_store(str(tmp_path))
    storage.write_bytes(storage.join(store.location, "flat/part-00000.parquet"), content)
    with pytest.raises(
        ValueError, match=r"flat/part-00000\.parquet: cannot be read as a part .*or remove it"
    ):
        open_store(str(tmp_path))


def test_parts_of_earlier_releases_are_read_with_later_ones(tmp_path):
    store = open_store(str(tmp_path))
    rows = pa.Table.from_pylist([answer("mini/flat/a")], schema=TEACHER_ANSWER_SCHEMA).drop_columns(["raw"])
    storage.write_table(storage.join(store.location, "flat/part-00000.parquet"), rows)
    store = open_store(str(tmp_path))
    with store.writing():
        store.add("flat", answer("mini/flat/b") | {"raw": "longer"})
    assert parts(str(tmp_path)) == ["flat/part-00000.parquet", "flat/part-00001.parquet"]
    table = read_chains(str(tmp_path), "mini", "m", ["flat"])
    assert table["raw"].to_pylist() == [None, "longer"]
    assert table.equals(read_chain_file(store.location))


@pytest.mark.parametrize(
    ("reason", "tokens", "filtered"),
    [("content_filter", 0, True), ("content_filter", 10, False), ("refusal", 0, False), (None, 0, False)],
)
def test_what_a_filter_refused_unread_is_done_with(tmp_path, reason, tokens, filtered):
    store = open_store(str(tmp_path))
    row = answer("mini/flat/a", accepted=reason is None) | {"reason": reason, "prompt_tokens": tokens}
    store.add("flat", row)
    assert store.progress("mini/flat/a").filtered == filtered
    assert open_store(str(tmp_path)).progress("mini/flat/a").filtered == filtered
