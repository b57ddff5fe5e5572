import asyncio
import math

import pytest

from rdmldg_ray.teacher.rate_limit import RateLimit, StoppedError, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("1h2m3s", 3723), ("17.5s", 17.5), ("20", 20), ("0.5", 0.5)],
)
def test_durations_are_read_as_servers_write_them(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "1s ago", "-1"])
def test_what_is_no_duration_is_none(text):
    assert parse_duration(text) is None


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def headers(kind, left, limit, reset):
    return {
        f"x-ratelimit-remaining-{kind}": str(left),
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-reset-{kind}": reset,
    }


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limit(clock):
    return RateLimit(tokens_per_request=500, clock=clock)


def test_nothing_is_held_before_a_server_says_so(limit):
    for _ in range(100):
        assert limit.delay() == 0
        limit.count()
    limit.observe(200, {})
    assert limit.delay() == 0


def test_requests_go_on_until_none_is_left_and_then_as_fast_as_they_come_back(limit, clock):
    # 58 of 60 are missing and come back within 58 s: one a second.
    limit.observe(200, headers("requests", 2, 60, "58s"))
    for _ in range(2):
        assert limit.delay() == 0
        limit.count()
    assert limit.delay() == pytest.approx(1)
    clock.now += 1
    assert limit.delay() == 0
    limit.count()
    assert limit.delay() == pytest.approx(1)


def test_tokens_are_waited_for_too(limit):
    limit.observe(200, headers("tokens", 300, 30_000, "59.4s") | headers("requests", 50, 60, "10s"))
    assert limit.delay() == pytest.approx(200 / 500)


def test_a_request_larger_than_the_limit_waits_for_all_of_it_and_no_longer(limit, clock):
    limit.observe(200, headers("tokens", 0, 100, "10s"))
    assert limit.delay() == pytest.approx(10)
    clock.now += 10
    assert limit.delay() == 0


@pytest.mark.parametrize("after", [{"retry-after": "7"}, {"retry-after-ms": "7000", "retry-after": "8"}])
def test_a_refusal_holds_all_requests_as_long_as_it_says(limit, clock, after):
    limit.observe(429, after)
    assert limit.delay() == pytest.approx(7)
    limit.observe(429, {"retry-after": "1"})  # an older one, late
    assert limit.delay() == pytest.approx(7)
    clock.now += 7
    assert limit.delay() == 0


def test_those_who_wait_are_let_go_when_there_is_nothing_to_wait_for():
    async def wait():
        limit = RateLimit(500)
        limit.observe(429, {"retry-after": "3600"})
        waiting = asyncio.create_task(limit.admit(None))
        await asyncio.sleep(0)
        limit.stop()
        with pytest.raises(StoppedError):
            await waiting

    asyncio.run(wait())


def test_it_waits_as_long_as_it_must():
    async def wait():
        limit = RateLimit(500)
        limit.observe(429, {"retry-after-ms": "20"})
        await limit.admit(None)
        assert limit.delay() == 0

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"retry-after": "3600"}, 3600),
        ({"retry-after": "9" * 400}, math.inf),
        ({"retry-after-ms": "90000"}, 90),
    ],
)
def test_a_long_wait_is_told(headers, told):
    async def wait():
        seconds = []
        limit = RateLimit(500, clock=lambda: 0.0, on_wait=seconds.append)
        limit.observe(429, headers)
        waiting = asyncio.create_task(limit.admit(None))
        await asyncio.sleep(0)
        limit.stop()
        with pytest.raises(StoppedError):
            await waiting
        assert seconds == [told]

    asyncio.run(wait())


def test_a_short_wait_is_not_told():
    async def wait():
        limit = RateLimit(500, on_wait=lambda seconds: pytest.fail("told"))
        limit.observe(429, {"retry-after-ms": "20"})
        await limit.admit(None)

    asyncio.run(wait())
