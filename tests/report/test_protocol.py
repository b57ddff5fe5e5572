import pytest

from rdmldg_ray.domainbed.selection import METHODS
from rdmldg_ray.report.protocol import (
    chosen_table,
    collect_tables,
    environment_names,
    error_note,
    format_cell,
    mean_and_error,
    single_source_tables,
)
from tests.helpers import sweep_records as made

# What DomainBed's own model_selection and collect_results make of the same records.
DOMAINBED = {
    "training-domain validation set": {
        ("PACS", "ERM"): ["71.0 +/- 8.7", "91.7 +/- 2.8", "80.0 +/- 9.7", "76.0 +/- 7.1", "79.7"],
        ("PACS", "RD-MLDG"): ["77.0 +/- 2.9", "72.0 +/- 10.8", "88.3 +/- 5.2", "73.3 +/- 8.2", "77.7"],
        ("VLCS", "ERM"): ["72.0 +/- 3.3", "69.3 +/- 11.1", "75.7 +/- 10.9", "65.3 +/- 12.1", "70.6"],
        ("VLCS", "RD-MLDG"): ["90.5 +/- 1.8", "73.5 +/- 6.7", "65.5 +/- 11.0", "60.0 +/- 4.9", "72.4"],
        ("Averages", "ERM"): ["79.7 +/- 2.5", "70.6 +/- 8.0"],
        ("Averages", "RD-MLDG"): ["77.7 +/- 5.4", "72.4 +/- 2.7"],
    },
    "leave-one-domain-out cross-validation": {
        ("PACS", "ERM"): ["80.0 +/- 6.9", "72.7 +/- 8.8", "70.0 +/- 5.9", "65.7 +/- 4.7", "72.1"],
        ("PACS", "RD-MLDG"): ["X", "X", "X", "X", "X"],
        ("VLCS", "ERM"): ["77.3 +/- 5.4", "55.7 +/- 2.1", "80.7 +/- 7.5", "71.0 +/- 5.4", "71.2"],
        ("VLCS", "RD-MLDG"): ["X", "X", "X", "X", "X"],
        ("Averages", "ERM"): ["72.1 +/- 3.4", "71.2 +/- 3.1"],
        ("Averages", "RD-MLDG"): ["X", "X"],
    },
    "test-domain validation set (oracle)": {
        ("PACS", "ERM"): ["77.0 +/- 2.6", "71.7 +/- 2.6", "72.7 +/- 8.4", "69.7 +/- 7.9", "72.8"],
        ("PACS", "RD-MLDG"): ["81.3 +/- 4.0", "77.7 +/- 6.3", "78.0 +/- 5.7", "60.0 +/- 3.3", "74.2"],
        ("VLCS", "ERM"): ["77.3 +/- 5.5", "64.7 +/- 6.6", "82.7 +/- 11.7", "69.0 +/- 11.0", "73.4"],
        ("VLCS", "RD-MLDG"): ["77.0 +/- 14.8", "80.0 +/- 12.7", "76.0 +/- 7.8", "81.0 +/- 7.8", "78.5"],
        ("Averages", "ERM"): ["72.8 +/- 1.7", "73.4 +/- 5.2"],
        ("Averages", "RD-MLDG"): ["74.2 +/- 3.4", "78.5 +/- 6.9"],
    },
}


@pytest.mark.parametrize(
    ("args", "note"),
    [
        ([(0, 0)], "there is one trial only"),
        (
            [(0, 0), (1, 0), (2, 0)],
            "over 3 trials, which differ in splits alone, not in the seed of training",
        ),
        ([(0, 0), (1, 7)], "over 2 trials, which differ in splits and in the seed of training"),
        ([(0, None), (1, None)], "over 2 trials, which differ in splits and in the seed of training"),
    ],
)
def test_what_the_error_is_over_is_told(args, note):
    records = [
        {"args": {"trial_seed": trial} | ({} if seed is None else {"seed": seed})} for trial, seed in args
    ]
    assert note in error_note(records)


def rows(table):
    return [list(row) for row in zip(*[list(column.cells) for column in table.columns], strict=True)]


def test_the_tables_have_domainbeds_numbers():
    tables = collect_tables(made.sweep_records())
    found = {method: {} for method in METHODS}
    for table in tables:
        title, method = table.title.split(", model selection: ")
        what = title.split(" (")[0]
        for algorithm, *cells in rows(table):
            # Our averages end with the mean over data sets, as DomainBed's do.
            found[method][what, algorithm] = cells[:-1] if what == "Averages" else cells
    assert found == DOMAINBED


def test_domains_are_called_by_their_names():
    table = collect_tables(made.sweep_records())[0]
    assert [column.header for column in table.columns] == [
        "algorithm",
        "art_painting",
        "cartoon",
        "photo",
        "sketch",
        "Avg",
    ]
    record = made.record([0], 0, [(0, 0), (0, 0)], dataset="Toy")
    assert environment_names([record]) == ["env0", "env1"]
    record["args"]["environments"] = ["left", "right"]
    assert environment_names([record]) == ["left", "right"]


def test_the_other_accuracy_is_named_and_needs_records_that_have_it():
    records = [made.record([0], 0, [(0.5, 0.5), (0.5, 0.5)])]
    with pytest.raises(ValueError, match="has no 'env0_all_acc'"):
        collect_tables(records, "all")
    records[0]["env0_all_acc"] = 0.25
    table = collect_tables(records, "all")[0]
    assert "all of the test domain" in table.title
    assert rows(table)[0][1] == "25.0 +/- 0.0"


def test_the_error_is_the_population_deviation_over_the_root_of_the_count():
    assert mean_and_error([0.5, 0.7, 0.9]) == (pytest.approx(70), pytest.approx(16.32993 / 3**0.5))
    assert format_cell([0.5, 0.7, 0.9]) == "70.0 +/- 9.4"
    assert format_cell([0.5]) == "50.0 +/- 0.0"
    assert format_cell([]) == "X"


def test_the_chosen_checkpoints_are_listed_by_domain_and_trial():
    records = [made.record([1], step, [(0, 0.5), (0.25, step / 1000)]) for step in (0, 300)]
    table = chosen_table(records, "test-domain validation set (oracle)")
    assert rows(table) == [["PACS", "ERM", "cartoon", "0", "300", "30.0", "25.0", "-"]]


def test_single_sources_are_shown_by_source_and_test_domain():
    def record(source, trial, accuracies):
        test_envs = [env for env in range(4) if env != source]
        return made.record(test_envs, 0, [(a, a) for a in accuracies], trial_seed=trial)

    records = [
        record(0, 0, [0.9, 0.2, 0.4, 0.6]),
        record(0, 1, [0.9, 0.4, 0.4, 0.6]),
        record(2, 0, [0.1, 0.2, 0.9, 0.3]),
    ]
    [table] = single_source_tables(records)
    assert rows(table) == [
        ["ERM", "art_painting", "", "30.0 +/- 7.1", "40.0 +/- 0.0", "60.0 +/- 0.0", "43.3"],
        ["ERM", "photo", "10.0 +/- 0.0", "20.0 +/- 0.0", "", "30.0 +/- 0.0", "20.0"],
    ]
    assert single_source_tables(made.sweep_records()) == []
