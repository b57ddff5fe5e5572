from rdmldg_ray.report.ablation import ablation_images, ablation_table
from rdmldg_ray.sweeps.variants import ablation_rows


def entry(**accuracy):
    return {
        "seconds": 1.0,
        "accuracy": {p: {"target_in": v, "target_all": v / 2} for p, v in accuracy.items()},
    }


BOTH = {
    "art/evaluation/zero-shot": entry(direct=0.1, reasoning=0.0),
    "art/mtct": {"seconds": 5.0, "samples": 3},
    "art/evaluation/mtct": entry(direct=0.5, reasoning=0.4),
    "art/evaluation/sarr-1": entry(direct=0.7, reasoning=0.6),
    "photo/evaluation/zero-shot": entry(direct=0.3, reasoning=0.2),
    "photo/evaluation/mtct": entry(direct=0.7, reasoning=0.8),
}
LABELS = {"art/evaluation/mtct": entry(direct=0.55), "photo/evaluation/mtct": entry(direct=0.65)}
CHAINS = {"art/evaluation/mtct": entry(reasoning=0.35), "art/evaluation/sarr-1": entry(reasoning=0.45)}
STATES = {"both": [BOTH], "labels": [LABELS], "chains": [CHAINS], "unfiltered": [{}]}


def rows(table):
    return [list(row) for row in zip(*[list(column.cells) for column in table.columns], strict=True)]


def test_each_variant_shows_the_pathways_it_has_and_a_mean_only_over_all_domains():
    table = ablation_table(STATES, ablation_rows(1))
    assert [column.header for column in table.columns] == ["variant", "pathway", "art", "photo", "mean"]
    assert rows(table) == [
        ["zero-shot", "direct", "10.0", "30.0", "20.0"],
        ["zero-shot", "reasoning", "0.0", "20.0", "10.0"],
        ["labels only", "direct", "55.0", "65.0", "60.0"],
        ["chains only", "reasoning", "35.0", "-", "-"],
        ["MTCT", "direct", "50.0", "70.0", "60.0"],
        ["MTCT", "reasoning", "40.0", "80.0", "60.0"],
        ["SARR without MTCT, round 1", "reasoning", "45.0", "-", "-"],
        ["MTCT and SARR, round 1", "direct", "70.0", "-", "-"],
        ["MTCT and SARR, round 1", "reasoning", "60.0", "-", "-"],
    ]


def test_trials_are_averaged_and_counted():
    other = {"art/evaluation/mtct": entry(direct=0.45), "photo/evaluation/mtct": entry(direct=0.75)}
    table = ablation_table({**STATES, "labels": [LABELS, other]}, ablation_rows(1), "target_all")
    assert "target all" in table.title
    assert "mean of 2 trials" in table.title
    assert rows(table)[2] == ["labels only", "direct", "25.0", "35.0", "30.0 +/- 0.0"]
    other["photo/evaluation/mtct"] = entry(direct=0.95)
    found = ablation_table({**STATES, "labels": [LABELS, other]}, ablation_rows(1))
    # 0.6 and 0.7: the population's standard deviation is 0.05.
    assert rows(found)[2][-1] == f"65.0 +/- {5 / 2**0.5:.1f}"
    other.pop("photo/evaluation/mtct")
    found = ablation_table({**STATES, "labels": [LABELS, other]}, ablation_rows(1))
    assert rows(found)[2][2:] == ["50.0", "65.0", "57.5"], "an error of one trial is none"


def trained(art, photo):
    return {"art/mtct": {"seconds": 1.0, "samples": art}, "photo/mtct": {"seconds": 1.0, "samples": photo}}


def test_runs_on_different_sets_of_images_are_told():
    same = {"both": [trained(3, 5)], "labels": [trained(3, 5)], "chains": [trained(3, 5)]}
    assert ablation_images(same) is None
    assert ablation_images({**same, "labels": [trained(4, 5)]}).splitlines()[1:] == [
        "  art held out: 3 for both, 4 for labels, 3 for chains"
    ]
    two = {"both": [trained(3, 5), trained(3, 5)], "labels": [trained(3, 5), trained(3, 6)]}
    assert ablation_images(two).splitlines()[1:] == ["  photo held out, trial 2: 5 for both, 6 for labels"]
    assert ablation_images(STATES) is None
