"""The report: one self-contained HTML page of one run or several.

The template escapes all that it is given; only pictures that are drawn here pass as they are.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from rdmldg_ray import __version__
from rdmldg_ray.config.load import dump_config, flatten_settings
from rdmldg_ray.datasets.index import sample_index
from rdmldg_ray.datasets.schema import DatasetInfo, read_dataset_info
from rdmldg_ray.domainbed.folds import fold_domains
from rdmldg_ray.evaluation.questions import by_question
from rdmldg_ray.report.gallery import Card, make_gallery
from rdmldg_ray.report.plots import Point, bars, lines
from rdmldg_ray.report.rejections import rejection_rows
from rdmldg_ray.report.tables import mean_of_known, percent
from rdmldg_ray.runs.estimate import Prices, devices
from rdmldg_ray.runs.results import RunResults, config_differences, confusion, on_target
from rdmldg_ray.runs.store import Stage, accuracies_of, round_summary
from rdmldg_ray.storage import join

# Accuracy by data set, %, as the paper reports it (arXiv 2602.23777).
_PAPER = {
    "InternVL3-8B zero-shot": {"pacs": 96.26, "vlcs": 85.67, "officehome": 85.10, "terraincognita": 46.84},
    "GPT-4o zero-shot": {"pacs": 97.83, "vlcs": 85.41, "officehome": 90.12, "terraincognita": 60.49},
    "RD-MLDG, InternVL3-8B": {"pacs": 98.13, "vlcs": 87.03, "officehome": 91.73, "terraincognita": 70.65},
}
_MEASURES = {"target_in": "target (in)", "target_all": "target (all)", "validation": "validation"}
_CURVE_POINTS = 200
_MATRIX_CLASSES = 20
_QUESTION_ROWS = 40
_WORST_PAIRS = 20


@dataclass(frozen=True)
class Table:
    """A table of the page; ``heat`` colours a cell from 0 to 1."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    heat: Sequence[Sequence[float | None]] | None = None
    note: str = ""

    @property
    def words(self) -> list[bool]:
        """Whether a column has words, which stand on the left, and not numbers alone."""
        return [any(_is_word(row[number]) for row in self.rows) for number in range(len(self.columns))]


@dataclass(frozen=True)
class Section:
    """A part of a run's report."""

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Markup] = ()
    note: str = ""


def render_report(runs: Sequence[RunResults], max_images: int, prices: Prices | None = None) -> str:
    """The whole page.

    Args:
        max_images: images of each run's gallery; each adds a few kilobytes to the page.
        prices: to tell what the stages cost; without them their time alone is told.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rdmldg_ray.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        names=[run.name for run in runs],
        headline=headline(runs),
        side_by_side=_side_by_side(runs),
        differences=_differences(runs),
        runs=[
            {
                "name": run.name,
                "location": run.location,
                "sections": _sections(run, prices),
                "cards": cards,
                "gallery_note": note,
                "config": dump_config(run.config),
            }
            for run in runs
            for cards, note in [_gallery(run, max_images)]
        ],
        filters=_filters,
    )


def headline(runs: Sequence[RunResults]) -> Table:
    """Accuracy by run, stage and pathway as means over the held-out domains, the paper's below."""
    rows: list[list[Any]] = []
    for run in runs:
        stages = dict.fromkeys(model for held_out in run.held_out for model in run.models(held_out))
        for model in stages:
            found = [accuracies_of(run.state, d, model) for d in run.held_out]
            for pathway in dict.fromkeys(name for accuracy in found for name in accuracy):
                values = [
                    percent(mean_of_known(accuracy.get(pathway, {}).get(measure) for accuracy in found))
                    for measure in _MEASURES
                ]
                folds = sum(pathway in accuracy for accuracy in found)
                rows.append([run.name, model, pathway, folds, *values])
    datasets = dict.fromkeys(run.config.data.dataset for run in runs)
    for name, known in _PAPER.items():
        for dataset in datasets:
            if dataset in known:
                rows.append([f"paper, {dataset}", name, "", 4, f"{known[dataset]:.2f}", "", ""])
    columns = ["run", "stage", "pathway", "folds", *(f"{m}, %" for m in _MEASURES.values())]
    note = "Means over the folds, each with its held-out domain, that are evaluated so far."
    return Table("Accuracy", columns, rows, note=note)


def _side_by_side(runs: Sequence[RunResults]) -> Table | None:
    """Target accuracy of each stage and pathway, a column for each run."""
    if len(runs) < 2:
        return None
    columns: dict[tuple[str, str], dict[str, str]] = {}
    table = headline(runs)
    for row in (dict(zip(table.columns, row, strict=True)) for row in table.rows):
        if row["pathway"]:  # not the paper's, which have none
            target = row[f"{_MEASURES['target_in']}, %"]
            columns.setdefault((row["stage"], row["pathway"]), {})[row["run"]] = target
    names = [run.name for run in runs]
    rows = [[*place, *(found.get(name, "-") for name in names)] for place, found in columns.items()]
    return Table(f"Side by side: {_MEASURES['target_in']}, %", ["stage", "pathway", *names], rows)


def _differences(runs: Sequence[RunResults]) -> Table | None:
    if len(runs) < 2:
        return None
    flat = {run.name: flatten_settings(run.config.model_dump(mode="json")) for run in runs}
    rows = [
        [key, *(_shown(values[name]) for name in flat)] for key, values in config_differences(flat).items()
    ]
    return Table("What differs in their settings", ["setting", *flat], rows)


def _sections(run: RunResults, prices: Prices | None) -> list[Section]:
    makers = {
        "Accuracy by domain, pathway and round": _accuracy_section,
        "Training": _training_section,
        "The model's own chains": _rejection_section,
        "Answers": _confusion_section,
        "Token probabilities": _token_section,
        "Time, cost and versions": lambda run: _time_section(run, prices),
    }
    sections = []
    for title, make in makers.items():
        try:
            sections.append(make(run))
        except (ValueError, KeyError, ZeroDivisionError) as error:  # its files are gone or damaged
            sections.append(Section(title, note=_not_shown(error)))
    return sections


def _gallery(run: RunResults, max_images: int) -> tuple[list[Card], str]:
    """The gallery's cards, or why there are none."""
    try:
        return make_gallery(run, max_images), ""
    except (ValueError, KeyError) as error:
        return [], _not_shown(error)


def _not_shown(error: Exception) -> str:
    return f"Not shown: {error if isinstance(error, ValueError) else repr(error)}"


def _accuracy_section(run: RunResults) -> Section:
    tables, pictures = [], []
    for measure in ("target_in", "target_all"):
        rows = []
        for model in dict.fromkeys(m for domain in run.held_out for m in run.models(domain)):
            for pathway in run.config.evaluation.pathways:
                values = [_accuracy(run, domain, model, pathway, measure) for domain in run.held_out]
                if any(value is not None for value in values):
                    rows.append([model, pathway, *map(percent, values), percent(mean_of_known(values))])
        columns = ["stage", "pathway", *run.held_out, "mean"]
        tables.append(Table(f"{_MEASURES[measure]} of the held-out domain, %", columns, rows))
    for pathway in run.config.evaluation.pathways:
        stages = list(dict.fromkeys(m for domain in run.held_out for m in run.models(domain)))
        series = {
            f"{domain} held out": [
                None if value is None else 100 * value
                for value in (_accuracy(run, domain, model, pathway, "target_in") for model in stages)
            ]
            for domain in run.held_out
        }
        if any(value is not None for values in series.values() for value in values):
            title = f"{pathway} pathway by stage: target (in)"
            pictures.append(_picture(bars(title, "%", stages, series, form="svg")))
    note = "" if run.held_out else "No evaluation is complete yet."
    return Section("Accuracy by domain, pathway and round", tables if run.held_out else [], pictures, note)


def _accuracy(run: RunResults, domain: str, model: str, pathway: str, measure: str) -> float | None:
    return accuracies_of(run.state, domain, model).get(pathway, {}).get(measure)


def _training_section(run: RunResults) -> Section:
    pictures, rows = [], []
    for stage, metrics in run.metrics().items():
        if not metrics:
            continue
        losses = {
            name: _curve(metrics, f"loss_{name}")
            for name in ("direct", "reasoning")
            if any(step.get(f"loss_{name}") for step in metrics)
        }
        if losses:
            pictures.append(_picture(lines(f"{stage}: loss", "step", "nats", losses, form="svg")))
        speed = {"tokens/s": _curve(metrics, "tokens_per_s")}
        pictures.append(_picture(lines(f"{stage}: throughput", "step", "tokens/s", speed, form="svg")))
        last = metrics[-1]
        figures = ("samples_per_s", "tokens_per_s", "memory_gib", "mfu", "padding_share", "data_wait_share")
        rows.append([stage, last["step"], *(_shown(last.get(name)) for name in figures)])
    columns = ["stage", "steps", "images/s", "tokens/s", "GiB", "MFU", "padding", "waiting for data"]
    tables = [Table("At the end of each stage", columns, rows)] if rows else []
    return Section("Training", tables, pictures, "" if rows else "Nothing has been trained yet.")


def _curve(metrics: Sequence[dict[str, float | None]], name: str) -> list[Point]:
    """A metric by step; of many steps, means over as many stretches as the picture can show."""
    known = [(step["step"] or 0.0, value) for step in metrics if (value := step.get(name)) is not None]
    size = -(-len(known) // _CURVE_POINTS) or 1
    stretches = [known[start : start + size] for start in range(0, len(known), size)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


def _rejection_section(run: RunResults) -> Section:
    tables = []
    rounds = list(dict.fromkeys(model for held_out in run.held_out for model in run.rounds(held_out)))
    series: dict[str, list[float | None]] = {}
    for held_out in run.held_out:
        for model in run.rounds(held_out):
            summary = round_summary(run.state, held_out, model)
            assert summary
            accepted = series.setdefault(f"{held_out} held out", [None] * len(rounds))
            accepted[rounds.index(model)] = 100 * summary["accepted"] / summary["candidates"]
            found = run.rejections(held_out, model)
            for by in ("domain", "label") if found is not None else ():
                if not (rows := rejection_rows(found, by)):
                    continue
                columns = [name.replace("_", " ") for name in rows[0]]
                cells = [[percent(v) if k == "accepted" else v for k, v in row.items()] for row in rows]
                columns[2] = "accepted, %"
                title = f"{held_out} held out, {model}: by {'class' if by == 'label' else by}"
                tables.append(Table(title, columns, cells, [[None, None, row["accepted"]] for row in rows]))
            if found is None:
                reasons = [[reason.replace("_", " "), count] for reason, count in summary["rejected"].items()]
                tables.append(Table(f"{held_out} held out, {model}: rejected", ["reason", "chains"], reasons))
    if not series:
        return Section("The model's own chains", note="No round of SARR is complete yet.")
    picture = _picture(bars("chains accepted by round", "%", rounds, series, form="svg"))
    return Section("The model's own chains: accepted, and why not", tables, [picture])


def _confusion_section(run: RunResults) -> Section:
    tables = []
    info = read_dataset_info(run.root, run.config.data.dataset)
    if info.questions:
        return _question_section(run, info)
    classes = list(info.classes)
    for held_out in run.held_out:
        model = run.models(held_out)[-1]
        predictions = run.predictions(held_out, model)
        for pathway in sorted(set(predictions["pathway"].to_pylist())):
            counts = confusion(on_target(predictions, pathway), classes)
            title = f"{held_out} held out, {model}, {pathway}: label by answer"
            tables.append(_matrix(title, classes, counts))
    note = "Rows are labels, columns answers, on all of the held-out domain." if tables else ""
    return Section("Confusion matrices", tables, note=note)


def _question_section(run: RunResults, info: DatasetInfo) -> Section:
    """In the place of confusion matrices, which want the same options throughout."""
    tables = []
    columns = ["question", "pathway", "rows", "accuracy, %", "chance, %", "commonest answer, %"]
    for held_out in run.held_out:
        model = run.models(held_out)[-1]
        samples = sample_index(run.root, info, fold_domains(held_out))
        found = by_question(run.predictions(held_out, model), samples)
        shares = ("accuracy", "chance", "commonest")
        rows = [
            [row["question"], row["pathway"], row["rows"], *(percent(row[share]) for share in shares)]
            for row in found[:_QUESTION_ROWS]
        ]
        tables.append(Table(f"{held_out} held out, {model}", columns, rows))
    note = "On all of the held-out domain, the questions with the most rows first." if tables else ""
    return Section("Accuracy by question", tables, note=note)


def _matrix(title: str, classes: list[str], counts: list[list[int]]) -> Table:
    answers = [*classes, "no class"]
    if len(classes) <= _MATRIX_CLASSES:
        rows = [[name, *(n or "" for n in row)] for name, row in zip(classes, counts, strict=True)]
        heat = [[None, *(n / (sum(row) or 1) for n in row)] for row in counts]
        return Table(title, ["", *answers], rows, heat)
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    worst = [
        [classes[i], answers[j], n, percent(n / sum(counts[i]))]
        for n, i, j in sorted(pairs, key=lambda pair: -pair[0])[:_WORST_PAIRS]
    ]
    return Table(
        f"{title}, the commonest confusions", ["label", "answer", "images", "of the label, %"], worst
    )


def _token_section(run: RunResults) -> Section:
    pictures = []
    for held_out in run.held_out:
        data = run.read(join(run.store.analyses_uri(held_out), "tokens.csv"))
        if data is None:
            continue
        rows = [row for row in csv.DictReader(io.StringIO(data.decode())) if row["held_out"] == "False"]
        names = list(dict.fromkeys(row["model"] for row in rows))
        series: dict[str, list[float | None]] = {}
        for row in rows:
            for share, sign in (("low", "< 0.25"), ("high", "> 0.75")):
                values = series.setdefault(f"{row['target']} tokens {sign}", [None] * len(names))
                values[names.index(row["model"])] = 100 * float(row[share])
        title = f"{held_out} held out: target tokens of the sources by probability"
        pictures.append(_picture(bars(title, "%", names, series, form="svg")))
    note = "" if pictures else f"Not measured; rdmldg analyze tokens {run.name} does."
    return Section("Token probabilities", pictures=pictures, note=note)


def _time_section(run: RunResults, prices: Prices | None) -> Section:
    used: list[tuple[str, float, float, int, Any]] = []
    for name, entry in run.state.items():
        hours = entry["seconds"] / 3600 * devices(run.config, Stage.parse(name).kind)
        used.append((name, entry["seconds"], hours, run.stage_bytes(name), entry.get("tokens", "")))
    seconds, hours, size = (
        sum(row[1] for row in used),
        sum(row[2] for row in used),
        sum(row[3] for row in used),
    )
    rows = [
        [
            name,
            f"{took:.0f}",
            percent(took / seconds if seconds else None),
            f"{worked:.2f}",
            f"{left / 1e6:.1f}",
            tokens,
            *([f"{prices.of(worked, left):.2f}"] if prices else []),
        ]
        for name, took, worked, left, tokens in [*used, ("total", seconds, hours, size, "")]
    ]
    columns = ["stage", "seconds", "of the whole, %", _device_hours(run), "MB", "tokens written"]
    note = ""
    if prices:
        columns.append("$")
        note = (
            f"At ${prices.worker_hour:g} for an hour of a worker or engine and ${prices.gb_month:g} for a GB "
            "of storage and a month; idle machines, and work that was lost and done again, are not in it."
        )
    tables = [Table("By stage", columns, rows, note=note)]
    versions = run.versions()
    if versions:
        tables.append(Table("Versions", ["package", "version"], [[*item] for item in versions.items()]))
    return Section("Time, cost and versions" if prices else "Time and versions", tables)


def _device_hours(run: RunResults) -> str:
    return "GPU hours" if run.config.workers.gpus_per_worker else "worker hours"


def _is_word(cell: Any) -> bool:
    try:
        float(str(cell).replace(",", ""))
    except ValueError:
        return str(cell) not in ("", "-")
    return False


def _filters(cards: Sequence[Card]) -> dict[str, list[str]]:
    """What a gallery can be filtered by, and the values that occur."""
    names = ("verdict", "label", "domain", "held_out", "stage")
    return {name: list(dict.fromkeys(str(getattr(card, name)) for card in cards)) for name in names}


def _picture(svg: bytes) -> Markup:
    # Ours: matplotlib escapes the words in it.
    return Markup(svg.decode())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
