"""What can go wrong between a comparison and its judgment, each with an `error_type` and a decided fate.

An error never becomes a winner: the workflow retries, records a failure or stops, as the fate says. Messages are our
own sentences: a provider's text may quote the essays or the key, so none is repeated.
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
    """Base of all judging errors. Subclasses fix `error_type`, `fate` and `provider_fault`.

    Args:
        message: what happened and what to do, without essay text, key or a provider's own words.
        http_status: the provider's status code, where there was one.
        request_id: the provider's id of the call, where there was one.
        usage: tokens the failed call used, where the provider reported them.
        cost_usd: what the failed call cost in US dollars; None if unknown. 0.0 where no answer was made.
        retry_after_seconds: how long the provider asked us to wait.
        latency_seconds: as seen by the caller of the provider, where there was a call.
    """

    error_type: ClassVar[str] = "judge_error"
    fate: ClassVar[Fate] = Fate.RETRY
    provider_fault: ClassVar[bool] = False
    """Whether it says that the provider is unwell, whatever was asked: what a circuit breaker counts."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        request_id: str | None = None,
        usage: Usage | None = None,
        cost_usd: float | None = None,
        retry_after_seconds: float | None = None,
        latency_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.request_id = request_id
        self.usage = usage or Usage()
        self.cost_usd = cost_usd
        self.retry_after_seconds = retry_after_seconds
        self.latency_seconds = latency_seconds


# --- transient: the provider ---------------------------------------------------------------------------------------


class RateLimitedError(JudgeError):
    """The provider asked for a slower pace."""

    error_type = "rate_limited"
    provider_fault = True


class OverloadedError(JudgeError):
    """The provider has no capacity at the moment."""

    error_type = "overloaded"
    provider_fault = True


class ProviderServerError(JudgeError):
    """The provider failed (5xx)."""

    error_type = "server_error"
    provider_fault = True


class JudgeTimeoutError(JudgeError):
    """No answer within the time allowed."""

    error_type = "timeout"
    provider_fault = True


class ConnectionFailedError(JudgeError):
    """The connection could not be made, or broke before the answer was whole."""

    error_type = "connection_error"
    provider_fault = True


# --- transient: the answer ---------------------------------------------------------------------------------------


class MalformedAnswerError(JudgeError):
    """The answer does not follow the response schema (winner, confidence, justification)."""

    error_type = "malformed_answer"


class TruncatedAnswerError(JudgeError):
    """The answer was cut at the output limit."""

    error_type = "truncated_answer"


class RefusedError(JudgeError):
    """The judge declined to answer, or a safety filter stopped it."""

    error_type = "refused"


# --- this comparison -----------------------------------------------------------------------------------------------


class ContextTooLongError(JudgeError):
    """The two essays with their instructions do not fit into what the model can read."""

    error_type = "context_too_long"
    fate = Fate.FAIL


class InvalidRequestError(JudgeError):
    """The provider does not accept the request as it is."""

    error_type = "invalid_request"
    fate = Fate.FAIL


# --- permanent -----------------------------------------------------------------------------------------------------


class ProviderRejectedError(JudgeError):
    """The provider will refuse every call until a person acts: key, model or quota."""

    error_type = "provider_rejected"
    fate = Fate.REJECT


class AuthenticationFailedError(ProviderRejectedError):
    """The key is missing or wrong."""

    error_type = "authentication"


class PermissionRefusedError(ProviderRejectedError):
    """The key may not do this."""

    error_type = "permission"


class ModelNotFoundError(ProviderRejectedError):
    """The provider has no such model."""

    error_type = "model_not_found"


class QuotaExhaustedError(ProviderRejectedError):
    """The account has no credit or quota left."""

    error_type = "quota_exhausted"


# --- provider batch jobs -------------------------------------------------------------------------------------------


class SubmissionUnknownError(JudgeError):
    """A job may have been accepted: the request was sent, and no answer came. It must be looked for."""

    error_type = "submission_unknown"
    provider_fault = True


class ExpiredError(JudgeError):
    """The provider's time for the job ran out before it got to this comparison."""

    error_type = "expired"


class CancelledError(JudgeError):
    """The job was cancelled before the provider got to this comparison."""

    error_type = "cancelled"


class MissingResultError(JudgeError):
    """The job is over and says nothing about this comparison."""

    error_type = "missing_result"
