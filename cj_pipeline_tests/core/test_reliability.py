"""What is read from draws against brute force and closed forms, and the coefficients against hand-worked figures."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.posterior import PosteriorDraws, draw_posterior
from cj_pipeline.core.reliability import (
    columns_told_apart,
    expected_r_squared,
    indistinguishable_groups,
    probability_better,
    rank_intervals,
    score_intervals,
    separation,
    shrunken_reliability,
    split_half,
    told_apart,
)


def drawn(scores):
    return PosteriorDraws(np.asarray(scores, dtype=float), np.ones(len(scores)), None, "gibbs", "fixed")


def normal_draws(means, sds, n_draws=4000, seed=1):
    return drawn(
        np.asarray(means) + np.asarray(sds) * np.random.default_rng(seed).standard_normal((n_draws, len(means)))
    )


def simulated(truth, per_item, seed):
    rng = np.random.default_rng(seed)
    n = truth.size
    a = rng.integers(0, n, n * per_item // 2)
    b = (a + 1 + rng.integers(0, n - 1, a.size)) % n
    a_wins = rng.random(a.size) < 1.0 / (1.0 + np.exp(truth[b] - truth[a]))
    return judgment_table(np.where(a_wins, a, b), np.where(a_wins, b, a), n)


def nearest_neighbour_batch(truth, rounds, seed, width=5.0):
    """Rounds in which each essay meets a neighbour, in the scores so far, that it has not met."""
    rng = np.random.default_rng(seed)
    n, winners, losers, met = truth.size, [], [], set()
    order = list(rng.permutation(n))
    for _ in range(rounds):
        while order:
            i = order.pop(0)
            j = order.pop(next((k for k, j in enumerate(order) if frozenset((i, j)) not in met), 0))
            met.add(frozenset((i, j)))
            i_wins = rng.random() < 1.0 / (1.0 + np.exp(truth[j] - truth[i]))
            winners.append(i if i_wins else j)
            losers.append(j if i_wins else i)
        scores = fit_bradley_terry(winners, losers, n, prior_sd=width).scores
        order = list(np.argsort(-scores))
    return judgment_table(winners, losers, n)


# -- from draws ------------------------------------------------------------------------------------------------


def test_score_intervals_are_the_quantiles_of_the_draws():
    intervals = score_intervals(normal_draws([0.0, 3.0], [1.0, 0.5], 40_000), 0.9)
    assert intervals == pytest.approx(np.array([[-1.645, 1.645], [2.178, 3.822]]), abs=0.04)


def test_rank_intervals_leave_at_most_the_tails_outside():
    draws = normal_draws([2.0, 0.0, 0.3, -5.0], [1.0, 1.0, 1.0, 0.1])
    intervals = rank_intervals(draws, 0.9)
    for item in range(4):
        ranks = 1 + (draws.scores > draws.scores[:, item : item + 1]).sum(axis=1)
        low, high = intervals[item]
        assert (ranks < low).mean() <= 0.05
        assert (ranks > high).mean() <= 0.05
        # and no narrower interval does
        assert (ranks <= low).mean() >= 0.05
        assert (ranks >= high).mean() >= 0.05
    assert intervals[3].tolist() == [4, 4]


def test_the_probability_to_be_better_is_that_of_the_difference():
    better = probability_better(normal_draws([1.0, 0.0, 0.0], [0.6, 0.8, 0.8], 40_000))
    assert better[0, 1] == pytest.approx(norm.cdf(1.0), abs=0.01)
    assert better[1, 2] == pytest.approx(0.5, abs=0.01)
    assert better + better.T == pytest.approx(np.ones((3, 3)))


def test_all_statements_about_differences_of_columns_hold_at_once_with_the_stated_probability():
    # nothing differs: in 5 % of tables like this one at least one pair is told apart
    rng = np.random.default_rng(3)
    false_alarms = []
    for _ in range(200):
        estimate = rng.standard_normal(8)
        false_alarms.append(columns_told_apart(estimate + rng.standard_normal((600, 8))).any())
    rate = np.mean(false_alarms)
    assert abs(rate - 0.05) < 3.5 * sqrt(0.05 * 0.95 / 200) + 0.01


@pytest.mark.parametrize("n", [2, 3, 6, 12])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_of_the_draws_no_more_than_stated_have_a_pair_that_was_told_apart_in_the_other_order(n, level):
    rng = np.random.default_rng([n, round(100 * level)])
    called = 0
    for _ in range(60):
        draws = drawn(1.5 * rng.standard_normal(n) + rng.uniform(0.2, 1.5, n) * rng.standard_normal((500, n)))
        i, j = np.nonzero(np.triu(told_apart(draws, level)))
        called += i.size
        swapped = (draws.scores[:, i] - draws.scores[:, j]) * (draws.means[i] - draws.means[j]) <= 0.0
        assert np.mean(swapped.any(axis=1)) <= (1.0 - level) / 2.0
        # no other pair is clearer than the least clear of them
        rest = np.triu(~told_apart(draws, level), 1)
        clear = np.abs(draws.means[:, None] - draws.means) / np.sqrt(spread_of_differences(draws))
        assert clear[rest].max(initial=0.0) <= clear[i, j].min(initial=np.inf)
    assert called > 10


def spread_of_differences(draws):
    """(n, n) variances of differences, 1 on the diagonal."""
    differences = draws.scores[:, :, None] - draws.scores[:, None, :]
    return differences.var(axis=0) + np.eye(draws.n_items)


def test_all_orders_that_are_called_certain_are_right_at_once_with_the_probability_of_one_side_of_the_interval():
    # truths ~ N(0, 1), seen with an error of sd .7: their posterior is N(estimate / 1.49, .49 / 1.49)
    rng = np.random.default_rng(4)
    wrong, called = [], []
    for _ in range(1000):
        truth = rng.standard_normal(8)
        means = (truth + 0.7 * rng.standard_normal(8)) / 1.49
        draws = drawn(means + sqrt(0.49 / 1.49) * rng.standard_normal((800, 8)))
        i, j = np.nonzero(told_apart(draws))
        called.append(i.size / 56)
        wrong.append(bool(((truth[i] - truth[j]) * (means[i] - means[j]) < 0).any()))
    assert np.mean(called) > 0.1
    assert abs(np.mean(wrong) - 0.025) < 3.0 * sqrt(0.025 * 0.975 / 1000)


def test_columns_that_are_equal_or_always_differ_by_the_same_spoil_no_other_statement():
    rng = np.random.default_rng(8)
    one = rng.standard_normal(400)
    draws = drawn(np.stack([one, one, one + 0.1, one + 10.0 + 0.1 * rng.standard_normal(400)], axis=1))
    expected = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]], dtype=bool)
    np.testing.assert_array_equal(told_apart(draws), expected)
    np.testing.assert_array_equal(columns_told_apart(draws.scores), expected)


def test_draws_too_few_for_the_level_are_refused_and_one_item_is_a_group():
    with pytest.raises(InputError, match="at least 40"):
        told_apart(normal_draws([1.0, 0.0], [0.1, 0.1], 39))
    assert indistinguishable_groups(normal_draws([1.0], [0.1], 40)) == [[0]]


def test_two_items_are_told_apart_where_the_interval_of_their_difference_leaves_out_zero():
    for distance in np.linspace(1.5, 2.5, 11):
        draws = normal_draws([distance, 0.0], [0.6, 0.8])
        difference = draws.scores[:, 0] - draws.scores[:, 1]
        assert told_apart(draws)[0, 1] == (np.quantile(difference, 0.025) > 0.0)


def test_orders_hardly_depend_on_how_far_draws_stretch_the_scale():
    draws = normal_draws(np.linspace(-3, 3, 12), [0.4] * 12)
    stretch = np.random.default_rng(5).lognormal(0.0, 1.0, len(draws.scores))
    stretched = drawn(draws.scores * stretch[:, None])
    clear = told_apart(draws)
    assert told_apart(stretched).sum() > 0.8 * clear.sum() > 0
    assert columns_told_apart(stretched.scores).sum() < 0.2 * clear.sum()


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.0, 1.0])
def test_of_judged_batches_few_have_an_order_called_certain_that_is_not(sd):
    rng = np.random.default_rng(6)
    wrong = []
    for seed in range(100):
        truth = sd * rng.standard_normal(20)
        a, b = np.concatenate([rng.permutation(20).reshape(2, -1) for _ in range(10)], axis=1)
        won = rng.random(a.size) < expit(truth[a] - truth[b])
        table = judgment_table(np.where(won, a, b), np.where(won, b, a), 20)
        draws = draw_posterior(table, seed=seed, n_draws=600)
        i, j = np.nonzero(told_apart(draws))
        # essays that do not differ have no order: every statement about them is wrong
        wrong.append(bool(((truth[i] - truth[j]) * (draws.means[i] - draws.means[j]) <= 0).any()))
    assert np.mean(wrong) < 0.06 + 3.0 * sqrt(0.06 * 0.94 / 100)


def test_items_far_apart_form_groups_of_their_own_best_first():
    draws = normal_draws([0.0, 10.0, 0.1, 10.1, -10.0], [0.3] * 5)
    assert [sorted(group) for group in indistinguishable_groups(draws)] == [[1, 3], [0, 2], [4]]


def test_groups_overlap_where_neighbours_blend_into_each_other():
    groups = indistinguishable_groups(normal_draws([2.0, 1.0, 0.0], [0.45] * 3))
    assert groups == [[0, 1], [1, 2]]


@pytest.mark.parametrize("shown", [None, [1, 0, 2, 3, 4, 6, 5, *range(7, 15)]])
def test_groups_hold_no_pair_told_apart_and_cannot_be_longer_in_the_order_that_is_shown(shown):
    draws = normal_draws(np.linspace(3, -3, 15), np.random.default_rng(2).uniform(0.1, 0.8, 15))
    apart, order = told_apart(draws), np.argsort(-draws.means) if shown is None else np.array(shown)
    runs = set()
    for start in range(15):
        for end in range(start + 1, 16):
            run = order[start:end]
            if not apart[np.ix_(run, run)].any():
                runs.add((start, end))
    longest = {r for r in runs if not any(s != r and s[0] <= r[0] and r[1] <= s[1] for s in runs)}
    assert indistinguishable_groups(draws, order=shown) == [[int(i) for i in order[a:b]] for a, b in sorted(longest)]


def test_expected_r_squared_is_the_mean_squared_correlation_with_the_draws():
    draws = normal_draws([2.0, 0.5, 0.0, -1.0, -1.5], [0.7] * 5, 300)
    squares = [np.corrcoef(draws.scores.mean(axis=0), draw)[0, 1] ** 2 for draw in draws.scores]
    result = expected_r_squared(draws)
    assert result.mean == pytest.approx(np.mean(squares))
    assert result.low == pytest.approx(np.quantile(squares, 0.1))


def test_expected_r_squared_is_undefined_for_two_items():
    assert expected_r_squared(normal_draws([0.0, 1.0], [1.0, 1.0])) is None


@pytest.mark.slow
@pytest.mark.parametrize("design", ["random", "nearest"])
def test_expected_r_squared_is_what_the_squared_correlation_with_the_truth_turns_out_to_be(design):
    """Truths from the prior: the mean difference is zero but for Monte Carlo error, however pairs were chosen."""
    differences = []
    for seed in range(30):
        truth = np.random.default_rng(100 + seed).standard_normal(16)
        table = simulated(truth, 6, seed) if design == "random" else nearest_neighbour_batch(truth, 6, seed)
        draws = draw_posterior(table, seed=seed, n_draws=250, thin=1, burn_in=100, width_prior=1.0)
        differences.append(expected_r_squared(draws).mean - np.corrcoef(truth, draws.means)[0, 1] ** 2)
    error = np.std(differences, ddof=1) / sqrt(30)
    assert error < 0.05
    assert abs(np.mean(differences)) < 3.5 * error


@pytest.mark.slow
def test_on_pure_noise_with_neighbours_paired_separation_is_high_and_expected_r_squared_is_not():
    # of 100 essays that do not differ, 10 rounds
    honest, separated, halves = [], [], []
    for seed in range(3):
        table = nearest_neighbour_batch(np.zeros(100), 10, seed)
        honest.append(expected_r_squared(draw_posterior(table, seed=seed, n_draws=300, width_prior="flat")).mean)
        # a very wide prior stands in for maximum likelihood, which is seldom finite here
        fit = fit_bradley_terry(table.winners, table.losers, 100, prior_sd=100.0)
        separated.append(separation(fit.scores, fit.standard_errors()).reliability)
        halves.append(split_half(table, seed=seed, splits=5, prior_sd=5.0).reliability)
    assert np.mean(separated) > 0.85
    assert np.mean(halves) > 0.6
    # the mean over many batches is near .3, its standard deviation near .2
    assert np.mean(honest) < 0.3 + 3.5 * 0.2 / sqrt(3)
    assert np.mean(separated) - np.mean(honest) > 0.2


# -- the coefficients of the literature ------------------------------------------------------------------------


def test_separation_of_three_scores_is_the_hand_worked_one():
    # var = 1, MSE = 3 · .25 / 2 = .375
    result = separation([-1.0, 0.0, 1.0], [0.5, 0.5, 0.5])
    assert result.reliability == pytest.approx(0.625)
    assert result.index == pytest.approx(sqrt(0.625 / 0.375))


def test_separation_is_negative_and_its_index_zero_where_errors_exceed_the_spread():
    result = separation([-0.1, 0.1], [1.0, 1.0])
    assert result.reliability < 0
    assert result.index == 0.0


def test_separation_does_not_exist_for_equal_scores():
    assert separation([0.0, 0.0], [1.0, 1.0]) is None


def test_the_coefficient_of_shrunken_scores_is_the_hand_worked_one():
    assert shrunken_reliability([-1.0, 0.0, 1.0], [0.5, 0.5, 0.5]) == pytest.approx(1 / 1.375)


def test_split_half_is_stepped_up_by_spearman_and_brown():
    table = simulated(np.linspace(-4, 4, 20), 40, 1)
    result = split_half(table, seed=1, splits=4)
    assert result.reliability == pytest.approx(2 * result.correlation / (1 + result.correlation))
    assert result.splits == 4
    assert result.reliability > 0.8


def test_split_half_on_noise_and_random_pairs_is_near_zero():
    values = [split_half(simulated(np.zeros(40), 12, seed), seed=seed, splits=4).correlation for seed in range(12)]
    assert abs(np.mean(values)) < 3.5 * np.std(values, ddof=1) / sqrt(12)


def test_split_half_does_not_change_when_every_judgment_is_reversed():
    table = simulated(np.linspace(-1, 1, 12), 10, 3)
    reversed_ = replace(table, winners=table.losers, losers=table.winners)
    assert split_half(table, seed=4).correlation == pytest.approx(split_half(reversed_, seed=4).correlation)


def test_what_is_no_level_and_what_does_not_match_is_refused():
    with pytest.raises(InputError, match="level"):
        score_intervals(normal_draws([0.0, 1.0], [1.0, 1.0]), 95)
    with pytest.raises(InputError, match="match"):
        separation([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="finite"):
        shrunken_reliability([1.0, 2.0], [1.0, np.inf])
