import math

from rdmldg_ray.report.rows import rows_csv, rows_table

ROWS = [
    {"model": "mtct", "held_out": True, "tokens": 12, "low": 0.125, "bound": math.inf, "best": None},
    {"model": "sarr, 1", "held_out": False, "tokens": 345, "low": 0.98765, "bound": 12.34, "best": 0.00123},
]


def test_a_table_shows_shares_in_percent_and_numbers_shortly():
    table = rows_table("t", ROWS, shares=["low"])
    assert [column.header for column in table.columns] == [
        "model",
        "held out",
        "tokens",
        "low, %",
        "bound",
        "best",
    ]
    assert [list(column.cells) for column in table.columns] == [
        ["mtct", "sarr, 1"],
        ["yes", "no"],
        ["12", "345"],
        ["12.5", "98.8"],
        ["inf", "12.3"],
        ["-", "0.00123"],
    ]


def test_csv_has_a_header_and_numbers_in_full():
    assert rows_csv(ROWS).decode().splitlines() == [
        "model,held_out,tokens,low,bound,best",
        "mtct,True,12,0.125,inf,",
        '"sarr, 1",False,345,0.98765,12.34,0.00123',
    ]
