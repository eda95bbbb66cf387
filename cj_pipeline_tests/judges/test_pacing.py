"""The pacer, by a clock that only sleeping moves."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from cj_pipeline.judges.pacing import EXPECTED_OUTPUT_TOKENS, LONGEST_WAIT_SECONDS, Pacer

NOON = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


class Watch:
    """A clock, a wall clock that goes with it, and a sleep that moves both."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return NOON + timedelta(seconds=self.now - 1000.0)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def paced(requests: int | None = None, tokens: int | None = None) -> tuple[Pacer, Watch]:
    watch = Watch()
    return Pacer(requests, tokens, watch, watch.sleep, wall_clock=watch.wall), watch


def moments(pacer: Pacer, watch: Watch, calls: int, tokens: int = 1) -> list[float]:
    """When each of so many calls, one after the other, is admitted: seconds since the clock's start."""

    async def run() -> list[float]:
        admitted = []
        for _ in range(calls):
            await pacer.wait(tokens)
            admitted.append(round(watch.now - 1000.0, 6))
        return admitted

    return asyncio.run(run())


def waited(pacer: Pacer, watch: Watch, tokens: int = 1) -> float:
    before = watch.now
    asyncio.run(pacer.wait(tokens))
    return round(watch.now - before, 6)


def anthropic_headers(kind: str, limit: int, remaining: int, reset: datetime) -> dict[str, str]:
    start = f"anthropic-ratelimit-{kind}"
    stamp = reset.isoformat().replace("+00:00", "Z")
    return {f"{start}-limit": str(limit), f"{start}-remaining": str(remaining), f"{start}-reset": stamp}


def openai_headers(kind: str, limit: int, remaining: int, reset: str) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(remaining),
        f"x-ratelimit-reset-{kind}": reset,
    }


# --- our own limits


def test_requests_are_spread_evenly_after_a_burst_of_one_second():
    pacer, watch = paced(requests=120)  # two a second

    assert moments(pacer, watch, 6) == [0, 0, 0.5, 1.0, 1.5, 2.0]


def test_less_than_one_request_a_second_still_lets_the_first_pass():
    pacer, watch = paced(requests=6)  # one every ten seconds

    assert moments(pacer, watch, 3) == [0, 10.0, 20.0]


def test_tokens_are_spread_evenly():
    pacer, watch = paced(tokens=60_000)  # a thousand a second

    assert moments(pacer, watch, 5, tokens=500) == [0, 0, 0.5, 1.0, 1.5]


def test_one_call_larger_than_a_second_s_tokens_passes_and_the_next_ones_pay_for_it():
    pacer, watch = paced(tokens=60_000)

    assert moments(pacer, watch, 3, tokens=3000) == [0, 3.0, 6.0]


def test_the_slower_of_both_limits_decides():
    pacer, watch = paced(requests=60, tokens=60_000)

    assert moments(pacer, watch, 3, tokens=2000) == [0, 2.0, 4.0]


def test_over_a_minute_no_more_pass_than_the_limit_and_a_burst():
    pacer, watch = paced(requests=600)

    admitted = moments(pacer, watch, 700)

    assert sum(at <= 60 for at in admitted) == 600 + 10


@pytest.mark.parametrize("limits", [(0, None), (None, 0), (-5, None)])
def test_a_limit_of_nothing_is_refused(limits: tuple[int | None, int | None]):
    with pytest.raises(ValueError, match="must be positive"):
        Pacer(*limits)


def test_without_limits_nobody_waits_and_thousands_a_second_pass():
    pacer = Pacer(None, None)

    async def run() -> None:
        for _ in range(20_000):
            await pacer.wait(1500)
            pacer.answered()

    started = time.perf_counter()
    asyncio.run(run())

    assert time.perf_counter() - started < 2.0  # measured: about 0.1


def test_learnt_limits_that_leave_room_cost_nothing_to_speak_of():
    pacer = Pacer(None, None)
    pacer.learn(openai_headers("requests", 10**6, 10**6, "1ms"))
    pacer.learn(openai_headers("tokens", 10**9, 10**9, "6m0s"))

    async def run() -> None:
        for call in range(10_000):
            await pacer.wait(1500)
            if call > 500:  # so many are always under way
                pacer.answered()

    started = time.perf_counter()
    asyncio.run(run())

    assert time.perf_counter() - started < 2.0


# --- turns


def test_callers_pass_in_the_order_they_came():
    pacer, _ = paced(requests=60)
    passed: list[int] = []

    async def call(number: int) -> None:
        await pacer.wait(1)
        passed.append(number)

    async def run() -> None:
        await asyncio.gather(*(call(number) for number in range(20)))

    asyncio.run(run())

    assert passed == list(range(20))


def test_a_caller_that_is_cancelled_while_waiting_takes_nothing_and_blocks_nobody():
    pacer, watch = paced(requests=60)

    async def run() -> float:
        await pacer.wait(1)
        waiting = asyncio.create_task(pacer.wait(1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await pacer.wait(1)
        return watch.now - 1000.0

    assert asyncio.run(run()) == pytest.approx(1.0)


# --- pauses


def test_nobody_passes_while_the_provider_asked_for_a_pause():
    pacer, watch = paced()
    pacer.hold(7.0)

    assert moments(pacer, watch, 2) == [7.0, 7.0]


def test_a_shorter_pause_does_not_end_a_longer_one():
    pacer, watch = paced()
    pacer.hold(7.0)
    pacer.hold(1.0)

    assert waited(pacer, watch) == 7.0


def test_no_pause_is_longer_than_two_minutes():
    pacer, watch = paced()
    pacer.hold(86_400.0)

    assert waited(pacer, watch) == LONGEST_WAIT_SECONDS == 120.0


# --- what providers tell

Headers = Callable[[str, int, int, float], Mapping[str, str]]

TELLERS = {
    "anthropic": lambda kind, limit, remaining, seconds: anthropic_headers(
        kind, limit, remaining, NOON + timedelta(seconds=seconds)
    ),
    "openai": lambda kind, limit, remaining, seconds: openai_headers(kind, limit, remaining, f"{seconds:g}s"),
}


@pytest.mark.parametrize("tell", TELLERS.values(), ids=TELLERS)
def test_when_nothing_remains_callers_wait_for_the_reset(tell: Headers):
    pacer, watch = paced()
    pacer.learn(tell("requests", 50, 0, 13))

    assert waited(pacer, watch) == 13.0


@pytest.mark.parametrize("tell", TELLERS.values(), ids=TELLERS)
def test_what_remains_is_used_up_before_anybody_waits(tell: Headers):
    pacer, watch = paced()
    pacer.learn(tell("requests", 50, 3, 20))

    assert moments(pacer, watch, 5) == [0, 0, 0, 20.0, 20.0]


def test_what_calls_under_way_need_is_kept_free():
    pacer, watch = paced()
    assert moments(pacer, watch, 4) == [0] * 4
    pacer.answered()  # three are still under way when the first answer tells what remained
    pacer.learn(openai_headers("requests", 50, 4, "30s"))

    assert moments(pacer, watch, 2) == [0, 30.0]


def test_of_answers_that_overtook_each_other_the_one_that_leaves_least_is_believed():
    pacer, watch = paced()
    assert moments(pacer, watch, 2) == [0, 0]
    sent_at = pacer.now()
    watch.now += 1.0
    for remaining in (0, 1):  # the second call was counted last, and its answer came first
        pacer.learn(openai_headers("requests", 50, remaining, "30s"), sent_at=sent_at)
        pacer.answered()

    assert waited(pacer, watch) == 30.0


def test_an_answer_to_a_later_call_replaces_what_was_told_before_it():
    pacer, watch = paced()
    for remaining in (1, 5):  # the bucket fills again meanwhile
        assert waited(pacer, watch) == 0
        sent_at = pacer.now()
        watch.now += 1.0
        pacer.learn(openai_headers("requests", 50, remaining, "30s"), sent_at=sent_at)
        pacer.answered()
        watch.now += 1.0

    assert moments(pacer, watch, 5) == [4.0] * 5


def test_tokens_that_remain_are_counted_by_what_calls_are_expected_to_take():
    pacer, watch = paced()
    pacer.learn(openai_headers("tokens", 10_000, 2_500, "9s"))

    assert moments(pacer, watch, 3, tokens=1_000) == [0, 0, 9.0]


def test_input_and_output_tokens_are_counted_apart():
    pacer, watch = paced()
    pacer.learn(anthropic_headers("output-tokens", 8_000, 2 * EXPECTED_OUTPUT_TOKENS, NOON + timedelta(seconds=9)))
    pacer.learn(anthropic_headers("input-tokens", 80_000, 79_000, NOON + timedelta(seconds=30)))

    assert moments(pacer, watch, 3, tokens=3_000) == [0, 0, 9.0]


def test_better_news_ends_a_wait_early():
    pacer, watch = paced()
    pacer.learn(openai_headers("requests", 50, 0, "1m0s"))

    async def run() -> float:
        waiting = asyncio.create_task(pacer.wait(1))
        for _ in range(10):
            await asyncio.sleep(0)
        pacer.learn(openai_headers("requests", 50, 49, "1s"))
        await waiting
        return watch.now - 1000.0

    assert asyncio.run(run()) < 10


def test_after_a_reset_the_whole_limit_is_there_but_no_more():
    pacer, watch = paced()
    pacer.learn(openai_headers("requests", 2, 0, "5s"))

    assert moments(pacer, watch, 3) == [5.0, 5.0, 65.0]


def test_calls_that_never_answered_do_not_count_for_ever():
    pacer, watch = paced()
    moments(pacer, watch, 2)
    watch.now += 1000.0
    pacer.learn(openai_headers("requests", 2, 1, "1m"))

    assert waited(pacer, watch) == 0


def test_a_call_larger_than_the_whole_limit_is_left_to_the_provider():
    pacer, watch = paced()
    pacer.learn(openai_headers("tokens", 1_000, 999, "1m"))

    assert waited(pacer, watch, tokens=1_200) == 0


def test_no_header_holds_calls_back_longer_than_two_minutes():
    pacer, watch = paced()
    pacer.learn(openai_headers("requests", 10_000, 0, "23h59m0s"))

    assert waited(pacer, watch) == 120.0


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("1s", 1), ("120ms", 0.12), ("6m0s", 120), ("1m30.5s", 90.5), ("0s", 0), ("1h", 120), ("1d2h", 120)],
)
def test_openai_s_durations_are_read(told: str, seconds: float):
    pacer, watch = paced()
    pacer.learn(openai_headers("requests", 10, 0, told))

    assert waited(pacer, watch) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        openai_headers("requests", 10, 0, "soon"),
        openai_headers("requests", 10, 0, ""),
        openai_headers("requests", 10, 0, "-5s"),
        openai_headers("requests", 10, 0, "12"),
        openai_headers("requests", 10, 0, "5s") | {"x-ratelimit-remaining-requests": "none"},
        openai_headers("requests", 10, 0, "5s") | {"x-ratelimit-remaining-requests": "-1"},
        openai_headers("requests", 10, 0, "9" * 400 + "s"),
        {"x-ratelimit-reset-requests": "5s"},
        {"x-ratelimit-remaining-requests": "0"},
        anthropic_headers("requests", 10, 0, NOON) | {"anthropic-ratelimit-requests-reset": "tomorrow"},
        anthropic_headers("requests", 10, 0, NOON) | {"anthropic-ratelimit-requests-reset": "2026-11-21T12:00:30"},
        anthropic_headers("requests", 10, 0, NOON + timedelta(seconds=30))
        | {"anthropic-ratelimit-requests-remaining": "few"},
    ],
)
def test_headers_that_cannot_be_read_are_ignored(headers: dict[str, str]):
    pacer, watch = paced()
    pacer.learn(headers)

    assert waited(pacer, watch) == 0


def test_a_reset_in_the_past_holds_nobody_back():
    pacer, watch = paced()
    pacer.learn(anthropic_headers("requests", 10, 0, NOON - timedelta(seconds=30)))

    assert waited(pacer, watch) == 0


def test_a_limit_that_is_not_told_is_forgotten_at_its_reset():
    pacer, watch = paced()
    headers = openai_headers("requests", 10, 0, "5s")
    del headers["x-ratelimit-limit-requests"]
    pacer.learn(headers)

    assert moments(pacer, watch, 3) == [5.0, 5.0, 5.0]


def test_pacing_waits_by_the_real_clock_too():
    pacer = Pacer(600, None)  # ten at once, then one every 0.1 s

    async def run() -> float:
        started = time.monotonic()
        for _ in range(13):
            await pacer.wait(1)
        return time.monotonic() - started

    assert 0.25 <= asyncio.run(run()) < 1.5


def test_a_sleep_of_one_s_own_is_awaited():
    slept: list[float] = []
    watch = Watch()

    def sleep(seconds: float) -> Awaitable[None]:
        slept.append(seconds)
        return watch.sleep(seconds)

    pacer = Pacer(None, None, watch, sleep)
    pacer.hold(0.6)
    asyncio.run(pacer.wait(1))

    assert sum(slept) == pytest.approx(0.6)
    assert max(slept) <= 0.25  # so that better news is soon seen
