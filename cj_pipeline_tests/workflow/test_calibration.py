"""Nights come out of a real ledger: which batches are nights, what each says, why others are not, and the bank."""

from dataclasses import replace
from datetime import UTC, date, datetime

import numpy as np
import pytest

from cj_pipeline.core.anchor_bank import night_scores
from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import BatchKind, Winner
from cj_pipeline.settings import BatchOverrides, BatchTunables
from cj_pipeline.workflow.calibration import (
    anchor_bank,
    assignment_configuration,
    calibration_batches,
    calibration_nights,
    configuration_of,
    night_id,
    night_of,
)
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.registration import register_assignment, submit_batch
from cj_pipeline_tests.builders import update_batch
from cj_pipeline_tests.workflow.scenes import advance, assignment_request, batch_request, settings

pytestmark = pytest.mark.parametrize("database", ["sqlite"])


def submit_night(ledger, batch_id, *, judge="cj-generic", seed=1, **overrides):
    stated = {
        "max_comparisons": 40,
        "min_comparisons_for_stability_check": 1000,
        "min_resampling_net_size": 0,
        "comparisons_per_stability_check_iteration": 20,
        "pair_generation_seed": seed,
        **overrides,
    }
    request = batch_request(
        batch_id, kind=BatchKind.CALIBRATION, judge=judge, students=(), overrides=BatchOverrides(**stated)
    )
    submit_batch(ledger, settings(), request)


def judged_night(ledger, batch_id, **changes):
    submit_night(ledger, batch_id, **changes)
    advance(ledger, batch_id)


def nights_like(ledger, batch_id):
    return calibration_nights(ledger, "letters", configuration_of(ledger, ledger.batch(batch_id)))


def why_left_out(ledger, batch_id, *, like):
    return next(one.reason for one in nights_like(ledger, like).left_out if one.batch_id == batch_id)


@pytest.fixture
def letters(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    return ledger


def test_finished_calibration_batches_are_nights_in_the_order_of_their_dates(letters):
    judged_night(letters, night_id(date(2026, 3, 2)), seed=2)
    judged_night(letters, night_id(date(2026, 3, 1)), seed=3)
    submit_batch(letters, settings(), batch_request("exam"))
    found = nights_like(letters, night_id(date(2026, 3, 1)))
    assert [night.date for night in found.nights] == [date(2026, 3, 1), date(2026, 3, 2)]
    assert found.left_out == ()
    assert [batch.batch_id for batch in calibration_batches(letters)] == [n.batch.batch_id for n in found.nights]
    assert found.nights[0].grades["k06"] == "B"


def test_a_night_says_what_a_fit_of_its_recorded_judgments_says(letters):
    judged_night(letters, "n")
    (night,) = nights_like(letters, "n").nights
    judged = [row for row in letters.comparison_records("n") if row.winner is not None]
    names = sorted({row.essay_a for row in judged} | {row.essay_b for row in judged})
    first = [row.winner == Winner.A.value for row in judged]
    fit = fit_bradley_terry(
        [names.index(row.essay_a if a else row.essay_b) for row, a in zip(judged, first, strict=True)],
        [names.index(row.essay_b if a else row.essay_a) for row, a in zip(judged, first, strict=True)],
        len(names),
        winner_first=first,
    )
    refs = {f"k{i:02d}": names.index(anchor_node_id("n", f"k{i:02d}")) for i in range(1, 7)}
    expected = night_scores("n", refs, fit)
    assert night.scores.anchors == expected.anchors == tuple(sorted(refs))
    np.testing.assert_allclose(night.scores.scores, expected.scores, atol=1e-9)
    np.testing.assert_allclose(night.scores.covariance, expected.covariance, atol=1e-9)


def test_the_bank_is_of_all_nights_but_the_one_that_is_held_against_it(letters):
    for number in (1, 2, 3):
        judged_night(letters, f"n{number}", seed=number)
    nights = nights_like(letters, "n1")
    assert anchor_bank(nights).nights == ("n1", "n2", "n3")
    without = anchor_bank(nights, without="n2")
    assert without.nights == ("n1", "n3")
    assert without.known_items({"k01": 0, "k02": 1}, 2, batch="n2").mean.size == 2
    with pytest.raises(InputError, match="would count twice"):
        without.known_items({"k01": 0, "k02": 1}, 2, batch="n3")


def test_nights_of_one_judge_draw_their_own_answers(letters):
    for number in (1, 2):
        judged_night(letters, f"n{number}", seed=number)
    first, second = nights_like(letters, "n1").nights
    assert not np.allclose(first.scores.scores, second.scores.scores)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"judge": "eng5-anchor"}, "judge's profile is 'eng5-anchor', not 'cj-generic'"),
        ({"reasoning_effort": "high"}, "reasoning_effort is 'high', not None"),
        ({"judge_rubric": "Handwriting."}, "read other prompts"),
    ],
)
def test_a_night_of_another_judge_or_of_other_prompts_is_left_out_with_the_reason(letters, changes, reason):
    judged_night(letters, "n1")
    judged_night(letters, "other", **changes)
    assert reason in why_left_out(letters, "other", like="n1")
    assert [night.batch.batch_id for night in nights_like(letters, "other").nights] == ["other"]


def test_unfinished_and_failed_nights_are_left_out_with_the_reason(letters):
    judged_night(letters, "n1")
    submit_night(letters, "open")
    submit_night(letters, "failed")
    update_batch(letters, "failed", status="FAILED", stop_reason="provider_rejected")
    assert why_left_out(letters, "open", like="n1") == "it is not finished: SUBMITTED"
    assert why_left_out(letters, "failed", like="n1") == "it ended without a scale: FAILED (provider_rejected)"


def test_nights_before_the_first_that_counts_are_left_out_with_the_reason(letters):
    for day in (1, 2):
        judged_night(letters, night_id(date(2026, 3, day)), seed=day)
    configuration = configuration_of(letters, letters.batch(night_id(date(2026, 3, 1))))
    found = calibration_nights(letters, "letters", configuration, since=date(2026, 3, 2))
    assert [night.date for night in found.nights] == [date(2026, 3, 2)]
    assert [one.date for one in found.left_out] == [date(2026, 3, 1)]
    assert "before 2026-03-02, the first night that counts (CJ_CALIBRATION_FROM)" in found.left_out[0].reason


def test_a_night_that_left_an_anchor_without_a_judgment_is_left_out_with_its_name(letters):
    judged_night(letters, "n1")
    judged_night(letters, "few", max_comparisons=2)
    assert "no judgment links anchors k0" in why_left_out(letters, "few", like="n1")


def rewrite(ledger, *refs):
    """Register the assignment again, some of its anchors with another text."""
    request = assignment_request(anchors=6)
    anchors = tuple(
        replace(anchor, text=f"The quokka rewrote {anchor.anchor_ref}.") if anchor.anchor_ref in refs else anchor
        for anchor in request.anchors
    )
    register_assignment(ledger, replace(request, anchors=anchors), replace=True)


def test_an_anchor_whose_text_has_changed_is_left_out_of_older_nights(letters):
    judged_night(letters, "old")
    rewrite(letters, "k03")
    judged_night(letters, "young", seed=2)
    found = nights_like(letters, "young")
    assert [night.scores.anchors for night in found.nights] == [
        ("k01", "k02", "k04", "k05", "k06"),
        ("k01", "k02", "k03", "k04", "k05", "k06"),
    ]
    assert set(anchor_bank(found).anchors) == {f"k{i:02d}" for i in range(1, 7)}


def test_a_night_that_shares_too_few_anchors_is_left_out_and_names_those_that_changed(letters):
    judged_night(letters, "old")
    rewrite(letters, "k01", "k02", "k03", "k04")
    judged_night(letters, "young")
    reason = why_left_out(letters, "old", like="young")
    assert "shares 2 anchors" in reason
    assert "k01, k02, k03, k04" in reason


def test_without_a_night_there_is_no_bank_and_the_message_says_what_was_left_out(letters):
    submit_night(letters, "open")
    with pytest.raises(InputError, match=r"no finished calibration night.*cj eng5 calibrate.*open: it is not finished"):
        anchor_bank(nights_like(letters, "open"))
    judged_night(letters, "n1")
    with pytest.raises(InputError, match="night beside n1"):
        anchor_bank(nights_like(letters, "n1"), without="n1")


def test_the_configuration_of_a_batch_to_come_is_that_of_the_batch_once_it_is_submitted(letters):
    overrides = BatchOverrides(output_verbosity="low", judge_rubric="Content only.")
    submit_night(letters, "n", **overrides.stated())
    batch = letters.batch("n")
    planned = assignment_configuration(
        letters.assignment("letters"),
        BatchTunables(output_verbosity="low", judge_rubric="Content only."),
        profile=batch.judge_profile,
        provider=batch.provider,
        model=batch.model,
    )
    assert planned == configuration_of(letters, batch)


def test_a_night_is_dated_by_its_id_and_any_other_batch_by_its_submission(letters):
    submit_night(letters, "eng5-calibration-20260301")
    submit_night(letters, "eng5-calibration-20269999")
    submit_night(letters, "by-hand")
    moment = datetime(2026, 5, 17, 23, 30, tzinfo=UTC)
    for batch_id in ("eng5-calibration-20260301", "eng5-calibration-20269999", "by-hand"):
        update_batch(letters, batch_id, created_at=moment)
    dates = {batch.batch_id: night_of(batch) for batch in calibration_batches(letters, "letters")}
    assert dates == {
        "eng5-calibration-20260301": date(2026, 3, 1),
        "eng5-calibration-20269999": date(2026, 5, 17),
        "by-hand": date(2026, 5, 17),
    }
