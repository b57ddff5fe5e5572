import shutil

import pyarrow as pa
import pytest
from rich.console import Console

from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.datasets.schema import CHAIN_SCHEMA, chains_location, info_location, read_dataset_info
from rdmldg_ray.runs import inputs
from rdmldg_ray.runs.inputs import StageInputs, running_inputs
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import RunStore, Stage, write_fold_state
from rdmldg_ray.storage import read_bytes, read_json, read_table, write_bytes, write_json, write_table
from tools import mini

FLAT, PAINT = Stage("flat", "mtct", 0), Stage("paint", "mtct", 0)


@pytest.fixture
def root(mini_root, tmp_path):
    """A storage with a data set, its chains and a model, of which each test may change any."""
    shutil.copytree(mini_root / "datasets", tmp_path / "datasets")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes(name.encode())
    return str(tmp_path)


@pytest.fixture
def run(root):
    """Make a run over two folds, with as many stages complete as were begun."""

    def run(*overrides, begun=(), complete=()):
        config = load_config(
            "demo",
            [
                *mini.SETTINGS,
                f"storage={root}",
                f"model.path={root}/model",
                "data.held_out=flat,paint",
                *overrides,
            ],
        )
        made = Run(config, read_dataset_info(root, "mini"), Console(record=True, width=300))
        for stage in begun:
            read = StageInputs(config, made.info)
            made.store.begin(stage, read.of(stage) | running_inputs(config, stage))
        for stage in complete:
            made.store.enter(stage, {"seconds": 1.0, "samples": 1})
        return made

    return run


def rewrite(root, domain, change):
    """Change the rows of a domain's chains."""
    chains = {name: read_chains(root, "mini", "rules", [name]) for name in mini.DOMAINS}
    rows = change(chains[domain].to_pylist())
    write_chains(root, "mini", "rules", chains | {domain: pa.Table.from_pylist(rows, CHAIN_SCHEMA)})


def another_text(rows):
    return [{**row, "text": row["text"].replace(".", "!")} for row in rows]


def one_rejected(rows):
    return [{**row, "accepted": number > 0} for number, row in enumerate(rows)]


def one_less(rows):
    return rows[1:]


def one_more(rows):
    return [*rows, {**rows[0], "candidate": 1}]


@pytest.mark.parametrize("change", [another_text, one_rejected, one_less, one_more])
def test_chains_that_change_between_two_folds_stop_the_run(run, root, change):
    before = run(begun=[FLAT], complete=[FLAT])
    before.prepare()
    rewrite(root, "sketch", change)
    with pytest.raises(ConfigError) as error:
        run().prepare()
    assert str(error.value).splitlines() == [
        "run 'demo': what its stages read is not what it was:",
        "  chains of rules for sketch: changed since flat/mtct read it",
        "bring back what is named, or set another name (name=...), which computes all anew",
    ]


def test_chains_that_lie_otherwise_are_the_same(run, root):
    run(begun=[FLAT], complete=[FLAT]).prepare()
    table = read_chains(root, "mini", "rules", ["sketch"])
    location = chains_location(root, "mini", "rules", "sketch")
    write_table(f"{location}/part-00000.parquet", table.slice(20))
    write_table(f"{location}/part-00001.parquet", table.slice(0, 20))
    run().prepare()


def test_chains_that_no_remaining_stage_reads_may_change(run, root):
    run(begun=[FLAT, PAINT], complete=[FLAT, PAINT]).prepare()
    rewrite(root, "sketch", one_less)
    run().prepare()
    other = run("name=other", "sarr.without_chain=teacher", begun=[FLAT], complete=[FLAT])
    rewrite(root, "sketch", one_less)
    with pytest.raises(ConfigError, match="chains of rules for sketch"):
        other.prepare()


def test_what_is_rejected_or_of_no_source_may_change(run, root):
    run("data.held_out=flat", begun=[FLAT]).prepare()
    rewrite(root, "flat", one_less)
    rewrite(root, "sketch", lambda rows: [*rows, {**rows[0], "candidate": 2, "accepted": False}])
    run("data.held_out=flat").prepare()


def other_model(root):
    write_bytes(f"{root}/model/tokenizer_config.json", b"{}")


def other_weights(root):
    file = f"{root}/model/model.safetensors"
    write_bytes(file, read_bytes(file)[:-1] + b"x")


def other_dataset(root):
    write_json(info_location(root, "mini"), read_json(info_location(root, "mini")) | {"content": "new"})


@pytest.mark.parametrize(
    ("change", "named"),
    [(other_model, "model "), (other_weights, "model "), (other_dataset, "data set mini")],
)
def test_another_model_or_data_set_of_the_same_name_stops_the_run(run, root, change, named):
    run(begun=[FLAT], complete=[FLAT]).prepare()
    change(root)
    with pytest.raises(ConfigError, match=f"  {named}.*: changed since flat/mtct read it"):
        run().prepare()


def test_a_release_whose_stages_give_another_result_does_not_go_on(run, monkeypatch):
    run(begun=[FLAT], complete=[FLAT]).prepare()
    monkeypatch.setitem(inputs.STAGE_VERSIONS, "evaluate", 7)
    run().prepare()  # none was evaluated yet
    monkeypatch.setitem(inputs.STAGE_VERSIONS, "mtct", 7)
    with pytest.raises(
        ConfigError, match=r"code of mtct stages: flat/mtct is of version 1, .* has version 7"
    ):
        run().prepare()


def test_a_stage_that_left_no_checkpoint_begins_anew_with_what_there_is(run, root):
    run(begun=[FLAT])
    rewrite(root, "sketch", one_less)
    run().prepare()
    store = run().store
    write_bytes(f"{store.checkpoints_uri(FLAT)}/checkpoint_1/shard", b"x")
    with pytest.raises(ConfigError, match="chains of rules for sketch"):
        run().prepare()


def test_a_run_of_an_earlier_release_resumes_with_a_note(run, root):
    made = run(complete=[FLAT])
    assert "inputs" not in read_json(f"{made.location}/flat/state.json")
    rewrite(root, "sketch", one_less)
    made.prepare()
    assert "did not record what they read" in made.console.export_text()


def test_what_was_read_stays_recorded_when_a_stage_completes(run):
    made = run(begun=[FLAT], complete=[FLAT])
    read = made.store.fold_inputs("flat")["flat/mtct"]
    assert set(read) == {
        "data set mini",
        f"model {made.config.model.path}",
        "prompts",
        "code of mtct",
        "chains of rules for paint",
        "chains of rules for sketch",
        "workers of flat/mtct",
    }
    write_fold_state(made.store, "flat", {})
    assert made.store.fold_inputs("flat")["flat/mtct"] == read
    assert made.store.fold_state("flat") == {}


# How a training is cut.


@pytest.mark.parametrize(
    ("overrides", "free"),
    [
        (["mtct.micro_batch_size=4"], True),
        (["sarr.training.micro_batch_size=2"], True),
        (["workers.num_workers=1"], True),
        (["workers.zero_stage=2"], True),
        (["mtct.batch_size=8"], False),
        (["lora.rank=4"], False),
    ],
)
def test_settings_that_change_rounding_alone_may_change_between_stages(run, overrides, free):
    run(begun=[FLAT], complete=[FLAT]).prepare()
    after = run(*overrides)
    if not free:
        with pytest.raises(ConfigError, match="exists with other settings"):
            after.prepare()
        return
    after.prepare()
    assert f"{overrides[0].split('=')[0]} was " in after.console.export_text()


@pytest.mark.parametrize("override", ["mtct.micro_batch_size=4", "workers.num_workers=1"])
def test_with_dropout_they_change_what_is_dropped(run, override):
    run("lora.dropout=0.1").prepare()
    with pytest.raises(ConfigError, match="exists with other settings"):
        run("lora.dropout=0.1", override).prepare()


@pytest.mark.parametrize(("before", "after", "free"), [(0, 1, False), (0, 2, False), (1, 3, True)])
def test_in_bfloat16_stage_0_is_another_optimizer(run, before, after, free):
    bf16 = ("model.dtype=bfloat16", "model.mixed_precision=false")
    made = run("workers.zero_stage=1", *bf16)
    made.prepare()
    # As releases wrote it that had stage 0 in bfloat16.
    recorded = read_bytes(made.store.config_uri).decode().replace("zero_stage: 1", f"zero_stage: {before}")
    write_bytes(made.store.config_uri, recorded.encode())
    later = run(f"workers.zero_stage={after}", *bf16)
    if free:
        later.prepare()
    else:
        with pytest.raises(ConfigError, match=r"workers\.zero_stage: was"):
            later.prepare()


@pytest.mark.parametrize("recorded", [True, False])
def test_a_checkpoint_is_resumed_by_as_many_workers_as_wrote_it(run, recorded):
    made = run(begun=[FLAT] if recorded else [])
    made.prepare()
    write_bytes(f"{made.store.checkpoints_uri(FLAT)}/checkpoint_1/shard", b"x")
    run("mtct.micro_batch_size=1").prepare()
    with pytest.raises(ConfigError) as error:
        run("workers.num_workers=1").prepare()
    if recorded:
        assert "of other workers: was 2, at ZeRO stage 0, now 1, at ZeRO stage 0" in str(error.value)
        assert f"delete {made.store.checkpoints_uri(FLAT)}" in str(error.value)
    else:
        assert "workers.num_workers: was 2, now 1" in str(error.value)


def test_the_workers_of_a_checkpoint_count_and_not_those_of_the_config(run):
    run().prepare()
    run("workers.num_workers=1", begun=[FLAT])
    write_bytes(f"{run().store.checkpoints_uri(FLAT)}/checkpoint_1/shard", b"x")
    run("workers.num_workers=1").prepare()
    with pytest.raises(ConfigError, match=r"of other workers: was 1, .*now 2"):
        run().prepare()


def test_the_record_is_of_the_fold(root, run):
    run(begun=[FLAT, PAINT])
    assert list(RunStore(root, "demo").fold_inputs("paint")) == ["paint/mtct"]
    assert read_table(chains_location(root, "mini", "rules")).num_rows == 90
