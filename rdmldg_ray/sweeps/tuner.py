"""Sweeps: Ray Tune over the pipeline, with stages shared between trials by cache key.

A trial is a run of its own, below ``<root>/runs``; what belongs to the sweep lies below
``<root>/sweeps/<name>``: ``sweep.yaml``, the index of stages, Ray Tune's own state, and the results.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from rdmldg_ray.config.load import ConfigError, changes_no_result, flatten_settings
from rdmldg_ray.config.schema import RECORDED, Config, EnginesConfig
from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.runs.inputs import StageInputs
from rdmldg_ray.runs.plan import plan_stages
from rdmldg_ray.runs.run import Run, only_rounding
from rdmldg_ray.runs.serving import keeps_engines
from rdmldg_ray.runs.stage_cache import StageCache
from rdmldg_ray.runs.store import ZERO_SHOT, RunStore, Stage, State, damage_told, runs_uri
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.storage import as_uri, exists, join, list_folders, read_bytes, write_bytes
from rdmldg_ray.sweeps.space import Range, SweepSpace, count_evaluations, score, trial_row
from rdmldg_ray.sweeps.sweep_plan import sweep_location
from rdmldg_ray.sweeps.variants import sweep_config

_TUNE_FOLDER = "tune"
_LEASE_S = 60.0
_DRIVER_CPUS = 0.05
_WORKERS = ("workers.num_workers", "workers.zero_stage")


class Claims:
    """Which trial holds which key: an actor, so that no stage is computed by two trials at once.

    A claim runs out unless its holder renews it, so that a killed trial holds up nobody for long.

    Why not compute all shared stages before the first trial? A search such as Optuna's chooses settings, and
    with them what is shared, only as others end. And Ray has no lock that a killed holder gives back.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, key: str, holder: str) -> bool:
        """Hold a key, or renew it; False while another holder has it."""
        now = time.monotonic()
        current, until = self._held.get(key, (holder, 0.0))
        if current != holder and until > now:
            return False
        self._held[key] = (holder, now + _LEASE_S)
        return True

    def release(self, key: str, holder: str) -> None:
        """Let go of a key."""
        if self._held.get(key, ("", 0.0))[0] == holder:
            del self._held[key]


@contextlib.contextmanager
def claimed(claims: Any, key: str, holder: str) -> Iterator[None]:
    """Hold a key for the time of the block, waiting until it is free.

    Args:
        claims: handle of a ``Claims`` actor.
    """
    while not ray.get(claims.take.remote(key, holder)):
        time.sleep(1)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(_LEASE_S / 4):
            claims.take.remote(key, holder)

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        ray.get(claims.release.remote(key, holder))


def run_sweep(config: Config, info: DatasetInfo, space: SweepSpace) -> list[dict[str, Any]]:
    """Run a sweep, or resume an interrupted one, to its end. Ray must be connected.

    A trial that fails is tried once more, then marked; it does not end the sweep.

    Returns:
        A row for each trial; see ``sweep_space.trial_row``.

    Raises:
        ConfigError: when a sweep of that name was started with other settings.
    """
    location = sweep_location(config)
    _record(location, config, info, space)
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial,
            base=config,
            info=info,
            pathway=space.pathway,
            claims=ray.remote(num_cpus=0)(Claims).remote(),
        ),
        {"CPU": _DRIVER_CPUS},
    )
    path = as_uri(join(location, _TUNE_FOLDER))
    param_space = _param_space(space)
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, param_space=param_space)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=_tune_config(space, config, info),
            run_config=tune.RunConfig(
                name=_TUNE_FOLDER,
                storage_path=as_uri(location),
                failure_config=tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
    results = tuner.fit()
    return [_row(config, info, space, results[number]) for number in range(len(results))]


def concurrent_trials(config: Config, cluster: dict[str, float]) -> int:
    """How many trials the cluster has room for at once, at least one.

    Args:
        cluster: what ``ray.cluster_resources`` tells.
    """
    workers, engines = config.workers, config.engines
    needs = []
    for kind, per_worker, per_engine in (
        ("CPU", workers.cpus_per_worker, engines.cpus_per_engine),
        ("GPU", workers.gpus_per_worker, engines.gpus_per_engine),
    ):
        training, writing = workers.num_workers * per_worker, _least_engines(engines) * per_engine
        needs.append((kind, training + writing if keeps_engines(engines) else max(training, writing)))
    return max(1, min(int(cluster.get(kind, 0) / need) for kind, need in needs if need > 0))


def _least_engines(engines: EnginesConfig) -> int:
    return engines.min_engines or engines.num_engines


def _trial(settings: dict[str, Any], base: Config, info: DatasetInfo, pathway: str, claims: Any) -> None:
    """One trial: a run under the sweep's name and the trial's id."""
    name = f"{base.name}-{tune.get_context().get_trial_id()}"
    config = sweep_config(base, {**settings, "name": name})
    # Another attempt of the trial is another holder.
    holder = f"{name}/{os.getpid()}"

    def report(state: State) -> None:
        tune.report({"score": score(state, pathway), "evaluations": count_evaluations(state)})

    def on_complete(stage: Stage, fold_state: State) -> None:
        if stage.kind == "evaluate" and stage.model != ZERO_SHOT:
            report(run.state())

    index = join(sweep_location(base), "index")
    run = Run(
        config=config,
        info=info,
        console=plain_console(width=120),
        cache=StageCache(config, info, index, lambda key: claimed(claims, key, holder)),
        on_complete=on_complete,
    )
    run.check_chains()
    run.prepare()
    if count_evaluations(run.state()):  # an interrupted trial, which may have nothing left to do
        report(run.state())
    run.run()


def _tune_config(space: SweepSpace, config: Config, info: DatasetInfo) -> tune.TuneConfig:
    return tune.TuneConfig(
        metric="score",
        mode="max",
        num_samples=space.trials or 1,
        max_concurrent_trials=space.max_concurrent or concurrent_trials(config, ray.cluster_resources()),
        trial_dirname_creator=lambda trial: trial.trial_id,
        # Trials are compared after as many folds and rounds each.
        scheduler=ASHAScheduler(time_attr="evaluations", max_t=_planned(config, info))
        if space.early_stopping
        else None,
        search_alg=OptunaSearch(seed=space.seed) if space.search == "optuna" else None,
    )


def _param_space(space: SweepSpace) -> dict[str, Any]:
    return {path: _domain(space, values) for path, values in space.settings.items()}


def _domain(space: SweepSpace, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return tune.grid_search(values) if space.search == "grid" else tune.choice(values)
    if values.integer:
        draw = tune.lograndint if values.scale == "log" else tune.randint
        return draw(int(values.min), int(values.max) + 1)  # the upper bound is excluded
    return (tune.loguniform if values.scale == "log" else tune.uniform)(values.min, values.max)


def _record(location: str, config: Config, info: DatasetInfo, space: SweepSpace) -> None:
    """Record what the sweep is and reads; refuse to resume another under its name."""
    file = join(location, "sweep.yaml")
    read = StageInputs(config, info)
    now: dict[str, Any] = {
        "space": space.model_dump(mode="json"),
        "config": config.model_dump(mode="json", exclude={"storage"}),
        "inputs": {},
    }
    for stage in plan_stages(config, info):
        now["inputs"] |= read.of(stage)
    if not exists(file):
        write_bytes(file, yaml.safe_dump(now, sort_keys=False).encode())
        return
    remedy = f"set another name (name=...), or delete {location}"
    with damage_told(file, f"restore it, or {remedy}"):
        before = dict(yaml.safe_load(read_bytes(file)))
        # A setting that is younger than the sweep had its default.
        config_before = Config.model_validate(before["config"], context=RECORDED)
        inputs_before = dict(before.get("inputs", now["inputs"]))
    settings = [_of_results(one) for one in (config_before, config)]
    differing = [key for key in settings[0] | settings[1] if settings[0].get(key) != settings[1].get(key)]
    if "lora.dropout" not in space.settings:
        differing = [key for key in differing if not only_rounding(key, config_before, config)]
        # A checkpoint is of as many workers as there were.
        spread = [key for key in _WORKERS if settings[0][key] != settings[1][key]]
        if spread and (trials := _checkpointed_trials(config, info)):
            raise ConfigError(
                f"sweep '{config.name}': {', '.join(trials)} would resume from checkpoints that were made "
                f"with {', '.join(f'{key}={settings[0][key]}' for key in spread)}; resume the sweep with that"
            )
    if differing or before["space"] != now["space"]:
        raise ConfigError(
            f"sweep '{config.name}' exists with other settings ({', '.join(differing) or 'its space'}; see "
            f"{file}); {remedy}"
        )
    if "inputs" not in before and "lora.rank" in space.settings and "lora.alpha" not in space.settings:
        raise ConfigError(
            f"sweep '{config.name}' is of a release that kept lora.alpha while lora.rank varied; finish it "
            f"with that release, or {remedy}"
        )
    changed = [name for name, was in inputs_before.items() if now["inputs"].get(name, was) != was]
    if changed:
        raise ConfigError(
            f"sweep '{config.name}': trials would not compare, for these changed since it began: "
            f"{', '.join(changed)}; bring them back, {remedy}"
        )


def _checkpointed_trials(config: Config, info: DatasetInfo) -> list[str]:
    """The sweep's trials that were interrupted in the middle of a training."""
    found = []
    for name in list_folders(runs_uri(config.storage)):
        store = RunStore(config.storage, name)
        if name.startswith(f"{config.name}-") and store.exists():
            complete = store.state()
            planned = plan_stages(store.read_config(), info)
            if any(store.checkpointed(stage) for stage in planned if stage.name not in complete):
                found.append(name)
    return found


def _of_results(config: Config) -> dict[str, Any]:
    """The settings that results depend on."""
    settings = flatten_settings(config.model_dump(mode="json"))
    return {key: value for key, value in settings.items() if not changes_no_result(key)}


def _planned(config: Config, info: DatasetInfo) -> int:
    """Evaluations of trained models in a run's plan."""
    return count_evaluations({stage.name: {} for stage in plan_stages(config, info)})


def _row(config: Config, info: DatasetInfo, space: SweepSpace, result: Any) -> dict[str, Any]:
    run = f"{config.name}-{result.path.rsplit('/', 1)[-1]}"
    state = RunStore(config.storage, run).state()
    settings = {path: result.config[path] for path in space.settings}
    if result.error:
        status = f"failed: {str(result.error).strip().splitlines()[-1]}"
    else:
        planned = _planned(sweep_config(config, settings), info)
        status = "complete" if count_evaluations(state) == planned else "stopped early"
    return trial_row(run=run, settings=settings, state=state, pathway=space.pathway, status=status)
