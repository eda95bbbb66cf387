"""The rules that end a batch, each seen from both sides; the denominator; coverage."""

from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cj_pipeline.core.completion import (
    Decision,
    StoppingSettings,
    completion_denominator,
    coverage,
    decide,
    decide_silent,
    is_small_net,
)
from cj_pipeline.core.diagnostics import bt_quality_flags
from cj_pipeline.core.errors import CJError, MissingBudgetError
from cj_pipeline.core.models import BatchState, BatchStatus, Comparison, ComparisonStatus, PairMode, StopRule, Winner
from cj_pipeline.settings import BatchTunables

SETTINGS = BatchTunables(
    min_comparisons_for_stability_check=10,
    score_stability_threshold=0.05,
    min_success_rate_threshold=0.8,
    min_resampling_net_size=10,
    max_resampling_passes_for_small_net=2,
)

WAIT = (Decision.WAIT_FOR_CALLBACKS, "pending", None, None)
REJECTED = (Decision.FINALIZE_FAILURE, "provider_rejected", BatchStatus.FAILED, None)
LOW_RATE = (Decision.FINALIZE_FAILURE, "low_success_rate", BatchStatus.FAILED, None)
STABLE = (Decision.FINALIZE_SCORING, "stable", BatchStatus.COMPLETE_STABLE, None)
SPENT = (Decision.FINALIZE_SCORING, "budget_spent", BatchStatus.COMPLETE_MAX_COMPARISONS, None)
SMALL_NET = (Decision.FINALIZE_SCORING, "small_net_cap", BatchStatus.COMPLETE_SMALL_NET, None)
COVERAGE = (Decision.REQUEST_MORE_COMPARISONS, "coverage", None, PairMode.COVERAGE)
RESAMPLING = (Decision.REQUEST_MORE_COMPARISONS, "resampling", None, PairMode.RESAMPLING)


def batch_state(**changes):
    """12 essays, 20 of 40 comparisons judged, scores still moving, 20 of 66 pairs seen."""
    fields = {
        "batch_id": "b1",
        "node_count": 12,
        "total_budget": 40,
        "judged": 20,
        "failed": 0,
        "pending": 0,
        "max_possible_pairs": 66,
        "successful_pairs": 20,
        "resampling_passes": 0,
        "wave_cut_by_budget": False,
        "max_score_change": 0.5,
        "provider_rejected": False,
    } | changes
    return BatchState(submitted=fields["judged"] + fields["failed"] + fields["pending"], **fields)


def decided(state, settings=SETTINGS):
    found = decide(state, settings)
    return (found.decision, found.reason, found.status, found.next_mode)


# --- the rules -------------------------------------------------------------------------------------------------------

EVERYTHING_SAYS_STOP = {
    "judged": 40,
    "max_score_change": 0.0,
    "node_count": 9,
    "max_possible_pairs": 36,
    "successful_pairs": 36,
    "resampling_passes": 2,
}
SETTLED = {"max_score_change": 0.05}
SMALL = {"node_count": 9, "max_possible_pairs": 36, "successful_pairs": 36, "resampling_passes": 2, "total_budget": 100}

# (what the batch is like, the one thing that changes, what was decided before, what is decided after)
NEIGHBOURS = {
    # 1. pending → wait, whatever else is true
    "one pending outweighs a batch that would go on": ({}, {"pending": 1}, COVERAGE, WAIT),
    "one pending outweighs stability": (EVERYTHING_SAYS_STOP, {"pending": 1}, STABLE, WAIT),
    "one pending outweighs a refusal": ({"provider_rejected": True}, {"pending": 1}, REJECTED, WAIT),
    # 2. refused for good
    "a refusal outweighs the next wave": ({}, {"provider_rejected": True}, COVERAGE, REJECTED),
    "a refusal outweighs stability": (EVERYTHING_SAYS_STOP, {"provider_rejected": True}, STABLE, REJECTED),
    "a refusal outweighs a low success rate": (
        {"judged": 0, "failed": 40},
        {"provider_rejected": True},
        LOW_RATE,
        REJECTED,
    ),
    # 3. too few successes, and no way on
    "a rate at the threshold passes, one below fails": (
        {"judged": 32, "failed": 8},
        {"judged": 31, "failed": 9},
        SPENT,
        LOW_RATE,
    ),
    "a low rate fails only once the budget is spent": (
        {"judged": 20, "failed": 19},
        {"failed": 20},
        COVERAGE,
        LOW_RATE,
    ),
    "a low rate fails a small net at its cap with budget left": (
        {**SMALL, "judged": 40, "failed": 11, "resampling_passes": 1},
        {"resampling_passes": 2},
        RESAMPLING,
        LOW_RATE,
    ),
    "a low rate does not fail a larger net at those passes": (
        {**SMALL, "judged": 40, "failed": 11},
        {"node_count": 10},
        LOW_RATE,
        RESAMPLING,
    ),
    "a low rate does not fail a small net with a pair uncovered": (
        {**SMALL, "judged": 40, "failed": 11},
        {"successful_pairs": 35},
        LOW_RATE,
        COVERAGE,
    ),
    "a low rate keeps settled scores from being stable": (
        {**SETTLED, "judged": 16, "failed": 4},
        {"failed": 5},
        STABLE,
        COVERAGE,
    ),
    # 4. stable
    "a change at the threshold is stable, one above is not": (
        {"max_score_change": 0.0501},
        {"max_score_change": 0.05},
        COVERAGE,
        STABLE,
    ),
    "without a previous fit nothing is stable": (SETTLED, {"max_score_change": None}, STABLE, COVERAGE),
    "the minimum of outcomes is enough, one fewer is not": (
        {**SETTLED, "judged": 9},
        {"judged": 10},
        COVERAGE,
        STABLE,
    ),
    "failed comparisons count towards the minimum": ({**SETTLED, "judged": 9}, {"failed": 1}, COVERAGE, STABLE),
    "a wave cut short by the budget proves no stability": (SETTLED, {"wave_cut_by_budget": True}, STABLE, COVERAGE),
    "stability needs no coverage": ({**SETTLED, "successful_pairs": 66}, {"successful_pairs": 20}, STABLE, STABLE),
    "stability outweighs a spent budget": ({"judged": 40}, SETTLED, SPENT, STABLE),
    "stability outweighs the small-net cap": (SMALL, SETTLED, SMALL_NET, STABLE),
    # 5. budget spent
    "the last outcome of the budget ends the batch": ({"judged": 39}, {"judged": 40}, COVERAGE, SPENT),
    "a failed last outcome ends it too": ({"judged": 39}, {"failed": 1}, COVERAGE, SPENT),
    "a spent budget ends a cut wave with settled scores": (
        {**SETTLED, "wave_cut_by_budget": True, "judged": 39},
        {"judged": 40},
        COVERAGE,
        SPENT,
    ),
    "a spent budget outweighs the small-net cap": (
        {**SMALL, "judged": 40},
        {"total_budget": 40},
        SMALL_NET,
        SPENT,
    ),
    "full coverage is no reason to stop before the budget": (
        {"successful_pairs": 65, "judged": 39},
        {"successful_pairs": 66},
        COVERAGE,
        RESAMPLING,
    ),
    # 6. small net at its cap
    "the last pass of a small net ends it": (
        {**SMALL, "resampling_passes": 1},
        {"resampling_passes": 2},
        RESAMPLING,
        SMALL_NET,
    ),
    "one essay more is no small net": (SMALL, {"node_count": 10}, SMALL_NET, RESAMPLING),
    "a small net goes on while a pair is uncovered": (SMALL, {"successful_pairs": 35}, SMALL_NET, COVERAGE),
    # 7. and 8. more
    "the last uncovered pair keeps the batch in coverage": (
        {"successful_pairs": 65},
        {"successful_pairs": 66},
        COVERAGE,
        RESAMPLING,
    ),
    "a larger net resamples beyond any number of passes": (
        {"successful_pairs": 66},
        {"resampling_passes": 50},
        RESAMPLING,
        RESAMPLING,
    ),
}


@pytest.mark.parametrize(("base", "change", "before", "after"), NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_a_rule_decides_from_the_point_where_it_applies(base, change, before, after):
    assert decided(batch_state(**base)) == before
    assert decided(batch_state(**(base | change))) == after


def test_no_success_at_all_fails_even_if_the_threshold_is_zero():
    lenient = SETTINGS.model_copy(update={"min_success_rate_threshold": 0.0})
    assert decided(batch_state(judged=1, failed=39), lenient) == SPENT
    assert decided(batch_state(judged=0, failed=40), lenient) == LOW_RATE


def test_a_batch_without_any_outcome_asks_for_its_first_wave():
    assert decided(batch_state(judged=0, successful_pairs=0, max_score_change=None)) == COVERAGE


def test_a_small_net_without_resampling_passes_stops_as_soon_as_it_is_covered():
    none = SETTINGS.model_copy(update={"max_resampling_passes_for_small_net": 0})
    state = batch_state(**(SMALL | {"resampling_passes": 0}))
    assert decided(state) == RESAMPLING
    assert decided(state, none) == SMALL_NET


def test_a_final_decision_has_a_final_status_and_only_a_request_has_a_mode():
    for base, change, _before, _after in NEIGHBOURS.values():
        found = decide(batch_state(**(base | change)), SETTINGS)
        finalising = found.decision in (Decision.FINALIZE_SCORING, Decision.FINALIZE_FAILURE)
        assert found.is_final == finalising
        assert found.status is None or found.status.is_final
        assert (found.next_mode is not None) == (found.decision is Decision.REQUEST_MORE_COMPARISONS)


def test_the_small_net_size_is_a_strict_bound():
    assert is_small_net(9, SETTINGS)
    assert not is_small_net(10, SETTINGS)


# --- recipes by settings alone ---------------------------------------------------------------------------------------


def test_a_minimum_above_the_budget_spends_the_full_budget():
    full = SETTINGS.model_copy(update={"min_comparisons_for_stability_check": 41})
    for judged in range(1, 40):
        settled = batch_state(judged=judged, max_score_change=0.0, successful_pairs=66)
        assert decide(settled, full).decision is Decision.REQUEST_MORE_COMPARISONS
    assert decided(batch_state(judged=40, max_score_change=0.0), full) == SPENT


def test_a_wave_as_large_as_the_budget_makes_one_wave():
    one_wave = batch_state(judged=40, max_score_change=None)
    assert decided(one_wave) == SPENT


# --- the denominator -------------------------------------------------------------------------------------------------


def test_the_denominator_is_the_budget_whatever_the_pairs_and_counts():
    assert completion_denominator(batch_state(total_budget=40)) == 40
    assert completion_denominator(batch_state(total_budget=1000, node_count=3, max_possible_pairs=3)) == 1000
    assert completion_denominator(batch_state(total_budget=1, judged=500)) == 1


@pytest.mark.parametrize("budget", [None, 0, -1])
def test_a_missing_budget_is_an_error_and_nothing_stands_in_for_it(budget):
    defective = batch_state(total_budget=budget, judged=66, successful_pairs=66, max_score_change=0.0)
    with pytest.raises(MissingBudgetError, match=r"batch b1: total_budget is .*submit the batch again") as caught:
        completion_denominator(defective)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, CJError)
    with pytest.raises(MissingBudgetError):
        decide(defective, SETTINGS)


def test_waiting_and_refusals_need_no_budget():
    assert decided(batch_state(total_budget=None, pending=1)) == WAIT
    assert decided(batch_state(total_budget=None, provider_rejected=True)) == REJECTED


def test_progress_counts_outcomes_against_the_budget_and_never_against_the_pairs():
    three_essays = {"node_count": 3, "max_possible_pairs": 3, "successful_pairs": 3, "judged": 3, "total_budget": 10}
    assert decided(batch_state(**three_essays)) == RESAMPLING


# --- coverage --------------------------------------------------------------------------------------------------------


def compared(essay_a, essay_b, status=ComparisonStatus.JUDGED, number=1):
    return Comparison(
        comparison_id=f"w00001-c{number:05d}",
        wave=1,
        essay_a=essay_a,
        essay_b=essay_b,
        pair_mode=PairMode.COVERAGE,
        status=status,
        winner=Winner.A if status is ComparisonStatus.JUDGED else None,
    )


def covered(*comparisons, essays=("x", "y", "z")):
    return coverage(essays, comparisons, []).successful_pairs_count


def test_all_unordered_pairs_are_possible():
    assert [coverage([f"e{i}" for i in range(n)], [], []).max_possible_pairs for n in (0, 1, 2, 5)] == [0, 0, 1, 10]


@pytest.mark.parametrize("status", [ComparisonStatus.FAILED, ComparisonStatus.PLANNED, ComparisonStatus.WITHDRAWN])
def test_a_pair_without_a_judged_comparison_is_uncovered(status):
    assert covered(compared("x", "y", status)) == 0
    assert covered(compared("x", "y")) == 1


def test_a_pair_that_failed_and_was_judged_later_is_covered():
    assert covered(compared("x", "y", ComparisonStatus.FAILED), compared("x", "y", number=2)) == 1


def test_a_pair_judged_first_stays_covered_when_it_fails_later():
    assert covered(compared("x", "y"), compared("y", "x", ComparisonStatus.FAILED, number=2)) == 1


def test_a_pair_judged_in_both_orders_is_covered_once():
    assert covered(compared("x", "y"), compared("y", "x", number=2), compared("x", "y", number=3)) == 1


def test_essays_that_are_no_nodes_cover_nothing():
    assert covered(compared("x", "stranger")) == 0


def test_coverage_is_complete_with_the_last_pair_and_not_before():
    two, three = [compared("x", "y"), compared("z", "y")], [compared("x", "y"), compared("z", "y"), compared("z", "x")]
    assert not coverage("xyz", two, []).unique_coverage_complete
    assert coverage("xyz", three, []).unique_coverage_complete


def test_a_single_essay_is_never_covered():
    assert not coverage(["x"], [], []).unique_coverage_complete


def test_each_resampling_wave_is_one_pass():
    modes = [PairMode.COVERAGE, PairMode.RESAMPLING, PairMode.COVERAGE, PairMode.RESAMPLING]
    assert coverage("xyz", [], modes).resampling_pass_count == 2
    assert coverage("xyz", [], []).resampling_pass_count == 0


# --- silent batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason", "status"),
    [
        ({"judged": 32}, "timeout_recovered", BatchStatus.COMPLETE_FORCED_RECOVERY),
        ({"judged": 31}, "timeout_incomplete", BatchStatus.FAILED),
        ({"judged": 26, "failed": 6}, "timeout_recovered", BatchStatus.COMPLETE_FORCED_RECOVERY),
        ({"judged": 25, "failed": 7}, "timeout_low_success_rate", BatchStatus.FAILED),
        ({"judged": 20, "failed": 11}, "timeout_incomplete", BatchStatus.FAILED),
        ({"judged": 0, "failed": 40}, "timeout_low_success_rate", BatchStatus.FAILED),
        ({"judged": 31, "pending": 9}, "timeout_incomplete", BatchStatus.FAILED),
        ({"judged": 32, "pending": 8}, "timeout_recovered", BatchStatus.COMPLETE_FORCED_RECOVERY),
        ({"judged": 66, "successful_pairs": 66, "total_budget": None}, "missing_budget", BatchStatus.FAILED),
        ({"judged": 66, "successful_pairs": 66, "total_budget": 0}, "missing_budget", BatchStatus.FAILED),
    ],
)
def test_a_silent_batch_is_recovered_at_80_percent_with_the_guard_met_and_else_failed(changes, reason, status):
    found = decide_silent(batch_state(**changes), SETTINGS)
    assert (found.reason, found.status) == (reason, status)
    assert found.decision is (
        Decision.FINALIZE_SCORING if status is not BatchStatus.FAILED else Decision.FINALIZE_FAILURE
    )


def test_full_coverage_does_not_recover_a_silent_batch_below_80_percent_of_its_budget():
    found = decide_silent(batch_state(judged=66, successful_pairs=66, total_budget=100), SETTINGS)
    assert found.reason == "timeout_incomplete"


# --- the stop rule `precision` ---------------------------------------------------------------------------------------

PRECISE = SETTINGS.model_copy(update={"stop_rule": StopRule.PRECISION})


def test_by_the_rule_precision_a_batch_ends_when_it_is_precise_and_not_when_it_is_stable():
    still = batch_state(max_score_change=0.0)
    assert decided(still) == STABLE
    assert decided(still, PRECISE) == COVERAGE
    for reason in ("precise", "precision_flat"):
        found = decide(batch_state(max_score_change=None), PRECISE, precise=reason)
        assert (found.reason, found.status) == (reason, BatchStatus.COMPLETE_STABLE)


def test_by_the_rule_stability_precision_ends_nothing():
    assert decide(batch_state(), SETTINGS, precise="precise").reason == "coverage"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"wave_cut_by_budget": True}, "coverage"),
        ({"judged": 12, "failed": 8}, "coverage"),  # below the success guard
        ({"provider_rejected": True}, "provider_rejected"),
        ({"pending": 1}, "pending"),
        ({"judged": 40, "wave_cut_by_budget": True}, "budget_spent"),
        ({"cost_spent": True}, "cost_spent"),
    ],
)
def test_precision_overrides_neither_guard_nor_budget_nor_what_is_pending(changes, expected):
    assert decide(batch_state(**changes), PRECISE, precise="precise").reason == expected


# --- what holds for every batch --------------------------------------------------------------------------------------

tunables = st.builds(
    BatchTunables,
    min_comparisons_for_stability_check=st.integers(1, 60),
    score_stability_threshold=st.sampled_from([0.0, 0.05, 1.0]),
    min_success_rate_threshold=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    min_resampling_net_size=st.integers(0, 15),
    max_resampling_passes_for_small_net=st.integers(0, 3),
)


@st.composite
def states(draw):
    nodes = draw(st.integers(2, 14))
    pairs = nodes * (nodes - 1) // 2
    judged = draw(st.integers(0, 60))
    return batch_state(
        node_count=nodes,
        total_budget=draw(st.integers(1, 60)),
        judged=judged,
        failed=draw(st.integers(0, 20)),
        pending=draw(st.sampled_from([0, 0, 0, 1, 7])),
        max_possible_pairs=pairs,
        successful_pairs=draw(st.one_of(st.integers(0, min(pairs, judged)), st.just(min(pairs, judged)))),
        resampling_passes=draw(st.integers(0, 4)),
        wave_cut_by_budget=draw(st.booleans()),
        max_score_change=draw(st.sampled_from([None, 0.0, 0.05, 0.2, 2.0])),
        provider_rejected=draw(st.sampled_from([False, False, False, True])),
    )


@given(states(), tunables)
def test_nothing_is_finalised_while_a_comparison_is_pending(state, settings):
    assume(state.pending > 0)
    assert decided(state, settings) == WAIT


@given(states(), tunables)
def test_nothing_more_is_asked_for_once_the_budget_is_spent(state, settings):
    assume(state.judged + state.failed >= state.total_budget)
    assert decide(state, settings).decision is not Decision.REQUEST_MORE_COMPARISONS


@given(states(), tunables)
def test_no_scoring_decision_gets_past_the_success_guard(state, settings):
    for found in (decide(state, settings), decide_silent(state, settings)):
        if found.decision is Decision.FINALIZE_SCORING:
            assert state.judged > 0
            assert state.judged >= settings.min_success_rate_threshold * (state.judged + state.failed)


@given(states(), tunables)
def test_a_decision_looks_at_the_six_stopping_settings_and_nothing_else(state, settings):
    names = StoppingSettings.__annotations__.keys()
    assert len(names) == 6
    only_those = SimpleNamespace(**{name: getattr(settings, name) for name in names})
    assert decide(state, only_those) == decide(state, settings)
    assert decide_silent(state, only_those) == decide_silent(state, settings)


def test_no_diagnostic_is_among_what_a_decision_sees():
    assert set(BatchState.model_fields) == {
        "batch_id",
        "node_count",
        "total_budget",
        "submitted",
        "judged",
        "failed",
        "pending",
        "max_possible_pairs",
        "successful_pairs",
        "resampling_passes",
        "wave_cut_by_budget",
        "max_score_change",
        "provider_rejected",
        "cost_spent",
    }


SUMMARY = {"all": {"mean_se": 0.5, "max_se": 1.0, "mean_comparisons_per_item": 2.0, "isolated_items": 1}}
FLAGS_ON = {
    "bt_mean_se_warn_threshold": 0.01,
    "bt_max_se_warn_threshold": 0.01,
    "bt_min_mean_comparisons_per_item": 100.0,
    "bt_max_isolated_items_tolerated": 0,
}
FLAGS_OFF = {
    "bt_mean_se_warn_threshold": 100.0,
    "bt_max_se_warn_threshold": 100.0,
    "bt_min_mean_comparisons_per_item": 0.0,
    "bt_max_isolated_items_tolerated": 100,
}


@given(states(), tunables)
def test_decisions_are_identical_with_all_quality_flags_forced_on_and_forced_off(state, settings):
    on, off = settings.model_copy(update=FLAGS_ON), settings.model_copy(update=FLAGS_OFF)
    assert all(bt_quality_flags(SUMMARY, on).values())
    assert not any(bt_quality_flags(SUMMARY, off).values())
    assert decide(state, on) == decide(state, off)
    assert decide_silent(state, on) == decide_silent(state, off)


# --- money, and one wave for everything ------------------------------------------------------------------------------


def test_money_that_is_spent_ends_a_batch_with_the_scale_that_it_bought():
    found = decide(batch_state(cost_spent=True), SETTINGS)
    assert (found.reason, found.status) == ("cost_spent", BatchStatus.COMPLETE_MAX_COMPARISONS)


def test_money_that_bought_nothing_fails_the_batch_with_that_reason():
    found = decide(batch_state(cost_spent=True, judged=0, max_score_change=None), SETTINGS)
    assert (found.reason, found.status) == ("cost_spent", BatchStatus.FAILED)


def test_money_that_bought_mostly_failures_fails_the_batch():
    found = decide(batch_state(cost_spent=True, judged=10, failed=10), SETTINGS)
    assert (found.reason, found.status) == ("low_success_rate", BatchStatus.FAILED)


def test_a_wave_that_was_cut_short_by_money_is_no_proof_of_stability():
    found = decide(batch_state(cost_spent=True, max_score_change=0.0), SETTINGS)
    assert found.reason == "cost_spent"


@given(judged=st.integers(0, 40), failed=st.integers(0, 40), small=st.booleans(), change=st.floats(0, 3))
def test_a_batch_planned_as_one_wave_always_ends_with_it(judged, failed, small, change):
    assume(judged + failed <= 40)
    shape = {"node_count": 9, "max_possible_pairs": 36, "successful_pairs": 30} if small else {}
    found = decide(
        batch_state(judged=judged, failed=failed, max_score_change=change, **shape), SETTINGS, single_wave=True
    )
    assert found.is_final
    guard = judged > 0 and judged / (judged + failed) >= SETTINGS.min_success_rate_threshold
    assert found.status.has_grades == guard


def test_one_wave_with_comparisons_pending_is_waited_for():
    assert decide(batch_state(pending=1), SETTINGS, single_wave=True).decision is Decision.WAIT_FOR_CALLBACKS


def test_one_wave_that_used_the_budget_says_so():
    assert decide(batch_state(judged=40), SETTINGS, single_wave=True).reason == "budget_spent"
    assert decide(batch_state(judged=39), SETTINGS, single_wave=True).reason == "single_wave"
