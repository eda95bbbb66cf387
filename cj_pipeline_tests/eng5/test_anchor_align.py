"""Anchors are judged as students by a judge who cannot know it, and the report is what the ledger says."""

import itertools

import pytest
from scipy.stats import kendalltau

from cj_pipeline.core.alignment import AlignmentTargets
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import ComparisonStatus
from cj_pipeline.eng5.anchor_align import TargetsMissedError, align_request, enforce, ledger_report, write_report
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.eng5.prompt_variants import PromptVariant
from cj_pipeline.ledger import Ledger
from cj_pipeline.workflow.judging import sent_prompt
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline.workflow.results import collect_results
from cj_pipeline_tests.eng5.folders import assets_in
from cj_pipeline_tests.workflow.files import write
from cj_pipeline_tests.workflow.scenes import advance, settings, submit

on_sqlite = pytest.mark.parametrize("database", ["sqlite"])
GRADES = ("F+", "E-", "D+", "D+", "C-", "B", "A", "A", "B", "F+", "E+")
TARGETS = AlignmentTargets()


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    return read_inventory(assets_in(tmp_path_factory.mktemp("assets"), GRADES), eng5_scale())


def request(inventory, batch_id="align", **changes):
    stated = {"judge": "eng5-anchor", "system": None, "rubric": None, "overrides": {"max_comparisons": 55}} | changes
    return align_request(inventory, eng5_scale(), batch_id=batch_id, **stated)


@pytest.fixture(scope="module")
def judged(inventory, tmp_path_factory):
    """A ledger with a judged batch `align`, every pair judged once."""
    folder = tmp_path_factory.mktemp("judged")
    rubric = PromptVariant("rubric", "042_my_rubric", folder / "042_my_rubric.txt", "Prefer the clearer one.")
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}")
    submit_batch(ledger, settings(), request(inventory, rubric=rubric))
    advance(ledger, "align")
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def made(judged):
    return report(judged)


def report(ledger, batch_id="align"):
    return ledger_report(ledger, batch_id, eng5_scale(), TARGETS)


def test_every_anchor_is_a_student_with_its_expert_grade_beside_it_and_nothing_projects_grades(judged):
    essays = judged.essays("align")
    assert {essay.essay_id: essay.known_grade for essay in essays} == {
        f"a{number}": grade for number, grade in enumerate(GRADES, start=1)
    }
    assert not any(essay.is_anchor for essay in essays)
    batch = judged.batch("align")
    assert batch.assignment_id is None
    projections = collect_results(judged, "align")["grade_projections"]
    assert not projections["available"].any()


def test_the_judge_reads_task_rubric_and_essays_but_no_grade_id_or_word_of_anchors(judged, inventory):
    texts = {anchor.anchor_id: anchor.document.text for anchor in inventory.anchors}
    for comparison in judged.comparisons("align"):
        prompt = sent_prompt(judged, "align", comparison.comparison_id).prompt
        assert texts[comparison.essay_a] in prompt.essays and texts[comparison.essay_b] in prompt.essays
        assert "# The task" in prompt.stable and "Prefer the clearer one." in prompt.stable
        # the essays of this test say "anchor" themselves
        around = prompt.essays.replace(texts[comparison.essay_a], "").replace(texts[comparison.essay_b], "")
        frame = (prompt.system + prompt.stable + around).replace(prompt.fence_marker, "")
        assert "anchor" not in frame.lower()
        assert not any(f" {grade}" in frame for grade in ("F+", "E-", "E+", "D+", "C-"))
        assert not any(f"{essay} " in frame for essay in texts)


def test_the_reports_figures_are_those_counted_by_hand_from_the_ledger(judged, made):
    alignment = made.alignment
    comparisons = [c for c in judged.comparisons("align") if c.status is ComparisonStatus.JUDGED]
    order = eng5_scale().labels.index
    grade = {f"a{number}": order(label) for number, label in enumerate(GRADES, start=1)}
    inverted = {(c.winner_id, c.loser_id) for c in comparisons if grade[c.winner_id] < grade[c.loser_id]}
    assert {(pair.lower, pair.higher) for pair in alignment.inversions} == inverted
    for anchor in alignment.anchors:
        assert anchor.wins == sum(c.winner_id == anchor.essay_id for c in comparisons)
        assert anchor.losses == sum(c.loser_id == anchor.essay_id for c in comparisons)
    scores = {anchor.essay_id: anchor.score for anchor in alignment.anchors}
    expected = kendalltau([scores[essay] for essay in sorted(grade)], [grade[essay] for essay in sorted(grade)])
    assert alignment.tau.tau_b == pytest.approx(expected.statistic)


def test_standard_errors_are_reported_as_estimated_because_a_capped_one_would_make_the_interval_too_short(judged, made):
    scores = collect_results(judged, "align")["bt_scores"]
    estimated = dict(scores.select("essay_id", "se_uncapped").iter_rows())
    assert max(estimated.values()) > settings().bt_standard_error_max, "otherwise this test shows nothing"
    assert {anchor.essay_id: anchor.se for anchor in made.alignment.anchors} == pytest.approx(estimated)


def test_the_report_names_the_prompts_as_they_were_chosen_and_shows_their_texts(made, inventory):
    prompts = {prompt.role: prompt for prompt in made.prompts}
    assert prompts["Rubric"].name == "042_my_rubric"
    assert prompts["Rubric"].text == "Prefer the clearer one."
    assert prompts["What the students were asked"].sha256 == inventory.instructions.text_sha256
    assert prompts["System prompt"].name == "the program's default"


def test_a_report_written_again_has_the_same_bytes_and_makes_no_call(judged, made, tmp_path):
    calls = judged.attempt_counts("align")
    first = write_report(made, tmp_path / "first")
    again = write_report(report(judged), tmp_path / "again")
    assert [path.name for path in first] == ["alignment_report.md", "alignment_report.html", "alignment_report.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert judged.attempt_counts("align") == calls


def test_a_folder_that_cannot_be_written_is_named(made, tmp_path):
    write(tmp_path / "file", "in the way")
    blocked = tmp_path / "file" / "batch"
    with pytest.raises(InputError, match=rf"{blocked}.*CJ_DATA_DIR"):
        write_report(made, blocked)


@on_sqlite
def test_other_kinds_of_batches_and_such_without_grades_or_judgments_are_refused(ledger, inventory):
    submit(ledger, max_comparisons=20)
    with pytest.raises(InputError, match=r"kind assessment.*anchor-align-test"):
        report(ledger, "b")
    submit_batch(ledger, settings(), request(inventory))
    with pytest.raises(InputError, match=r"nothing of it has been judged yet.*cj run align"):
        report(ledger)


@on_sqlite
def test_the_same_batch_id_with_another_grade_is_another_request(ledger, inventory, tmp_path):
    submit_batch(ledger, settings(), request(inventory))
    regraded = read_inventory(assets_in(tmp_path / "other", ("E-", *GRADES[1:])), eng5_scale())
    with pytest.raises(InputError, match="other content"):
        submit_batch(ledger, settings(), request(regraded))


def test_a_simulated_judge_sees_anchors_as_many_steps_apart_as_their_grades(tmp_path):
    scale = eng5_scale()
    labels = scale.labels  # the one below the lowest grade included
    inventory = read_inventory(assets_in(tmp_path / "assets", labels), scale)
    essays = {essay.known_grade: essay.quality for essay in request(inventory).students}
    for lower, higher in itertools.pairwise(labels):
        assert essays[higher] - essays[lower] == 1.0
    assert essays[scale.grades[0]] == 0.0


def test_enforced_targets_name_each_that_was_missed(made):
    verdicts = made.verdicts
    missed = [verdict for verdict in verdicts if not verdict.met]
    assert missed, "a judge of this strength does not reach all targets on these anchors"
    with pytest.raises(TargetsMissedError) as raised:
        enforce("align", verdicts)
    assert all(verdict.text in str(raised.value) for verdict in missed)
    enforce("align", tuple(verdict for verdict in verdicts if verdict.met))
