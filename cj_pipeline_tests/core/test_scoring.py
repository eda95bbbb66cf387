"""Scores of a batch by essay id."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.diagnostics import bt_se_summary
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, Winner
from cj_pipeline.core.scoring import compute_bt_scores_and_se, max_score_change

SETTINGS = SimpleNamespace(bt_standard_error_max=2.0)


def comparison(number, winner, loser, *, status=ComparisonStatus.JUDGED, winner_first=True):
    a, b = (winner, loser) if winner_first else (loser, winner)
    judged = status is ComparisonStatus.JUDGED
    return Comparison(
        comparison_id=f"{number:06d}",
        wave=1,
        essay_a=a,
        essay_b=b,
        pair_mode=PairMode.COVERAGE,
        status=status,
        winner=(Winner.A if winner_first else Winner.B) if judged else None,
    )


ESSAYS = ["kim", "lee", "ANCHOR_1", "max", "zoe"]
BATCH = [
    comparison(1, "kim", "lee"),
    comparison(2, "kim", "lee", winner_first=False),
    comparison(3, "lee", "ANCHOR_1", winner_first=False),
    comparison(4, "ANCHOR_1", "kim"),
    comparison(5, "kim", "ANCHOR_1"),
    comparison(6, "kim", "max"),
    comparison(7, "lee", "kim", status=ComparisonStatus.FAILED),
    comparison(8, "lee", "kim", status=ComparisonStatus.PLANNED),
    comparison(9, "lee", "max", status=ComparisonStatus.WITHDRAWN),
]


def test_a_batch_is_scored_from_its_judged_comparisons_only():
    result = compute_bt_scores_and_se(BATCH, ESSAYS, SETTINGS, anchor_ids=["ANCHOR_1"])
    assert result.wins == {"ANCHOR_1": 1, "kim": 4, "lee": 1, "max": 0, "zoe": 0}
    assert result.losses == {"ANCHOR_1": 2, "kim": 1, "lee": 2, "max": 1, "zoe": 0}
    assert result.per_essay_counts == {"ANCHOR_1": 3, "kim": 5, "lee": 3, "max": 1, "zoe": 0}
    assert result.components == {"ANCHOR_1": 0, "kim": 0, "lee": 0, "max": 0, "zoe": 1}
    # in the order of ids: ANCHOR_1 0, kim 1, lee 2, max 3, zoe 4
    expected = fit_bradley_terry(
        [1, 1, 2, 0, 1, 1], [2, 2, 0, 1, 0, 3], 5, winner_first=[True, False, False, True, True, True]
    )
    assert list(result.scores.values()) == expected.scores.tolist()
    assert list(result.ses_uncapped.values()) == expected.standard_errors().tolist()
    assert list(result.prior_free_ses.values()) == expected.prior_free_standard_errors().tolist()
    assert result.fit.prior_sd == expected.prior_sd


def test_reported_errors_are_capped_and_uncapped_ones_kept():
    settings_low = SimpleNamespace(bt_standard_error_max=0.8)
    result = compute_bt_scores_and_se(BATCH, ESSAYS, settings_low)
    assert result.ses_uncapped["zoe"] > 0.8 > result.ses_uncapped["kim"]
    assert result.ses["zoe"] == 0.8
    assert result.ses["kim"] == result.ses_uncapped["kim"]


def test_the_summary_of_a_batch_is_made_from_reported_errors_and_judged_pairs():
    result = compute_bt_scores_and_se(BATCH, ESSAYS, SETTINGS, anchor_ids=["ANCHOR_1"])
    pairs = [(c.essay_a, c.essay_b) for c in BATCH if c.status is ComparisonStatus.JUDGED]
    assert result.se_summary == bt_se_summary(
        result.ses, result.prior_free_ses, pairs, cap=2.0, anchor_ids=["ANCHOR_1"]
    )
    assert result.se_summary["anchors"]["comparison_count"] == 3
    assert result.se_summary["all"]["isolated_items"] == 1


def test_the_result_does_not_depend_on_the_order_of_judgments_or_essays_to_the_last_bit():
    result = compute_bt_scores_and_se(BATCH, ESSAYS, SETTINGS)
    other = compute_bt_scores_and_se(BATCH[::-1], ESSAYS[::-1], SETTINGS)
    assert result.scores == other.scores
    assert result.ses_uncapped == other.ses_uncapped
    assert result.fit.scores.tobytes() == other.fit.scores.tobytes()


def test_a_ranking_is_best_first_and_ties_go_by_id():
    judgments = [comparison(1, "max", "zoe"), comparison(2, "kim", "zoe"), comparison(3, "lee", "max")]
    result = compute_bt_scores_and_se(judgments, ["zoe", "max", "lee", "kim", "b", "a"], SETTINGS)
    ranking = result.ranking()
    assert sorted(ranking) == ["a", "b", "kim", "lee", "max", "zoe"]
    assert all(result.scores[better] >= result.scores[worse] for better, worse in pairwise(ranking))
    assert result.scores["a"] == result.scores["b"] == 0.0
    assert ranking.index("a") == ranking.index("b") - 1
    assert (ranking[0], ranking[-1]) == ("lee", "zoe")


def test_a_batch_without_judgments_has_zero_scores_and_prior_errors():
    result = compute_bt_scores_and_se([], ["a", "b"], SETTINGS)
    assert result.scores == {"a": 0.0, "b": 0.0}
    assert result.ses_uncapped["a"] == pytest.approx(np.sqrt(2), rel=1e-9)
    assert result.se_summary["all"]["items_at_cap"] == 2


@pytest.mark.parametrize(
    ("judgments", "essay_ids", "anchor_ids", "message"),
    [
        ([], [], [], "essay_ids is empty"),
        ([], ["a", "b", "a"], [], "more than once: a"),
        ([], ["a", "b"], ["c"], "anchor_ids names essays that are not in essay_ids: c"),
        ([comparison(1, "a", "x")], ["a", "b"], [], "comparison 000001 names essay x"),
        ([comparison(1, "a", "b"), comparison(1, "b", "a")], ["a", "b"], [], "comparison 000001 is given twice"),
        (
            [comparison(1, "a", "b").model_copy(update={"winner": None})],
            ["a", "b"],
            [],
            "comparison 000001 is judged but has no winner",
        ),
    ],
)
def test_an_unsound_batch_is_refused_by_name(judgments, essay_ids, anchor_ids, message):
    with pytest.raises(InputError, match=message):
        compute_bt_scores_and_se(judgments, essay_ids, SETTINGS, anchor_ids=anchor_ids)


def test_the_largest_score_change_is_over_common_essays_in_either_direction():
    assert max_score_change({"a": 1.0, "b": 0.0, "gone": 9.0}, {"a": 0.5, "b": 0.25, "new": 7.0}) == 0.5
    assert max_score_change({"a": 1.0, "b": 0.0}, {"a": 1.1, "b": 0.75}) == 0.75


@pytest.mark.parametrize("previous", [None, {}, {"gone": 1.0}])
def test_there_is_no_score_change_without_a_common_essay(previous):
    assert max_score_change(previous, {"a": 1.0}) is None
