import pyarrow as pa
import pytest
from rich.console import Console

from rdmldg_ray.chains.store import read_chains, write_chains
from rdmldg_ray.config.load import load_config
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.sweeps.space import SweepSpace
from rdmldg_ray.sweeps.sweep_plan import check_chains
from tools import mini


@pytest.fixture
def checked(tmp_path):
    """Check a sweep over a small data set whose classes have chains of 'rules', and all but one of 'few'."""
    mini.write_mini(str(tmp_path))
    info = read_dataset_info(str(tmp_path), "mini")
    tables = {}
    for domain in info.environments:
        chains = read_chains(str(tmp_path), "mini", "rules", [domain])
        labels = [row["conclusion"] != info.classes[0] for row in chains.to_pylist()]
        place = chains.schema.get_field_index("accepted")
        tables[domain] = chains.set_column(place, "accepted", pa.array(labels))
    write_chains(str(tmp_path), "mini", "few", tables)

    def checked(overrides=(), **settings):
        console = Console(width=1000)
        config = load_config("demo", [*mini.SETTINGS, "name=swept", f"storage={tmp_path}", *overrides])
        with console.capture() as said:
            check_chains(config, info, SweepSpace(settings=settings), console)
        return said.get()

    return checked


def test_chains_that_a_trial_would_miss_end_the_sweep_before_it(checked):
    with pytest.raises(ValueError, match="gone"):
        checked(**{"data.chains": ["rules", "gone"]})
    with pytest.raises(ValueError, match="gone"):
        checked(["data.chains=gone"], **{"lora.rank": [8, 16]})
    # What no trial reads is not looked at.
    checked(["data.chains=gone"], **{"data.chains": ["rules"], "lora.rank": [8, 16]})


def test_a_class_without_chains_is_told_once_whatever_else_is_tried(checked):
    assert checked(**{"data.chains": ["rules"], "lora.rank": [8, 16]}) == ""
    said = checked(**{"data.chains": ["rules", "few"], "lora.rank": [8, 16]})
    assert said.count("no image is trained on") == 1 and "of 'few'" in said
