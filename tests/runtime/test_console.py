import io

import pyarrow as pa
import pytest
from rich.panel import Panel
from rich.table import Table

from rdmldg_ray.report.rejections import rejection_table
from rdmldg_ray.report.rows import rows_table
from rdmldg_ray.runtime.console import plain_console
from rdmldg_ray.runtime.progress import progress_bar

NAMES = ["100%[v]", "[old]", "close [/b]", "[red]dog[/red]", "[/]", ":dog:", "\\[x]", "[link=https://x]y"]


def printed(what, **settings):
    file = io.StringIO()
    plain_console(file=file, width=200, **settings).print(what)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_strings_are_printed_as_they_are(name, terminal):
    assert name in printed(name, force_terminal=terminal)
    table = Table(title=f"of {name}", caption=name)
    table.add_column(f"column {name}")
    table.add_row(f"cell {name}")
    shown = printed(table, force_terminal=terminal)
    assert f"of {name}" in shown and f"column {name}" in shown and f"cell {name}" in shown
    assert name in printed(Panel(name), force_terminal=terminal)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_the_products_tables_are_printed_as_they_are(name):
    assert name in printed(rows_table(f"of {name}", [{"class": name, "count": 1}]))
    rejections = pa.table(
        {"label": [name, name], "domain": ["a", "b"], "reason": [None, "wrong_class"], "candidates": [1, 2]}
    )
    assert printed(rejection_table(rejections, "label", f"of {name}")).count(name) == 2


def test_a_bars_label_is_printed_as_it_is():
    file = io.StringIO()
    with progress_bar(plain_console(file=file, force_terminal=True, width=200), "[v] [/b] :dog:") as bar:
        bar.update(1, 2, "[/x]")
    assert "[v] [/b] :dog:" in file.getvalue() and "[/x]" in file.getvalue()


def test_a_width_of_nothing_is_not_taken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    file = io.StringIO()
    plain_console(file=file).print("seen")
    assert file.getvalue() == "seen\n"
