"""When the next call to a provider may be sent: configured limits, limits that the provider tells, and pauses.

Here: one `Pacer` per judge, which lets one caller at a time pass, in the order they came, and reads the rate limit
headers of answers. Not here: how many calls may be under way together (the workflow's concurrency), whether a failed
call is tried again, and HTTP.

A provider's headers say what remained when it counted a call; calls under way may not be in that number yet. What they
need is therefore kept free: too slow for a moment is cheap, a refused call is a wasted attempt. For the same reason, of
answers to calls that overlapped, any of which may have been counted last, the one that leaves least is believed.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

EXPECTED_OUTPUT_TOKENS: Final = 200
"""What an answer is taken to be long: a winner, a confidence and at most 50 words, with room for a little thought."""

LONGEST_WAIT_SECONDS: Final = 120.0
"""No pause and no learnt limit holds calls back longer than this: a wrong header must not stop a batch for hours."""

# While waiting for a limit to be reset, how often to look whether an answer has brought better news.
_LOOK_AGAIN_SECONDS: Final = 0.25

# The window of the providers' limits. A limit that was reset, and of which no answer has told since, lasts so long; and
# a call admitted so long ago counts no more, whether it is still under way, was never sent, or lost its sender.
_WINDOW_SECONDS: Final = 60.0

# Room for rounding: a bucket that was waited for to the second is full enough.
_ROUNDING: Final = 1e-9

_MINUTE: Final = 60.0
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|[smhd])")
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_COUNT: Final = re.compile(r"\d{1,15}")

Sleep = Callable[[float], Awaitable[object]]
Clock = Callable[[], float]


_KINDS: Final = ("requests", "tokens", "input-tokens", "output-tokens")

_Need = Mapping[str, int]  # what one call takes of each kind of limit


class _Bucket:
    """A smooth rate: `burst` at once, then `rate` per second. One demand above the burst passes, and is paid off."""

    def __init__(self, per_minute: int, now: float) -> None:
        self._rate = per_minute / _MINUTE
        self._burst = max(1.0, self._rate)
        self._level = self._burst
        self._at = now

    def delay(self, demand: float, now: float) -> float:
        """Seconds until a demand may be met."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        missing = min(demand, self._burst) - self._level
        return missing / self._rate if missing > _ROUNDING else 0.0

    def take(self, demand: float) -> None:
        self._level -= demand


@dataclass(frozen=True)
class _Allowance:
    """What a provider said of one kind of limit: so much remains until `resets_at` (by the pacer's clock)."""

    limit: int | None
    remaining: int
    resets_at: float


class Pacer:
    """Gives one caller at a time, in order of arrival, the right to send.

    Args:
        requests_per_minute: the most calls per minute; None for no limit of ours.
        tokens_per_minute: the most tokens per minute, input and output; None for no limit of ours.
        clock: seconds, monotonic.
        sleep: waits so many seconds of that clock.
        wall_clock: the time that resets given as dates are compared with, aware.

    Raises:
        ValueError: if a limit is not positive.
    """

    def __init__(
        self,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        *,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        for limit in (requests_per_minute, tokens_per_minute):
            if limit is not None and limit <= 0:
                raise ValueError("a limit per minute must be positive, or None for no limit")
        self._clock = clock
        self._sleep = sleep
        self._wall_clock = wall_clock
        now = clock()
        self._requests = None if requests_per_minute is None else _Bucket(requests_per_minute, now)
        self._tokens = None if tokens_per_minute is None else _Bucket(tokens_per_minute, now)
        self._allowances: dict[str, _Allowance] = {}
        self._told: dict[str, list[tuple[float, _Allowance]]] = {kind: [] for kind in _KINDS}  # with when, oldest first
        self._under_way: deque[tuple[float, _Need]] = deque()
        self._reserved = dict.fromkeys(_KINDS, 0)  # the sum of the needs under way
        self._held_until = now
        self._turn = asyncio.Lock()  # wakes its waiters in the order they came

    async def wait(self, tokens: int, *, output_tokens: int = EXPECTED_OUTPUT_TOKENS) -> None:
        """Return when one more call may be sent. Cancellation propagates and takes nothing from any limit.

        Args:
            tokens: what the call is expected to take, input and output.
            output_tokens: how many of them are output.
        """
        need = _need(tokens, output_tokens)
        async with self._turn:
            while (delay := self._delay(need)) > 0:
                await self._sleep(min(delay, _LOOK_AGAIN_SECONDS))
            self._admit(need)

    def admit_at_once(self, tokens: int, *, output_tokens: int = EXPECTED_OUTPUT_TOKENS) -> bool:
        """Let a call pass if nobody waits and nothing stands against it; whether it may be sent. See `wait`."""
        need = _need(tokens, output_tokens)
        if self._turn.locked() or self._delay(need) > 0:
            return False
        self._admit(need)
        return True

    def answered(self) -> None:
        """One admitted call is under way no more, however it ended. Calls end out of order: the oldest is taken off."""
        if self._under_way:
            self._take_off_oldest()

    def hold(self, seconds: float) -> None:
        """Let nobody pass for so many seconds, at most 120; a longer pause under way stays."""
        pause = min(max(0.0, seconds), LONGEST_WAIT_SECONDS)
        self._held_until = max(self._held_until, self._clock() + pause)

    def now(self) -> float:
        """The time by this pacer's clock, for `learn`."""
        return self._clock()

    def learn(self, headers: Mapping[str, str], *, sent_at: float | None = None) -> None:
        """Take over what an answer's headers say of the provider's limits; what cannot be read is ignored.

        Args:
            headers: names in lower case, or a mapping that does not tell cases apart.
            sent_at: when its call was sent, by `now`; None: not before the oldest call that is under way.
        """
        now = self._clock()
        if sent_at is None:
            sent_at = self._under_way[0][0] if self._under_way else now
        for kind in _KINDS:
            allowance = self._read_anthropic(headers, kind, now) or self._read_openai(headers, kind, now)
            if allowance is not None:
                self._believe(kind, allowance, sent_at, now)

    def _believe(self, kind: str, allowance: _Allowance, sent_at: float, now: float) -> None:
        """Answers there before this call was sent are out of date; of the others the one that leaves least counts."""
        told = [(at, earlier) for at, earlier in self._told[kind] if at > sent_at and earlier.resets_at > now]
        self._told[kind] = [*told, (now, allowance)]
        # of equals the latest, whose reset is the newest
        self._allowances[kind] = min((one for _, one in reversed(self._told[kind])), key=lambda one: one.remaining)

    def _delay(self, need: _Need) -> float:
        now = self._clock()
        while self._under_way and self._under_way[0][0] <= now - _WINDOW_SECONDS:
            self._take_off_oldest()
        delay = max(0.0, self._held_until - now)
        if self._requests is not None:
            delay = max(delay, self._requests.delay(1, now))
        if self._tokens is not None:
            delay = max(delay, self._tokens.delay(need["tokens"], now))
        if self._allowances:
            delay = max(delay, *(self._delay_by(kind, need, now) for kind in list(self._allowances)))
        return delay

    def _delay_by(self, kind: str, need: _Need, now: float) -> float:
        allowance = self._allowances[kind]
        if now >= allowance.resets_at:
            self._told[kind].clear()
            if allowance.limit is None:
                del self._allowances[kind]
                return 0.0
            allowance = _Allowance(allowance.limit, allowance.limit, now + _WINDOW_SECONDS)
            self._allowances[kind] = allowance
        if allowance.limit is not None and need[kind] > allowance.limit:
            return 0.0  # no waiting makes it fit: the provider says what it thinks of it
        enough = allowance.remaining >= self._reserved[kind] + need[kind]
        return 0.0 if enough else allowance.resets_at - now

    def _admit(self, need: _Need) -> None:
        if self._requests is not None:
            self._requests.take(1)
        if self._tokens is not None:
            self._tokens.take(need["tokens"])
        self._under_way.append((self._clock(), need))
        for kind in _KINDS:
            self._reserved[kind] += need[kind]

    def _take_off_oldest(self) -> None:
        _, need = self._under_way.popleft()
        for kind in _KINDS:
            self._reserved[kind] -= need[kind]

    def _read_anthropic(self, headers: Mapping[str, str], kind: str, now: float) -> _Allowance | None:
        reset = headers.get(f"anthropic-ratelimit-{kind}-reset")
        if reset is None:
            return None
        try:
            at = datetime.fromisoformat(reset)
        except ValueError:
            return None
        if at.tzinfo is None:
            return None
        seconds = (at - self._wall_clock()).total_seconds()
        start = f"anthropic-ratelimit-{kind}"
        return _allowance(headers.get(f"{start}-limit"), headers.get(f"{start}-remaining"), seconds, now)

    def _read_openai(self, headers: Mapping[str, str], kind: str, now: float) -> _Allowance | None:
        reset = headers.get(f"x-ratelimit-reset-{kind}")
        if reset is None or not _DURATION.fullmatch(reset):
            return None
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(reset))
        limit, remaining = headers.get(f"x-ratelimit-limit-{kind}"), headers.get(f"x-ratelimit-remaining-{kind}")
        return _allowance(limit, remaining, seconds, now)


def _need(tokens: int, output_tokens: int) -> _Need:
    output = min(tokens, output_tokens)
    return {"requests": 1, "tokens": tokens, "input-tokens": tokens - output, "output-tokens": output}


def _allowance(limit: str | None, remaining: str | None, reset_seconds: float, now: float) -> _Allowance | None:
    left = _count(remaining)
    if left is None:
        return None
    return _Allowance(_count(limit), left, now + min(max(0.0, reset_seconds), LONGEST_WAIT_SECONDS))


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and _COUNT.fullmatch(text) else None
