"""Requests no faster than a server allows, by what its headers say.

OpenAI's servers, and many that speak like them, tell in each answer how many requests and tokens are left
(``x-ratelimit-remaining-...``), of how many (``x-ratelimit-limit-...``), and in what time all of them will
be there again (``x-ratelimit-reset-...``). A refusal (429) tells when to come back (``retry-after``).

Why not the client's own retries, or a limiter such as aiolimiter? Retries come after a refusal, of every
request that is under way; and a limiter must be told the rate, which only the server's headers tell.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# A wait of this many seconds is told, and no longer one is slept through without another look.
_LONG_S = 30.0
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class StoppedError(Exception):
    """There is nothing to wait for any more."""


def parse_duration(text: str) -> float | None:
    """Seconds of a duration such as ``6m0s``, ``120ms`` or ``1.5``; None for what is none."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass
class _Allowance:
    """What was left at a time, and how fast it comes back."""

    left: float
    limit: float
    per_second: float
    at: float

    def left_now(self, now: float) -> float:
        return min(self.limit, self.left + (now - self.at) * self.per_second)


class RateLimit:
    """Holds requests back; one for all that go to a server.

    ``admit`` and ``learn`` are hooks for the HTTP client: so retries that the client makes by itself are
    held back and learnt from too.

    Args:
        tokens_per_request: what a server counts for one, about.
        on_wait: called with the seconds that are to be waited, again and again while they are many.
    """

    def __init__(
        self,
        tokens_per_request: float,
        clock: Callable[[], float] = time.monotonic,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ):
        self._on_wait = on_wait
        self._needs = {"requests": 1.0, "tokens": tokens_per_request}
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}
        self._closed_until = 0.0
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Let those who wait go, with a StoppedError."""
        self._stopped.set()

    async def admit(self, request: Any) -> None:
        """Wait until a request may be sent."""
        while (delay := self.delay()) > 0:
            if delay >= _LONG_S:
                self._on_wait(delay)
            try:
                await asyncio.wait_for(self._stopped.wait(), min(delay, _LONG_S))
            except TimeoutError:
                continue
            raise StoppedError
        self.count()

    async def learn(self, response: Any) -> None:
        """Take in what an answer's headers say."""
        self.observe(response.status_code, response.headers)

    def delay(self) -> float:
        """Seconds until the next request may be sent."""
        now = self._clock()
        delays = [self._closed_until - now]
        for kind, allowance in self._allowances.items():
            missing = min(self._needs[kind], allowance.limit) - allowance.left_now(now)
            # A trace of a token is not worth another look at the clock.
            if missing > 1e-6 and allowance.per_second > 0:
                delays.append(missing / allowance.per_second)
        return max(0.0, *delays)

    def count(self) -> None:
        """Note that a request is sent; until the next answer the server's numbers do not hold it."""
        now = self._clock()
        for kind, allowance in self._allowances.items():
            allowance.left = allowance.left_now(now) - self._needs[kind]
            allowance.at = now

    def observe(self, status: int, headers: Mapping[str, str]) -> None:
        """Take in the headers of an answer."""
        now = self._clock()
        for kind in self._needs:
            left = parse_duration(headers.get(f"x-ratelimit-remaining-{kind}", ""))
            limit = parse_duration(headers.get(f"x-ratelimit-limit-{kind}", ""))
            reset = parse_duration(headers.get(f"x-ratelimit-reset-{kind}", ""))
            if left is not None and limit is not None and reset is not None:
                per_second = (limit - left) / reset if reset > 0 else 0.0
                self._allowances[kind] = _Allowance(left, limit, per_second, now)
        if status in (429, 503):
            after = parse_duration(headers.get("retry-after", ""))
            milliseconds = parse_duration(headers.get("retry-after-ms", ""))
            if milliseconds is not None:
                after = milliseconds / 1000
            if after is not None:
                self._closed_until = max(self._closed_until, now + after)
