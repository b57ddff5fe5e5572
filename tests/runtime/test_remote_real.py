"""What a task returns and raises, through real Ray."""

import pyarrow as pa
import pytest

from rdmldg_ray.runtime.errors import user_error
from rdmldg_ray.runtime.remote import in_task

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
