from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from rdmldg_ray.chains.format import SECTIONS, render_chain
from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.domainbed.records import read_results
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.stage_cache import StageCache
from rdmldg_ray.runs.store import Stage, write_fold_state
from rdmldg_ray.runtime.errors import RunFailedError
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA
from rdmldg_ray.storage import join, read_json, read_table, write_bytes, write_json, write_table
from tests.helpers.stage_files import write_training
from tools import mini

ADAPTER = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/parity.parquet",
]
MTCT, EVALUATION = Stage("flat", "mtct", 0), Stage("flat", "evaluate", 0)
DRAWS, ROUND = Stage("flat", "generate", 1), Stage("flat", "train", 1)


@pytest.fixture
def group(tmp_path):
    """Make runs of one group on a small real data set."""
    root = str(tmp_path)
    mini.write_mini(root)

    def run(name, *overrides, claim=None):
        config = load_config("demo", [*mini.SETTINGS, f"name={name}", f"storage={root}", *overrides])
        info = read_dataset_info(root, "mini")
        more = {"claim": claim} if claim else {}
        cache = StageCache(config, info, join(root, "group"), **more)
        run = Run(config, info, Console(quiet=True), cache)
        run.cache = cache
        return run

    return run


def finish(run, stage, files, **entry):
    """What a stage leaves when it has run: its files, its entry, its address."""
    for name, content in files.items():
        location = join(run.location, stage.name, name)
        write_table(location, content) if isinstance(content, pa.Table) else write_bytes(location, content)
    run.store.enter(stage, {"seconds": 12.5, **entry})
    run.cache.register(stage, entry)


def files_of(run, folder):
    root = Path(run.location, folder)
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def test_a_stage_of_the_same_key_is_copied_whole_but_for_its_checkpoints(group):
    first, second = group("first"), group("second", "sarr.filter.max_tokens=50")
    summary = write_training(first.store, MTCT, first.config, 48)
    finish(first, MTCT, {"checkpoints/x/optimizer": b"2"}, **summary)
    second.folds["flat"].run_stage(MTCT)
    assert files_of(second, "flat/mtct") == [*ADAPTER, "metrics.jsonl"]
    entry = second.state()["flat/mtct"]
    assert (entry["samples"], entry["shared"]) == (48, ["first"])
    assert entry["seconds"] < 5


def test_a_stage_of_another_key_is_not_found(group):
    finish(group("first"), MTCT, {"metrics.jsonl": b"1\n"})
    assert group("second").cache.find(MTCT) == ["first"]
    assert group("second", "mtct.epochs=9").cache.find(MTCT) == []


def test_what_was_deleted_or_is_not_complete_is_not_found(group):
    first = group("first")
    finish(first, MTCT, {"metrics.jsonl": b"1\n"})
    write_fold_state(first.store, "flat", {})
    assert group("second").cache.find(MTCT) == []


def test_a_rounds_training_is_copied_without_what_its_draws_left(group):
    first, second = group("first"), group("second")
    finish(first, MTCT, {}, **write_training(first.store, MTCT, first.config, 48))
    files = {"candidates/part-0.parquet": b"2", "selected/part-0.parquet": b"3", "rejections.parquet": b"4"}
    finish(first, ROUND, files, **write_training(first.store, ROUND, first.config, 30))
    for stage in (MTCT, ROUND):
        second.folds["flat"].run_stage(stage)
    assert files_of(second, "flat/sarr-1") == [*ADAPTER, "metrics.jsonl"]


def test_a_copy_that_is_not_whole_is_not_complete(group):
    first, second = group("first"), group("second")
    finish(first, MTCT, {}, **write_training(first.store, MTCT, first.config, 48))
    write_bytes(join(first.location, "flat/mtct/adapter/adapter_model.safetensors"), b"cut")
    with pytest.raises(
        RunFailedError, match=r"stage flat/mtct ended without all of its outputs(.|\n)*cut or no"
    ):
        second.folds["flat"].run_stage(MTCT)
    assert second.state() == {}


def test_chains_that_were_added_make_another_key(group, tmp_path):
    first = group("first")
    finish(first, MTCT, {}, **write_training(first.store, MTCT, first.config, 48))
    chains = {name: read_chains(str(tmp_path), "mini", "rules", [name]) for name in mini.DOMAINS}
    write_chains(str(tmp_path), "mini", "rules", chains | {"paint": chains["paint"].slice(1)})
    assert group("second").cache.find(MTCT) == []
    of_no_source = {"flat": chains["flat"].slice(1)}
    write_chains(str(tmp_path), "mini", "rules", chains | of_no_source)
    assert group("third").cache.find(MTCT) == ["first"]


def predictions(run):
    rows = [
        {**sample, "pathway": pathway, "correct": True}
        for sample in run.data.evaluation_set("flat")
        .select(["id", "domain", "split", "held_out"])
        .to_pylist()
        for pathway in ("direct", "reasoning")
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


def test_a_copied_evaluation_stands_in_the_results_of_the_run_that_took_it(group):
    first, second = group("first"), group("second", "sarr.filter.max_tokens=50")
    files = {"predictions.parquet": predictions(first), "metrics.json": b"{}"}
    finish(first, EVALUATION, files, accuracy={})
    second.folds["flat"].run_stage(EVALUATION)
    [record, _] = read_results(second.location)
    assert record["hparams"]["sarr"]["filter"]["max_tokens"] == 50


def candidates(run, tokens):
    """Draws of every source image: a right chain of the length ``tokens[attempt]``."""
    rows = []
    for sample in run.data.source_index("flat", "in").to_pylist():
        for attempt, length in enumerate(tokens):
            rows.append(
                {
                    "id": sample["id"],
                    "label": sample["label"],
                    "domain": sample["domain"],
                    "candidate": attempt,
                    "text": render_chain({**dict.fromkeys(SECTIONS, "x"), "CONCLUSION": sample["label"]}),
                    "num_tokens": length,
                    "finished": True,
                    "mean_logprob": -0.5,
                    "label_prob": 0.5,
                    "repetition": 0.0,
                }
            )
    table = pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA)
    nulls = pa.nulls(len(rows), pa.string())
    return table.append_column("prompt_version", nulls).append_column("model", nulls)


def test_draws_are_judged_anew_by_each_run_without_an_engine(group):
    strict = group("strict", "sarr.filter.max_tokens=40")
    finish(
        strict,
        DRAWS,
        {"part-00000.parquet": candidates(strict, [60, 30])},
        candidates=96,
        accepted=0,
        drawn_anew=96,
    )
    loose, none = group("loose"), group("none", "sarr.filter.max_tokens=10", "sarr.max_attempts=2")
    loose.folds["flat"].run_stage(DRAWS)
    none.folds["flat"].run_stage(DRAWS)
    assert loose.state()[DRAWS.name]["candidates"] == 48  # the first draw is enough
    assert none.state()[DRAWS.name]["candidates"] == 96
    for run, accepted in ((loose, 48), (none, 0)):
        entry = run.state()[DRAWS.name]
        assert (entry["accepted"], entry["drawn_anew"], entry["shared"]) == (accepted, 0, ["strict"])
    lengths = read_table(join(loose.location, "flat/sarr-1/selected"), ["num_tokens"])["num_tokens"]
    assert set(lengths.to_pylist()) == {60}
    # Neither has draws that the first does not have.
    assert read_json(strict.cache._entry_uri(DRAWS)) == ["strict"]


def test_a_key_is_held_from_the_search_to_the_registration(group):
    held = []

    @contextmanager
    def claim(key):
        held.append(key)
        assert run.remaining()[0].name not in run.state()
        yield
        assert run.cache._registered(MTCT) == ["first", "second"]

    first = group("first")
    finish(first, MTCT, {}, **write_training(first.store, MTCT, first.config, 48))
    run = group("second", "evaluation.zero_shot=false", claim=claim)
    run.folds["flat"].run_stage(MTCT)
    assert held == [run.cache._keys["flat/mtct"]]


def test_a_stage_of_one_whose_lease_was_taken_is_not_entered(group):
    @contextmanager
    def claim(key):
        location = join(run.location, "flat/lease.json")
        write_json(location, read_json(location) | {"token": "another"})
        yield

    first = group("first")
    finish(first, MTCT, {}, **write_training(first.store, MTCT, first.config, 48))
    run = group("second", claim=claim)
    with pytest.raises(RunFailedError, match=r"run 'second', fold flat: .* has taken over"):
        run.folds["flat"].run_stage(MTCT)
    assert run.state() == {} and run.store.fold_inputs("flat") == {}


def test_a_lease_that_is_taken_during_a_stage_is_noticed_before_it_is_entered(group, monkeypatch):
    first, second = group("first"), group("second")
    finish(first, MTCT, {}, **write_training(first.store, MTCT, first.config, 48))
    copy = second.cache.copy

    def copy_slowly(*arguments):
        location = join(second.location, "flat/lease.json")
        write_json(location, read_json(location) | {"token": "another"})
        return copy(*arguments)

    monkeypatch.setattr(second.cache, "copy", copy_slowly)
    with pytest.raises(RunFailedError, match="has taken over"):
        second.folds["flat"].run_stage(MTCT)
    assert second.state() == {} and list(second.store.fold_inputs("flat")) == ["flat/mtct"]
