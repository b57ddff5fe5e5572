import json

import pyarrow as pa
import pytest

from rdmldg_ray.config.load import load_config
from rdmldg_ray.domainbed.records import make_records, read_results
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.storage import StorageError

ENVIRONMENTS = ("art", "photo", "sketch")


def config(*overrides):
    return load_config("demo", ["data.dataset=pacs", "data.trial_seed=2", *overrides])


def predictions(*groups):
    """From (pathway, domain, split, held out, marks): one prediction for each mark, 1 for right."""
    rows = [
        {"domain": domain, "split": split, "held_out": held_out, "pathway": pathway, "correct": mark == "1"}
        for pathway, domain, split, held_out, marks in groups
        for mark in marks
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


TABLE = predictions(
    ("direct", "photo", "in", True, "1110"),
    ("direct", "photo", "out", True, "0"),
    ("direct", "art", "out", False, "10"),
    ("direct", "sketch", "out", False, "1"),
    ("reasoning", "photo", "in", True, "1000"),
    ("reasoning", "photo", "out", True, "1"),
    ("reasoning", "art", "out", False, "11"),
    ("reasoning", "sketch", "out", False, "0"),
)


def accuracies(record):
    return {key: value for key, value in record.items() if key.startswith("env")}


def test_a_record_has_domainbeds_fields_and_the_accuracies_counted_by_hand():
    direct, reasoning = make_records(TABLE, config(), ENVIRONMENTS, "mtct", 1)
    args = direct["args"]
    assert {key: args[key] for key in ("dataset", "algorithm", "test_envs", "trial_seed")} == {
        "dataset": "PACS",
        "algorithm": "RD-MLDG (direct)",
        "test_envs": [1],
        "trial_seed": 2,
    }
    assert direct["step"] == 1
    assert accuracies(direct) == {
        "env0_out_acc": 0.5,
        "env1_in_acc": 0.75,
        "env1_out_acc": 0.0,
        "env1_all_acc": pytest.approx(0.6),
        "env2_out_acc": 1.0,
    }
    assert reasoning["args"]["algorithm"] == "RD-MLDG (reasoning)"
    assert reasoning["env1_all_acc"] == pytest.approx(0.4)


def test_several_domains_held_out_are_several_test_environments():
    table = predictions(
        ("direct", "art", "in", True, "1"),
        ("direct", "art", "out", True, "0"),
        ("direct", "sketch", "in", True, "0"),
        ("direct", "sketch", "out", True, "1"),
        ("direct", "photo", "out", False, "1"),
    )
    (record,) = make_records(table, config(), ENVIRONMENTS, "sarr-1", 2)
    assert record["args"]["test_envs"] == [0, 2]
    assert record["env0_in_acc"] == 1.0
    assert record["env2_out_acc"] == 1.0


def algorithm(model, *overrides):
    return make_records(TABLE, config(*overrides), ENVIRONMENTS, model, 0)[0]["args"]["algorithm"]


def test_what_is_not_the_whole_method_is_called_what_it_is():
    assert algorithm("zero-shot") == "zero-shot (direct)"
    assert algorithm("mtct", "mtct.weights.reasoning=0", "sarr.rounds=0") == "labels only (direct)"
    assert algorithm("mtct", "mtct.weights.direct=0", "sarr.without_chain=drop") == "chains only (direct)"


def hparams_seed(*overrides):
    return make_records(TABLE, config(*overrides), ENVIRONMENTS, "mtct", 1)[0]["args"]["hparams_seed"]


def test_trials_and_folds_share_their_hyperparameters_seed_and_settings_do_not():
    same = hparams_seed()
    assert hparams_seed("data.trial_seed=0", "data.held_out=art", "name=x", "seed=5") == same
    assert hparams_seed("engines.num_engines=1") == same
    assert hparams_seed("mtct.learning_rate=1e-4") != same
    assert hparams_seed("sarr.filter.max_tokens=9") != same


def domainbeds(**changes):
    """A record as DomainBed writes it, with parts changed; None leaves one out."""
    args = {
        "dataset": "PACS",
        "algorithm": "ERM",
        "test_envs": [1],
        "trial_seed": 0,
        "hparams_seed": 0,
        "seed": 7,
    }
    scores = {f"env{env}_{part}_acc": 0.5 for env in range(3) for part in ("in", "out")}
    record = {"step": 0, **scores}
    for key, value in changes.items():
        (args if key in args or key == "environments" else record)[key] = value
    return {key: value for key, value in ({"args": args} | record).items() if value is not None}


def test_records_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "a.jsonl"
    own = make_records(TABLE, config(), ENVIRONMENTS, "mtct", 1)
    records = [domainbeds(), domainbeds(env0_out_acc=1.0000000001), domainbeds(test_envs=[]), *own]
    lines = [json.dumps(record) for record in records]
    lines[0] = lines[0].replace("ERM", "a\u2028b")  # no line's end
    for text in ("\n".join(lines), "\ufeff" + "\r\n".join(lines) + "\r\n\r\n"):
        file.write_bytes(text.encode())
        found = read_results(str(file))
        assert found[0]["args"]["algorithm"] == "a\u2028b" and found[1:] == records[1:]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "Expecting property name"),
        (json.dumps(domainbeds()).encode()[:-20], "is not a record"),
        (b"\x80\x04\x95pickle", "is not a record"),
        (b"[" * 100_000, "is not a record"),
        (b"a,b,c", "Expecting value"),
        (b"3", "no object with 'args'"),
        (b"[]", "no object with 'args'"),
        (b'{"args": []}', "no object with 'args'"),
        (b'{"args": {}, "step": 0}', "'args' has no dataset, algorithm, trial_seed, hparams_seed, test_envs"),
        (domainbeds(dataset=3), "'dataset' is no text"),
        (domainbeds(trial_seed="0"), "'trial_seed' is no whole number"),
        (domainbeds(hparams_seed=None) | {"step": None}, "'hparams_seed' is no whole number"),
        (domainbeds(step=None), "'step' is no whole number"),
        (domainbeds(seed=[7]), "'seed' is no whole number"),
        (domainbeds(env0_out_acc="0.5"), "'env0_out_acc' is no accuracy between 0 and 1"),
        (domainbeds(env0_in_acc=50.0), "'env0_in_acc' is no accuracy between 0 and 1"),
        (domainbeds(env2_out_acc=float("nan")), "'env2_out_acc' is no accuracy between 0 and 1"),
        (domainbeds(env0_out_acc=None), "no 'env0_out_acc'"),
        (domainbeds(env1_in_acc=None), "no accuracies of the test environment 1"),
        (domainbeds(test_envs=1), "'test_envs' is no list"),
        (domainbeds(test_envs=[3]), "no accuracies of the test environment 3"),
        (domainbeds(test_envs=["a"]), "no accuracies of the test environment 'a'"),
        (domainbeds(environments=["art"]), "'environments' is no list of their names"),
    ],
)
def test_a_line_that_is_no_record_is_named_with_what_it_lacks(tmp_path, line, told):
    file = tmp_path / "bad.jsonl"
    text = line if isinstance(line, bytes) else json.dumps(line).encode()
    file.write_bytes(json.dumps(domainbeds()).encode() + b"\n" + text)
    with pytest.raises(ValueError, match=r"bad\.jsonl: line 2 is not a record of DomainBed \(") as refused:
        read_results(str(file))
    assert told in str(refused.value) and "\n" not in str(refused.value)
    assert "restore the file, or delete the line" in str(refused.value)


def test_a_run_without_results_and_what_is_no_file_of_them_are_named(tmp_path):
    with pytest.raises(StorageError, match=r"run/results\.jsonl: no results here"):
        read_results(str(tmp_path / "run"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: is empty; restore it, or leave it out"):
        read_results(str(tmp_path / "empty.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"folder\.jsonl: cannot be read .*directory"):
        read_results(str(tmp_path / "folder.jsonl"))
