import time

import pytest
from rich.console import Console

from rdmldg_ray.runtime.liveness import count_alive
from rdmldg_ray.runtime.progress import progress_bar
from rdmldg_ray.storage import read_json


class Counted:
    pass


class Other:
    pass


def test_a_note_stands_beside_what_a_stage_says_of_itself(tmp_path):
    with progress_bar(Console(quiet=True), "chains", str(tmp_path), lambda: "2 of 2 engines alive") as bar:
        bar.update(8, 8, "draw 1")
    assert read_json(f"{tmp_path}/progress.json")["text"] == "draw 1, 2 of 2 engines alive"


@pytest.mark.slow
def test_actors_of_a_class_are_counted_while_they_live(ray_cluster, monkeypatch):
    import ray

    monkeypatch.setattr("rdmldg_ray.runtime.liveness._LOOK_EVERY_S", 1.0)

    counted, other = (ray.remote(num_cpus=0)(each) for each in (Counted, Other))
    actors = [counted.remote(), counted.remote(), other.remote()]
    with count_alive("Counted", 2, "engines") as alive:
        wait_until(lambda: alive() == "2 of 2 engines alive")
        ray.kill(actors[0])
        wait_until(lambda: alive() == "1 of 2 engines alive")


def wait_until(true):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
