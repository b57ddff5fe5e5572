"""``rdmldg baselines``: the folds, splits and form of a run's own accuracies."""

import json

import pytest

from rdmldg_ray.datasets.schema import DatasetInfo
from rdmldg_ray.domainbed.records import read_results
from rdmldg_ray.runs.baselines import check_classes
from tests.helpers.cli import rdmldg


def test_rows_with_questions_have_no_classes_to_learn():
    info = DatasetInfo("asked", ("a", "b"), ("yes", "no"), {"a": 1, "b": 1}, questions=True)
    with pytest.raises(
        ValueError, match=r"has questions, and cnn needs classes; give --yardsticks labels-only"
    ):
        check_classes(info, ["cnn", "labels-only"])
    check_classes(info, ["labels-only"])


@pytest.mark.slow
def test_yardsticks_are_measured_on_the_folds_of_the_recipe(mini_root, shared_ray):
    command = [
        "baselines",
        "demo",
        "data.dataset=mini",
        "data.held_out=flat",
        "--yardsticks",
        "linear-probe,cnn",
    ]
    done = rdmldg(*command, "--trials", "0,1", "--storage", str(mini_root), "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    records = read_results(document["file"])
    assert len(records) == 2 * 2
    for record in records:
        [held_out] = record["args"]["test_envs"]
        sources = [env for env in range(3) if env != held_out]
        assert f"env{held_out}_in_acc" in record and f"env{held_out}_all_acc" in record
        assert all(f"env{env}_out_acc" in record and f"env{env}_in_acc" not in record for env in sources)
    of_probe = [r for r in records if r["args"]["algorithm"] == "linear probe on the base"]
    mean = sum(r[f"env{r['args']['test_envs'][0]}_all_acc"] for r in of_probe) / len(of_probe)
    assert mean > 0.6, "chance is 0.33"
