"""What can go wrong between a comparison and its judgment, each with an `error_type` and a decided fate.

An error never becomes a winner: the workflow retries, records a failure or stops, as the fate says. Messages carry
no essay text and no key.
"""

from enum import StrEnum
from typing import ClassVar

from cj_pipeline.core.errors import CJError
from cj_pipeline.judges.protocol import Usage


class Fate(StrEnum):
    """What the workflow does with an error."""

    RETRY = "retry"  # another attempt may succeed
    FAIL = "fail"  # this comparison will not succeed, others may
    REJECT = "reject"  # no comparison will succeed until a person acts: stop the wave and spend no more


class JudgeError(CJError):
    """Base of all judging errors. Subclasses fix `error_type` and `fate`.

    Args:
        message: what happened, without essay text or key.
        http_status: the provider's status code, where there was one.
        request_id: the provider's id of the call, where there was one.
        usage: tokens the failed call used, where the provider reported them.
        cost_usd: what the failed call cost in US dollars; None if unknown.
    """

    error_type: ClassVar[str] = "judge_error"
    fate: ClassVar[Fate] = Fate.RETRY

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        request_id: str | None = None,
        usage: Usage | None = None,
        cost_usd: float | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.request_id = request_id
        self.usage = usage or Usage()
        self.cost_usd = cost_usd


class RateLimitedError(JudgeError):
    """The provider asked for a slower pace."""

    error_type = "rate_limited"


class OverloadedError(JudgeError):
    """The provider has no capacity at the moment."""

    error_type = "overloaded"


class JudgeTimeoutError(JudgeError):
    """No answer within the time allowed."""

    error_type = "timeout"


class MalformedAnswerError(JudgeError):
    """The answer does not follow the response schema (winner, confidence, justification)."""

    error_type = "malformed_answer"


class TruncatedAnswerError(JudgeError):
    """The answer was cut at the output limit."""

    error_type = "truncated_answer"


class RefusedError(JudgeError):
    """The judge declined to answer."""

    error_type = "refused"


class ProviderRejectedError(JudgeError):
    """The provider will refuse every call until a person acts: key, model or quota."""

    error_type = "provider_rejected"
    fate = Fate.REJECT
