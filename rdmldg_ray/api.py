"""What the commands do, as functions: what ``import rdmldg_ray`` offers, and all that the CLI calls.

A location may be a local path or ``s3://bucket/prefix``; a run is given by its name or by the path of its
folder. A user's error raises ValueError with the remedy, work that failed raises RunFailedError, and work
that was interrupted resumes when it is asked for again. Ray that this process is connected to is used and
left alone; otherwise it is started or joined for the time of a call.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from rdmldg_ray.chains import export, imports
from rdmldg_ray.chains.store import read_chain_file, read_chains
from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import find_info, is_embedded, write_embedded
from rdmldg_ray.datasets.ingest import writing
from rdmldg_ray.datasets.ingest.archives import DEFAULT_LIMITS, ReadLimits
from rdmldg_ray.datasets.ingest.opening import plan_source
from rdmldg_ray.datasets.ingest.plan import DEFAULT_MAX_REJECTS, IngestPlan
from rdmldg_ray.datasets.schema import DatasetInfo, chains_location, info_location, read_dataset_info
from rdmldg_ray.domainbed.catalogue import get_dataset
from rdmldg_ray.domainbed.records import read_results
from rdmldg_ray.domainbed.selection import Record
from rdmldg_ray.models.folder import check_base_model, check_model, looks_local, model_folder
from rdmldg_ray.report.analyses import ANALYSES, Analysis
from rdmldg_ray.report.rejections import round_printer
from rdmldg_ray.report.sweep import sweep_title, write_sweep
from rdmldg_ray.runs import listing, results
from rdmldg_ray.runs.baselines import (
    LABELS_ONLY,
    YARDSTICKS,
    Yardstick,
    baselines_uri,
    check_classes,
    measure,
)
from rdmldg_ray.runs.cleaning import Removed, clean_run
from rdmldg_ray.runs.doctor import Finding, examine
from rdmldg_ray.runs.estimate import Calibration, Prices
from rdmldg_ray.runs.evaluated import open_fold
from rdmldg_ray.runs.outputs import ModelFolder, calibrate_run, check_adapter, find_candidates, write_model
from rdmldg_ray.runs.refilter import refilter_run
from rdmldg_ray.runs.resolve import resolve_run, resolve_runs, storage_root
from rdmldg_ray.runs.results import RunResults
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.run_plan import RunPlan, plan_run
from rdmldg_ray.runs.stage_cache import StageCache
from rdmldg_ray.runs.status import RunStatus, run_status
from rdmldg_ray.runs.store import RunStore, damage_told
from rdmldg_ray.runtime import submission
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.runtime.progress import progress_bar
from rdmldg_ray.runtime.session import connected
from rdmldg_ray.runtime.versions import check_engine_build
from rdmldg_ray.storage import absolute, check_writable, exists, join, write_bytes
from rdmldg_ray.sweeps.space import SweepSpace, ranked
from rdmldg_ray.sweeps.sweep_plan import SweepPlan, check_chains, plan_sweep, sweep_lease, sweep_location
from rdmldg_ray.sweeps.variants import LABELS, ablation_configs, trial_configs
from rdmldg_ray.teacher.annotate import Annotation, AnnotationRequest, Limits, Outcome
from rdmldg_ray.teacher.client import Endpoint
from rdmldg_ray.teacher.pricing import Price, known_price

VLLM = "vllm"
"""The teacher that is served here, instead of a model of an endpoint."""

_ONLY_SERVED = (
    f"--model and arguments of `vllm serve` go with --teacher {VLLM}; name the endpoint's model with "
    "--teacher"
)

Verdict = Literal["accepted", "rejected", "all"]


@dataclass(frozen=True)
class Chains:
    """Chains of a teacher or of a round, and where they lie."""

    location: str
    table: pa.Table


@dataclass(frozen=True)
class Sweep:
    """A sweep that was run: its folder, and a row for each trial, the best first."""

    location: str
    trials: list[dict[str, Any]]


@dataclass(frozen=True)
class Baselines:
    """What yardsticks scored, in DomainBed's form, and the file that has it, which ``collect`` reads."""

    file: str
    records: list[Record]


# Data in and out.


def plan_ingest(
    source: str,
    dataset: str,
    *,
    name: str = "custom",
    storage: str | None = None,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    limits: ReadLimits = DEFAULT_LIMITS,
) -> IngestPlan:
    """What ``ingest`` would read; writes nothing. Takes what that takes."""
    wanted = name if dataset == "custom" else get_dataset(dataset).name
    return plan_source(absolute(source), storage_root(storage), wanted, max_rejects, limits)


def run_ingest(plan: IngestPlan, *, replace: bool = False, console: Console | None = None) -> DatasetInfo:
    """Do what ``plan_ingest`` planned; nothing when it is done already."""
    console = console or plain_console()
    root, name = plan.target.root, plan.target.name
    if writing.is_ingested(plan):
        console.print(f"{name} is on storage already; nothing to do")
        return writing.ingest(plan)
    writing.check_replaces(plan, replace)
    check_writable(root)
    with connected(Config(storage=root), console), progress_bar(console, "images") as bar:
        return writing.ingest(plan, replace, bar.update)


def ingest(
    source: str,
    dataset: str,
    *,
    name: str = "custom",
    storage: str | None = None,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    limits: ReadLimits = DEFAULT_LIMITS,
    replace: bool = False,
    console: Console | None = None,
) -> DatasetInfo:
    """Bring a data set to storage; does nothing when it is there.

    Args:
        source: folder, zip, tar or prefix of ``<domain>/<class>/<file>``, or a file of questions.
        dataset: one of the catalogue, or ``custom``.
        name: what a custom one is called.
        max_rejects: largest share of files that may be rejected.
        limits: ceilings on the files, the unpacked bytes and the pixels that are read.
        replace: whether to replace another data set of that name.
    """
    plan = plan_ingest(source, dataset, name=name, storage=storage, max_rejects=max_rejects, limits=limits)
    return run_ingest(plan, replace=replace, console=console)


def make_request(
    teacher: str = "gpt-4o",
    *,
    model: str | None = None,
    name: str | None = None,
    prices: tuple[float, float] | None = None,
    **limits: Unpack[Limits],
) -> AnnotationRequest:
    """What a teacher is asked for.

    Args:
        teacher: a model of the endpoint, or ``vllm`` for one that is served here.
        model: the model that ``vllm`` serves: a folder, a hub id, or ``tiny``.
        name: the chains' name, for ``data.chains``; the model's by default.
        prices: US dollars for a million tokens of prompts, and of answers, where they are not known.
        limits: as ``teacher.annotate.AnnotationRequest`` has them.
    """
    price = Price(*prices) if prices else Price(0, 0) if teacher == VLLM else known_price(teacher)
    if teacher == VLLM:
        if not model:
            raise ValueError(f"--teacher {VLLM} needs --model: a folder, a hub id, or 'tiny'")
        check_model(model)
        # A folder's place on this machine says nothing to others.
        teacher = Path(absolute(model)).name if looks_local(model) else model
    elif model:
        raise ValueError(_ONLY_SERVED)
    return AnnotationRequest(model=teacher, teacher=name or teacher.replace("/", "-"), price=price, **limits)


def plan_annotation(
    dataset: str, request: AnnotationRequest, *, storage: str | None = None, dry_run: bool = False
) -> Annotation:
    """The annotation of a data set with what earlier calls left open; a dry run writes nothing.

    Its ``estimate`` tells what it would take, ``run_annotation`` runs it.
    """
    root = storage_root(storage)
    with ExitStack() as stack:
        if not dry_run:
            check_writable(root)
        elif is_embedded(dataset) and not exists(info_location(root, dataset)):
            root = stack.enter_context(tempfile.TemporaryDirectory())
        if not dry_run or root != storage_root(storage):
            write_embedded(root, dataset)
        annotation = Annotation(root, read_dataset_info(root, dataset), request)
        if not dry_run and not annotation.pending:
            annotation.gather()
        return annotation


def run_annotation(
    annotation: Annotation,
    *,
    base_url: str | None = None,
    model: str | None = None,
    vllm_arguments: Sequence[str] = (),
    console: Console | None = None,
) -> Outcome:
    """Ask about the samples that are pending.

    Args:
        base_url: of any OpenAI-compatible API; else ``OPENAI_BASE_URL``, or OpenAI's own.
        model: a model to serve here for it, instead of asking an endpoint.
        vllm_arguments: more arguments of ``vllm serve``.
    """
    console = console or plain_console()
    if vllm_arguments and not model:
        raise ValueError(_ONLY_SERVED)
    if not annotation.pending:
        return annotation.no_outcome()
    name = annotation.request.model
    with ExitStack() as stack:
        endpoint = Endpoint(name, base_url)
        if model:
            from rdmldg_ray.teacher.local_server import vllm_server

            with console.status("starting vllm serve"):
                folder = str(model_folder(model))
                server = stack.enter_context(vllm_server(folder, name, vllm_arguments))
            endpoint = Endpoint(name, server.base_url, server.api_key)
        bar = stack.enter_context(progress_bar(console, "samples"))
        return annotation.run(endpoint, bar.update)


def annotate(
    dataset: str,
    teacher: str = "gpt-4o",
    *,
    storage: str | None = None,
    base_url: str | None = None,
    model: str | None = None,
    vllm_arguments: Sequence[str] = (),
    name: str | None = None,
    prices: tuple[float, float] | None = None,
    console: Console | None = None,
    **limits: Unpack[Limits],
) -> Outcome:
    """Ask a teacher for chains, the label withheld; with the key in ``OPENAI_API_KEY``.

    Args:
        teacher, model, name, prices, limits: as ``make_request`` takes them.
        base_url, vllm_arguments: as ``run_annotation`` takes them.
    """
    asked = make_request(teacher, model=model, name=name, prices=prices, **limits)
    annotation = plan_annotation(dataset, asked, storage=storage)
    return run_annotation(
        annotation, base_url=base_url, model=model, vllm_arguments=vllm_arguments, console=console
    )


def teacher_chains(
    dataset: str = "iconbed", teacher: str = "rules", *, verdict: Verdict = "all", storage: str | None = None
) -> Chains:
    """A teacher's chains for a data set."""
    root = storage_root(storage)
    write_embedded(root, dataset)
    table = read_chains(root, dataset, teacher, read_dataset_info(root, dataset).environments)
    return _chains(chains_location(root, dataset, teacher), table, verdict)


def export_chains(
    dataset: str,
    out: str,
    *,
    teacher: str = "rules",
    form: export.Form = "sharegpt",
    rejected: bool = False,
    storage: str | None = None,
) -> int:
    """Write a teacher's chains with their images to an empty folder, for other tools; returns how many.

    Args:
        form: ``sharegpt`` for LLaMA-Factory, ``huggingface`` for datasets.
        rejected: whether rejected chains are written too.
    """
    root, out = storage_root(storage), absolute(out)
    check_writable(out)
    write_embedded(root, dataset)
    return export.export_chains(
        root=root, dataset=dataset, teacher=teacher, location=out, form=form, only_accepted=not rejected
    )


def import_chains(
    source: str, dataset: str, teacher: str, *, replace: bool = False, storage: str | None = None
) -> tuple[str, Counter[str]]:
    """Check chains that were made elsewhere, and write them as a teacher's.

    Args:
        source: a ``.jsonl``, ``.json`` or ``.parquet`` file, or a folder of such files.

    Returns:
        Where they lie, and how many there are by verdict: ``accepted``, or the reason of a rejection.
    """
    root = storage_root(storage)
    found = imports.import_chains(absolute(source), root, dataset, teacher=teacher, replace=replace)
    return chains_location(root, dataset, teacher), found


# Runs.


def plan(config: Config, *, rates: Calibration | None = None) -> RunPlan:
    """What ``run`` would do, with an estimate of what it takes where there are rates; writes nothing."""
    config = _located(config)
    info = find_info(config.storage, config.data.dataset)
    return plan_run(Run(config, info, plain_console()), rates)


def run(config: Config, *, console: Console | None = None) -> RunResults:
    """Run a config: MTCT, rounds of SARR, evaluation; a finished run is read, an interrupted one resumes."""
    return run_all([config], console=console)[0]


def run_all(
    configs: Sequence[Config], *, shared: str | None = None, console: Console | None = None
) -> list[RunResults]:
    """Run configs one after the other, in one Ray session; each is checked before the first one starts.

    Args:
        shared: where an index lies of the stages that one run takes over from another; none are without it.
    """
    console = console or plain_console()
    configs = [_located(config) for config in configs]
    infos = [_open_dataset(config) for config in configs]
    runs = [
        Run(
            config=config,
            info=info,
            console=console,
            cache=StageCache(config, info, shared) if shared else None,
            on_complete=round_printer(console, RunStore(config.storage, config.name)),
        )
        for config, info in zip(configs, infos, strict=True)
    ]
    for one in runs:
        one.check_chains()
        one.prepare()
    remaining = [one for one in runs if one.remaining()]
    for one in runs:
        if one not in remaining:
            console.print(f"run '{one.config.name}' is complete; nothing to do")
    for one in remaining:
        one.check_free()
    if remaining:
        with connected(configs[0], console):
            for one in remaining:
                if len(runs) > 1:
                    console.rule(f"run '{one.config.name}'")
                one.run()
    return [results.read_run(config.storage, config.name) for config in configs]


def trials(config: Config, seeds: str | None) -> list[Config]:
    """A config for each of DomainBed's trial seeds, such as ``0,1,2``; the config itself without them."""
    return trial_configs(_located(config), seeds)


def ablation(config: Config, seeds: str | None = None) -> dict[str, list[Config]]:
    """The configs of the paper's ablation, by what they train on, one for each trial seed."""
    variants = [ablation_configs(trial) for trial in trials(config, seeds)]
    return {name: [variant[name] for variant in variants] for name in variants[0]}


def ablate(
    config: Config, seeds: str | None = None, *, console: Console | None = None
) -> dict[str, list[RunResults]]:
    """Run the paper's ablation; returns its runs by what they train on, one for each trial seed.

    Trial by trial, so that the first seed's table is whole before the second begins. The runs share stages
    that are the same.
    """
    configs = ablation(config, seeds)
    in_order = [one for trial in zip(*configs.values(), strict=True) for one in trial]
    shared = join(in_order[0].storage, "ablations", config.name, "stages")
    done = {one.name: one for one in run_all(in_order, shared=shared, console=console)}
    return {kind: [done[one.name] for one in of_kind] for kind, of_kind in configs.items()}


def baselines(
    config: Config,
    seeds: str | None = None,
    *,
    yardsticks: Sequence[Yardstick] = YARDSTICKS,
    console: Console | None = None,
) -> Baselines:
    """Measure what the method is held against, on its folds and splits; see ``runs.baselines``.

    Fine-tuning on labels only is a run, the one of that name in ``ablation``; it resumes when interrupted.

    Args:
        seeds: DomainBed's trial seeds, such as ``0,1,2``.
    """
    console = console or plain_console()
    configs = trials(config, seeds)
    infos = [_open_dataset(trial) for trial in configs]
    check_classes(infos[0], yardsticks)
    records = []
    with connected(configs[0], console):
        for trial, info in zip(configs, infos, strict=True):
            with console.status(f"  measuring {trial.data.dataset}, trial {trial.data.trial_seed}"):
                records += measure(trial, info, yardsticks)
        if LABELS_ONLY in yardsticks:
            for run in run_all([ablation_configs(trial)[LABELS] for trial in configs], console=console):
                records += read_results(run.location)
    file = baselines_uri(configs[0].storage, config.name)
    write_bytes(file, "".join(json.dumps(record) + "\n" for record in records).encode())
    return Baselines(file, records)


def evaluate(
    config: Config, adapter: str | None = None, *, console: Console | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy of a model on the config's held-out domains and on the sources' validation parts.

    Args:
        adapter: location of an adapter that a training left; without it the base model.

    Returns:
        Shares of right answers by held-out domain, pathway and ``target_in``, ``target_all``, ``validation``.
    """
    console = console or plain_console()
    config = _located(config)
    adapter = check_adapter(adapter) if adapter else None
    evaluated = Run(config, _open_dataset(config), console)
    with connected(config, console):
        try:
            return {held_out: evaluated.evaluate(held_out, adapter) for held_out in evaluated.folds}
        finally:
            evaluated.close()


def read_run(run: str, *, storage: str | None = None) -> RunResults:
    """What a run has left so far: accuracy, predictions, candidates, metrics."""
    found = resolve_run(run, storage)
    return results.read_run(found.root, found.name)


def list_runs(*, storage: str | None = None) -> list[dict[str, Any]]:
    """The runs of a storage, how many stages each has and how many are complete."""
    return listing.list_runs(storage_root(storage))


def list_datasets(*, storage: str | None = None) -> list[dict[str, Any]]:
    """The data sets of a storage and those in the package, with the teachers that wrote chains for them."""
    return listing.list_datasets(storage_root(storage))


def clean(
    runs: Sequence[str],
    *,
    dry_run: bool = False,
    storage: str | None = None,
    console: Console | None = None,
) -> list[Removed]:
    """Delete what runs no longer need: checkpoints of complete trainings, answers of complete stages."""
    console = console or plain_console()
    return [one for store in resolve_runs(runs, storage) for one in clean_run(store, console, dry_run)]


def status(run: str, *, storage: str | None = None) -> RunStatus:
    """How far a run is, from its storage alone."""
    found = resolve_run(run, storage)
    return run_status(found.root, found.name)


def candidates(
    run: str,
    *,
    held_out: str | None = None,
    round_number: int = 1,
    verdict: Verdict = "all",
    storage: str | None = None,
) -> Chains:
    """The chains that a round of a run has drawn; by default for the run's first held-out domain."""
    location = find_candidates(read_run(run, storage=storage), held_out, round_number)
    with damage_told(location, "restore them, or run the round again, which draws them anew"):
        return _chains(location, read_chain_file(location), verdict)


def export_model(
    run: str,
    out: str | Path,
    *,
    held_out: str | None = None,
    stage: str | None = None,
    storage: str | None = None,
) -> ModelFolder:
    """Write base plus adapter of a run as a plain model folder, by default of the first domain's last stage.

    Args:
        out: folder to write; it must not exist.
        stage: ``mtct``, ``sarr-1``, ...
    """
    return write_model(read_run(run, storage=storage), Path(out), held_out, stage)


def refilter(
    run: str,
    settings: Sequence[str],
    *,
    into: str | None = None,
    round_number: int = 1,
    storage: str | None = None,
) -> RunResults:
    """Filter a round's stored candidates with other settings: a new run, ready to train.

    Args:
        settings: of the filter, as ``sarr.filter.min_logprob=-0.3``.
        into: name of the new run; ``<run>-refiltered`` by default.
    """
    old = resolve_run(run, storage)
    name, _ = refilter_run(
        root=old.root, run=old.name, into=into, overrides=list(settings), round_number=round_number
    )
    return results.read_run(old.root, name)


def calibrate(run: str, *, storage: str | None = None) -> Calibration:
    """The rates of a finished run with a round of SARR, for estimates of others."""
    return calibrate_run(read_run(run, storage=storage))


def analyze(
    analysis: str,
    run: str,
    *,
    held_out: str | None = None,
    storage: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> Analysis:
    """Do one of the paper's analyses of a run's fold, and write its CSV and picture.

    Args:
        analysis: one of ``report.analyses.ANALYSES``; ``options`` are what that takes.
        held_out: the fold; by default the run's first.
    """
    console = console or plain_console()
    fold = open_fold(
        resolve_run(run, storage),
        held_out,
        console=console,
        session=lambda config: connected(config, console),
    )
    found = ANALYSES[analysis](fold, **options)
    found.write()
    return found


def report(
    runs: Sequence[str],
    out: str | Path = "report.html",
    *,
    max_images: int = 120,
    prices: Prices | None = None,
    storage: str | None = None,
) -> Path:
    """Write one HTML page of runs, complete or not: results, curves, rejections, a gallery of chains.

    Args:
        runs: names or paths, which may hold wildcards; several are shown side by side.
        max_images: of each run's gallery.
        prices: to tell the cost.
    """
    from rdmldg_ray.report.page import render_report

    out = Path(absolute(str(out)))
    if not out.parent.is_dir():
        raise ValueError(f"{out}: no such folder; give --out in a folder that is there")
    found = [results.read_run(run.root, run.name) for run in resolve_runs(runs, storage)]
    out.write_text(render_report(found, max_images, prices), encoding="utf-8")
    return out


def write_run_report(run: RunResults) -> str:
    """Write the page of ``report`` beside a run's outputs, and return where it is."""
    from rdmldg_ray.report.page import render_report

    location = run.store.report_uri()
    write_bytes(location, render_report([run], max_images=120).encode())
    return location


def collect(runs: Sequence[str], *, storage: str | None = None) -> dict[str, list[Record]]:
    """DomainBed's records of runs, by the file that they are from.

    Args:
        runs: names or paths, which may hold wildcards, or ``.jsonl`` files of records.
    """
    files = []
    for named in runs:
        if named.endswith(".jsonl"):
            files.append(absolute(named))
        else:
            files += [run.results_uri for run in resolve_runs([named], storage, with_results=True)]
    return {file: read_results(file) for file in files}


# Sweeps, this machine, jobs.


def planned_sweep(config: Config, space: SweepSpace) -> SweepPlan:
    """What ``sweep`` would do; writes nothing."""
    config = _located(config)
    return plan_sweep(config, find_info(config.storage, config.data.dataset), space)


def sweep(config: Config, space: SweepSpace, *, console: Console | None = None) -> Sweep:
    """Try settings, each by its validation accuracy over the held-out folds; an interrupted sweep resumes."""
    config = _located(config)
    info = _open_dataset(config)
    console = console or plain_console()
    check_chains(config, info, space, console)
    with sweep_lease(config, console).held(), connected(config, console):
        from rdmldg_ray.sweeps.tuner import run_sweep

        rows = ranked(run_sweep(config, info, space))
    folder = sweep_location(config)
    write_sweep(folder, sweep_title(config.name, space.pathway), rows, list(space.settings))
    return Sweep(folder, rows)


def doctor(config: Config, *, base_url: str | None = None) -> Iterator[Finding]:
    """Check whether this machine can do what a config asks; each finding as soon as it is made.

    Args:
        base_url: of a teacher's endpoint; else ``OPENAI_BASE_URL``.
    """
    return examine(_located(config), base_url)


def submit(
    arguments: Sequence[str], *, address: str, storage: str, job: submission.Job = "run", name: str = ""
) -> submission.RemoteJob:
    """Start a command as a job on a cluster elsewhere, with this package and the YAML files that are named.

    The same command that is submitted twice is one job, as long as that is alive.

    Args:
        arguments: of the command, as a shell would give them.
        address: of the cluster's dashboard, such as ``http://127.0.0.1:8265``.
        storage: where the job would write, which must mean the same on every node.
        name: part of the job's id, such as the run's name.
    """
    submission.check_shared("--storage", storage)
    return submission.submit_job(address, job, list(arguments), name)


def attach(job_id: str, *, address: str) -> submission.RemoteJob:
    """A job that was submitted, by its id."""
    return submission.find_job(address, job_id)


def _located(config: Config) -> Config:
    """The config with locations that mean the same place everywhere."""
    model = config.model
    if model.path != "tiny" and looks_local(model.path):
        model = model.model_copy(update={"path": absolute(model.path)})
    return config.model_copy(update={"storage": absolute(config.storage), "model": model})


def _open_dataset(config: Config) -> DatasetInfo:
    """Check what can be checked at once, and write the embedded data set when it is the one asked for."""
    check_base_model(config.model.path)
    check_writable(config.storage)
    write_embedded(config.storage, config.data.dataset)
    info = read_dataset_info(config.storage, config.data.dataset)
    check_engine_build(config)
    return info


def _chains(location: str, table: pa.Table, verdict: Verdict) -> Chains:
    if verdict != "all":
        accepted = pc.field("accepted")
        table = table.filter(accepted if verdict == "accepted" else ~accepted)
    return Chains(location, table)
