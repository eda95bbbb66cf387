"""Bundles: how many comparisons travel together, and how a list of them is cut up.

A bundle holds comparisons of one provider, model and set of options; it is one unit of queueing, of metrics and of
cache warmth, while each of its comparisons is judged by a call of its own. Not here: the calls, and provider batch
jobs (`judges.protocol.JobJudge`).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

LARGEST_BUNDLE: Final = 64

T = TypeVar("T")


def bundle_hint(value: Any) -> int | None:
    """The preferred bundle size that a hint states, or None if it states none that can be used.

    Usable is an integer from 1 to 64 (a boolean is none).
    """
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_BUNDLE:
        return value
    return None


def bundle_size(wave_size: int, *, hint: Any = None, use_hints: bool = True, largest: int = LARGEST_BUNDLE) -> int:
    """How many comparisons a bundle of a wave holds at most.

    Args:
        wave_size: comparisons of the wave, at least 1.
        hint: the size the batch prefers; by default the wave's size.
        use_hints: whether hints count; otherwise bundles are as large as they may be.
        largest: the largest bundle allowed, 1 to 64.
    """
    preferred = (bundle_hint(hint) or min(wave_size, LARGEST_BUNDLE)) if use_hints else LARGEST_BUNDLE
    return max(1, min(preferred, largest, LARGEST_BUNDLE))


def bundles(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time; the last bundle may be smaller."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
