"""A night is submitted once, with a budget and limits from the settings, and never beyond the month's ceiling."""

from datetime import UTC, date, datetime

import pytest

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import BatchKind, BatchStatus
from cj_pipeline.eng5.nightly import month_spending, night_configuration, night_request, submit_night
from cj_pipeline.ledger import UnknownAssignmentError
from cj_pipeline.workflow.calibration import configuration_of, night_of
from cj_pipeline.workflow.registration import register_assignment
from cj_pipeline_tests.builders import acquire, judged, start, update_batch, wave_plan
from cj_pipeline_tests.workflow.scenes import advance, assignment_request, settings

pytestmark = pytest.mark.parametrize("database", ["sqlite"])

NIGHT = datetime(2026, 3, 20, 3, 0, tzinfo=UTC)
REAL = "anthropic/claude-haiku-4-5"


def configured(**changes):
    return settings(
        **{"calibration_assignment": "letters", "calibration_judge": "cj-generic", "calibration_max_comparisons": 30}
        | changes
    )


@pytest.fixture
def letters(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    return ledger


def spend(ledger, batch_id, *, when, usd=None, limit=None, status=None):
    """A calibration batch of another day that has cost something: one call, unfinished unless a status is given."""
    submit_night(ledger, configured(), when, batch_id=batch_id)
    nodes = [essay.essay_id for essay in ledger.essays(batch_id)]
    if usd is not None:
        with acquire(ledger, batch_id) as lease:
            lease.plan_wave(wave_plan(pairs=[(nodes[0], nodes[1])]))
            (attempt,) = lease.record([start("w00001-c00001", upper_bound_usd=usd)])
            lease.record([judged(attempt, "w00001-c00001", cost_usd=usd)])
    stored = {**ledger.batch(batch_id).settings, "max_cost_usd": limit}
    changes = {} if status is None else {"status": status, "stop_reason": "budget_spent"}
    update_batch(ledger, batch_id, created_at=when, settings=stored, **changes)


def test_a_night_is_a_calibration_batch_of_the_anchors_named_after_its_date(letters):
    done = submit_night(letters, configured(), NIGHT)
    batch = letters.batch("eng5-calibration-20260320")
    assert done.batch_id == batch.batch_id
    assert (batch.kind, batch.assignment_id, batch.total_budget) == (BatchKind.CALIBRATION, "letters", 30)
    assert all(essay.is_anchor for essay in letters.essays(batch.batch_id))
    assert night_of(batch) == date(2026, 3, 20)


def test_the_night_of_a_moment_is_its_day_in_utc(letters):
    # half past one in Stockholm is still the day before
    moment = datetime.fromisoformat("2026-03-21T00:30:00+01:00")
    assert submit_night(letters, configured(), moment).batch_id == "eng5-calibration-20260320"


def test_submitting_a_night_again_changes_nothing_also_once_the_ceiling_is_reached(letters):
    first = submit_night(letters, configured(), NIGHT)
    spend(letters, "other", when=NIGHT, usd=50.0, status=BatchStatus.COMPLETE_MAX_COMPARISONS.value)
    again = submit_night(letters, configured(), NIGHT)
    assert (first.submission.created, again.submission.created) == (True, False)
    assert again.skipped is None
    assert len(letters.batches()) == 2


def test_a_night_uses_its_whole_budget(letters):
    submit_night(letters, configured(score_stability_threshold=100.0, stop_rule="precision"), NIGHT)
    done = advance(letters, "eng5-calibration-20260320")
    assert done.stop_reason == "budget_spent"
    assert letters.state(done.batch_id).judged == 30


def test_nights_differ_in_their_pairs(letters):
    pairs = []
    for day in (20, 21):
        batch_id = submit_night(letters, configured(), NIGHT.replace(day=day)).batch_id
        advance(letters, batch_id)
        pairs.append([(c.essay_a.split("_")[1], c.essay_b.split("_")[1]) for c in letters.comparisons(batch_id)])
    assert pairs[0] != pairs[1]


def test_the_configuration_of_the_history_is_that_of_the_nights(letters):
    stated = configured(calibration_output_verbosity="low", reasoning_effort="medium")
    submit_night(letters, stated, NIGHT)
    batch = letters.batch("eng5-calibration-20260320")
    assert night_configuration(letters, stated) == configuration_of(letters, batch)
    assert night_configuration(letters, configured()) != configuration_of(letters, batch)


def test_a_real_judge_is_limited_in_cost_and_a_simulated_one_needs_no_limit(database):
    assert night_request(configured(calibration_judge=REAL), date(2026, 3, 20)).overrides.max_cost_usd == 2.0
    assert night_request(configured(), date(2026, 3, 20)).overrides.max_cost_usd is None


def test_the_month_counts_what_finished_batches_cost_and_what_open_ones_may_still_cost(letters):
    spend(letters, "done", when=NIGHT.replace(day=2), usd=1.25, limit=9.0, status="COMPLETE_MAX_COMPARISONS")
    spend(letters, "open", when=NIGHT.replace(day=3), usd=0.5, limit=2.0)
    spend(letters, "february", when=datetime(2026, 2, 28, 23, 59, tzinfo=UTC), usd=7.0, status="FAILED")
    spending = month_spending(letters, configured(calibration_judge=REAL), NIGHT)
    assert (spending.month, spending.committed_usd, spending.tonight_usd) == ("2026-03", 3.25, 2.0)


@pytest.mark.parametrize(("ceiling", "runs"), [(3.25, True), (3.24, False)])
def test_a_night_that_could_exceed_the_months_ceiling_is_skipped_with_the_figures(letters, monkeypatch, ceiling, runs):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    spend(letters, "done", when=NIGHT.replace(day=2), usd=1.25, status="COMPLETE_MAX_COMPARISONS")
    done = submit_night(letters, configured(calibration_judge=REAL, calibration_month_usd=ceiling), NIGHT)
    assert (done.submission is not None) == runs
    if not runs:
        assert "up to 1.25 US dollars in 2026-03" in done.skipped
        assert "tonight's could cost 2.00" in done.skipped
        assert "3.24 (CJ_CALIBRATION_MONTH_USD)" in done.skipped
        assert [batch.batch_id for batch in letters.batches()] == ["done"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"calibration_assignment": "unknown"}, UnknownAssignmentError, "unknown"),
        ({"calibration_judge": "nobody"}, RequestError, "no judge is called 'nobody'"),
        ({"calibration_judge": REAL, "calibration_max_cost_usd": None}, InputError, "CJ_CALIBRATION_MAX_COST_USD"),
        ({"calibration_max_comparisons": 2000}, RequestError, "CJ_MAX_PAIRWISE_COMPARISONS"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_words_and_nothing_is_stored(letters, changes, error, message):
    with pytest.raises(error, match=message):
        submit_night(letters, configured(**changes), NIGHT)
    assert letters.batches() == []


def test_an_assignment_with_too_few_anchors_is_refused(ledger):
    register_assignment(ledger, assignment_request(anchors=2))
    with pytest.raises(InputError, match="has 2 anchors, and calibration needs 3"):
        submit_night(ledger, configured(), NIGHT)
