"""Kendall's τ against scipy and brute force; the posterior of true scores against integration and simulated judges."""

from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import kendalltau

from cj_pipeline.core.alignment_posterior import DEPARTURE_LOG_SD, SLOPE_SD, draw_alignment, kendall_tau
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import judgment_table

ENG5 = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8])
"""Grade numbers of the twelve ENG5 anchors: F+ twice to A twice."""


def round_robin(truth, rng, *, effect=0.0):
    """Every pair judged once, the reading order drawn."""
    rows = []
    for pair in combinations(range(len(truth)), 2):
        a, b = rng.permutation(pair)
        a_wins = rng.random() < 1.0 / (1.0 + np.exp(truth[b] - truth[a] - effect))
        rows.append((a, b, True) if a_wins else (b, a, False))
    winners, losers, first = zip(*rows, strict=True)
    return judgment_table(winners, losers, len(truth), np.array(first))


def standardised(grades):
    return (grades - grades.mean()) / grades.std()


# -- Kendall's τ -----------------------------------------------------------------------------------------------


def test_tau_b_is_scipys_with_and_without_ties():
    rng = np.random.default_rng(1)
    for _ in range(200):
        n = int(rng.integers(2, 13))
        grades, scores = rng.integers(0, 5, n), np.round(rng.standard_normal(n), int(rng.integers(0, 3)))
        assert kendall_tau(grades, scores).tau_b == pytest.approx(kendalltau(grades, scores).statistic, nan_ok=True)


def test_tau_a_counts_every_pair_and_tau_b_leaves_tied_grades_out():
    tau = kendall_tau([0, 0, 1, 2], [0.1, 0.3, 0.2, 0.9])
    assert (tau.pairs, tau.concordant, tau.discordant, tau.tied_grades, tau.tied_scores) == (6, 4, 1, 1, 0)
    assert tau.tau_a == pytest.approx(3 / 6)
    assert tau.tau_b == pytest.approx(3 / np.sqrt(5 * 6))


@pytest.mark.parametrize("grades", [(0, 1, 2, 3, 4), (0, 0, 1, 2, 2), (0, 0, 0, 1, 1, 1), (0, 1, 1, 1)])
def test_no_order_without_ties_has_a_greater_tau_b_than_the_attainable_one(grades):
    best = max(kendall_tau(grades, order).tau_b for order in permutations(range(len(grades))))
    assert kendall_tau(grades, range(len(grades))).attainable == pytest.approx(best)


def test_one_swap_among_five_essays_moves_tau_by_a_fifth():
    in_order, swapped = kendall_tau(range(5), range(5)), kendall_tau(range(5), [0, 2, 1, 3, 4])
    assert in_order.tau_b - swapped.tau_b == pytest.approx(0.2)


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(InputError, match="equal length"):
        kendall_tau([1, 2], [1.0])


# -- the posterior ---------------------------------------------------------------------------------------------


def test_draws_follow_the_posterior_found_by_weighting_draws_from_the_prior():
    grades = np.array([0, 1, 3])
    winners, losers, first = [2, 2, 1, 0, 2, 1], [1, 0, 0, 1, 1, 2], np.array([1, 0, 1, 1, 1, 0], dtype=bool)
    draws = draw_alignment(judgment_table(winners, losers, 3, first), grades, seed=1, n_draws=6_000, thin=1)
    rng = np.random.default_rng(2)
    size = 400_000
    departures = np.exp(DEPARTURE_LOG_SD * rng.standard_normal(size))
    theta = SLOPE_SD * rng.standard_normal((size, 1)) * standardised(grades)
    theta += departures[:, None] * rng.standard_normal((size, 3))
    effect = rng.standard_normal(size)
    weights = np.ones(size)
    for winner, loser, read_first in zip(winners, losers, first, strict=True):
        weights /= 1.0 + np.exp(theta[:, loser] - theta[:, winner] - np.where(read_first, effect, -effect))
    weights /= weights.sum()
    centred = theta - theta.mean(axis=1, keepdims=True)
    assert draws.scores.mean(axis=0) == pytest.approx(weights @ centred, abs=0.1)
    spread = np.sqrt(weights @ (centred - weights @ centred) ** 2)
    assert draws.scores.std(axis=0) == pytest.approx(spread, rel=0.05)
    assert draws.order_effects.mean() == pytest.approx(weights @ effect, abs=0.05)
    assert np.log(draws.departures).mean() == pytest.approx(weights @ np.log(departures), abs=0.06)
    for low, high in combinations(range(3), 2):
        inverted = float((draws.scores[:, low] > draws.scores[:, high]).mean())
        assert inverted == pytest.approx(float(weights @ (theta[:, low] > theta[:, high])), abs=0.02)


def test_tau_b_of_each_draw_is_scipys():
    rng = np.random.default_rng(3)
    draws = draw_alignment(round_robin(0.5 * ENG5, rng), ENG5, seed=4, n_draws=40, burn_in=20, thin=1)
    assert draws.tau_b == pytest.approx([kendalltau(ENG5, scores).statistic for scores in draws.scores])


def test_the_interval_leaves_at_most_its_tail_on_either_side():
    rng = np.random.default_rng(5)
    draws = draw_alignment(round_robin(0.4 * ENG5, rng), ENG5, seed=6, n_draws=200, burn_in=50, thin=1)
    low, high = draws.tau_b_interval()
    assert {low, high} <= set(draws.tau_b)
    assert (draws.tau_b < low).mean() <= 0.025 < (draws.tau_b <= low).mean()
    assert (draws.tau_b > high).mean() <= 0.025 < (draws.tau_b >= high).mean()


def test_the_order_of_the_judgments_changes_nothing():
    table = round_robin(0.5 * ENG5, np.random.default_rng(7))
    shuffled = table.rows(np.random.default_rng(8).permutation(len(table)))
    one, other = (draw_alignment(t, ENG5, seed=9, n_draws=20, burn_in=5, thin=1) for t in (table, shuffled))
    assert np.array_equal(one.scores, other.scores)


def test_without_judgments_any_order_is_possible():
    nothing = judgment_table([], [], 5, np.zeros(0, dtype=bool))
    draws = draw_alignment(nothing, [0, 1, 2, 3, 4], seed=1, n_draws=400, burn_in=0, thin=1)
    assert draws.tau_b_interval() == (-1.0, 1.0)


def test_a_judge_who_turns_the_grades_round_is_found_out():
    rng = np.random.default_rng(10)
    draws = draw_alignment(round_robin(-0.9 * ENG5, rng), ENG5, seed=1, n_draws=200, burn_in=50, thin=1)
    assert draws.tau_b_interval()[1] < -0.5


def test_unusable_requests_are_refused():
    table = round_robin(np.arange(3.0), np.random.default_rng(1))
    with pytest.raises(InputError, match="at least two grades"):
        draw_alignment(table, [4, 4, 4], seed=1)
    with pytest.raises(InputError, match="one per item"):
        draw_alignment(table, [4, 3], seed=1)
    with pytest.raises(InputError, match="n_draws"):
        draw_alignment(table, [1, 2, 3], seed=1, n_draws=1)
    with pytest.raises(InputError, match="read"):
        draw_alignment(judgment_table([0], [1], 2), [0, 1], seed=1)
    draws = draw_alignment(table, [1, 2, 3], seed=1, n_draws=2, burn_in=0, thin=1)
    with pytest.raises(InputError, match="level"):
        draws.tau_b_interval(1.0)


def covered(slope, departure, *, replications, n_draws, seed):
    """Share of simulated judges whose true τ-b lies in the interval."""
    rng = np.random.default_rng(seed)
    hits = 0
    for replication in range(replications):
        truth = slope * standardised(ENG5) + departure * rng.standard_normal(ENG5.size)
        table = round_robin(truth, rng, effect=0.4)
        draws = draw_alignment(table, ENG5, seed=replication, n_draws=n_draws, burn_in=50, thin=1)
        low, high = draws.tau_b_interval()
        hits += low - 1e-9 <= kendalltau(ENG5, truth).statistic <= high + 1e-9
    return hits / replications


def test_the_interval_covers_the_truth_of_a_good_judge():
    # 12 of 16 or fewer has probability .007 at a coverage of .95
    assert covered(3.0, 0.5, replications=16, n_draws=150, seed=11) >= 13 / 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slope", "departure"), [(3.0, 0.1), (3.0, 0.5), (3.0, 1.5), (1.5, 0.3), (1.5, 1.0), (6.0, 0.5), (0.5, 0.5)]
)
def test_the_interval_covers_the_truth_of_judges_of_every_kind(slope, departure):
    # .88 of 120 is 3.5 standard errors below .95
    assert covered(slope, departure, replications=120, n_draws=400, seed=12) >= 0.88
