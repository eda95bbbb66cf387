"""Batches that are judged and scored with an anchor bank, on a real ledger."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from cj_pipeline.core.anchor_bank import AnchorBank
from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import RequestError
from cj_pipeline.core.grades import project_scored
from cj_pipeline.core.models import BatchKind, BatchStatus, PairDesign
from cj_pipeline.core.score_prior import known_items
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline.settings import BatchOverrides, BatchTunables
from cj_pipeline.workflow.calibration import anchor_bank, calibration_nights, configuration_of, known_anchors
from cj_pipeline.workflow.diagnosis import diagnose
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.registration import register_assignment, scale_of, submit_batch
from cj_pipeline.workflow.results import collect_results
from cj_pipeline_tests.workflow.scenes import advance, assignment_request, batch_request, settings, students

pytestmark = pytest.mark.parametrize("database", ["sqlite"])

REFS = [f"k{number:02d}" for number in range(1, 7)]


@pytest.fixture
def letters(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    return ledger


def judged_night(ledger, batch_id, *, seed):
    stated = BatchOverrides(max_comparisons=40, pair_generation_seed=seed, min_resampling_net_size=0)
    submit_batch(
        ledger,
        settings(),
        batch_request(batch_id, kind=BatchKind.CALIBRATION, judge="cj-generic", students=(), overrides=stated),
    )
    advance(ledger, batch_id)


def exam(batch_id="exam", **changes):
    overrides = BatchOverrides(max_comparisons=60, pair_design="calibrated", score_stability_threshold=0.0)
    fields = {"judge": "cj-generic", "overrides": overrides, "students": students(6), **changes}
    return batch_request(batch_id, **fields)


@pytest.fixture
def judged_exam(letters):
    for seed in (1, 2):
        judged_night(letters, f"night-{seed}", seed=seed)
    submit_batch(letters, settings(), exam())
    assert advance(letters, "exam").status is BatchStatus.COMPLETE_MAX_COMPARISONS
    return letters


def test_without_a_night_a_batch_that_needs_the_bank_is_refused_with_how_to_get_one(letters):
    with pytest.raises(RequestError, match=r"pair_design is calibrated: .*no finished calibration night.*adaptive"):
        submit_batch(letters, settings(), exam())
    assert letters.batches() == []


def test_a_batch_takes_along_the_bank_of_the_nights_before_it_and_keeps_it(judged_exam):
    ledger = judged_exam
    bank = AnchorBank.model_validate(ledger.batch("exam").anchor_bank)
    assert bank.nights == ("night-1", "night-2")
    configuration = configuration_of(ledger, ledger.batch("exam"))
    assert bank == anchor_bank(calibration_nights(ledger, "letters", configuration))
    judged_night(ledger, "night-3", seed=3)
    assert not submit_batch(ledger, settings(), exam()).created, "the same request, whatever nights came since"
    assert AnchorBank.model_validate(ledger.batch("exam").anchor_bank) == bank


def test_its_scores_are_those_of_a_fit_with_the_bank_as_prior(judged_exam):
    ledger = judged_exam
    bank = AnchorBank.model_validate(ledger.batch("exam").anchor_bank)
    ids = sorted(essay.essay_id for essay in ledger.essays("exam"))
    nodes = [anchor_node_id("exam", ref) for ref in REFS]
    assert list(bank.anchors) == REFS
    mean = np.array(bank.positions)
    covariance = np.array(bank.covariance) + bank.night_variance * np.eye(6)
    covariance += 0.1**2 * np.outer(mean - mean.mean(), mean - mean.mean())
    judged = ledger.comparison_records("exam")
    winners = [ids.index(row.essay_a if row.winner == "a" else row.essay_b) for row in judged]
    losers = [ids.index(row.essay_b if row.winner == "a" else row.essay_a) for row in judged]
    known = known_items([ids.index(node) for node in nodes], mean, covariance, len(ids))
    fit = fit_bradley_terry(
        np.array(winners), np.array(losers), len(ids), winner_first=[row.winner == "a" for row in judged], known=known
    )
    alone = fit_bradley_terry(
        np.array(winners), np.array(losers), len(ids), winner_first=[row.winner == "a" for row in judged]
    )
    published = collect_results(ledger, "exam")["bt_scores"]
    scores = dict(published.select("essay_id", "score").iter_rows())
    assert np.allclose([scores[name] for name in ids], fit.scores, atol=1e-9)
    assert np.abs(fit.scores - alone.scores).max() > 0.1, "the bank says something"
    assert ledger.waves("exam")[-1].scores == pytest.approx(scores)
    assert published["se_uncapped"].to_list() == pytest.approx(
        [fit.standard_errors()[ids.index(name)] for name in published["essay_id"]]
    )


def test_its_pairs_place_students_among_the_anchors(judged_exam):
    kinds = Counter(
        row.essay_a.startswith("ANCHOR_") + row.essay_b.startswith("ANCHOR_")
        for row in judged_exam.comparison_records("exam")
    )
    assert kinds[2] == 0, "where anchors stand to each other is known"
    assert kinds[1] > kinds[0]
    projected = collect_results(judged_exam, "exam")["grade_projections"]
    assert projected["available"].all()


def test_its_published_grades_are_those_the_stop_rule_reads(judged_exam):
    ledger = judged_exam
    batch = ledger.batch("exam")
    essays = ledger.essays("exam")
    ids = [essay.essay_id for essay in essays]
    scored = compute_bt_scores_and_se(
        ledger.comparisons("exam"), ids, BatchTunables.model_validate(batch.settings), known=known_anchors(batch, ids)
    )
    grades = {essay.essay_id: essay.known_grade for essay in essays if essay.is_anchor}
    expected = project_scored(scale_of(ledger, batch), scored, grades)
    published = collect_results(ledger, "exam")["grade_projections"]
    for projection in expected.projections:
        row = published.row(by_predicate=pl.col("essay_id") == projection.essay_id, named=True)
        found = {item["grade"]: item["probability"] for item in row["probabilities"]}
        assert found == pytest.approx(projection.probabilities, abs=1e-6)


def test_a_diagnosis_holds_the_anchors_against_the_bank_by_the_batch_s_own_judgments(judged_exam):
    found = diagnose(judged_exam, "exam", replications=20, draws=50)
    assert [row["anchor"] for row in found.drift] == REFS
    for row in found.drift:
        assert row["detectable"] == pytest.approx(2.8016 * row["se"], rel=1e-4)
        assert abs(row["z"]) < 4.5  # the same judge judged the nights
    assert any("night-1, night-2" in note for note in found.notes)


@pytest.mark.parametrize("kind", [BatchKind.CALIBRATION, BatchKind.ANCHOR_ALIGN])
def test_where_everything_is_calibrated_batches_without_a_bank_are_judged_by_the_default_design(letters, kind):
    changes = {
        BatchKind.CALIBRATION: {"students": ()},
        BatchKind.ANCHOR_ALIGN: {"assignment_id": None, "students": students(6)},
    }[kind]
    request = batch_request("b", kind=kind, judge="cj-generic", **changes)
    submit_batch(letters, settings(pair_design=PairDesign.CALIBRATED), request)
    batch = letters.batch("b")
    assert batch.settings["pair_design"] == "adaptive" and batch.anchor_bank is None
    stated = batch_request(
        "c", kind=kind, judge="cj-generic", overrides=BatchOverrides(pair_design="calibrated"), **changes
    )
    with pytest.raises(RequestError, match=f"kind {kind.value} is judged without an anchor bank"):
        submit_batch(letters, settings(), stated)


def test_a_night_of_another_judge_is_no_night_of_this_one(letters):
    judged_night(letters, "night-1", seed=1)
    with pytest.raises(RequestError, match=r"night-1: its judge's profile is 'cj-generic', not 'eng5-anchor'"):
        submit_batch(letters, settings(), exam(judge="eng5-anchor"))


def test_an_anchor_that_the_bank_has_placed_carries_its_grade_without_a_judgment(letters):
    judged_night(letters, "night-1", seed=1)
    few = BatchOverrides(max_comparisons=9, pair_design="calibrated", min_resampling_net_size=0)
    submit_batch(letters, settings(), exam(overrides=few, students=students(3)))
    advance(letters, "exam")
    found = collect_results(letters, "exam")
    scores = found["bt_scores"]
    unjudged = scores.filter(scores["is_anchor"] & (scores["comparisons"] == 0))
    assert unjudged.height > 0
    judged = scores.filter(scores["comparisons"] > 0)
    assert set(unjudged["component"]) <= set(judged["component"])
    assert found["anchor_report"].height == len(REFS)
    assert found["grade_projections"].filter(~scores["is_anchor"])["available"].all()
