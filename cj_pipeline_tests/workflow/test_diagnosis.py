"""What is said about how far a batch can be trusted, against the ledger and against judges whose faults are known."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Winner
from cj_pipeline.ledger import UnknownBatchError
from cj_pipeline.workflow.diagnosis import diagnose
from cj_pipeline_tests.builders import rows
from cj_pipeline_tests.workflow.scenes import Through, advance, simulated, submit

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


def test_too_few_judgments_and_unknown_batches_are_refused(ledger):
    submit(ledger, max_comparisons=8)
    with pytest.raises(InputError, match="0 judgments"):
        diagnose(ledger, "b")
    with pytest.raises(UnknownBatchError):
        diagnose(ledger, "ghost")


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
