"""What the commands do, as functions: what ``import rdmldg_ray`` offers.

A location may be a local path or ``s3://bucket/prefix``. A user's mistake raises ValueError
with the remedy; work that was interrupted goes on when it is asked for again. Ray that this process is
connected to is used and left alone, otherwise it is started or joined for the time of a call.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from rdmldg_ray.config.schema import Config
from rdmldg_ray.datasets.builtin.embedded import write_embedded
from rdmldg_ray.datasets.ingest import writing as ingesting
from rdmldg_ray.datasets.ingest.opening import plan_source
from rdmldg_ray.datasets.ingest.plan import DEFAULT_MAX_REJECTS
from rdmldg_ray.datasets.schema import DatasetInfo, read_dataset_info
from rdmldg_ray.domainbed.catalogue import get_dataset
from rdmldg_ray.models.folder import check_model, looks_local
from rdmldg_ray.models.parity import PARITY_FILE
from rdmldg_ray.runs import results
from rdmldg_ray.runs.results import RunResults
from rdmldg_ray.runs.run import Run
from rdmldg_ray.runtime.progress import progress_bar
from rdmldg_ray.storage import absolute, check_writable, exists, join
from rdmldg_ray.teacher.annotate import Annotation, Outcome, Request
from rdmldg_ray.teacher.client import Endpoint
from rdmldg_ray.teacher.pricing import Price, known_price

STORAGE = Config().storage


def ingest(
    source: str,
    dataset: str,
    *,
    name: str = "custom",
    storage: str = STORAGE,
    max_rejects: float = DEFAULT_MAX_REJECTS,
    replace: bool = False,
    console: Console | None = None,
) -> DatasetInfo:
    """Bring a data set to storage; does nothing when it is there.

    Args:
        source: folder, zip, tar or prefix of ``<domain>/<class>/<file>``, or a file of ``vqa.rows``.
        dataset: one of the catalogue, or ``custom``.
        name: what a custom one is called.
        max_rejects: largest share of files that may be rejected.
        replace: whether to replace another data set of that name.
    """
    config = Config(storage=absolute(storage))
    wanted = name if dataset == "custom" else get_dataset(dataset).name
    plan = plan_source(absolute(source), config.storage, wanted, max_rejects)
    if ingesting.is_ingested(plan):
        return read_dataset_info(config.storage, wanted)
    check_writable(config.storage)
    with _ray(config), progress_bar(console or Console(), "images") as bar:
        return ingesting.ingest(plan, replace, bar.update)


def annotate(
    dataset: str,
    teacher: str = "gpt-4o",
    *,
    storage: str = STORAGE,
    base_url: str | None = None,
    name: str | None = None,
    candidates: int = 3,
    max_tokens: int = 1024,
    temperature: float | None = None,
    concurrency: int = 16,
    max_cost: float | None = None,
    max_samples: int | None = None,
    prices: tuple[float, float] | None = None,
    console: Console | None = None,
) -> Outcome:
    """Ask a teacher for chains, the label withheld; with the key in ``OPENAI_API_KEY``.

    Args:
        teacher: a model of the endpoint.
        base_url: of any OpenAI-compatible API; else ``OPENAI_BASE_URL``, or OpenAI's own.
        name: the chains' name, for ``data.chains``; the model's by default.
        max_cost: US dollars for all answers of this name, earlier ones too.
        prices: US dollars for a million tokens of prompts, and of answers, where they are not known.
    """
    root = absolute(storage)
    check_writable(root)
    write_embedded(root, dataset)
    request = Request(
        teacher,
        name or teacher.replace("/", "-"),
        candidates,
        max_tokens,
        temperature,
        concurrency,
        Price(*prices) if prices else known_price(teacher),
        max_cost,
        max_samples,
    )
    annotation = Annotation(root, read_dataset_info(root, dataset), request)
    if not annotation.pending:
        return Outcome()
    with progress_bar(console or Console(), "samples") as bar:
        return annotation.run(Endpoint(teacher, base_url), bar.update)


def run(config: Config, *, console: Console | None = None) -> RunResults:
    """Run a config: MTCT, rounds of SARR, evaluation; an interrupted run goes on, a finished one is read."""
    config = located(config)
    pipeline = Run(config, open_dataset(config), console or Console())
    pipeline.check_chains()
    pipeline.prepare()
    if pipeline.remaining():
        with _ray(config):
            pipeline.run()
    return read_run(config.name, storage=config.storage)


def evaluate(
    config: Config, adapter: str | None = None, *, console: Console | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy of a model on the config's held-out domains and on the sources' validation parts.

    Args:
        adapter: location of an adapter that a training left; without it the base model.

    Returns:
        Shares of right answers by held-out domain, pathway and ``target_in``, ``target_all``, ``validation``.
    """
    config = located(config)
    adapter = find_adapter(adapter)
    pipeline = Run(config, open_dataset(config), console or Console())
    held_out = dict.fromkeys(stage.held_out for stage in pipeline.stages)
    with _ray(config):
        try:
            return {domain: pipeline.evaluate(domain, adapter) for domain in held_out}
        finally:
            pipeline.close()


def read_run(name: str, *, storage: str = STORAGE) -> RunResults:
    """What a run has left so far: accuracy, predictions, candidates, metrics."""
    return results.read_run(absolute(storage), name)


def located(config: Config) -> Config:
    """The config with locations that mean the same place everywhere."""
    model = config.model
    if model.path != "tiny" and looks_local(model.path):
        model = model.model_copy(update={"path": absolute(model.path)})
    return config.model_copy(update={"storage": absolute(config.storage), "model": model})


def open_dataset(config: Config) -> DatasetInfo:
    """Check what can be checked at once, and write the embedded data set when it is the one asked for."""
    check_model(config.model.path)
    check_writable(config.storage)
    write_embedded(config.storage, config.data.dataset)
    return read_dataset_info(config.storage, config.data.dataset)


def find_adapter(location: str | None) -> str | None:
    """The adapter at a location; None for none.

    Raises:
        ValueError: when no training left one there.
    """
    location = absolute(location) if location else None
    if location and not exists(join(location, PARITY_FILE)):
        raise ValueError(f"{location}: no {PARITY_FILE} here; give the folder that a training left")
    return location


@contextmanager
def _ray(config: Config) -> Iterator[None]:
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    from rdmldg_ray.runtime.session import ray_session

    with ray_session(config):
        yield
