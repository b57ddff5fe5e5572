import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rdmldg_ray.cli import app
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.builtin.iconbed import iconbed_info
from rdmldg_ray.runs.estimate import (
    Calibration,
    Prices,
    calibrate,
    estimate,
    plan_loads,
    read_calibration,
    total,
)
from rdmldg_ray.runs.plan import count_samples, plan_stages
from rdmldg_ray.runs.store import RunStore, Stage, write_fold_state
from rdmldg_ray.storage import write_bytes

RATES = Calibration(
    model="tiny",
    machine="two cores",
    train_images_per_s=5,
    mtct_start_s=10,
    train_start_s=5,
    engine_start_s=30,
    engine_reload_s=2,
    candidates_per_s=20,
    tokens_per_candidate=100,
    max_attempts=2,
    candidates_per_image=1.5,
    share_with_chain=0.5,
    answers_per_s=40,
    bytes_per_training=1000,
    bytes_per_candidate=10,
    bytes_per_answer=2,
)
TWO_WORKERS = ["workers.num_workers=2", "engines.num_engines=2", "mtct.epochs=4", "sarr.training.epochs=2"]


def estimates(*overrides):
    rows = estimate(load_config("demo", [*TWO_WORKERS, *overrides]), iconbed_info(), RATES, {})
    return {row.kind: row for row in rows}


def test_an_estimate_is_work_by_rate():
    info = iconbed_info()
    rows = estimates()
    assert list(rows) == ["evaluate", "mtct", "generate", "train"]
    mtct = rows["mtct"]
    assert mtct.images == 690
    assert mtct.hours * 3600 == pytest.approx(10 + 690 * 4 / 5 / 2)
    assert mtct.worker_hours == pytest.approx(2 * mtct.hours)
    assert (rows["generate"].chains, rows["generate"].tokens) == (1035, 103500)
    assert rows["generate"].hours * 3600 == pytest.approx(1035 / 20 / 2), "the model is served already"
    assert rows["train"].images == 690
    dropped = estimates("sarr.without_chain=drop")["train"]
    assert dropped.images == 345, "the half without a chain takes no part"
    config = load_config("demo", TWO_WORKERS)
    images = sum(count_samples(config, info, s) for s in plan_stages(config, info) if s.kind == "evaluate")
    assert rows["evaluate"].images == images and rows["evaluate"].stages == 3
    assert rows["evaluate"].hours * 3600 == pytest.approx(30 + 2 * 2 + images * 2 / 40 / 2)


def test_more_workers_take_less_time_and_more_of_them():
    few, many = estimates(), estimates("workers.num_workers=4", "mtct.batch_size=16")
    assert many["mtct"].hours < few["mtct"].hours
    assert many["mtct"].worker_hours > few["mtct"].worker_hours, "all of them wait for the start"


def test_engines_start_once_or_after_each_training_and_load_each_model():
    def loads(*overrides):
        config = load_config("demo", ["data.held_out=[flat, paint]", *overrides])
        found = plan_loads(config, plan_stages(config, iconbed_info()))
        return [load for stage, load in found if stage.kind in ("evaluate", "generate")]

    # Zero-shot, MTCT, the round that MTCT's model writes, the round's own model; then the other fold.
    assert loads() == ["start", "reload", None, "reload", "reload", "reload", None, "reload"]
    ended = loads("engines.keep_while_training=false")
    assert ended == ["start", "start", None, "start", "reload", "start", None, "start"]


def test_a_fixed_number_of_draws_and_a_limit_count():
    assert estimates("sarr.sampling=fixed", "sarr.max_attempts=3")["generate"].chains == 3 * 690
    one = estimates("sarr.max_attempts=1", "sarr.temperatures=[0.5]")
    assert one["generate"].chains == 690
    assert estimates("sarr.without_chain=teacher")["train"].images == 690


def test_another_limit_of_draws_counts_as_if_each_were_kept_as_often():
    # A third of the measured run's candidates were kept: 1 - (2/3)^2 of the images with two draws have a
    # chain, and 1 - (2/3)^3 with three.
    rows = estimates("sarr.max_attempts=3", "sarr.without_chain=drop")
    assert rows["generate"].chains == round(690 * 1.5 * (19 / 27) / (5 / 9))
    assert rows["train"].images == round(690 * 0.5 * (19 / 27) / (5 / 9))


def test_the_sum_costs_what_its_parts_cost():
    rows = list(estimates("data.held_out=all", "sarr.rounds=3").values())
    prices = Prices(worker_hour=2.0, gb_month=0.5)
    assert total(rows).cost(prices) == pytest.approx(sum(row.cost(prices) for row in rows))
    assert total(rows).stages == sum(row.stages for row in rows) == 4 * 12
    [row] = [dataclasses.replace(rows[0], worker_hours=3.0, bytes=2_000_000_000)]
    assert row.cost(prices) == pytest.approx(7.0)


def finished(config, info):
    """State, step rates and sizes as a run with exactly ``RATES`` would leave them."""
    state, step_rates, sizes = {}, {}, {}
    for stage in plan_stages(config, info):
        images = count_samples(config, info, stage)
        if stage.kind == "generate":
            drawn = round(images * 1.5)
            state[stage.name] = {
                "seconds": drawn / 40,
                "candidates": drawn,
                "accepted": drawn // 2,
                "images": images,
            }
            state[stage.name] |= {"images_with_chain": images // 2, "tokens": drawn * 100}
            sizes[stage.name] = drawn * 10
        elif stage.kind == "evaluate":
            loading = (
                {"loading": "start", "loading_s": 30}
                if stage.round < 0
                else {"loading": "reload", "loading_s": 2}
            )
            state[stage.name] = {"seconds": loading["loading_s"] + images * 2 / 80, **loading}
            sizes[stage.name] = images * 2 * 2
        else:
            samples = images if stage.kind == "mtct" else images // 2
            epochs = 4 if stage.kind == "mtct" else 2
            start = 10 if stage.kind == "mtct" else 5
            state[stage.name] = {"seconds": start + samples * epochs / 10, "samples": samples}
            step_rates[stage.name] = 10.0
            sizes[stage.name] = 1000
    return state, step_rates, sizes


def test_calibrating_finds_the_rates_that_a_run_had(tmp_path):
    config, info = load_config("demo", TWO_WORKERS), iconbed_info()
    found = calibrate(config, info, *finished(config, info), "two cores")
    assert found.model_dump() == pytest.approx(RATES.model_dump())
    (tmp_path / "here.json").write_text(found.model_dump_json())
    assert read_calibration(tmp_path / "here.json") == found


def test_a_run_without_a_round_cannot_calibrate():
    config, info = load_config("demo", TWO_WORKERS), iconbed_info()
    state, step_rates, sizes = finished(config, info)
    del state["sketch/sarr-1/candidates"]
    with pytest.raises(ValueError, match="run 'demo': no stage of kind 'generate' is complete"):
        calibrate(config, info, state, step_rates, sizes, "two cores")


def test_a_file_that_is_no_calibration_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: no such file; `rdmldg calibrate RUN"):
        read_calibration(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(RATES.model_copy(update={"answers_per_s": -1}).model_dump_json())
    with pytest.raises(ValueError, match=r"b\.json: answers_per_s: .*; write it again"):
        read_calibration(tmp_path / "b.json")


def test_a_finished_run_calibrates_the_plan_of_another(tmp_path, store):
    config, info = load_config("demo", TWO_WORKERS), iconbed_info()
    state, step_rates, sizes = finished(config, info)
    shutil.copytree(f"{store}/datasets", tmp_path / "datasets")
    run = tmp_path / "runs/demo"
    run.mkdir(parents=True)
    RunStore(str(tmp_path), "demo").write_config(config)
    for held_out in {Stage.parse(name).held_out for name in state}:
        mine = {name: entry for name, entry in state.items() if Stage.parse(name).held_out == held_out}
        write_fold_state(RunStore(str(tmp_path), "demo"), held_out, mine)
    for name, size in sizes.items():
        lines = json_line(7.0) + json_line(step_rates[name]) if name in step_rates else ""
        if lines:
            write_bytes(f"{run}/{name}/metrics.jsonl", lines.encode())
        write_bytes(f"{run}/{name}/rest", b"0" * (size - len(lines)))
    file, root = str(tmp_path / "rates.json"), ["--storage", str(tmp_path)]
    done = CliRunner().invoke(app, ["calibrate", "demo", "--out", file, *root])
    assert done.exit_code == 0, done.output
    found = read_calibration(Path(file)).model_dump(exclude={"machine"})
    assert found == pytest.approx(RATES.model_dump(exclude={"machine"}))
    command = ["run", "demo", "name=other", *TWO_WORKERS, "--dry-run", "--calibration", file, *root]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "103500" in done.output, done.output


def json_line(rate):
    return json.dumps({"step": 0, "samples_per_s": rate, "resumed_at": 0}) + "\n"
