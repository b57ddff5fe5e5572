"""What a task returns and raises, through real Ray."""

import logging

import pyarrow as pa
import pytest

from rdmldg_ray.runtime.errors import user_error
from rdmldg_ray.runtime.remote import in_task, in_tasks

pytestmark = pytest.mark.slow


def test_a_table_comes_from_the_object_store_and_a_mistake_comes_as_it_was(ray_cluster):
    before = pa.total_allocated_bytes()
    # The task is in a process of its own, and so is the memory that it takes.
    table, rows = in_task(lambda rows: (pa.table({"id": pa.array(range(rows))}), rows), 1_000_000)
    assert len(table) == rows == 1_000_000
    assert table["id"][999_999].as_py() == 999_999
    assert pa.total_allocated_bytes() - before < table.nbytes / 100

    def fail():
        raise ValueError("rules/flat: row 3: mend the chain")

    with pytest.raises(ValueError, match="mend the chain") as error:
        in_task(fail)
    assert str(user_error(error.value)) == "rules/flat: row 3: mend the chain"


def test_what_tasks_warn_of_is_told_by_who_called_them(ray_cluster, caplog):
    def warn(number):
        logging.getLogger("rdmldg_ray.chains").warning("%d chains are left out", number)
        logging.getLogger("ray").warning("a core is missing")
        return number

    assert (in_task(warn, 3), in_tasks(warn, [(4,), (3,)], 0, 0)) == (3, [4, 3])
    assert caplog.messages == ["3 chains are left out", "4 chains are left out"]
