"""What can go wrong in a call, and the plan that says in which call it does."""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cj_pipeline_tests.providers.essays import PairKey

ERROR_FAULTS = frozenset(
    {
        "rate_limited",
        "rate_limited_retry_after",
        "overloaded",
        "server_error",
        "unavailable",
        "context_too_long",
        "authentication",
        "permission",
        "model_not_found",
        "quota_exhausted",
        "billing",
        "spend_limit",
        "bad_request",
    }
)
"""Answered with a status and the provider's own error body."""

TRANSPORT_FAULTS = frozenset({"bad_gateway", "hang", "drop", "drop_mid_body", "not_json_body"})
"""Something between the client and the model breaks; in a batch item, a server error."""

VERDICT_FAULTS = frozenset(
    {
        "invalid_json",
        "wrong_winner",
        "missing_field",
        "extra_field",
        "confidence_out_of_range",
        "confidence_string",
        "long_justification",
    }
)
"""The answer is complete, its text is not what was asked for (long_justification excepted, which is valid)."""

ENDING_FAULTS = frozenset({"truncated", "refusal", "content_filter", "empty_answer"})
"""The model stopped for another reason than having answered, or answered nothing."""

FAULTS = ERROR_FAULTS | TRANSPORT_FAULTS | VERDICT_FAULTS | ENDING_FAULTS

USABLE = frozenset({None, "long_justification", "hang", "drop_mid_body"})
"""With these an answer is nevertheless produced in full, and billed."""


class FaultPlan:
    """Which calls go wrong. A script is used up first, in order of arrival; after it, chance decides."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._lock = threading.Lock()
        self._script: list[str | None] = []
        self._rate = 0.0
        self._kinds: tuple[str, ...] = ()
        self._asked: Counter[PairKey] = Counter()

    def script(self, faults: Iterable[str | None]) -> None:
        """Let the next calls go wrong this way, one entry per call; None is a good call."""
        planned = list(faults)
        _check(kind for kind in planned if kind is not None)
        with self._lock:
            self._script = planned

    def random(self, rate: float, kinds: Sequence[str]) -> None:
        """Let this share of calls go wrong, by a hash of the seed, the essays, and how often they were asked."""
        _check(kinds)
        if not kinds and rate > 0:
            raise ValueError("a random plan needs kinds of faults")
        with self._lock:
            self._rate, self._kinds = rate, tuple(kinds)

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._script, self._rate, self._kinds = [], 0.0, ()

    @property
    def remaining(self) -> int:
        """Entries of the script not yet used."""
        with self._lock:
            return len(self._script)

    def next(self, pair: PairKey) -> str | None:
        """The fault of the call that arrives now, if any."""
        with self._lock:
            asked = self._asked[pair]
            self._asked[pair] += 1
            if self._script:
                return self._script.pop(0)
            if not self._rate:
                return None
            drawn = hashlib.sha256(f"{self.seed}:{pair[0]}:{pair[1]}:{asked}".encode()).digest()
            if int.from_bytes(drawn[:8], "big") / 2**64 >= self._rate:
                return None
            return self._kinds[int.from_bytes(drawn[8:16], "big") % len(self._kinds)]


def _check(kinds: Iterable[str]) -> None:
    if unknown := sorted(set(kinds) - FAULTS):
        raise ValueError(f"no such faults: {', '.join(unknown)}")


def spoil(verdict: dict[str, Any], fault: str | None) -> dict[str, Any]:
    """The verdict as a model that errs this way would give it."""
    match fault:
        case "wrong_winner":
            return verdict | {"winner": "C"}
        case "missing_field":
            return {name: value for name, value in verdict.items() if name != "confidence"}
        case "extra_field":
            return verdict | {"tie": False}
        case "confidence_out_of_range":
            return verdict | {"confidence": 9}
        case "confidence_string":
            return verdict | {"confidence": "3"}
        case "long_justification":
            return verdict | {"justification": " ".join(["thoroughly"] * 120)}
        case _:
            return verdict
