"""A judge that answers from known qualities instead of reading: for demos, tests, dry runs and drills.

Here: the profiles' type, their loading from `profiles.yaml`, and the judge. Not here: which profiles can be opened by
name (`judges.catalogue`), and where qualities come from (the workflow puts them into `JudgeRequest.truth`).

An answer depends on the seed, the prompt's hash, the repeat number and the attempt, and on nothing else: not on the
process, the order of calls or the clock.
"""

import asyncio
import hashlib
import importlib.resources
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from cj_pipeline.core.errors import GradeScaleError, InputError
from cj_pipeline.core.models import Value, Winner
from cj_pipeline.judges.errors import (
    JudgeError,
    JudgeTimeoutError,
    MalformedAnswerError,
    OverloadedError,
    ProviderRejectedError,
    RateLimitedError,
    RefusedError,
    TruncatedAnswerError,
)
from cj_pipeline.judges.protocol import (
    SIMULATED_PROVIDER,
    ComparisonPrompt,
    JobItem,
    JobPhase,
    JobResult,
    JobSearch,
    JobStatus,
    JudgeAnswer,
    JudgeIdentity,
    JudgeRequest,
    SearchOutcome,
    SimulatedTruth,
    SubmittedJob,
    Usage,
)
from cj_pipeline.strict_yaml import load_yaml

JUSTIFICATION: Final = "Simulated judgment: drawn from the essays' registered qualities; no essay was read."

_NORMAL: Final = NormalDist()
_Z95: Final = _NORMAL.inv_cdf(0.95)
_MAX_P95_TO_MEAN: Final = math.exp(_Z95**2 / 2)

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Fault:
    error: type[JudgeError]
    http_status: int | None
    output_paid: bool  # whether a provider would have produced, and billed, an answer


_FAULTS: Final = {
    fault.error.error_type: fault
    for fault in (
        _Fault(RateLimitedError, 429, output_paid=False),
        _Fault(OverloadedError, 529, output_paid=False),
        _Fault(JudgeTimeoutError, None, output_paid=False),
        _Fault(MalformedAnswerError, 200, output_paid=True),
        _Fault(TruncatedAnswerError, 200, output_paid=True),
        _Fault(RefusedError, 200, output_paid=True),
        _Fault(ProviderRejectedError, 401, output_paid=False),
    )
}


class LatencyProfile(Value):
    """Lognormal latency, given by its mean and 95th percentile in seconds.

    With Z the 95 % point of the standard normal, log mean = μ + σ²/2 and log p95 = μ + Zσ, so σ is the smaller root of
    σ²/2 − Zσ + log(p95/mean) = 0. It exists for 1 < p95/mean ≤ exp(Z²/2) ≈ 3.87.
    """

    mean_seconds: float = Field(gt=0, allow_inf_nan=False)
    p95_seconds: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_lognormal(self) -> "LatencyProfile":
        if not 1 < self.p95_seconds / self.mean_seconds <= _MAX_P95_TO_MEAN:
            raise ValueError(f"p95_seconds must be above mean_seconds and at most {_MAX_P95_TO_MEAN:.2f} times it")
        return self

    def quantile(self, u: float) -> float:
        """The latency in seconds that a share `u` (0 < u < 1) of calls stays below."""
        sigma = _Z95 - math.sqrt(max(0.0, _Z95**2 - 2 * math.log(self.p95_seconds / self.mean_seconds)))
        mu = math.log(self.mean_seconds) - sigma**2 / 2
        return math.exp(mu + sigma * _NORMAL.inv_cdf(u))


class TokenProfile(Value):
    """Tokens of one call."""

    input: int = Field(ge=0)
    output: int = Field(ge=0)


class ConfidenceRule(Value):
    """Confidence 1 to 5 from |2 P(A wins) − 1|: the number of `edges` it reaches, after uniform noise, plus one."""

    edges: tuple[Probability, Probability, Probability, Probability]
    noise: Probability

    @field_validator("edges")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("edges must ascend")
        return value

    def confidence(self, probability_a: float, u: float) -> int:
        """The confidence at `probability_a`, with noise drawn by `u` (0 < u < 1)."""
        certainty = abs(2 * probability_a - 1) + self.noise * (2 * u - 1)
        return 1 + sum(certainty >= edge for edge in self.edges)


class SimulatedProfile(Value):
    """How one simulated judge behaves; the fields and their units are explained at the top of `profiles.yaml`."""

    name: str
    description: str
    model: str = Field(pattern="^simulated/")
    discrimination: float = Field(ge=0, allow_inf_nan=False)
    position_bias: float = Field(allow_inf_nan=False)
    latency: LatencyProfile
    tokens: TokenProfile
    error_rates: dict[str, Probability]
    confidence: ConfidenceRule

    @field_validator("error_rates")
    @classmethod
    def _known_and_possible(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(_FAULTS))
        if unknown:
            raise ValueError(f"unknown error_type {', '.join(unknown)} (known: {', '.join(sorted(_FAULTS))})")
        if math.fsum(value.values()) > 1:
            raise ValueError("the probabilities of all errors together must not exceed 1")
        return value

    def probability_a(self, truth: SimulatedTruth) -> float:
        """P(A wins) = logistic(discrimination · (qA − qB) + position_bias)."""
        logit = self.discrimination * (truth.quality_a - truth.quality_b) + self.position_bias
        return 0.5 * (1 + math.tanh(logit / 2))  # the logistic function, without overflow


def load_profiles(path: Path | None = None) -> dict[str, SimulatedProfile]:
    """Read the simulated profiles by name.

    Args:
        path: a YAML file in the form of `profiles.yaml`; the package's own if None.

    Raises:
        InputError: naming the file, the profile and the field that cannot be used.
    """
    source = path or importlib.resources.files("cj_pipeline.judges").joinpath("profiles.yaml")
    try:
        content = load_yaml(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"judge profiles {source}: cannot be read as YAML ({type(error).__name__})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"judge profiles {source}: must map each profile's name to its fields")
    return {
        str(name): _parse_profile(str(name), fields, where=f"judge profiles {source}")
        for name, fields in content.items()
    }


def grade_quality(scale_grades: Sequence[str], grade: str) -> float:
    """The quality of a registered grade in grade steps: its place in the scale, 0 for the lowest.

    Args:
        scale_grades: the scale's grades, lowest first.
        grade: one of them.

    Raises:
        GradeScaleError: if the scale does not have the grade.
    """
    if grade not in scale_grades:
        raise GradeScaleError(f"grade {grade!r} is not on the scale ({', '.join(scale_grades)})")
    return float(scale_grades.index(grade))


class SimulatedJudge:
    """A `Judge` that draws its answers from a profile and the qualities in each request's `truth`.

    Args:
        profile: how the judge behaves.
        seed: with another seed every draw is another one.
        latency: whether to wait, and report, the profile's latency; otherwise answers come at once.
        error_rates: probability per call of each error_type, in place of the profile's.

    Raises:
        InputError: if `error_rates` names an unknown error_type or is not a probability distribution.
    """

    def __init__(
        self,
        profile: SimulatedProfile,
        *,
        seed: int,
        latency: bool = False,
        error_rates: Mapping[str, float] | None = None,
    ) -> None:
        if error_rates is not None:
            fields = {**profile.model_dump(exclude={"name"}), "error_rates": dict(error_rates)}
            profile = _parse_profile(profile.name, fields, where="simulated judge")
        self._profile = profile
        self._seed = seed
        self._latency = latency
        self._identity = JudgeIdentity(
            profile=profile.name, provider=SIMULATED_PROVIDER, model=profile.model, simulated=True
        )

    @property
    def identity(self) -> JudgeIdentity:
        """Who this is: the profile, marked as simulated."""
        return self._identity

    def upper_bound_usd(self, prompt: ComparisonPrompt, *, in_job: bool = False) -> float | None:
        """Nothing: a simulation costs no money."""
        return 0.0

    def cache_seconds(self, prompt: ComparisonPrompt) -> float | None:
        """No cache."""
        return None

    async def pace(self, prompt: ComparisonPrompt) -> None:
        """No limits."""

    def may_send(self, prompt: ComparisonPrompt) -> bool:
        """At any time."""
        return True

    async def judge(self, request: JudgeRequest) -> JudgeAnswer:
        """Draw the answer, or the error, that this request gets.

        Raises:
            ProviderRejectedError: if the request carries no finite quality for each essay; no retry mends that.
            JudgeError: by the error rates. Cancellation propagates.
        """
        started = time.perf_counter()
        truth = request.truth
        if truth is None or not (math.isfinite(truth.quality_a) and math.isfinite(truth.quality_b)):
            raise ProviderRejectedError(
                "the simulated judge needs a quality for each essay: register a grade for it, give the batch a "
                "`quality` column, or choose a judge that reads"
            )
        draws = _draw(self._seed, request)
        waited = self._profile.latency.quantile(draws.latency) if self._latency else 0.0
        await asyncio.sleep(waited)  # also at 0: other tasks get their turn
        self._raise_fault(draws.fault)

        probability_a = self._profile.probability_a(truth)
        return JudgeAnswer(
            winner=Winner.A if draws.winner < probability_a else Winner.B,
            confidence=self._profile.confidence.confidence(probability_a, draws.confidence),
            justification=JUSTIFICATION,
            usage=Usage(input=self._profile.tokens.input, output=self._profile.tokens.output),
            cost_usd=0.0,
            request_id=None,
            latency_seconds=waited if self._latency else time.perf_counter() - started,
        )

    async def check_access(self) -> None:
        """Always there."""

    async def aclose(self) -> None:
        """Nothing to release."""

    # --- jobs: nothing is kept between submission and results, because answers follow from the requests alone --------

    @property
    def max_job_items(self) -> int:
        """As many as anyone will simulate."""
        return 100_000

    @property
    def max_job_bytes(self) -> int:
        """As much as anyone will simulate."""
        return 2**40

    async def submit_job(self, job_key: str, items: Sequence[JobItem]) -> SubmittedJob:
        """Accept any job."""
        return SubmittedJob(f"simulated-{job_key}", None)

    async def find_job(self, job_key: str, *, items: int, since: datetime) -> JobSearch:
        """Every job is found: what it was follows from its key."""
        return JobSearch(SearchOutcome.FOUND, SubmittedJob(f"simulated-{job_key}", None))

    async def poll_job(self, provider_job_id: str) -> JobStatus:
        """Every job is over at once."""
        return JobStatus(JobPhase.COMPLETED)

    async def job_results(self, provider_job_id: str, items: Sequence[JobItem]) -> AsyncIterator[JobResult]:
        """Draw the items' answers now."""
        for item in items:
            try:
                yield JobResult(item.custom_id, answer=await self.judge(item.request))
            except JudgeError as error:
                yield JobResult(item.custom_id, error=error)

    async def cancel_job(self, provider_job_id: str) -> None:
        """Nothing runs."""

    def _raise_fault(self, u: float) -> None:
        reached = 0.0
        for error_type, rate in sorted(self._profile.error_rates.items()):
            reached += rate
            if u < reached:
                fault = _FAULTS[error_type]
                tokens = self._profile.tokens
                raise fault.error(
                    f"simulated {error_type}: drawn by the error rates of judge profile {self._profile.name}",
                    http_status=fault.http_status,
                    usage=Usage(input=tokens.input, output=tokens.output) if fault.output_paid else None,
                    cost_usd=0.0,
                )


@dataclass(frozen=True)
class _Draws:
    """Independent uniform numbers in (0, 1), one for each thing that is drawn."""

    winner: float
    fault: float
    confidence: float
    latency: float


def _draw(seed: int, request: JudgeRequest) -> _Draws:
    key = f"{seed}|{request.prompt.sha256}|{request.repeat}|{request.attempt}"
    digest = hashlib.blake2b(key.encode(), digest_size=32, person=b"cj-simulated").digest()
    # 52 bits and a half: exact in a double, and never 0 or 1
    uniforms = [((int.from_bytes(digest[i : i + 8], "big") >> 12) + 0.5) * 2.0**-52 for i in range(0, 32, 8)]
    return _Draws(*uniforms)


def _parse_profile(name: str, fields: Any, *, where: str) -> SimulatedProfile:
    if not isinstance(fields, Mapping):
        raise InputError(f"{where}: profile {name}: must be a mapping of fields")
    try:
        return SimulatedProfile.model_validate({**fields, "name": name})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{where}: profile {name}: {problems}") from None
