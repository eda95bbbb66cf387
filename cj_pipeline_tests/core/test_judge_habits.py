"""Position bias and repeats against counts by hand and exact tests."""

from math import exp

import numpy as np
import pytest
from scipy.stats import binom

from cj_pipeline.core.judge_habits import position_bias, repeat_agreement
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline_tests.core.test_judgment_fit import simulated


def test_pairs_read_in_both_orders_are_counted_by_who_won_them():
    # (0, 1): 0 both times; (2, 3): the first both times; (4, 5): the second both times; (0, 2): one order only
    table = judgment_table(
        [0, 0, 2, 3, 5, 4, 0], [1, 1, 3, 2, 4, 5, 2], 6, [True, False, True, True, False, False, True]
    )
    bias = position_bias(table)
    assert (bias.swapped_pairs, bias.consistent, bias.first_both, bias.second_both) == (3, 1, 1, 1)
    assert (bias.first_wins.count, bias.first_wins.total) == (4, 7)
    assert bias.swap_p_value == 1.0
    assert bias.p_value == pytest.approx(1.0)
    assert bias.verdict.startswith("No position bias shown")


@pytest.mark.parametrize(("effect", "side"), [(1.0, "first"), (-1.0, "second")])
def test_a_judge_who_favours_a_position_is_found_out_in_words(effect, side):
    bias = position_bias(simulated(np.linspace(-1, 1, 20), 20, 7, effect=effect))
    assert bias.p_value < 0.01
    assert f"favours the essay read {side}" in bias.verdict


def test_the_exact_p_value_of_the_first_position_is_the_binomial_one():
    table = judgment_table([0] * 8 + [1] * 2, [1] * 8 + [0] * 2, 2, [True] * 8 + [False] * 2)
    assert position_bias(table).p_value == pytest.approx(2 * binom.sf(7, 10, 0.5))


def test_without_judgments_nothing_is_said_about_positions():
    assert "nothing can be said" in position_bias(judgment_table([], [], 3, np.zeros(0, dtype=bool))).verdict


def test_agreement_is_the_share_of_pairs_of_judgments_that_name_the_same_winner():
    # (0, 1) read in this order three times: 0, 0, 1; in the other order once: 0. (1, 2) once.
    table = judgment_table([0, 0, 1, 0, 1], [1, 1, 0, 1, 2], 3, [True, True, False, False, True])
    result = repeat_agreement(table, [1.0, 0.0, 0.0])
    p = 1.0 / (1.0 + exp(-1.0))
    assert (result.same_order.pairs, result.other_order.pairs) == (1, 1)
    assert result.same_order.share == pytest.approx(1 / 3)
    assert result.other_order.share == pytest.approx(2 / 3)
    assert result.same_order.expected == pytest.approx(p**2 + (1 - p) ** 2)
    assert result.other_order.expected == pytest.approx(p**2 + (1 - p) ** 2)


def test_an_order_effect_lowers_the_agreement_expected_between_the_two_orders():
    table = judgment_table([0, 1], [1, 0], 2, [True, True])
    result = repeat_agreement(table, [0.0, 0.0], order_effect=2.0)
    p = 1.0 / (1.0 + exp(-2.0))
    assert result.other_order.share == 0.0
    assert result.other_order.expected == pytest.approx(2 * p * (1 - p))
    assert result.same_order.share is None
