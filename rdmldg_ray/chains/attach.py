"""Samples and chains meet: each sample gets the chain that it is trained on."""

import pyarrow as pa
import pyarrow.compute as pc

from rdmldg_ray.chains.format import ChainFormatError, parse_chain


def attach_chains(samples: pa.Table, chains: pa.Table, location: str) -> pa.Table:
    """Samples that have a kept chain, with a column ``chain``: the likeliest of several.

    Args:
        samples: an index, with ``id``.
        chains: rows with ``id``, ``candidate``, ``text`` and ``kept``; where there are ``logprob`` and
            ``num_tokens`` they choose among several, otherwise the first candidate is taken.
        location: where the chains lie, for the messages.

    Raises:
        ValueError: when no sample has a kept chain, or a chain to train on is not of the five stages.
    """
    best: dict[str, str] = {}
    for row in _best_first(chains.filter(pc.field("kept"))).select(["id", "text"]).to_pylist():
        best.setdefault(row["id"], row["text"])
    texts = [best.get(sample_id) for sample_id in samples["id"].to_pylist()]
    joined = samples.append_column("chain", pa.array(texts, pa.string())).filter(pc.field("chain").is_valid())
    if not len(joined):
        raise ValueError(f"{location}: no sample of the source domains has a kept chain to train on")
    for sample_id, text in zip(joined["id"].to_pylist(), joined["chain"].to_pylist(), strict=True):
        try:
            parse_chain(text)
        except ChainFormatError as error:
            raise ValueError(
                f"{location}: row {sample_id}: {error}; mend the chain, or set its 'kept' to false"
            ) from error
    return joined


def _best_first(chains: pa.Table) -> pa.Table:
    if "logprob" not in chains.column_names:
        return chains.sort_by("candidate")
    per_token = pc.divide(chains["logprob"], chains["num_tokens"])
    return chains.append_column("per_token", per_token).sort_by([("per_token", "descending")])
