import re

import pytest

from rdmldg_ray import storage
from rdmldg_ray.chains.store import read_chains
from rdmldg_ray.datasets.schema import chains_location
from rdmldg_ray.teacher.journal import AnswerStore
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
