"""Samples and chains meet: each sample gets the chain that it is trained on."""

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.chains.format import ChainFormatError, parse_chain


def attach_chains(samples: pa.Table, chains: pa.Table, location: str, may_be_none: bool = False) -> pa.Table:
    """Samples that have a kept chain, with a column ``chain``: the first candidate's of several.

    Args:
        samples: an index, with ``id``.
        chains: rows with ``id``, ``candidate``, ``text`` and ``kept``.
        location: where the chains lie, for the messages.
        may_be_none: whether it is right that no sample has a kept chain.

    Raises:
        ValueError: when no sample has a kept chain and some must, or a chain to train on is not of the
            five stages.
    """
    first: dict[str, str] = {}
    for row in chains.filter(pc.field("kept")).sort_by("candidate").select(["id", "text"]).to_pylist():
        first.setdefault(row["id"], row["text"])
    texts = [first.get(sample_id) for sample_id in samples["id"].to_pylist()]
    joined = samples.append_column("chain", pa.array(texts, pa.string())).filter(pc.field("chain").is_valid())
    if not len(joined) and not may_be_none:
        raise ValueError(f"{location}: no sample of the source domains has a kept chain to train on")
    for sample_id, text in zip(joined["id"].to_pylist(), joined["chain"].to_pylist(), strict=True):
        try:
            parse_chain(text)
        except ChainFormatError as error:
            raise ValueError(
                f"{location}: row {sample_id}: {error}; mend the chain, or set its 'kept' to false"
            ) from error
    return joined
