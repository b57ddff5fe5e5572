import pytest
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from rdmldg_ray.config.load import ConfigError
from rdmldg_ray.datasets.schema import read_dataset_info
from rdmldg_ray.runtime.errors import user_error

MISTAKE = ValueError("what the user did")


def task_error(cause):
    return RayTaskError("function", "traceback", cause)


def raised(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("mistake", [MISTAKE, ConfigError("key"), TimeoutError("asked for 3 GPU")])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda mistake: mistake,
        task_error,
        # What ray.get raises: a class that is a task error and its cause's class at once.
        lambda mistake: task_error(mistake).as_instanceof_cause(),
        lambda mistake: raised(RuntimeError("elsewhere"), mistake),
        lambda mistake: WorkerGroupError("failed", {1: mistake}),
        lambda mistake: WorkerGroupError("failed", {0: RuntimeError("lost"), 1: task_error(mistake)}),
        ControllerError,
        lambda mistake: ControllerError(raised(RuntimeError("data"), task_error(mistake))),
    ],
)
def test_the_error_is_found_through_rays_wrappers(wrap, mistake):
    assert user_error(wrap(mistake)) is mistake


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        task_error(KeyError("a bug")),
        task_error(KeyError("a bug")).as_instanceof_cause(),
        WorkerGroupError("failed", {0: RuntimeError("a bug")}),
        ControllerError(OSError("disk")),
    ],
)
def test_what_is_not_a_users_error_is_none(error):
    assert user_error(error) is None


def test_of_an_error_and_its_cause_the_one_with_the_remedy_is_told(tmp_path):
    with pytest.raises(ValueError) as error:
        read_dataset_info(str(tmp_path), "pacs")
    assert isinstance(error.value.__cause__, ValueError)
    assert "ingest the data set again" in str(user_error(error.value))


def test_a_chain_that_ends_in_itself_is_no_trouble():
    error = RuntimeError("a")
    error.__cause__ = raised(RuntimeError("b"), error)
    assert user_error(error) is None
