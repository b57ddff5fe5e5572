"""Pictures of results, as PNG or for a page as SVG: plain functions of numbers.

Needs matplotlib, imported when drawing.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Point = tuple[float, float]
Form = Literal["png", "svg"]


def bars(
    title: str,
    y_label: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    form: Form = "png",
) -> bytes:
    """Bars of several series side by side in each category; None leaves a gap."""
    figure, axes = _figure(title, form)
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(categories))]
        known = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        axes.bar([place for place, _ in known], [value for _, value in known], width, label=name)
    axes.set_xticks(range(len(categories)), categories, rotation=20 if len(categories) > 4 else 0)
    axes.set_ylabel(y_label)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return _encoded(figure, form)


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    marks: Mapping[str, Point] | None = None,
    form: Form = "png",
) -> bytes:
    """Lines through points in their order, and single points marked by name."""
    figure, axes = _figure(title, form)
    for name, points in series.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=name)
    for name, (x, y) in (marks or {}).items():
        axes.plot([x], [y], "o", markersize=9, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return _encoded(figure, form)


def parallel_coordinates(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[float]], score: str
) -> bytes:
    """A line for each row through one axis for each column; the last column colours the lines.

    Args:
        columns: names of the columns, the score's last.
        rows: numbers in the columns' order.
        score: what the colour bar is called.
    """
    figure, axes = _figure(title, "png")
    spans = [(min(values), max(values)) for values in zip(*rows, strict=True)]
    low, high = spans[-1]
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours: Any = ScalarMappable(Normalize(low, high if high > low else low + 1), colormaps["viridis"])
    for row in rows:
        heights = [(v - a) / (b - a) if b > a else 0.5 for v, (a, b) in zip(row, spans, strict=True)]
        axes.plot(range(len(columns)), heights, color=colours.to_rgba(row[-1]), alpha=0.8)
    labels = [f"{name}\n{a:.4g} .. {b:.4g}" for name, (a, b) in zip(columns, spans, strict=True)]
    axes.set_xticks(range(len(columns)), labels, fontsize=7)
    axes.set_yticks([])
    figure.colorbar(colours, ax=axes, label=score)
    return _encoded(figure, "png")


def _figure(title: str, form: Form) -> tuple[Any, Any]:
    # The figure alone, without pyplot: no display, no global state.
    from matplotlib.figure import Figure

    # On a page two stand side by side, or one on a telephone: smaller, so that its words are larger.
    figure = Figure(figsize=(6, 3.4) if form == "svg" else (8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _encoded(figure: Any, form: Form) -> bytes:
    sink = io.BytesIO()
    if form == "png":
        figure.savefig(sink, format="png", dpi=120)
        return sink.getvalue()
    from matplotlib import rc_context

    # Text stays text; ids are hashes of what they name, so pictures on one page may share them.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rdmldg_ray"}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = sink.getvalue().decode()
    svg = svg[svg.index("<svg") :]  # without the XML header, for a page that holds it
    # What was black takes the page's colour, which is light in the dark; the legend's white box goes.
    return svg.replace("#000000", "currentColor").replace("#ffffff", "none").encode()
