"""Finds the two essays in a prompt and decides between them, the same way whoever asks."""

import hashlib
import re
from typing import Any

_BEGIN = re.compile(r"^\[BEGIN ESSAY ([AB]) ([0-9a-f]{32})\]$", re.MULTILINE)

PairKey = tuple[str, str]
"""sha256 of the text shown as A and of the text shown as B."""


def find_essays(prompt: str) -> tuple[str, str] | None:
    """The texts shown as A and B, or None when the prompt has no fenced pair.

    The last BEGIN line for A counts whose marker also begins a B: what an essay pretends comes before it or carries
    a marker of its own.
    """
    begins = list(_BEGIN.finditer(prompt))
    markers_of_b = {begin.group(2) for begin in begins if begin.group(1) == "B"}
    for begin in reversed(begins):
        marker = begin.group(2)
        if begin.group(1) == "A" and marker in markers_of_b:
            begin_b = next(b for b in reversed(begins) if b.group(1) == "B" and b.group(2) == marker)
            text_a = _until_end(prompt, begin.end(), "A", marker)
            text_b = _until_end(prompt, begin_b.end(), "B", marker)
            if text_a is not None and text_b is not None:
                return text_a, text_b
    return None


def _until_end(prompt: str, start: int, label: str, marker: str) -> str | None:
    end = prompt.find(f"\n[END ESSAY {label} {marker}]", start)
    return None if end < 0 else prompt[start + 1 : end]


def digest(text: str) -> str:
    """sha256 of a text, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def pair_key(prompt: str) -> PairKey:
    """What identifies the comparison a prompt asks for; (its own digest, "") when it shows no pair."""
    essays = find_essays(prompt)
    return (digest(prompt), "") if essays is None else (digest(essays[0]), digest(essays[1]))


def strength(text: str) -> float:
    """How good the default judge finds an essay, in [0, 1): a function of its text only."""
    return int(digest(text)[:12], 16) / 16**12


def by_strength(prompt: str, model: str) -> dict[str, Any]:
    """The default `decide`: the essay of larger `strength` wins, the more confidently the larger the difference."""
    text_a, text_b = find_essays(prompt) or (prompt, "")
    difference = strength(text_a) - strength(text_b)
    winner = "A" if difference >= 0 else "B"
    return {
        "winner": winner,
        "confidence": 1 + min(4, int(abs(difference) * 5)),
        "justification": f"Essay {winner} develops its ideas more fully and is easier to follow.",
    }
