"""Rate limits: what the headers say, and who has to wait."""

import math
import time
from collections import deque
from dataclasses import dataclass, field

from cj_pipeline_tests.providers.anthropic_api import timestamp

Limits = tuple[int | None, int | None]
"""Requests per minute, tokens per minute."""


@dataclass
class Window:
    """The calls of one provider in the last minute, however long a minute is here."""

    calls: deque[tuple[float, int]] = field(default_factory=deque)
    tokens: int = 0

    def forget(self, before: float) -> None:
        """Drop the calls that have left the window."""
        while self.calls and self.calls[0][0] <= before:
            self.tokens -= self.calls.popleft()[1]

    def wait(self, limits: Limits, tokens: int, minute: float) -> float:
        """Admit a call of so many tokens (0.0), or say after how many seconds it would be admitted."""
        now = time.monotonic()
        self.forget(now - minute)
        requests_limit, tokens_limit = limits
        too_many = requests_limit is not None and len(self.calls) >= requests_limit
        too_large = tokens_limit is not None and self.tokens + tokens > tokens_limit
        if not too_many and not too_large:
            self.calls.append((now, tokens))
            self.tokens += tokens
            return 0.0
        leaving, left = self.tokens, len(self.calls)
        for moment, spent in self.calls:
            leaving, left = leaving - spent, left - 1
            fits = tokens_limit is None or leaving + tokens <= tokens_limit
            if fits and (requests_limit is None or left < requests_limit):
                return max(0.001, moment + minute - now)
        return minute

    def headers(self, provider: str, limits: Limits, minute: float) -> dict[str, str]:
        """The provider's rate limit headers; where there is no limit, plenty remains."""
        self.forget(time.monotonic() - minute)
        requests_limit, tokens_limit = limits
        requests = (1000, 999) if requests_limit is None else (requests_limit, requests_limit - len(self.calls))
        tokens = (10_000_000, 9_990_000) if tokens_limit is None else (tokens_limit, tokens_limit - self.tokens)
        until = max(0.0, self.calls[0][0] + minute - time.monotonic()) if self.calls else 0.0
        if provider == "anthropic":
            reset = timestamp(math.ceil(time.time() + until))
            shown = {"requests": requests, "tokens": tokens, "input-tokens": tokens, "output-tokens": tokens}
            return {
                f"anthropic-ratelimit-{name}-{what}": value
                for name, (limit, left) in shown.items()
                for what, value in (("limit", str(limit)), ("remaining", str(max(0, left))), ("reset", reset))
            }
        reset = f"{until:.3f}s" if until >= 1 else f"{int(until * 1000)}ms"
        return {
            f"x-ratelimit-{what}-{name}": value
            for name, (limit, left) in {"requests": requests, "tokens": tokens}.items()
            for what, value in (("limit", str(limit)), ("remaining", str(max(0, left))), ("reset", reset))
        }


def retry_after(seconds: float, minute: float) -> str:
    """The header's value: whole seconds, as the real ones are, unless the minute is not a real one."""
    return str(math.ceil(seconds)) if minute >= 60 else f"{seconds:.3f}"
