"""What the server remembers of the calls it got."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from cj_pipeline_tests.providers.dialects import Body
from cj_pipeline_tests.providers.essays import PairKey


@dataclass
class Call:
    """One request, or one item of a batch job (then with its custom_id)."""

    time: float
    """time.monotonic() at arrival; for an item of a job, when the job ended."""

    provider: str
    path: str
    """Without what the base URL holds: /v1/messages, /v1/responses …"""

    model: str | None
    body: Body
    headers: dict[str, str]
    """Names in lower case; without the key."""

    in_flight: int
    """Calls to a model under way at arrival, this one included if it is one."""

    custom_id: str | None = None
    method: str = "POST"
    status: int | None = None
    """None while under way, and for ever when no answer was sent."""

    fault: str | None = None


@dataclass
class Records:
    """Thread-safe: written by the server's thread, read by tests."""

    keep_bodies: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: list[Call] = field(default_factory=list)
    billed: Counter[PairKey] = field(default_factory=Counter)
    spoiled: Counter[PairKey] = field(default_factory=Counter)
    in_flight: int = 0
    max_in_flight: int = 0

    def arrive(self, provider: str, path: str, body: Body, headers: dict[str, str], method: str) -> Call:
        """Note a request."""
        kept = {name: value for name, value in headers.items() if name not in ("x-api-key", "authorization")}
        model = body.get("model")
        call = Call(
            time.monotonic(),
            provider,
            path,
            model if isinstance(model, str) else None,
            body if self.keep_bodies else {},
            kept,
            self.in_flight,
            method=method,
        )
        with self.lock:
            self.calls.append(call)
        return call

    def begin(self, call: Call) -> None:
        """A call to a model is under way."""
        with self.lock:
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            call.in_flight = self.in_flight

    def end(self) -> None:
        """It no longer is."""
        with self.lock:
            self.in_flight -= 1

    def bill(self, pair: PairKey, usable: bool) -> None:
        """An answer was produced, of use or not."""
        with self.lock:
            (self.billed if usable else self.spoiled)[pair] += 1

    def reset(self) -> None:
        """Forget the past."""
        with self.lock:
            self.calls, self.billed, self.spoiled = [], Counter(), Counter()
            self.max_in_flight = self.in_flight
