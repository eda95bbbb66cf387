"""From a batch's record to its judge and to what that judge reads.

Submission checks a judge here, the wave loop opens it here, and `cj prompt` shows here what was sent: one way from
settings, assignment and overrides to a prompt.
"""

from dataclasses import dataclass, field

from cj_pipeline.core.errors import InputError
from cj_pipeline.judges.catalogue import JudgeSetup, open_judge
from cj_pipeline.judges.models import JudgeOptions
from cj_pipeline.judges.pricing import load_prices
from cj_pipeline.judges.prompts import DEFAULT_SYSTEM_PROMPT, JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import ComparisonPrompt, Judge
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import AssignmentRecord, AttemptRecord, BatchRecord
from cj_pipeline.settings import BatchTunables, CJSettings


def judge_options(tunables: BatchTunables) -> JudgeOptions:
    """What a batch asks of its judge."""
    return JudgeOptions(
        max_tokens=tunables.llm_max_tokens,
        temperature=tunables.llm_temperature,
        reasoning_effort=tunables.reasoning_effort,
        output_verbosity=tunables.output_verbosity,
        thinking_budget_tokens=tunables.thinking_budget_tokens,
    )


def judge_setup(settings: CJSettings, tunables: BatchTunables) -> JudgeSetup:
    """What a batch's judge is opened with.

    Raises:
        InputError: the price list cannot be read.
    """
    return JudgeSetup(
        seed=tunables.pair_generation_seed,
        latency=settings.simulated_latency,
        options=judge_options(tunables),
        prices=load_prices(settings.prices_path),
        timeout_seconds=tunables.judgment_timeout_seconds,
        requests_per_minute=tunables.judge_requests_per_minute,
        tokens_per_minute=tunables.judge_tokens_per_minute,
        base_url=settings.openai_compatible_base_url,
        batching=tunables.llm_batching_mode,
        max_cost_usd=tunables.max_cost_usd,
    )


def open_batch_judge(batch: BatchRecord, settings: CJSettings) -> Judge:
    """The judge a batch was submitted with; whoever opens it calls its `aclose`.

    Raises:
        InputError: there is no such judge any more, or the price list cannot be read.
    """
    return open_judge(batch.judge_profile, judge_setup(settings, BatchTunables.model_validate(batch.settings)))


def judge_instructions(assignment: AssignmentRecord | None, tunables: BatchTunables) -> JudgeInstructions:
    """What every comparison of a batch shares: the assignment's words, with the batch's own laid over them."""
    if assignment is None:
        return JudgeInstructions(
            system_prompt=tunables.system_prompt or DEFAULT_SYSTEM_PROMPT,
            student_prompt=tunables.student_prompt or "",
            rubric=tunables.judge_rubric or "",
        )
    return JudgeInstructions(
        system_prompt=tunables.system_prompt or assignment.system_prompt or DEFAULT_SYSTEM_PROMPT,
        language=assignment.language,
        instructions=assignment.instructions,
        student_prompt=tunables.student_prompt or assignment.student_prompt,
        rubric=tunables.judge_rubric or assignment.judge_rubric,
    )


def batch_instructions(ledger: Ledger, batch: BatchRecord) -> JudgeInstructions:
    """`judge_instructions` of a batch as it was submitted, with the assignment's revision of that moment."""
    assignment = (
        None if batch.assignment_id is None else ledger.assignment(batch.assignment_id, batch.assignment_revision)
    )
    return judge_instructions(assignment, BatchTunables.model_validate(batch.settings))


@dataclass(frozen=True)
class SentPrompt:
    """What the judge read for one attempt, rebuilt; `matches` says whether its hash is the recorded one."""

    attempt: AttemptRecord
    prompt: ComparisonPrompt = field(repr=False)
    matches: bool


def sent_prompt(ledger: Ledger, batch_id: str, comparison_id: str, *, number: int | None = None) -> SentPrompt:
    """Rebuild what was sent for a comparison, fence marker included.

    Args:
        ledger: where the texts are.
        batch_id: the batch.
        comparison_id: within the batch.
        number: which attempt; by default the last.

    Raises:
        UnknownBatchError: no such batch.
        InputError: no such comparison, or it was never sent.
    """
    batch = ledger.batch(batch_id)
    comparison = next((c for c in ledger.comparisons(batch_id) if c.comparison_id == comparison_id), None)
    if comparison is None:
        raise InputError(
            f"batch {batch_id} has no comparison {comparison_id[:80]!r}: `cj show {batch_id} --format json` lists them"
        )
    attempts = [
        attempt for attempt in ledger.attempts(batch_id, comparison_id) if number is None or attempt.number == number
    ]
    if not attempts:
        which = "" if number is None else f" as attempt {number}"
        raise InputError(f"comparison {comparison_id} of batch {batch_id} was never sent{which}")
    attempt = attempts[-1]
    texts = ledger.texts(batch_id)
    prompt = build_prompt(
        batch_instructions(ledger, batch),
        texts[comparison.essay_a],
        texts[comparison.essay_b],
        fence_marker=attempt.fence_marker,
    )
    return SentPrompt(attempt, prompt, prompt.sha256 == attempt.prompt_sha256)
