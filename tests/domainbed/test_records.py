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
    assert algorithm("mtct", "mtct.weights.direct=0") == "chains only (direct)"


def hparams_seed(*overrides):
    return make_records(TABLE, config(*overrides), ENVIRONMENTS, "mtct", 1)[0]["args"]["hparams_seed"]


def test_trials_and_folds_share_their_hyperparameters_seed_and_settings_do_not():
    same = hparams_seed()
    assert hparams_seed("data.trial_seed=0", "data.held_out=art", "name=x", "seed=5") == same
    assert hparams_seed("engines.num_engines=1") == same
    assert hparams_seed("mtct.learning_rate=1e-4") != same
    assert hparams_seed("sarr.filter.max_tokens=9") != same


def test_a_run_without_results_and_a_line_that_is_none_are_named(tmp_path):
    with pytest.raises(StorageError, match=r"run/results\.jsonl: no results here"):
        read_results(str(tmp_path / "run"))
    good = json.dumps({"args": {}, "step": 0})
    for text, message in (("{", "line 1 is not a record"), (good, "line 1 has no algorithm, dataset")):
        (tmp_path / "bad.jsonl").write_text(text + "\n")
        with pytest.raises(ValueError, match=message):
            read_results(str(tmp_path / "bad.jsonl"))
