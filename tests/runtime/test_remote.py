import logging

import pytest

from rdmldg_ray.runtime import remote


def speaks(name, level=logging.WARNING, times=1):
    for _ in range(times):
        logging.getLogger(name).log(level, "%d chains of %s", 3, name)
    return 7


@pytest.mark.parametrize(
    ("name", "level", "travels"),
    [
        ("rdmldg_ray", logging.WARNING, True),
        ("rdmldg_ray.chains.attach", logging.WARNING, True),
        ("rdmldg_ray.engines.pool", logging.ERROR, True),
        ("rdmldg_ray.chains.attach", logging.INFO, False),
        ("rdmldg_ray_other", logging.WARNING, False),
        ("ray.data", logging.WARNING, False),
        ("vllm", logging.ERROR, False),
    ],
)
def test_what_a_task_warns_of_travels_with_its_result(name, level, travels):
    before = list(logging.getLogger("rdmldg_ray").handlers)
    result, said = remote._call(speaks, (name,), {"level": level})
    assert result == 7
    assert said == ([(name, level, f"3 chains of {name}")] if travels else [])
    assert logging.getLogger("rdmldg_ray").handlers == before


def test_a_failing_task_leaves_no_listener():
    before = list(logging.getLogger("rdmldg_ray").handlers)
    with pytest.raises(TypeError):
        remote._call(speaks, ())
    assert logging.getLogger("rdmldg_ray").handlers == before


def test_a_warning_is_told_once_whatever_says_it_again(caplog):
    remote._tell_once.cache_clear()
    for _ in range(2):
        remote._tell(remote._call(speaks, ("rdmldg_ray.runs",), {"times": 2})[1])
    remote._tell([("rdmldg_ray.runs", logging.WARNING, "100 % of another")])
    own = [record for record in caplog.records if record.funcName == "_tell_once"]
    assert [(record.name, record.getMessage()) for record in own] == [
        ("rdmldg_ray.runs", "3 chains of rdmldg_ray.runs"),
        ("rdmldg_ray.runs", "100 % of another"),
    ]
