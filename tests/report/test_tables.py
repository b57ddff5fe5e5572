import pytest
from rich.console import Console

from rdmldg_ray.report.tables import (
    domain_table,
    percent,
    share_accepted,
    summary_table,
    time_table,
)
from rdmldg_ray.runs.store import evaluated_folds, evaluated_models


def evaluation(direct, reasoning, seconds=10.0):
    return {
        "seconds": seconds,
        "accuracy": {
            pathway: {"target_in": value, "target_out": 0.0, "target_all": value / 2, "validation": 0.9}
            for pathway, value in (("direct", direct), ("reasoning", reasoning))
        },
    }


STATE = {
    "photo/evaluation/zero-shot": evaluation(0.1, 0.2),
    "photo/mtct": {"seconds": 100.4, "samples": 5},
    "photo/evaluation/mtct": evaluation(0.5, 0.6),
    "photo/sarr-1/candidates": {"seconds": 7.0, "accepted": 3, "candidates": 4},
    "photo/sarr-1": {"seconds": 50.0, "samples": 3},
    "photo/evaluation/sarr-1": evaluation(0.71249, 0.8),
    "art/evaluation/zero-shot": evaluation(0.3, 0.4),
    "art/mtct": {"seconds": 1.0, "samples": 5},
    "art/evaluation/mtct": evaluation(0.7, 1.0),
}


def cells(table):
    columns = [list(column.cells) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_domains_and_models_come_in_the_order_of_the_run():
    assert evaluated_folds(STATE) == ["photo", "art"]
    assert evaluated_models(STATE, "photo") == ["zero-shot", "mtct", "sarr-1"]
    assert evaluated_models(STATE, "art") == ["zero-shot", "mtct"]


def test_the_share_accepted_belongs_to_a_round():
    assert share_accepted(STATE, "photo", "sarr-1") == 0.75
    assert share_accepted(STATE, "photo", "mtct") is None


def test_a_domains_table_has_a_row_for_each_model_and_pathway():
    table = domain_table(STATE, "photo")
    assert [column.header for column in table.columns] == [
        "stage",
        "pathway",
        "target (in)",
        "target (all)",
        "validation",
        "chains accepted",
    ]
    assert cells(table) == [
        ["zero-shot", "direct", "10.0", "5.0", "90.0", ""],
        ["zero-shot", "reasoning", "20.0", "10.0", "90.0", ""],
        ["mtct", "direct", "50.0", "25.0", "90.0", ""],
        ["mtct", "reasoning", "60.0", "30.0", "90.0", ""],
        ["sarr-1", "direct", "71.2", "35.6", "90.0", "75.0"],
        ["sarr-1", "reasoning", "80.0", "40.0", "90.0", "75.0"],
    ]


def test_the_summary_averages_over_domains_and_shows_what_is_missing():
    table = summary_table(STATE)
    assert [column.header for column in table.columns] == ["stage", "pathway", "photo", "art", "mean"]
    assert cells(table)[0] == ["zero-shot", "direct", "10.0", "30.0", "20.0"]
    assert cells(table)[3] == ["mtct", "reasoning", "60.0", "100.0", "80.0"]
    # A round that only one domain has reached averages over that one.
    assert cells(table)[5] == ["sarr-1", "reasoning", "80.0", "-", "80.0"]


def test_the_summary_takes_another_measure():
    table = summary_table(STATE, "target_all")
    assert "target all" in table.title
    assert cells(table)[0] == ["zero-shot", "direct", "5.0", "15.0", "10.0"]


def test_the_time_table_ends_with_the_total():
    table = cells(time_table(STATE))
    assert table[1] == ["photo/mtct", "100"]
    assert table[-1] == ["total", "208"]


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0.0"), (1.0, "100.0"), (0.12345, "12.3")])
def test_percent(value, text):
    assert percent(value) == text


def test_the_tables_print_plainly():
    console = Console(width=120, record=True)
    with console.capture() as capture:
        console.print(domain_table(STATE, "photo"))
    assert "photo held out: accuracy, %" in capture.get()
