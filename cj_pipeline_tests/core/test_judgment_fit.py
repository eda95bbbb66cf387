"""Misfit against direct formulas and simulated judges."""

from itertools import combinations
from math import exp

import numpy as np
import pytest
from scipy.stats import binom, combine_pvalues

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_fit import assess_fit, count_triads, mean_squares
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.posterior import draw_posterior


def simulated(truth, rounds, seed, *, effect=0.0, lapse=0.0, careless=()):
    """Random matchings judged by the model, but for lapses (coin flips) and for careless items (always coin flips)."""
    rng = np.random.default_rng(seed)
    n = len(truth)
    order = np.concatenate([rng.permutation(n)[: n - n % 2] for _ in range(rounds)])
    a, b = order[0::2], order[1::2]
    chance = 1.0 / (1.0 + np.exp(truth[b] - truth[a] - effect))
    blind = (rng.random(a.size) < lapse) | np.isin(a, careless) | np.isin(b, careless)
    a_wins = rng.random(a.size) < np.where(blind, 0.5, chance)
    return judgment_table(np.where(a_wins, a, b), np.where(a_wins, b, a), n, a_wins)


def test_infit_and_outfit_are_the_mean_squares_of_wright_and_masters_summed_judgment_by_judgment():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal(6)
    table = simulated(scores, 9, 2)
    sums = table.pairs
    infit, outfit = mean_squares(sums, 1.0 / (1.0 + np.exp(scores[sums.second] - scores[sums.first])))
    for item in range(6):
        squares, variances, ratios = [], [], []
        for winner, loser in zip(table.winners, table.losers, strict=True):
            if item in (winner, loser):
                y = 1.0 if item == winner else 0.0
                other = loser if item == winner else winner
                p = 1.0 / (1.0 + exp(scores[other] - scores[item]))
                squares.append((y - p) ** 2)
                variances.append(p * (1 - p))
                ratios.append((y - p) ** 2 / (p * (1 - p)))
        assert infit[item] == pytest.approx(sum(squares) / sum(variances))
        assert outfit[item] == pytest.approx(np.mean(ratios))


# 1 where the row's essay won, 0 where the column's did, -1 where they did not meet; scores are given, not fitted; mean
# squares of rows and then columns by the simple logistic model of RaschPy 1.4.0 (see `benchmarks/mean_squares.py`)
MEETINGS = np.array(
    [
        [0, 0, 0, -1, 0, 1],
        [0, 1, 0, 0, -1, 0],
        [1, 1, -1, 1, 0, 1],
        [-1, 1, 0, 0, 0, 1],
        [1, 1, 1, 0, 1, -1],
        [1, 1, 0, -1, 0, 1],
    ]
)
MEETING_SCORES = np.array([0.8, -0.1, -0.3, -0.1, 2.2, 2.6, -0.6, -1.1, 3.2, -1.2, -0.7, 0.0])
RASCHPY_INFIT = [3.053634, 1.384325, 0.913449, 1.482473, 4.042671, 2.7342]
RASCHPY_INFIT += [1.667369, 1.284219, 1.17394, 3.509091, 3.385761, 0.912528]
RASCHPY_OUTFIT = [3.152566, 1.192497, 0.88768, 1.267244, 6.56702, 5.560242]
RASCHPY_OUTFIT += [1.309262, 1.322098, 0.686316, 9.09475, 6.992659, 0.776694]


def test_infit_and_outfit_of_essays_that_meet_like_persons_and_items_are_those_of_a_rasch_program():
    row, column = np.nonzero(MEETINGS >= 0)
    won = MEETINGS[row, column] == 1
    sums = judgment_table(np.where(won, row, 6 + column), np.where(won, 6 + column, row), 12).pairs
    win = 1.0 / (1.0 + np.exp(MEETING_SCORES[sums.second] - MEETING_SCORES[sums.first]))
    infit, outfit = mean_squares(sums, win)
    np.testing.assert_allclose(infit, RASCHPY_INFIT, atol=1e-6)
    np.testing.assert_allclose(outfit, RASCHPY_OUTFIT, atol=1e-6)


def test_triads_are_those_found_by_trying_all_of_them():
    table = simulated(np.zeros(9), 6, 3)
    balance = np.zeros((9, 9))
    np.add.at(balance, (table.winners, table.losers), 1)
    beats = balance > balance.T
    found = transitive = 0
    for triad in combinations(range(9), 3):
        if all(beats[i, j] or beats[j, i] for i, j in combinations(triad, 2)):
            found += 1
            transitive += max(sum(beats[i, j] for j in triad if j != i) for i in triad) == 2
    assert 0 < transitive < found
    assert count_triads(table.pairs) == (transitive, found)
    # by ordered pairs as well
    assert count_triads(table.readings) == (transitive, found)


def test_judges_who_follow_the_model_are_not_called_misfits():
    below, counted = 0, 0
    for seed in range(6):
        table = simulated(1.5 * np.random.default_rng(seed).standard_normal(16), 10, seed)
        fit = assess_fit(table, draw_posterior(table, seed=1, n_draws=150), seed=2, replications=99)
        below += int((fit.infit_p < 0.05).sum() + (fit.outfit_p < 0.05).sum())
        counted += 32
        assert fit.infit_limits[:, 0].max() < 1.0 < fit.infit_limits[:, 1].max()
    # infit and outfit go together, so half of them are counted as independent
    assert below <= binom.ppf(0.999, counted // 2, 0.05) * 2


def test_an_essay_judged_by_coin_flips_stands_out():
    truth = np.linspace(-4, 4, 24)
    table = simulated(truth, 16, 4, careless=[23])
    fit = assess_fit(table, draw_posterior(table, seed=1, n_draws=200), seed=2, replications=199)
    assert np.nanargmax(fit.infit) == 23
    assert fit.infit_p[23] < 0.05
    assert fit.infit[23] > fit.infit_limits[23, 1]


@pytest.mark.slow
def test_a_judge_who_lapses_shows_in_upsets_and_a_perfect_one_does_not():
    # a batch this small has a few dozen judgments between distant essays: three together have the power one lacks
    truth = np.linspace(-5, 5, 30)
    combined = {}
    for lapse in (0.0, 0.15):
        tables = [simulated(truth, 16, seed, lapse=lapse) for seed in (5, 6, 7)]
        found = [
            assess_fit(table, draw_posterior(table, seed=1, n_draws=200), seed=2, replications=199).upsets
            for table in tables
        ]
        combined[lapse] = combine_pvalues([upsets.p_value for upsets in found]).pvalue
        if lapse:
            assert all(upsets.share > upsets.expected for upsets in found)
    assert combined[0.15] < 0.05
    assert combined[0.0] > 0.05


def test_a_judge_who_goes_in_circles_is_less_transitive_than_the_model_allows():
    # each of 25 essays beats the next 12 in a ring: of all tournaments these have the most circles, (n³ - n)/24
    n = 25
    winners, step = np.divmod(np.arange(n * 12), 12)
    table = judgment_table(winners, (winners + 1 + step) % n, n)
    result = assess_fit(table, draw_posterior(table, seed=1, n_draws=200), seed=2, replications=199).transitivity
    assert result.total == 2300
    assert result.share == pytest.approx(1.0 - 650 / 2300)
    assert result.share < result.interval[0]
    assert result.p_value < 0.05


def test_fit_figures_do_not_depend_on_the_order_of_judgments_and_reversal_leaves_mean_squares_alone():
    table = simulated(np.linspace(-2, 2, 10), 8, 6)
    draws = draw_posterior(table, seed=1, n_draws=100)
    base = assess_fit(table, draws, seed=3, replications=50)
    again = assess_fit(table.rows(np.arange(len(table))[::-1]), draws, seed=3, replications=50)
    assert np.array_equal(base.infit_p, again.infit_p)
    back = judgment_table(table.losers, table.winners, 10)
    mirrored = assess_fit(back, draw_posterior(back, seed=1, n_draws=100), seed=3, replications=50)
    assert mirrored.infit == pytest.approx(base.infit)
    assert mirrored.outfit == pytest.approx(base.outfit)


def test_an_essay_without_judgments_has_no_fit():
    table = judgment_table([0, 1, 2, 0], [1, 2, 0, 2], 4)
    fit = assess_fit(table, draw_posterior(table, seed=1, n_draws=50), seed=1, replications=20)
    assert np.isnan(fit.infit[3])
    assert np.isnan(fit.outfit_p[3])
    assert np.isfinite(fit.infit_p[:3]).all()


def test_input_that_does_not_fit_together_is_refused():
    table = judgment_table([0, 1], [1, 0], 2)
    draws = draw_posterior(table, seed=1, n_draws=20)
    with pytest.raises(InputError, match="replications"):
        assess_fit(table, draws, seed=1, replications=5)
    with pytest.raises(InputError, match="3 items"):
        assess_fit(table, draw_posterior(judgment_table([0], [1], 3), seed=1, n_draws=20), seed=1)


def test_a_judge_who_flips_coins_misfits_beside_a_sound_one_on_the_same_scale():
    rng = np.random.default_rng(7)
    sound = simulated(np.linspace(-3, 3, 20), 14, 8)
    careless = rng.random(len(sound)) < 0.3
    flipped = careless & (rng.random(len(sound)) < 0.5)
    table = judgment_table(
        np.where(flipped, sound.losers, sound.winners), np.where(flipped, sound.winners, sound.losers), 20
    )
    judges = np.where(careless, "coin", "sound").tolist()
    draws = draw_posterior(table, seed=1, n_draws=200)
    coin, other = assess_fit(table, draws, seed=2, replications=199, judges=judges).judges
    assert (coin.judge, other.judge) == ("coin", "sound")
    assert coin.judgments == careless.sum()
    assert coin.judgments + other.judgments == len(table)
    assert coin.infit > coin.infit_limits[1]
    assert coin.infit_p < 0.05
    assert other.infit < coin.infit


def test_one_judge_has_the_mean_squares_of_all_judgments_and_judges_change_no_other_figure():
    table = simulated(np.linspace(-2, 2, 10), 8, 6)
    draws = draw_posterior(table, seed=1, n_draws=100)
    alone = assess_fit(table, draws, seed=3, replications=30)
    named = assess_fit(table, draws, seed=3, replications=30, judges=["one"] * len(table))
    assert alone.judges == ()
    assert np.array_equal(alone.infit_p, named.infit_p)
    scores = fit_bradley_terry(table.winners, table.losers, 10).scores
    chance = 1 / (1 + np.exp(-(scores[table.winners] - scores[table.losers])))
    (judge,) = named.judges
    assert judge.infit == pytest.approx(((1 - chance) ** 2).sum() / (chance * (1 - chance)).sum())
    assert judge.outfit == pytest.approx(((1 - chance) / chance).mean())
    with pytest.raises(InputError, match="1 judges are given"):
        assess_fit(table, draws, seed=3, judges=["one"])
