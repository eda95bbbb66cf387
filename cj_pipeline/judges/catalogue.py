"""Which judges can be named in a batch, how a name becomes a judge, and what stands against a name.

A name is a simulated profile (`cj-generic`) or `PROVIDER/MODEL` (`anthropic/claude-haiku-4-5`, `openai/gpt-5.1`,
`compatible/llama3.1:8b`). The one place that knows all judges. Not here: how any of them answers.
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import BatchingMode
from cj_pipeline.judges import models
from cj_pipeline.judges.models import JudgeOptions
from cj_pipeline.judges.pricing import PriceList
from cj_pipeline.judges.protocol import Judge
from cj_pipeline.judges.simulated import SimulatedJudge, SimulatedProfile, load_profiles

PROVIDERS: Final = ("anthropic", "openai", "compatible")
"""The providers of real judges. `compatible`: any server that speaks the OpenAI protocol."""

EXAMPLES: Final = ("anthropic/claude-haiku-4-5", "openai/gpt-5.1", "compatible/MODEL")


@dataclass(frozen=True)
class JudgeSetup:
    """What a judge needs beside its name. The defaults suit a simulated judge.

    Attributes:
        seed: decides a simulated judge's draws.
        latency: whether a simulated judge waits as its profile says.
        options: what the batch asks of a real judge.
        prices: to cost its calls.
        timeout_seconds: how long one call may take.
        requests_per_minute, tokens_per_minute: the pace we allow ourselves; None: what the provider's headers say.
        base_url: where a `compatible` server is.
        batching: how comparisons travel to it.
        max_cost_usd: the batch's cost limit, if any.
    """

    seed: int = 0
    latency: bool = False
    options: JudgeOptions = field(default_factory=JudgeOptions)
    prices: PriceList | None = None
    timeout_seconds: float = 120.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    base_url: str | None = None
    batching: BatchingMode = BatchingMode.SERIAL_BUNDLE
    max_cost_usd: float | None = None


def judge_names() -> list[str]:
    """The simulated judges' names, in alphabetical order; real ones are named PROVIDER/MODEL."""
    return sorted(load_profiles())


def provider_and_model(name: str) -> tuple[str, str] | None:
    """Provider and model of a real judge's name; None for any other name."""
    provider, slash, model = name.partition("/")
    return (provider, model) if slash and provider in PROVIDERS and model else None


def needs_quality(name: str) -> bool:
    """Whether this judge answers from the essays' known qualities, so that every essay of its batch must have one.

    Raises:
        InputError: if no judge has this name.
    """
    if provider_and_model(name) is not None:
        return False
    _simulated_profile(name)
    return True


def judge_problems(name: str, setup: JudgeSetup, *, today: date | None = None) -> list[str]:
    """Everything that stands against judging with this name and setup, each with its remedy; empty if nothing does.

    No call is made: a wrong key shows at the first judgment (`cj judge try` makes one).
    """
    real = provider_and_model(name)
    if real is None:
        try:
            _simulated_profile(name)
        except InputError as error:
            return [str(error)]
        return []
    provider, model = real
    on = today or datetime.now(UTC).date()
    problems = models.check_options(provider, model, setup.options, today=on)
    if provider == "compatible" and not setup.base_url:
        problems.append(
            "judge compatible/...: no server is named: set CJ_OPENAI_COMPATIBLE_BASE_URL, e.g. http://localhost:8000/v1"
        )
    if setup.batching is BatchingMode.PROVIDER_BATCH_API and not models.model_rules(provider, model).batch_api:
        problems.append(
            f"llm_batching_mode provider_batch_api: {name[:80]} has no batch API that is known: choose serial_bundle"
        )
    unpriced = setup.prices is None or setup.prices.price_of(provider, model, on) is None
    if setup.max_cost_usd is not None and unpriced:
        problems.append(
            f"max_cost_usd needs a known price, and {name[:80]} has none: add it to inputs/prices.yaml, or leave the "
            "limit out"
        )
    return problems


def judge_warnings(name: str, setup: JudgeSetup, *, today: date | None = None) -> list[str]:
    """What a person should know before judging with this name: a model that retires soon, an unknown price."""
    real = provider_and_model(name)
    if real is None:
        return []
    on = today or datetime.now(UTC).date()
    found = models.warnings(*real, today=on)
    if setup.prices is None or setup.prices.price_of(*real, on) is None:
        found.append(
            f"no price is known for {name[:80]}: costs will be shown as unknown (add it to inputs/prices.yaml)"
        )
    return found


def open_judge(name: str, setup: JudgeSetup | None = None) -> Judge:
    """The judge of this name, ready to answer; whoever opens it calls its `aclose`.

    Args:
        name: see the module.
        setup: what it needs beside its name.

    Raises:
        InputError: if no judge has this name; the message lists the known ones.
    """
    setup = setup or JudgeSetup()
    real = provider_and_model(name)
    if real is None:
        return SimulatedJudge(_simulated_profile(name), seed=setup.seed, latency=setup.latency)
    provider, model = real
    on = datetime.now(UTC).date()
    prices = setup.prices or PriceList(())
    if provider == "anthropic":
        from cj_pipeline.judges.anthropic import AnthropicJudge

        return AnthropicJudge(
            model,
            setup.options,
            prices=prices,
            timeout_seconds=setup.timeout_seconds,
            requests_per_minute=setup.requests_per_minute,
            tokens_per_minute=setup.tokens_per_minute,
            on=on,
        )
    from cj_pipeline.judges.openai import OpenAIJudge

    return OpenAIJudge(
        model,
        setup.options,
        provider="openai" if provider == "openai" else "compatible",
        base_url=setup.base_url if provider == "compatible" else None,
        prices=prices,
        timeout_seconds=setup.timeout_seconds,
        requests_per_minute=setup.requests_per_minute,
        tokens_per_minute=setup.tokens_per_minute,
        on=on,
    )


def _simulated_profile(name: str) -> SimulatedProfile:
    profiles = load_profiles()
    if name not in profiles:
        raise InputError(
            f"no judge is called {name[:80]!r}: use PROVIDER/MODEL (e.g. {', '.join(EXAMPLES)}; providers: "
            f"{', '.join(PROVIDERS)}) or a simulated one ({', '.join(sorted(profiles))})"
        )
    return profiles[name]
