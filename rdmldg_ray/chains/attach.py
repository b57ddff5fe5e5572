"""Samples and chains meet: each sample gets the chain that it is trained on."""

import logging
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.chains.coverage import uneven_classes
from rdmldg_ray.chains.format import ChainFormatError, parse_chain

# What is read of chains to attach them.
CHAIN_COLUMNS = ["id", "candidate", "text", "accepted", "image_sha256"]
_CHECKED_AT_ONCE = 1024
_log = logging.getLogger(__name__)


def attach_chains(
    samples: pa.Table, chains: pa.Table, location: str, may_be_none: bool = False, warn: bool = True
) -> pa.Table:
    """Samples that have an accepted chain, with it as column ``chain``: the first candidate's of several.

    A chain that tells which image it was written for is left out, with a warning, where the sample has
    another image now. Where some classes are left with fewer images than others, a warning counts them.

    Args:
        samples: an index, with ``id``, ``label`` and ``sha256``.
        chains: rows with ``CHAIN_COLUMNS``.
        location: where the chains lie, for the messages.
        may_be_none: whether it is right that no sample has an accepted chain.
        warn: whether to warn; not of chains that were looked at before.

    Raises:
        ValueError: when no sample has an accepted chain and some must, or a chain to train on is not of the
            five sections.
    """
    # In Arrow, and each text copied once: a large data set's chains are the most that a driver holds.
    numbers = pa.array(np.arange(len(chains)))
    accepted = chains.select(["id", "candidate", "image_sha256"]).append_column("row", numbers)
    accepted = accepted.filter(chains["accepted"])
    images = samples["sha256"].take(pc.index_in(accepted["id"], value_set=samples["id"].combine_chunks()))
    other = pc.fill_null(pc.not_equal(accepted["image_sha256"], images), False)
    if outdated := pc.sum(other).as_py():
        if warn:
            _warn(
                f"{location}: {outdated} chains are not used, since they were written for other images than "
                "the data set has now; write or import chains for these"
            )
        accepted = accepted.filter(pc.invert(other))
    accepted = accepted.sort_by("candidate")
    rows = accepted["row"].take(pc.index_in(samples["id"], value_set=accepted["id"].combine_chunks()))
    # As large strings, since the texts of a large data set are longer together than 2 GiB.
    texts = chains["text"].cast(pa.large_string()).take(rows.drop_null())
    joined = samples.filter(rows.is_valid()).append_column("chain", texts)
    if not len(joined) and not may_be_none:
        raise ValueError(
            f"{location}: no sample of the source domains has an accepted chain to train on; for chains of "
            "the model's own, see sarr.filter, sarr.max_attempts and sarr.without_chain"
        )
    for batch in joined.select(["id", "chain"]).to_batches(max_chunksize=_CHECKED_AT_ONCE):
        for sample_id, text in zip(batch["id"].to_pylist(), batch["chain"].to_pylist(), strict=True):
            try:
                parse_chain(text)
            except ChainFormatError as error:
                raise ValueError(
                    f"{location}: row {sample_id}: {error}; mend the chain, or set its 'accepted' to false"
                ) from error
    # Of a part of the chains, as where there may be none, this tells nothing.
    if warn and not may_be_none and "label" in samples.column_names:
        labels, has_chain = samples["label"].to_pylist(), rows.is_valid().to_pylist()
        if uneven := uneven_classes(zip(labels, has_chain, strict=True)):
            _warn(f"{location}: {uneven}")
    return joined


# Each fold and stage attaches the same chains.
@lru_cache(maxsize=128)
def _warn(message: str) -> None:
    _log.warning(message)
