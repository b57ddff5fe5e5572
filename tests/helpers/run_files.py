"""The files of a small run, as a pipeline leaves them, for what reads them."""

import json

import pyarrow as pa

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.evaluation.predictions import PREDICTION_SCHEMA, accuracies
from rdmldg_ray.runs.store import RunStore, write_fold_state
from rdmldg_ray.sarr.candidates import CANDIDATE_SCHEMA
from rdmldg_ray.sarr.selection import write_candidates
from rdmldg_ray.storage import (
    delete_file,
    delete_folder,
    join,
    list_files,
    read_table,
    write_bytes,
    write_json,
    write_table,
)

HOSTILE = "<SUMMARY><script>document.title='taken'</script><img src=x onerror=alert(1)></SUMMARY>"


def write_run(root, name="small", held_out="flat", dataset="iconbed", **changes):
    """A run on IconBed, or its questions, which must be on storage: zero-shot, MTCT, one round of SARR.

    Every third answer is wrong, every second chain rejected, and the model writes HTML.
    """
    config = Config.model_validate(
        {"name": name, "storage": root, "data": {"held_out": [held_out], "dataset": dataset}, **changes}
    )
    store = RunStore(root, name)
    store.write_config(config)
    info = read_dataset_info(root, dataset)
    samples = sample_index(root, info, info.environments).to_pylist()[::23]
    state = {}
    for stage in ("zero-shot", "mtct", "sarr-1"):
        if stage == "sarr-1":
            state |= _write_round(store, held_out, samples)
        if stage != "zero-shot":
            _write_metrics(store.metrics_uri(held_out, stage))
            state[f"{held_out}/{stage}"] = {"seconds": 20.0, "samples": 9, "without_chain": 0}
        predictions = pa.Table.from_pylist(
            [
                _answer(s, n, pathway, held_out)
                for pathway in ("direct", "reasoning")
                for n, s in enumerate(samples)
            ],
            schema=PREDICTION_SCHEMA,
        )
        write_table(store.predictions_uri(held_out, stage), predictions)
        state[f"{held_out}/evaluation/{stage}"] = {"seconds": 5.0, "accuracy": accuracies(predictions)}
    write_fold_state(store, held_out, state)
    return config


def as_release_0_1_0(root, name="small"):
    """Give a run's files the names that they had in release 0.1.0: one state for all folds, other columns."""
    store = RunStore(root, name)
    before = {"accepted": "kept", "tokens_per_selected": "tokens_per_kept"}
    state = {
        stage: {before.get(key, key): value for key, value in entry.items()}
        for stage, entry in store.state().items()
    }
    write_json(join(store.uri, "state.json"), state)
    for file in list_files(store.uri):
        if file.endswith("/state.json") and file != join(store.uri, "state.json"):
            delete_file(file)
        if file.endswith(".parquet"):
            table = read_table(file)
            columns = {"accepted": "kept", "split": "part"}
            table = table.rename_columns([columns.get(column, column) for column in table.column_names])
            write_table(file.replace("/selected/", "/selected/"), table)
    for held_out in {stage.split("/")[0] for stage in state}:
        delete_folder(join(store.round_uri(held_out, "sarr-1"), "selected"))


def _answer(sample, number, pathway, held_out):
    wrong = number % 3 == 0
    return {
        "id": sample["id"],
        "domain": sample["domain"],
        "split": "in" if number % 2 else "out",
        "held_out": sample["domain"] == held_out,
        "pathway": pathway,
        "label": sample["label"],
        "prediction": None if wrong else sample["label"],
        "correct": not wrong,
        "text": HOSTILE if pathway == "reasoning" else sample["label"],
        "num_tokens": 9,
        "logprob": -1.0,
    }


def _write_metrics(location):
    steps = [
        {"step": n, "loss_direct": 2 / n, "loss_reasoning": 3 / n, "tokens_per_s": 100.0 + n, "mfu": None}
        | {
            "samples_per_s": 9.0,
            "memory_gib": 1.5,
            "padding_share": 0.1,
            "data_wait_share": 0.0,
            "eta_s": 30.0,
        }
        for n in range(1, 501)
    ]
    write_bytes(location, "".join(json.dumps(step) + "\n" for step in steps).encode())


def _write_round(store, held_out, samples):
    folder = store.round_uri(held_out, "sarr-1")
    sources = [sample for sample in samples if sample["domain"] != held_out]
    rows = [
        {"id": s["id"], "label": s["label"], "domain": s["domain"], "candidate": 0, "text": HOSTILE}
        | {"accepted": n % 2 == 0, "reason": None if n % 2 == 0 else "wrong_class", "num_tokens": 9}
        for n, s in enumerate(sources)
    ]
    write_candidates(folder, 0, pa.Table.from_pylist(rows, schema=CANDIDATE_SCHEMA))
    counted = [
        {"domain": row["domain"], "label": row["label"], "reason": row["reason"], "candidates": 1}
        for row in rows
    ]
    write_table(store.rejections_uri(held_out, "sarr-1"), pa.Table.from_pylist(counted))
    accepted = sum(row["accepted"] for row in rows)
    summary = {"images": len(rows), "candidates": len(rows), "accepted": accepted, "tokens": 9 * len(rows)}
    summary |= {"images_with_chain": accepted}
    return {f"{held_out}/sarr-1/candidates": {"seconds": 7.0, **summary, "rejected": {"wrong_class": 1}}}
