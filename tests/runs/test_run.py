import shutil
from dataclasses import replace

import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import ConfigError, load_config
from rdmldg_ray.datasets.schema import DatasetInfo, read_dataset_info
from rdmldg_ray.runs.plan import count_samples, plan_stages
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import Stage
from rdmldg_ray.runtime.lease import LeaseHeldError
from tools import mini

INFO = DatasetInfo("pets", ("art", "photo", "sketch"), ("cat", "dog"), {"art": 50, "photo": 31, "sketch": 12})


def config(*overrides):
    return load_config("demo", ["data.dataset=pets", "data.held_out=photo", *overrides])


@pytest.fixture
def pipeline(tmp_path):
    """Make a pipeline over the data set ``pets``, of which only the description is needed."""

    def pipeline(*overrides, storage=tmp_path):
        settings = config(*overrides).model_copy(update={"storage": str(storage)})
        return Run(settings, INFO, Console(quiet=True))

    return pipeline


# Planning.


def names(*overrides):
    return [stage.name for stage in plan_stages(config(*overrides), INFO)]


def test_a_plan_is_algorithm_1_with_an_evaluation_after_each_training():
    assert names("sarr.rounds=2") == [
        "photo/evaluation/zero-shot",
        "photo/mtct",
        "photo/evaluation/mtct",
        "photo/sarr-1/candidates",
        "photo/sarr-1",
        "photo/evaluation/sarr-1",
        "photo/sarr-2/candidates",
        "photo/sarr-2",
        "photo/evaluation/sarr-2",
    ]


def test_a_plan_without_rounds_and_zero_shot_trains_and_evaluates_once():
    assert names("sarr.rounds=0", "evaluation.zero_shot=false") == ["photo/mtct", "photo/evaluation/mtct"]


def test_every_domain_is_held_out_in_turn_for_all():
    assert [name for name in names("data.held_out=all") if name.endswith("/mtct")] == [
        f"{domain}/{stage}" for domain in INFO.environments for stage in ("mtct", "evaluation/mtct")
    ]


def test_domains_are_held_out_in_the_order_given_and_once():
    held_out = [stage.held_out for stage in plan_stages(config("data.held_out=sketch,art,sketch"), INFO)]
    assert list(dict.fromkeys(held_out)) == ["sketch", "art"]
    assert len(names("data.held_out=sketch,art,sketch")) == len(set(names("data.held_out=sketch,art")))


def test_an_unknown_domain_is_named_with_those_there_are():
    with pytest.raises(
        ConfigError, match=r"data\.held_out: pets has no domain 'foto'; it has: art, photo, sketch"
    ):
        names("data.held_out=foto")


@pytest.mark.parametrize(
    ("fraction", "counts", "named"),
    [
        (0.001, {}, ["art: 0.001 of 50 images leaves none; at least 0.02"]),
        (0.001, {"sketch": 4}, ["sketch: 0.001 of 4 images leaves none; at least 0.25"]),
        (0.2, {"photo": 4}, ["photo: 0.2 of 4 images leaves none; at least 0.25"]),
        (
            0.2,
            {"photo": 3, "art": 2},
            ["photo: 0.2 of 3 images leaves none; at least 0.3334", "at least 0.5"],
        ),
        (0.9, {"photo": 1}, ["photo: 0.9 of 1 images leaves none; a data set with more images"]),
    ],
)
def test_a_domain_that_is_not_split_is_named_when_planned(fraction, counts, named):
    info = replace(INFO, counts={**INFO.counts, **counts})
    with pytest.raises(ConfigError, match=r"data\.holdout_fraction: pets has domains") as error:
        plan_stages(config(f"data.holdout_fraction={fraction}"), info)
    assert all(line in str(error.value) for line in named)


@pytest.mark.parametrize(("fraction", "size"), [(0.2, 5), (0.25, 4), (0.5, 2), (0.02, 50), (0.3334, 3)])
def test_a_split_of_one_image_is_one(fraction, size):
    info = replace(INFO, counts=dict.fromkeys(INFO.environments, size))
    assert plan_stages(config(f"data.holdout_fraction={fraction}"), info)


def test_training_reads_the_sources_in_parts_and_evaluation_the_target_and_the_sources_out_parts():
    # 20 % rounded down: art 10, photo 6, sketch 2 in the out parts.
    assert count_samples(config(), INFO, Stage("photo", "mtct", 0)) == 40 + 10
    assert count_samples(config(), INFO, Stage("photo", "generate", 1)) == 40 + 10
    assert count_samples(config(), INFO, Stage("photo", "evaluate", 0)) == 31 + 10 + 2


def test_the_workload_tells_images_and_steps(pipeline):
    plan = pipeline(
        "mtct.epochs=3", "mtct.batch_size=16", "sarr.training.epochs=2", "sarr.training.batch_size=32"
    )
    assert [plan.workload(stage) for stage in plan.stages] == [
        (43, None),
        (50, 12),
        (43, None),
        (50, None),
        (50, 4),
        (43, None),
    ]


def test_a_workload_too_small_for_the_workers_is_refused_when_planned(pipeline):
    plan = pipeline("workers.num_workers=64", "mtct.batch_size=64", "sarr.training.batch_size=64")
    with pytest.raises(ValueError, match="50 training samples leave 50 for a step, and 64 workers"):
        plan.workload(plan.stages[1])


def test_domains_held_out_together_are_all_out_of_sight_in_training_and_all_evaluated():
    settings = config("data.held_out=photo+art")
    assert plan_stages(settings, INFO)[1].name == "art+photo/mtct"
    assert count_samples(settings, INFO, Stage("art+photo", "mtct", 0)) == 10
    assert count_samples(settings, INFO, Stage("art+photo", "evaluate", 0)) == 50 + 31 + 2


# State.


def test_what_is_complete_is_entered_in_the_state_and_does_not_remain(pipeline):
    plan = pipeline()
    assert plan.state() == {}
    assert plan.remaining() == plan.stages
    plan.store.enter(plan.stages[0], {"seconds": 1.3, "accuracy": {}})
    plan.store.enter(plan.stages[1], {"seconds": 2.0, "samples": 50})
    assert plan.state() == {
        "photo/evaluation/zero-shot": {"seconds": 1.3, "accuracy": {}},
        "photo/mtct": {"seconds": 2.0, "samples": 50},
    }
    assert pipeline().remaining() == plan.stages[2:]


def test_outputs_without_an_entry_do_not_make_a_stage_complete(pipeline, tmp_path):
    plan = pipeline()
    (tmp_path / "runs/demo/photo/mtct/adapter").mkdir(parents=True)
    assert plan.remaining() == plan.stages


def test_each_round_continues_from_the_adapter_before_it(pipeline, tmp_path):
    adapters = [pipeline().folds["photo"]._adapter(number) for number in (-1, 0, 1)]
    run = f"{tmp_path}/runs/demo/photo"
    assert adapters == [None, f"{run}/mtct/adapter", f"{run}/sarr-1/adapter"]


def test_classes_without_a_chain_are_named_once_for_all_folds(tmp_path, caplog, capsys):
    mini.write_mini(str(tmp_path))
    info = read_dataset_info(str(tmp_path), "mini")
    lost = info.classes[0]
    chains = {name: read_chains(str(tmp_path), "mini", "rules", [name]) for name in info.environments}
    for name, table in chains.items():
        rows = [row for row in table.to_pylist() if f"/{lost}/" not in row["id"]]
        chains[name] = pa.Table.from_pylist(rows, table.schema)
    write_chains(str(tmp_path), "mini", "rules", chains)
    settings = load_config("demo", [*mini.SETTINGS, "data.held_out=all", f"storage={tmp_path}"])
    Run(settings, info, Console(width=1000)).check_chains()
    [line] = [line for line in capsys.readouterr().out.splitlines() if lost in line]
    assert all(f"{name}/mtct" in line for name in info.environments)
    assert "no accepted chain of 'rules'; look at why they were rejected" in line
    assert not caplog.records


def test_a_run_records_its_config_and_resumes_with_the_same(pipeline, tmp_path):
    pipeline("lora.rank=4").prepare()
    recorded = tmp_path / "runs/demo/config.yaml"
    assert yaml.safe_load(recorded.read_text())["lora"]["rank"] == 4
    before = recorded.stat().st_mtime_ns
    pipeline("lora.rank=4").prepare()
    assert recorded.stat().st_mtime_ns == before


def test_image_settings_that_come_or_go_are_another_run(pipeline):
    pipeline("model.mm_processor_kwargs.crop_to_patches=false").prepare()
    with pytest.raises(
        ConfigError, match=r"model\.mm_processor_kwargs\.crop_to_patches: was False, now None"
    ):
        pipeline().prepare()


def test_a_run_resumes_after_its_storage_was_moved(pipeline, tmp_path):
    pipeline().prepare()
    shutil.move(tmp_path / "runs", tmp_path / "moved/runs")
    pipeline(storage=tmp_path / "moved").prepare()


def test_a_run_with_other_settings_is_refused_and_each_is_named(pipeline, tmp_path):
    pipeline("data.held_out=photo").prepare()
    with pytest.raises(ConfigError) as error:
        pipeline("data.held_out=photo,art", "mtct.epochs=9", "sarr.filter.max_tokens=7").prepare()
    assert str(error.value).splitlines() == [
        "run 'demo' exists with other settings:",
        "  data.held_out: was ['photo'], now ['photo', 'art']",
        "  mtct.epochs: was 4, now 9",
        "  sarr.filter.max_tokens: was None, now 7",
        f"set another name (name=...), or delete {tmp_path}/runs/demo",
    ]
    pipeline("mtct.epochs=9", "name=other").prepare()


# One at a time.


def test_a_fold_that_is_worked_on_is_refused_before_ray_is_started(pipeline):
    plan, other = pipeline("data.held_out=art,photo"), pipeline("data.held_out=art,photo")
    plan.check_free()
    with other.folds["art"].lease.held(), pytest.raises(LeaseHeldError, match="run 'demo', fold art: "):
        plan.check_free()
    with other.folds["photo"].lease.held():
        plan.check_free()  # the fold that comes next is free
    for stage in plan.folds["art"].stages:
        plan.store.enter(stage, {"seconds": 1.0, "candidates": 1, "accepted": 1, "accuracy": {}})
    with other.folds["photo"].lease.held(), pytest.raises(LeaseHeldError, match="fold photo: "):
        plan.check_free()
    with other.folds["photo"].lease.held(), pytest.raises(LeaseHeldError, match="fold photo: "):
        plan.run()
    plan.check_free()


def test_of_two_that_begin_a_run_at_once_with_other_settings_one_is_refused(pipeline, monkeypatch):
    first, second = pipeline("mtct.epochs=3"), pipeline("mtct.epochs=4")
    monkeypatch.setattr(
        "rdmldg_ray.runs.run.check_tracking", lambda _: first.store.write_config(first.config)
    )
    monkeypatch.setattr("rdmldg_ray.runs.run.check_inputs", lambda *_: True)
    with pytest.raises(ConfigError, match=r"mtct\.epochs: was 3, now 4"):
        second.prepare()
    assert first.store.read_config().mtct.epochs == 3
