import io

import pytest
from PIL import Image

from rdmldg_ray.report.plots import bars, lines, parallel_coordinates

pytest.importorskip("matplotlib")


def pixels(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.size == (960, 540)
    return image.convert("RGB").tobytes()


def test_bars_show_their_values_and_leave_gaps():
    full = pixels(bars("t", "%", ["a", "b"], {"x": [1.0, 2.0], "y": [3.0, 4.0]}))
    gap = pixels(bars("t", "%", ["a", "b"], {"x": [1.0, 2.0], "y": [3.0, None]}))
    assert full != gap


def test_lines_show_their_points_and_marks():
    series = {"x": [(0.0, 1.0), (1.0, 3.0)]}
    assert pixels(lines("t", "x", "y", series)) != pixels(lines("t", "x", "y", series, {"best": (1.0, 3.0)}))


def test_parallel_coordinates_take_columns_that_do_not_vary():
    rows = [(1.0, 5.0, 0.5), (2.0, 5.0, 0.7)]
    assert pixels(parallel_coordinates("t", ["a", "b", "score"], rows, "score"))
    assert pixels(parallel_coordinates("t", ["a", "b", "score"], rows[:1], "score"))


def test_a_picture_for_a_page_takes_its_colours_and_escapes_its_words():
    svg = bars("<b>t</b>", "%", ["a"], {"<script>": [1.0]}, form="svg").decode()
    assert svg.startswith("<svg") and "currentColor" in svg and "#000000" not in svg
    assert "<script>" not in svg and "&lt;script&gt;" in svg
