"""What the dialects of the providers have in common: prompts, usage, caches, problems."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cj_pipeline_tests.providers.essays import digest

Body = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a request gets no answer."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class RejectedError(Exception):
    """The provider does not accept the request."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass(frozen=True)
class Prompt:
    """Everything the model reads, in its order; `breakpoints` are lengths of prefixes to cache."""

    parts: tuple[str, ...]
    breakpoints: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The parts, one after the other, each on lines of its own."""
        return "\n".join(self.parts)

    @property
    def tokens(self) -> int:
        """A quarter of the characters."""
        return sum(map(len, self.parts)) // 4


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. `input` includes what was written to the cache or read from it."""

    input: int
    output: int
    cache_created: int = 0
    cache_read: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class Answer:
    """What the model said and how it ended: None (by itself), truncated, refusal, content_filter, empty_answer."""

    text: str
    ending: str | None
    usage: Usage


class PromptCache:
    """Which prefixes were seen, by model."""

    def __init__(self) -> None:
        self._marked: set[tuple[str, str]] = set()
        self._latest: dict[tuple[str, str], str] = {}

    def marked(self, model: str, prompt: Prompt, min_chars: int) -> tuple[int, int]:
        """Tokens written and read where the client marks what to cache (Anthropic)."""
        whole = "".join(prompt.parts)
        lengths = sorted(length for length in prompt.breakpoints if length >= max(min_chars, 1))
        keys = [(model, digest(whole[:length])) for length in lengths]
        seen = [length for length, key in zip(lengths, keys, strict=True) if key in self._marked]
        self._marked.update(keys)
        read = seen[-1] // 4 if seen else 0
        return (lengths[-1] // 4 - read if lengths else 0), read

    def automatic(self, model: str, prompt: Prompt, min_chars: int) -> int:
        """Tokens read where the provider caches by itself (OpenAI): what the latest prompt that began alike shares."""
        whole = "".join(prompt.parts)
        if len(whole) < max(min_chars, 1):
            return 0
        start = (model, whole[:min_chars])
        before = self._latest.get(start)
        self._latest[start] = whole
        return 0 if before is None else _common_prefix(before, whole) // 4


def _common_prefix(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Dialect(Protocol):
    """One endpoint at which a model is asked."""

    provider: str
    path: str

    def check(self, body: Body) -> None:
        """Raise `RejectedError` for a request the provider would not accept."""

    def prompt(self, body: Body) -> Prompt:
        """What the model reads."""

    def output_limit(self, body: Body) -> int | None:
        """Tokens it may write."""

    def reasoning_tokens(self, body: Body) -> int:
        """Tokens it thinks before it writes."""

    def usage(self, cache: PromptCache, body: Body, prompt: Prompt, output: int, min_chars: int) -> Usage:
        """What the answer costs."""

    def success(self, body: Body, answer: Answer, number: str) -> Body:
        """The body of the answer, with ids made of `number`."""

    def problem(self, fault: str, body: Body, key: str) -> Problem:
        """The provider's form of a fault of `ERROR_FAULTS`."""

    def error(self, problem: Problem, request_id: str) -> Body:
        """The provider's error body."""


def compact(value: object) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def masked(key: str) -> str:
    """A key as OpenAI's error message echoes it."""
    return key[:4] + "****"
