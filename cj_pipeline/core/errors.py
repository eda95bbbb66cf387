"""The one error hierarchy. Every error says what was wrong, where, and what to do about it.

Errors of a single room (judges, ledger) live beside their room's code and derive from `CJError` or one of the
classes here. Error texts never carry essay text, justifications or keys.
"""

from collections.abc import Sequence
from typing import Final

_ITEMS_NAMED: Final = 20


class CJError(Exception):
    """Base of every error this program raises on purpose. `cj` prints it without a traceback, exit code 1."""

    exit_code = 1


class InputError(CJError):
    """What the user gave cannot be used: the message names the file, the field and the remedy. Exit code 2."""

    exit_code = 2


class RequestError(InputError):
    """Several problems with one request, listed together so that they can be mended together.

    Args:
        subject: what was being read, e.g. `batch folder essays/`.
        problems: one sentence per problem, at least one.
    """

    def __init__(self, subject: str, problems: list[str]) -> None:
        self.subject = subject
        self.problems = list(problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{subject}: {count}, nothing was stored\n{lines}")


class SeparationError(CJError):
    """No finite maximum-likelihood estimate: the win graph is not strongly connected (Ford 1957).

    Args:
        message: which items separate from the rest, and what to do.
        items: indices of the items concerned, ascending.
    """

    def __init__(self, message: str, items: list[int]) -> None:
        self.items = items
        super().__init__(message)


class DisconnectedError(SeparationError):
    """No finite contrast between groups of items: the comparison graph falls into several components."""


class MissingBudgetError(CJError, RuntimeError):
    """A batch without a valid `total_budget`. It is a defect of the batch; nothing else may stand in for it."""


class GradeScaleError(InputError):
    """A grade scale that is unknown or badly formed, or a grade that the scale does not have."""


class PlanningError(CJError):
    """A wave was asked for that cannot be planned (fewer than two essays, no room in the budget)."""


def listed(items: Sequence[object]) -> str:
    """The items as an error names them: the first `_ITEMS_NAMED` with commas between, and how many more."""
    text = ", ".join(str(item) for item in items[:_ITEMS_NAMED])
    more = len(items) - _ITEMS_NAMED
    return f"{text} and {more} more" if more > 0 else text
