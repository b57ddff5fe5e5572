"""The most probable of several answers, exactly, from few looks at the model."""

import heapq
from collections.abc import Mapping, Sequence


class OptionSearch:
    """Finds the token sequence with the largest p(y) among several, best first.

    A prefix is at least as probable as any answer that begins with it. So the most probable prefix is
    extended until the most probable one is a whole answer: no other can be better. Where the model is sure,
    that takes one look at it for each token of the answer. To walk greedily from token to token instead
    misses a best answer whose first token is not the best.

    Of answers with equal probability the first is found.

    Args:
        options: token ids of each answer, its end of turn included, so that none is a prefix of another.
    """

    def __init__(self, options: Sequence[Sequence[int]]):
        self._options = {tuple(ids): number for number, ids in reversed(list(enumerate(options)))}
        for ids in self._options:
            beginnings = (ids[:end] for end in range(len(ids)))
            assert ids and not any(beginning in self._options for beginning in beginnings)
        # By minus the log-probability of a prefix, then by the first option that begins with it.
        self._heap: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]

    @property
    def found(self) -> tuple[int, float] | None:
        """The number of the answer and log p(y) in nats, once it is known."""
        cost, number, prefix = self._heap[0]
        return (number, -cost) if prefix in self._options else None

    def wanted(self) -> tuple[list[int], list[int]]:
        """A prefix, and the tokens after it whose log-probabilities ``add`` needs next."""
        _, _, prefix = self._heap[0]
        return list(prefix), list(self._following(prefix))

    def add(self, logprobs: Mapping[int, float]) -> None:
        """Take the log-probabilities, in nats, of all ``wanted`` tokens after the wanted prefix."""
        cost, _, prefix = heapq.heappop(self._heap)
        for token, number in self._following(prefix).items():
            heapq.heappush(self._heap, (cost - logprobs[token], number, (*prefix, token)))

    def _following(self, prefix: tuple[int, ...]) -> dict[int, int]:
        """The tokens that may follow a prefix, each with the first option that has it there."""
        found: dict[int, int] = {}
        for ids, number in self._options.items():
            if len(ids) > len(prefix) and ids[: len(prefix)] == prefix:
                found[ids[len(prefix)]] = min(number, found.get(ids[len(prefix)], number))
        return found
