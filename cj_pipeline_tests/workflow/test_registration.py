"""Registering assignments and submitting batches: what is stored, under which ids, and every reason to refuse."""

import hashlib
import re
from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.grade_scale import parse_grade_scale
from cj_pipeline.core.models import BatchKind, EssayRole
from cj_pipeline.ledger import tables as t
from cj_pipeline.settings import BatchOverrides
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.intake import AnchorSubmission, EssaySubmission
from cj_pipeline.workflow.registration import (
    assignment_scale,
    code_version,
    register_assignment,
    submit_batch,
)
from cj_pipeline_tests.workflow.scenes import (
    GRADES,
    advance,
    anchor_text,
    assignment_request,
    batch_request,
    settings,
    student_text,
    students,
    submit,
    tell_secrets,
)

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


def rows_in(ledger) -> Counter:
    """How many rows there are in each table."""
    with ledger.engine.connect() as connection:
        return Counter(
            {
                table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in t.metadata.sorted_tables
            }
        )


def problems_of(ledger, request, **setting) -> list[str]:
    """The problems a request is refused for; nothing may have been stored and no essay quoted."""
    before = rows_in(ledger)
    with pytest.raises(RequestError) as caught:
        submit_batch(ledger, settings(**setting), request)
    assert rows_in(ledger) == before
    assert tell_secrets(str(caught.value)) == []
    return caught.value.problems


# --- a batch as submitted ------------------------------------------------------------------------------------------


def test_a_batch_holds_its_students_and_its_assignment_s_anchors_as_they_are_now(ledger):
    register_assignment(ledger, assignment_request())
    submission = submit_batch(ledger, settings(score_stability_threshold=0.5), batch_request())
    assert (submission.created, submission.students, submission.anchors) == (True, 12, 12)
    assert (submission.total_budget, submission.judge, submission.simulated) == (60, "cj-generic", True)

    essays = {essay.essay_id: essay for essay in ledger.essays("b")}
    texts = ledger.texts("b")
    assert len(essays) == 24
    for number, student in enumerate(students(12)):
        essay = essays.pop(student.essay_id)
        assert (essay.role, essay.known_grade, essay.quality) == (EssayRole.STUDENT, None, student.quality)
        assert texts[essay.essay_id] == student_text(number)
        assert essay.text_sha256 == hashlib.sha256(student_text(number).encode()).hexdigest()
        assert essay.word_count == len(student_text(number).split())
    for number in range(12):
        essay = essays.pop(anchor_node_id("b", f"k{number + 1:02d}"))
        grade = GRADES[number * 9 // 12]
        assert (essay.role, essay.known_grade, essay.quality) == (EssayRole.ANCHOR, grade, GRADES.index(grade))
        assert texts[essay.essay_id] == anchor_text(number)
    assert not essays

    batch = ledger.batch("b")
    assert batch.settings["score_stability_threshold"] == 0.5
    assert batch.overrides == {"max_comparisons": 60}
    assert (batch.provider, batch.model) == ("simulated", "simulated/cj-generic")
    assert batch.code_version == code_version() != "unknown"
    assert re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", batch.correlation_id)


def test_overrides_win_over_the_environment_and_stay_with_the_batch(ledger):
    register_assignment(ledger, assignment_request())
    overrides = BatchOverrides(max_comparisons=7, score_stability_threshold=0.25, judge_concurrency=2)
    request = batch_request(overrides=overrides)
    submit_batch(ledger, settings(score_stability_threshold=0.5, max_judgment_attempts=5), request)
    batch = ledger.batch("b")
    assert batch.total_budget == 7
    assert batch.settings["score_stability_threshold"] == 0.25
    assert batch.settings["judge_concurrency"] == 2
    assert batch.settings["max_judgment_attempts"] == 5
    assert "max_comparisons" not in batch.settings


@on_sqlite
def test_a_batch_that_names_no_budget_gets_the_cap(ledger):
    register_assignment(ledger, assignment_request())
    assert submit_batch(ledger, settings(), batch_request(overrides=BatchOverrides())).total_budget == 1000


def test_an_anchor_s_node_id_is_its_ref_and_eight_digits_of_a_hash_of_batch_and_ref():
    digits = hashlib.sha256(b"autumn-7\nk01").hexdigest()[:8]
    assert anchor_node_id("autumn-7", "k01") == f"ANCHOR_k01_{digits}"


@on_sqlite
def test_an_anchor_s_node_id_is_the_same_in_a_batch_and_another_in_the_next(ledger):
    found = {}
    for batch_id in ("b1", "b2"):
        for _again in range(2):
            submit(ledger, batch_id)
        found[batch_id] = {essay.essay_id for essay in ledger.essays(batch_id) if essay.is_anchor}
        assert found[batch_id] == {anchor_node_id(batch_id, f"k{number:02d}") for number in range(1, 13)}
        assert all(re.fullmatch(r"ANCHOR_k\d\d_[0-9a-f]{8}", node) for node in found[batch_id])
    assert not found["b1"] & found["b2"]


# --- kinds ---------------------------------------------------------------------------------------------------------


def test_a_batch_of_kind_anchor_align_judges_its_essays_as_students_without_an_assignment(ledger):
    request = batch_request(kind=BatchKind.ANCHOR_ALIGN, assignment_id=None)
    submission = submit_batch(ledger, settings(), request)
    assert (submission.students, submission.anchors) == (12, 0)
    assert {essay.role for essay in ledger.essays("b")} == {EssayRole.STUDENT}
    assert advance(ledger).status.has_grades
    assert ledger.state("b").judged > 0


def test_a_batch_of_kind_calibration_judges_the_anchors_only(ledger):
    register_assignment(ledger, assignment_request())
    submission = submit_batch(ledger, settings(), batch_request(kind=BatchKind.CALIBRATION, students=()))
    assert (submission.students, submission.anchors) == (0, 12)
    assert all(essay.is_anchor for essay in ledger.essays("b"))
    assert advance(ledger).status.has_grades
    assert ledger.state("b").judged > 0


@on_sqlite
def test_a_kind_says_which_essays_it_takes(ledger):
    register_assignment(ledger, assignment_request())
    [align] = problems_of(ledger, batch_request(kind=BatchKind.ANCHOR_ALIGN))
    assert "anchor_align has no assignment" in align
    [calibration] = problems_of(ledger, batch_request(kind=BatchKind.CALIBRATION))
    assert "calibration holds the assignment's anchors only" in calibration
    [assessment] = problems_of(ledger, batch_request(assignment_id=None))
    assert "no assignment is named" in assessment


# --- refusals ------------------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_batch_is_listed_at_once_and_nothing_is_stored(ledger):
    register_assignment(ledger, assignment_request())
    essays = [
        EssaySubmission("copy", anchor_text(4), 1.0, "copy.txt"),
        EssaySubmission("unknown-1", student_text(1), None, "unknown-1.txt"),
        EssaySubmission("unknown-2", student_text(2), None, "unknown-2.txt"),
        EssaySubmission("good", student_text(3), 3.0, "good.txt"),
    ]
    request = batch_request(students=tuple(essays), overrides=BatchOverrides(max_comparisons=1001))
    budget, quality, copy = problems_of(ledger, request)
    assert "max_comparisons 1001 is above CJ_MAX_PAIRWISE_COMPARISONS 1000" in budget
    assert "missing for unknown-1, unknown-2:" in quality and "quality" in quality
    assert re.match(r"essay copy \(copy.txt\) has the text of anchor k05", copy)
    assert ledger.batches() == []


def test_an_unknown_assignment_judge_and_too_large_a_budget_are_named_together(ledger):
    register_assignment(ledger, assignment_request())
    overrides = BatchOverrides(max_comparisons=31)
    request = batch_request(assignment_id="poems", judge="gpt-9", overrides=overrides)
    assignment, judge, budget = problems_of(ledger, request, max_pairwise_comparisons=30)
    assert "no assignment 'poems' is registered (registered: letters)" in assignment
    assert "no judge is called 'gpt-9'" in judge
    assert "31 is above CJ_MAX_PAIRWISE_COMPARISONS 30" in budget


@on_sqlite
def test_a_calibrated_design_is_refused_with_its_setting_and_what_to_choose_instead(ledger):
    register_assignment(ledger, assignment_request())
    [problem] = problems_of(ledger, batch_request(overrides=BatchOverrides(pair_design="calibrated")))
    assert "anchor bank" in problem and "CJ_PAIR_DESIGN" in problem and "adaptive" in problem


@on_sqlite
def test_many_essays_without_a_quality_are_counted_not_all_named(ledger):
    register_assignment(ledger, assignment_request())
    essays = tuple(EssaySubmission(f"e{n}", student_text(n), None, f"e{n}.txt") for n in range(8))
    [problem] = problems_of(ledger, batch_request(students=essays))
    assert "missing for e0, e1, e2, e3, e4 and 3 more:" in problem


@on_sqlite
def test_an_anchor_s_text_is_known_again_whatever_its_line_ends(ledger):
    anchor = AnchorSubmission("k01", "A", "The quokka\nwent by bus.", "k01.txt")
    register_assignment(ledger, replace(assignment_request("lines"), anchors=(anchor,)))
    essay = EssaySubmission("copy", "The quokka  \r\nwent by bus.\r\n", 1.0, "copy.docx")
    [problem] = problems_of(ledger, batch_request(assignment_id="lines", students=(essay, *students(2))))
    assert "essay copy (copy.docx) has the text of anchor k01" in problem


# --- once more -----------------------------------------------------------------------------------------------------


def test_the_same_batch_again_changes_nothing(ledger):
    register_assignment(ledger, assignment_request())
    first = submit_batch(ledger, settings(), batch_request())
    before, correlation = rows_in(ledger), ledger.batch("b").correlation_id
    again = submit_batch(ledger, settings(score_stability_threshold=0.9), batch_request())
    assert (first.created, again.created) == (True, False)
    assert (again.students, again.anchors, again.total_budget) == (12, 12, 60)
    assert rows_in(ledger) == before
    assert ledger.batch("b").correlation_id == correlation
    assert ledger.batch("b").settings["score_stability_threshold"] == 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"students": students(11)},
        {"students": (*students(11), EssaySubmission("pupil-12", student_text(13), 8.0, "pupil-12.txt"))},
        {"judge": "eng5-anchor"},
        {"overrides": BatchOverrides(max_comparisons=61)},
        {"kind": BatchKind.ANCHOR_ALIGN, "assignment_id": None},
    ],
    ids=["fewer essays", "another text", "another judge", "another budget", "another kind"],
)
@on_sqlite
def test_a_batch_id_that_exists_with_other_content_is_refused(ledger, change):
    register_assignment(ledger, assignment_request())
    submit_batch(ledger, settings(), batch_request())
    before = rows_in(ledger)
    with pytest.raises(InputError, match="batch b exists with other content"):
        submit_batch(ledger, settings(), batch_request(**change))
    assert rows_in(ledger) == before


def test_a_batch_keeps_the_anchors_it_was_submitted_with_when_its_assignment_is_replaced(ledger):
    register_assignment(ledger, assignment_request(anchors=12))
    submit_batch(ledger, settings(), batch_request())
    before = ledger.essays("b")
    register_assignment(ledger, assignment_request(anchors=5), replace=True)
    assert ledger.essays("b") == before
    again = submit_batch(ledger, settings(), batch_request())
    assert (again.created, again.anchors) == (False, 12)
    assert submit_batch(ledger, settings(), batch_request("later")).anchors == 5
    assert ledger.batch("b").assignment_revision == 1
    assert ledger.batch("later").assignment_revision == 2


# --- assignments ---------------------------------------------------------------------------------------------------


def test_registering_the_same_again_changes_nothing_and_something_else_needs_replace(ledger):
    first = register_assignment(ledger, assignment_request())
    again = register_assignment(ledger, assignment_request())
    assert (first.changed, first.revision, first.anchors) == (True, 1, 12)
    assert (again.changed, again.revision) == (False, 1)
    with pytest.raises(RequestError) as caught:
        register_assignment(ledger, assignment_request(anchors=11, judge_rubric="Language before content."))
    assert any("judge_rubric differs" in problem for problem in caught.value.problems)
    assert any("anchor k12 is registered but not in the folder" in problem for problem in caught.value.problems)
    assert tell_secrets(str(caught.value)) == []
    replaced = register_assignment(ledger, assignment_request(anchors=11), replace=True)
    assert (replaced.changed, replaced.revision, replaced.anchors) == (True, 2, 11)


@on_sqlite
def test_an_assignment_may_bring_a_grade_scale_of_its_own(ledger):
    definition = {"name": "three-steps", "grades": ["low", "middle", "high"]}
    anchors = tuple(
        AnchorSubmission(f"k{number}", grade, anchor_text(number), f"k{number}.txt")
        for number, grade in enumerate(definition["grades"])
    )
    own = assignment_request("own", grade_scale="three-steps", grade_scale_definition=definition)
    register_assignment(ledger, replace(own, anchors=anchors))
    assert assignment_scale(ledger.assignment("own")) == parse_grade_scale(definition, "a test")
    submit_batch(ledger, settings(), batch_request(assignment_id="own"))
    quality = {essay.known_grade: essay.quality for essay in ledger.essays("b") if essay.is_anchor}
    assert quality == {"low": 0.0, "middle": 1.0, "high": 2.0}
