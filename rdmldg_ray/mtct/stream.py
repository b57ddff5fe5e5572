"""Ray Data feeds training: one row of the stream is one worker's share of one optimizer step.

Why not ``ray.data.read_parquet`` and a shuffle? The plan fixes which worker takes which samples in which
step, so a stage resumes in the middle of an epoch with what it has not seen; Ray Data's iterators do not
resume. And its shuffle would move every image, where an index of rows is enough.
"""

from functools import partial

import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionOptions, ExecutionResources

from rdmldg_ray.datasets.schema import QUESTION_SCHEMA, question_columns
from rdmldg_ray.mtct.batching import BatchPlan, answer_lengths
from rdmldg_ray.storage import read_images

# Reading and joining is light work; a fraction of a core lets it run beside the workers.
READ_CPUS = 0.25
# What is read ahead of each worker, in the object store: many steps. Without a bound,
# Ray Data reads on until the store is nearly full.
_AHEAD_BYTES = 256 * 2**20
_PLANNED = ("step", "rank", "epoch", "positions")


def stream_options(num_workers: int) -> ExecutionOptions:
    """How Ray Data is to run a ``training_stream``: in its order, and not too far ahead."""
    ahead = ExecutionResources.for_limits(object_store_memory=num_workers * _AHEAD_BYTES)
    return ExecutionOptions(preserve_order=True, resource_limits=ahead)


def training_stream(
    shared: "ray.ObjectRef[pa.Table]", plan: BatchPlan, first_step: int = 0
) -> ray.data.Dataset:
    """Stream encoded images with labels and chains, in the plan's order.

    Every block has exactly one row, so that ``streaming_split`` with ``preserve_order`` deals them
    out in turn: row k goes to worker ``k mod num_workers``, which is the plan's rank.

    Args:
        shared: the training set, in the object store: an index (``datasets.index.sample_index``) with a
            column ``chain`` added; a null chain is a sample that is trained on its label alone.
        plan: which samples go where.
        first_step: of the plan; nothing is read for those before it.

    Returns:
        Rows with ``step``, ``rank``, ``epoch`` and the lists ``id``, ``image``, ``label``, ``chain``, and
        in a data set of questions those of ``QUESTION_SCHEMA``.
    """
    slices = list(plan.slices(answer_lengths(ray.get(shared)), first_step))
    # Rows of one table: with hundreds of workers there are so many that tables of their own would cost
    # the driver more than all else.
    rows = pa.table({name: [getattr(s, name) for s in slices] for name in _PLANNED})
    blocks = [rows.slice(number, 1) for number in range(len(rows))]
    # Unlike from_arrow, from_blocks starts no task for each block, for which a whole core must be free:
    # https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/data/read_api.py#L4986-L4990
    return ray.data.from_blocks(blocks).map_batches(
        partial(_fill_slice, shared=shared),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=READ_CPUS,
        # One task for each worker, which reads by several requests. More are no faster, but take cores from
        # decoding, and soon fill what may be read ahead, upon which Ray Data's loop spins.
        concurrency=plan.num_workers,
        zero_copy_batch=True,
    )


def _fill_slice(row: pa.Table, shared: "ray.ObjectRef[pa.Table]") -> pa.Table:
    samples = ray.get(shared).take(row["positions"][0].values)
    filled = row.drop_columns(["positions"])
    for name, values, kind in (
        ("id", samples["id"].to_pylist(), pa.string()),
        ("image", read_images(samples), pa.binary()),
        ("label", samples["label"].to_pylist(), pa.string()),
        ("chain", samples["chain"].to_pylist(), pa.string()),
        *(
            (name, samples[name].to_pylist(), QUESTION_SCHEMA.field(name).type)
            for name in question_columns(samples)
        ),
    ):
        # The types are given, for a slice may have no chain at all.
        filled = filled.append_column(name, pa.array([values], pa.list_(kind)))
    return filled
