"""Simulated exams: what is drawn, played and summed up, against direct computation and the properties it must have."""

import math

import numpy as np
import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.core.models import StopRule
from cj_pipeline.core.simulation import (
    Exam,
    PlayedExam,
    WaveResult,
    budget_table,
    even_budgets,
    simulate_exams,
    stopped_at,
)
from cj_pipeline.settings import BatchTunables

SCALE = get_grade_scale("eng5_np_legacy_9_step")
SETTINGS = BatchTunables()
LARGE_WAVES = SETTINGS.model_copy(update={"comparisons_per_stability_check_iteration": 60})
SMALL = Exam(students=9, anchors=9)


def play(exam=SMALL, *, settings=SETTINGS, budget=60, replications=2, seed=1, **options):
    return simulate_exams(exam, settings, SCALE, budget=budget, replications=replications, seed=seed, **options)


def test_an_exam_spends_its_budget_and_no_more_in_waves_of_the_size_that_a_batch_has():
    for exam in play(budget=47):
        assert [wave.judgments for wave in exam.waves] == [10, 20, 30, 40, 47]
        assert exam.reason == "budget_spent"


@pytest.mark.slow
def test_the_same_seed_plays_the_same_exams_however_many_are_played():
    two, three = play(replications=2), play(replications=3)
    assert three[:2] == two
    assert play(replications=1, seed=2) != two[:1]


def test_progress_is_told_after_each_exam():
    told = []
    play(replications=3, budget=10, progress=told.append)
    assert told == [1, 2, 3]


@pytest.mark.slow
def test_more_judgments_bring_scores_order_and_grades_nearer_to_the_truth():
    played = play(Exam(students=10, anchors=9, step=1.0), settings=LARGE_WAVES, budget=300, replications=6)
    early, late = budget_table(played, [60, 300])
    for smaller in ("rmse", "rps"):
        assert late.measures[smaller][0] < early.measures[smaller][0]
    for larger in ("tau_b", "exact", "adjacent"):
        assert late.measures[larger][0] >= early.measures[larger][0]
    assert late.measures["tau_b"][0] > 0.8
    assert late.measures["adjacent"][0] > 0.9


@pytest.mark.slow
def test_a_judge_that_flips_coins_is_worth_less():
    careless = SMALL.model_copy(update={"lapses": 0.7})
    found = [play(exam, settings=LARGE_WAVES, budget=150, replications=6) for exam in (SMALL, careless)]
    with_care, without = (budget_table(played, [150])[0].measures["tau_b"][0] for played in found)
    assert without < with_care - 0.1


def test_without_anchors_there_are_scores_and_no_grades():
    (row,) = budget_table(play(Exam(students=12, anchors=0), replications=1), [60])
    assert set(row.measures) == {"rmse", "tau_b"}


@pytest.mark.slow
def test_the_stop_rule_ends_exams_before_their_budget_and_says_why():
    settings = SETTINGS.model_copy(update={"stop_rule": StopRule.STABILITY, "score_stability_threshold": 3.0})
    for exam in play(settings=settings):
        assert exam.reason == "stable"
        assert exam.as_stopped.waves[-1].judgments < 60
        assert exam.waves[: exam.stop_waves] == exam.as_stopped.waves
        assert exam.waves[-1].judgments == 60, "it is played on to the end of the budget"
    # without a stop rule in its way, the same exam is the same to the end
    never = [exam.waves for exam in play(settings=SETTINGS.model_copy(update={"score_stability_threshold": 0.0}))]
    assert [exam.waves for exam in play(settings=settings)] == never


def test_a_small_net_ends_when_its_passes_are_used():
    for exam in play(Exam(students=5, anchors=0), budget=500):
        assert exam.reason == "small_net_cap"
        assert exam.waves[-1].judgments < 500


@pytest.mark.parametrize(("budget", "replications"), [(0, 1), (1, 0)])
def test_nothing_to_play_is_refused(budget, replications):
    with pytest.raises(InputError, match="at least 1"):
        play(budget=budget, replications=replications)


def wave(judgments, rmse, exact=None):
    return WaveResult(judgments, rmse, 0.5, exact, exact, exact, exact)


def test_an_exam_that_ended_early_counts_with_its_last_wave_and_between_two_waves_the_earlier_one_counts():
    played = [
        PlayedExam((wave(10, 4.0), wave(20, 2.0)), 2, "small_net_cap"),
        PlayedExam((wave(10, 6.0), wave(20, 5.0), wave(30, 1.0)), 3, "budget_spent"),
    ]
    rows = budget_table(played, [5, 10, 25, 30])
    assert rows[0].measures == {}
    assert [row.measures["rmse"][0] for row in rows[1:]] == [5.0, 3.5, 1.5]
    # half width: 1.96 sd / √n, sd of two values their distance over √2
    assert rows[2].measures["rmse"][1] == pytest.approx(1.96 * (3.0 / math.sqrt(2)) / math.sqrt(2))
    assert stopped_at(played) == pytest.approx(tuple(np.quantile([20, 30], [0.1, 0.5, 0.9])))


def test_a_measure_that_some_exam_does_not_have_is_left_out():
    played = [PlayedExam((wave(10, 1.0, 0.5),), 1, "x"), PlayedExam((wave(10, 1.0),), 1, "x")]
    assert set(budget_table(played, [10])[0].measures) == {"rmse", "tau_b"}


def test_budgets_are_evenly_spaced_and_end_at_the_whole():
    assert even_budgets(100, 4) == [25, 50, 75, 100]
    assert even_budgets(2, 8) == [1, 2]
