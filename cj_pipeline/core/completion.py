"""When a batch is done: its denominator, its coverage, and the decision taken at the end of every wave.

Pure functions of a `BatchState` snapshot. Coverage is a description of the batch and steers which pairs come next;
it is never a denominator. Diagnostics (standard errors, quality flags) are not looked at here, on purpose.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Protocol

from cj_pipeline.core.errors import MissingBudgetError
from cj_pipeline.core.models import BatchState, BatchStatus, Comparison, ComparisonStatus, PairMode, StopRule, Value

MONITOR_MIN_PROGRESS = 0.8
"""Share of the budget that must have an outcome before a silent batch may be recovered instead of failed."""


class StoppingSettings(Protocol):
    """The settings the decision depends on; see `cj_pipeline.settings` for units and reasons."""

    min_comparisons_for_stability_check: int
    score_stability_threshold: float
    min_success_rate_threshold: float
    min_resampling_net_size: int
    max_resampling_passes_for_small_net: int
    stop_rule: StopRule


class Decision(StrEnum):
    """What happens next to a batch."""

    WAIT_FOR_CALLBACKS = "WAIT_FOR_CALLBACKS"
    REQUEST_MORE_COMPARISONS = "REQUEST_MORE_COMPARISONS"
    FINALIZE_SCORING = "FINALIZE_SCORING"
    FINALIZE_FAILURE = "FINALIZE_FAILURE"


class ContinuationDecision(Value):
    """A decision with its reason. `status` is set for the finalising ones, `next_mode` when more is requested."""

    decision: Decision
    reason: str
    status: BatchStatus | None = None
    next_mode: PairMode | None = None

    @property
    def is_final(self) -> bool:
        """Whether the batch ends with this decision."""
        return self.status is not None


class Coverage(Value):
    """Which unordered pairs of a batch have a successful judgment."""

    max_possible_pairs: int
    successful_pairs_count: int
    unique_coverage_complete: bool
    resampling_pass_count: int


def completion_denominator(state: BatchState) -> int:
    """The number of comparisons that means 100 % of a batch: its `total_budget`, and nothing else.

    Raises:
        MissingBudgetError: the budget is missing, zero or negative. Such a batch is defective; no count of pairs
            or comparisons may stand in for the budget.
    """
    if state.total_budget is None or state.total_budget <= 0:
        raise MissingBudgetError(
            f"batch {state.batch_id}: total_budget is {state.total_budget!r}, so its progress has no denominator. "
            "A budget is fixed at submission: submit the batch again"
        )
    return state.total_budget


def coverage(essay_ids: Sequence[str], comparisons: Iterable[Comparison], wave_modes: Iterable[PairMode]) -> Coverage:
    """Coverage of a batch.

    Args:
        essay_ids: the nodes, anchors included.
        comparisons: all comparisons of the batch. A pair counts, whatever its order, once one of its comparisons
            was judged; a pair that only ever failed does not.
        wave_modes: the mode of each wave whose comparisons all have an outcome; each resampling wave is one pass.
    """
    nodes = set(essay_ids)
    covered = {
        frozenset((comparison.essay_a, comparison.essay_b))
        for comparison in comparisons
        if comparison.status is ComparisonStatus.JUDGED and comparison.essay_a in nodes and comparison.essay_b in nodes
    }
    possible = len(nodes) * (len(nodes) - 1) // 2
    return Coverage(
        max_possible_pairs=possible,
        successful_pairs_count=len(covered),
        unique_coverage_complete=possible > 0 and len(covered) >= possible,
        resampling_pass_count=sum(mode is PairMode.RESAMPLING for mode in wave_modes),
    )


def is_small_net(node_count: int, settings: StoppingSettings) -> bool:
    """Whether a batch of `node_count` essays (anchors included) stops after its resampling passes."""
    return node_count < settings.min_resampling_net_size


def success_guard_met(state: BatchState, settings: StoppingSettings) -> bool:
    """Whether enough of the comparisons with an outcome were judged for the batch to give a scale."""
    rate = state.success_rate
    return rate is not None and state.judged > 0 and rate >= settings.min_success_rate_threshold


def decide(
    state: BatchState, settings: StoppingSettings, *, single_wave: bool = False, precise: str | None = None
) -> ContinuationDecision:
    """What to do after a wave. Rules are tried in order; the first that applies decides.

    1. comparisons pending → wait; 2. the judge refused for good → failure `provider_rejected`; 3. success rate
    below the guard with the budget or the money spent, the small-net cap reached, or no further wave to come →
    failure `low_success_rate` (`cost_spent` if the money did not even buy one judgment); 4. the wave was whole, the
    success guard met, and, by the stop rule `stability`, enough outcomes and scores that moved at most the threshold →
    scoring `stable`, or, by the stop rule `precision`, precise enough → scoring with `precise` as reason; 5. budget
    spent → scoring `budget_spent`, money spent → scoring `cost_spent`; 6. small net covered and its passes used →
    scoring `small_net_cap`; no further wave to come → scoring `single_wave`; 7. pairs still unseen → more `coverage`;
    8. otherwise → more `resampling`.

    Args:
        state: the batch at the wave's end.
        settings: its thresholds.
        single_wave: whether everything was planned in one wave, so that none follows (provider batch jobs).
        precise: why the batch is precise enough (`precision.precise_enough`), None if it is not.

    Raises:
        MissingBudgetError: the batch has no valid budget (unless rule 1 or 2 decided first).
    """
    if state.pending > 0:
        return ContinuationDecision(decision=Decision.WAIT_FOR_CALLBACKS, reason="pending")
    if state.provider_rejected:
        return _failure("provider_rejected")
    denominator = completion_denominator(state)
    budget_spent = state.callbacks >= denominator
    small_net_cap = (
        is_small_net(state.node_count, settings)
        and state.unique_coverage_complete
        and state.resampling_passes >= settings.max_resampling_passes_for_small_net
    )
    guard_met = success_guard_met(state, settings)
    if state.cost_spent and state.judged == 0:
        return _failure("cost_spent")
    if not guard_met and (budget_spent or state.cost_spent or small_net_cap or single_wave):
        return _failure("low_success_rate")
    if guard_met and not state.wave_cut_by_budget and not state.cost_spent:
        stable = (
            state.callbacks >= settings.min_comparisons_for_stability_check
            and state.max_score_change is not None
            and state.max_score_change <= settings.score_stability_threshold
        )
        reason = precise if settings.stop_rule is StopRule.PRECISION else "stable" if stable else None
        if reason is not None:
            return _scoring(reason, BatchStatus.COMPLETE_STABLE)
    if budget_spent:
        return _scoring("budget_spent", BatchStatus.COMPLETE_MAX_COMPARISONS)
    if state.cost_spent:
        return _scoring("cost_spent", BatchStatus.COMPLETE_MAX_COMPARISONS)
    if small_net_cap:
        return _scoring("small_net_cap", BatchStatus.COMPLETE_SMALL_NET)
    if single_wave:
        return _scoring("single_wave", BatchStatus.COMPLETE_MAX_COMPARISONS)
    mode = PairMode.RESAMPLING if state.unique_coverage_complete else PairMode.COVERAGE
    return ContinuationDecision(decision=Decision.REQUEST_MORE_COMPARISONS, reason=mode.value, next_mode=mode)


def decide_silent(state: BatchState, settings: StoppingSettings) -> ContinuationDecision:
    """What becomes of a batch that stayed silent past its timeout: recovered with what it has, or failed.

    Recovered only with at least 80 % of the budget's comparisons having an outcome and the success guard met; a
    batch without a valid budget counts as 0 % and fails with that reason.
    """
    try:
        progress = state.callbacks / completion_denominator(state)
    except MissingBudgetError:
        return _failure("missing_budget")
    if progress < MONITOR_MIN_PROGRESS:
        return _failure("timeout_incomplete")
    if not success_guard_met(state, settings):
        return _failure("timeout_low_success_rate")
    return _scoring("timeout_recovered", BatchStatus.COMPLETE_FORCED_RECOVERY)


def _failure(reason: str) -> ContinuationDecision:
    return ContinuationDecision(decision=Decision.FINALIZE_FAILURE, reason=reason, status=BatchStatus.FAILED)


def _scoring(reason: str, status: BatchStatus) -> ContinuationDecision:
    return ContinuationDecision(decision=Decision.FINALIZE_SCORING, reason=reason, status=status)
