"""What is said about how far a batch can be trusted, against the ledger and against judges whose faults are known."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.core.models import BatchKind, PairDesign, Winner
from cj_pipeline.ledger import UnknownBatchError
from cj_pipeline.settings import BatchOverrides
from cj_pipeline.workflow.diagnosis import diagnose, read_groups
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline_tests.builders import rows
from cj_pipeline_tests.workflow.scenes import (
    SCALE,
    Through,
    advance,
    batch_request,
    settings,
    simulated,
    students,
    submit,
)

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class PrefersTheFirst(Through):
    """Answers A whatever it reads."""

    async def judge(self, request):
        return replace(await super().judge(request), winner=Winner.A)


def judged(ledger, **changes):
    submit(ledger, max_comparisons=120, score_stability_threshold=0.0, **changes)
    advance(ledger)


def test_the_figures_are_those_of_the_ledgers_judgments_and_nothing_is_stored(ledger):
    judged(ledger)
    before = rows(ledger)
    found = diagnose(ledger, "b", replications=20, draws=60)
    assert rows(ledger) == before
    records = [record for record in ledger.comparison_records("b") if record.winner is not None]
    assert found.summary["judgments"] == len(records)
    assert found.summary["first_wins"] == pytest.approx(np.mean([record.winner == "a" for record in records]))
    counts = Counter(essay for record in records for essay in (record.essay_a, record.essay_b))
    scores = ledger.waves("b")[-1].scores
    for row in found.essays:
        assert row["judgments"] == counts[row["essay_id"]]
        assert row["score"] == pytest.approx(scores[row["essay_id"]], abs=1e-8)
        assert row["score_low"] < row["score_high"]
        assert 1 <= row["rank_low"] <= row["rank_high"] <= len(found.essays)
    assert [row["rank"] for row in found.essays] == list(range(1, len(scores) + 1))
    assert [row["score"] for row in found.essays] == sorted(scores.values(), reverse=True)
    assert 0 < found.summary["expected_r2_low"] <= found.summary["expected_r2"] < 1
    assert sum(part["judgments"] for part in found.calibration) <= len(records)
    known = {record.comparison_id: record for record in records}
    for surprise in found.surprises:
        record = known[surprise["comparison_id"]]
        assert {surprise["winner_id"], surprise["loser_id"]} == {record.essay_a, record.essay_b}
        assert surprise["chance"] < 0.5
    assert diagnose(ledger, "b", replications=20, draws=60) == found
    assert any("20 simulated judges are too few" in note for note in found.notes)
    enough = diagnose(ledger, "b", replications=200, draws=60)
    unusual = [row["essay_id"] for row in enough.essays if min(row["infit_p"], row["outfit_p"]) < 0.01]
    (said,) = [note for note in enough.notes if "fits unusually" in note or note.startswith("Unusual fit")]
    assert all(essay in said for essay in unusual)
    assert (f"{len(unusual)} of {len(enough.essays)} essays" in said) == bool(unusual)


@pytest.mark.slow
def test_a_batch_of_two_distant_groups_is_said_to_be_not_normally_spread_and_a_small_one_is_not_examined(ledger):
    both = tuple(
        replace(student, quality=6.0 * (place % 2) + place / 110) for place, student in enumerate(students(110))
    )
    overrides = BatchOverrides(max_comparisons=1000, pair_design=PairDesign.BALANCED, score_stability_threshold=0.0)
    request = batch_request(assignment_id=None, kind=BatchKind.ANCHOR_ALIGN, overrides=overrides, students=both)
    submit_batch(ledger, settings(), request)
    advance(ledger)
    found = diagnose(ledger, "b", replications=20, draws=60)
    assert found.summary["normal_share"] < 0.1
    assert found.summary["draws"] == "ep"
    assert any("not normally spread" in note for note in found.notes)
    assert all(row["score_low"] <= row["score"] <= row["score_high"] for row in found.essays)
    submit(ledger, "small", max_comparisons=60)
    advance(ledger, "small")
    small = diagnose(ledger, "small", replications=20, draws=60)
    assert small.summary["normal_share"] is None
    assert not [note for note in small.notes if "normally spread" in note]


def test_an_essay_without_a_judgment_has_no_mean_squares_and_the_others_have(ledger):
    submit(ledger, max_comparisons=10, min_comparisons_for_stability_check=10)
    advance(ledger)
    found = diagnose(ledger, "b", replications=20, draws=60)
    unjudged = [row for row in found.essays if row["judgments"] == 0]
    assert len(unjudged) == 4
    figures = [f"{name}{end}" for name in ("infit", "outfit") for end in ("", "_low", "_high", "_p")]
    assert {row[figure] for row in unjudged for figure in figures} == {None}
    for row in found.essays:
        if row["judgments"]:
            assert row["infit_low"] <= row["infit_high"] and 0.0 < row["infit_p"] <= 1.0


def test_too_few_judgments_and_unknown_batches_are_refused(ledger):
    submit(ledger, max_comparisons=8)
    with pytest.raises(InputError, match="0 judgments"):
        diagnose(ledger, "b")
    with pytest.raises(UnknownBatchError):
        diagnose(ledger, "ghost")


@pytest.mark.slow
def test_a_judge_that_always_prefers_the_first_is_told_from_one_that_does_not(ledger):
    judged(ledger)
    assert "No position bias shown" in " ".join(diagnose(ledger, "b", replications=20, draws=60).notes)
    submit(ledger, "biased", max_comparisons=120, score_stability_threshold=0.0)
    advance(ledger, "biased", judge=PrefersTheFirst(simulated()))
    found = diagnose(ledger, "biased", replications=20, draws=60)
    assert found.summary["first_wins"] == 1.0
    assert "favours the essay read first" in " ".join(found.notes)
    assert found.summary["order_effect"] > 1.0
    assert found.summary["expected_r2_low"] < 0.5


def test_every_judge_configuration_has_its_fit(ledger):
    judged(ledger)
    found = diagnose(ledger, "b", replications=20, draws=60)
    (judge,) = found.judges
    assert judge["judge"].startswith("simulated simulated/")
    assert judge["judgments"] == found.summary["judgments"]


def test_groups_of_a_table_are_held_against_each_other_among_essays_with_expert_grades(ledger, tmp_path):
    judged(ledger)
    essays = sorted(ledger.essays("b"), key=lambda essay: essay.essay_id)
    school = {essay.essay_id: "xxy"[i % 3] for i, essay in enumerate(essays)}
    table = tmp_path / "groups.csv"
    table.write_text("essay_id,school\n" + "".join(f"{name},{group}\n" for name, group in school.items()))
    groups = read_groups(table)
    assert groups == {"school": school}
    length, x, y = diagnose(ledger, "b", groups=groups, replications=20, draws=60).validity
    assert (length["trait"], length["logits"]) == ("length", None), "these anchors are all equally long"
    assert (x["trait"], x["value"], y["value"]) == ("school", "x", "y")
    anchors = [essay for essay in essays if essay.known_grade]
    scores = ledger.waves("b")[-1].scores
    grades = [get_grade_scale(SCALE).index(essay.known_grade) for essay in anchors]
    design = np.column_stack(
        [np.ones(len(anchors)), grades, [school[essay.essay_id] == "x" for essay in anchors]]
    ).astype(float)
    expected = np.linalg.lstsq(design, [scores[essay.essay_id] for essay in anchors], rcond=None)[0][2]
    assert x["essays"] == len(anchors) > 6
    assert x["logits"] == pytest.approx(expected, abs=1e-6)
    assert y["logits"] == pytest.approx(-x["logits"])
    with pytest.raises(InputError, match="'ghost' is no essay of this batch"):
        diagnose(ledger, "b", groups={"school": {"ghost": "x"}}, replications=20, draws=60)


def test_all_faults_of_a_table_of_groups_are_named_at_once(database, tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("essay_id,school\na,x\na,y\nb\n")
    with pytest.raises(InputError) as raised:
        read_groups(table)
    assert "row 3: names the essay 'a' again" in str(raised.value)
    assert "row 4: has 1 cells" in str(raised.value)
    table.write_text("essay_id\na\n")
    with pytest.raises(InputError, match="at least one more column"):
        read_groups(table)
