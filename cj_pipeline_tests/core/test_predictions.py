"""Predicted wins and surprises on simulated judgments."""

from math import exp

import numpy as np
import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.predictions import calibration_table, predict_wins, surprising_judgments
from cj_pipeline_tests.core.test_judgment_fit import simulated


def test_a_pair_is_predicted_from_the_judgments_of_other_pairs_only():
    # the only link between the two halves is one pair, judged ten times
    table = judgment_table([0] * 10 + [0, 2], [2] * 10 + [1, 3], 4)
    assert predict_wins(table, seed=1, prior_sd=1.0, folds=12)[0] == pytest.approx(
        predict_wins(judgment_table([0, 0, 2], [2, 1, 3], 4), seed=1, prior_sd=1.0, folds=12)[0]
    )


def test_predicted_chances_are_those_that_favourites_turn_out_to_have():
    chances = np.concatenate(
        [
            predict_wins(simulated(2.0 * np.random.default_rng(s).standard_normal(24), 14, s), seed=s, prior_sd=2.0)
            for s in range(10)
        ]
    )
    bins = [cell for cell in calibration_table(chances) if cell.won.total]
    assert sum(cell.won.total for cell in bins) == len(chances)
    for cell in bins:
        error = (cell.predicted * (1 - cell.predicted) / cell.won.total) ** 0.5
        # judgments of one batch share its scores, which widens this by up to a half
        assert abs(cell.won.share - cell.predicted) < 1.5 * 3.0 * error


def test_predictions_with_an_order_effect_use_it():
    table = simulated(np.zeros(20), 30, 8, effect=2.0)
    chances = predict_wins(table, seed=1, prior_sd=1.0, order_effect=True)
    assert chances[table.winner_read_first].mean() > 0.75
    assert predict_wins(table, seed=1, prior_sd=1.0)[table.winner_read_first].mean() < 0.6


def test_calibration_bins_take_each_judgment_by_its_favourite():
    cells = calibration_table([0.55, 0.45, 0.5, 0.95, 1.0, 0.6])
    assert [cell.won.total for cell in cells] == [2, 1, 0, 0, 2]
    assert cells[0].won.count == 1
    assert cells[0].predicted == pytest.approx(0.55)
    assert cells[2].predicted is None


def test_the_most_surprising_judgment_comes_first_and_expected_ones_never():
    table = judgment_table([0, 2, 1, 2], [1, 0, 0, 1], 3)
    found = surprising_judgments(table, [2.0, 1.0, 0.0])
    assert [(s.row, s.winner, s.loser) for s in found] == [(1, 2, 0), (2, 1, 0), (3, 2, 1)]
    assert found[0].chance == pytest.approx(1.0 / (1.0 + exp(2.0)))
    assert len(surprising_judgments(table, [2.0, 1.0, 0.0], most=1)) == 1


def test_what_cannot_be_predicted_from_is_refused():
    table = judgment_table([0, 1], [1, 0], 2)
    with pytest.raises(InputError, match="one per item"):
        surprising_judgments(table, [1.0])
    with pytest.raises(InputError, match="folds"):
        predict_wins(table, seed=1, folds=1)
    with pytest.raises(InputError, match="between 0 and 1"):
        calibration_table([1.2])
