"""The advantage of being read first, fitted along with the scores: published tables, brute force, symmetries, recovery.

HOME_GAMES: wins of the home team and of its guest in 1987's American League East. Agresti (2002), Categorical Data
Analysis, 2nd ed., Table 10.10; the fit with a home advantage in section 10.6.3 and, to four decimals, in the vignette
of the R package BradleyTerry2 (Turner & Firth 2012, J. Stat. Software 48(9)), section 3.1.
"""

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.optimize import minimize

from cj_pipeline.core.bradley_terry import fit_bradley_terry, log_marginal_likelihood
from cj_pipeline.core.bradley_terry_mode import find_mode
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.pair_counts import counts_of
from cj_pipeline.core.score_prior import IndependentPrior
from cj_pipeline_tests.core.test_bradley_terry import BASEBALL, numerical_hessian

# Milwaukee, Detroit, Toronto, New York, Boston, Cleveland, Baltimore; rows at home to columns
HOME_GAMES = [
    [None, (4, 3), (4, 2), (4, 3), (6, 1), (4, 2), (6, 0)],
    [(3, 3), None, (4, 2), (4, 3), (6, 0), (6, 1), (4, 3)],
    [(2, 5), (4, 3), None, (2, 4), (4, 3), (4, 2), (6, 0)],
    [(3, 3), (5, 1), (2, 5), None, (4, 3), (4, 2), (6, 1)],
    [(5, 1), (2, 5), (3, 3), (4, 2), None, (5, 2), (6, 0)],
    [(2, 5), (3, 3), (3, 4), (4, 3), (4, 2), None, (2, 4)],
    [(2, 5), (1, 5), (1, 6), (2, 4), (1, 6), (3, 4), None],
]


def home_games():
    """Winners, losers, whether the winner was at home, and how often, one row per cell."""
    rows = []
    for home, games in enumerate(HOME_GAMES):
        for guest, result in enumerate(games):
            if result is not None:
                rows += [(home, guest, True, result[0]), (guest, home, False, result[1])]
    return (np.array(column) for column in zip(*[row for row in rows if row[3]], strict=True))


def read_judgments(n_items, n_judgments, seed, *, advantage, sd=1.0):
    """Winners, losers and whether the winner was read first, by the model's own law on random pairs."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, sd, n_items)
    first = rng.integers(0, n_items, n_judgments)
    second = (first + rng.integers(1, n_items, n_judgments)) % n_items
    wins = rng.random(n_judgments) < 1 / (1 + np.exp(truth[second] - truth[first] - advantage))
    return np.where(wins, first, second), np.where(wins, second, first), wins, truth


def test_the_home_advantage_in_baseball_and_the_abilities_beside_it_are_the_published_ones():
    winners, losers, at_home, games = home_games()
    totals = np.zeros((7, 7), dtype=int)
    np.add.at(totals, (winners, losers), games)
    assert totals.tolist() == BASEBALL.tolist(), "the two tables are about the same games"
    # each game counted a million times, so that the prior of the advantage says nothing beside them
    fit = fit_bradley_terry(winners, losers, 7, weights=games * 1e6, prior_sd=None, winner_first=at_home)
    assert round(fit.order_effect, 4) == 0.3023
    assert round(fit.order_effect_se * 1e3, 4) == 0.1309
    assert (fit.scores[:6] - fit.scores[6]).round(4).tolist() == [1.6196, 1.4754, 1.3271, 1.2813, 1.1438, 0.7047]
    ses = [round(fit.standard_error_of_contrast(i, 6) * 1e3, 4) for i in range(6)]
    assert ses == [0.3474, 0.3446, 0.3403, 0.3404, 0.3378, 0.3350]


@pytest.mark.parametrize("prior_sd", [0.7, 2.0])
def test_mode_and_covariance_are_those_of_the_posterior_spelt_out(prior_sd):
    winners, losers, first, _ = read_judgments(6, 60, 3, advantage=0.8)
    sign = np.where(first, 1.0, -1.0)

    def log_posterior(parameters):
        scores, advantage = parameters[:-1], parameters[-1]
        logits = scores[winners] - scores[losers] + sign * advantage
        prior = scores @ scores / prior_sd**2 + advantage**2
        return -np.logaddexp(0.0, -logits).sum() - prior / 2

    best = minimize(lambda x: -log_posterior(x), np.zeros(7), method="BFGS", options={"gtol": 1e-9}).x
    fit = fit_bradley_terry(winners, losers, 6, prior_sd=prior_sd, winner_first=first)
    np.testing.assert_allclose(fit.scores, best[:-1], atol=1e-6)
    assert fit.order_effect == pytest.approx(best[-1], abs=1e-6)
    covariance = np.linalg.inv(-numerical_hessian(log_posterior, best))
    centring = np.eye(6) - 1 / 6
    np.testing.assert_allclose(fit.covariance(), centring @ covariance[:6, :6] @ centring, atol=1e-5)
    assert fit.order_effect_se == pytest.approx(covariance[-1, -1] ** 0.5, abs=1e-5)


@pytest.mark.parametrize("prior_sd", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("wins", [(1, 0, 1, 0), (3, 1, 1, 2), (6, 0, 5, 1)])
def test_the_marginal_likelihood_of_one_pair_read_in_both_orders_is_the_integral(prior_sd, wins):
    # item 0 read first wins, loses; read second wins, loses
    rows = [(0, 1, True), (1, 0, False), (0, 1, False), (1, 0, True)]
    kept = [(row, count) for row, count in zip(rows, wins, strict=True) if count]
    winners, losers, first = (np.array(column) for column in zip(*[row for row, _ in kept], strict=True))
    counts = np.array([count for _, count in kept])

    def density(advantage, difference):
        logits = np.where(winners == 0, difference, -difference) + np.where(first, advantage, -advantage)
        spread = 2 * prior_sd**2
        normal = np.exp(-(difference**2) / (2 * spread) - advantage**2 / 2) / (2 * np.pi * spread**0.5)
        return np.exp(-(counts * np.logaddexp(0.0, -logits)).sum()) * normal

    reach = 9 * prior_sd
    exact = np.log(dblquad(density, -reach, reach, -8, 8, epsabs=1e-9)[0])
    found = log_marginal_likelihood(winners, losers, 2, prior_sd=prior_sd, weights=counts, winner_first=first)
    # two sites, of the two orders, share the difference and the advantage
    assert found == pytest.approx(exact, abs=0.12)


def test_with_all_reading_orders_swapped_the_advantage_changes_its_sign_and_the_scores_stay():
    winners, losers, first, _ = read_judgments(9, 80, 4, advantage=0.5)
    fit = fit_bradley_terry(winners, losers, 9, winner_first=first)
    swapped = fit_bradley_terry(winners, losers, 9, winner_first=~first)
    assert swapped.order_effect == pytest.approx(-fit.order_effect, abs=1e-8)
    np.testing.assert_allclose(swapped.scores, fit.scores, atol=1e-8)
    np.testing.assert_allclose(swapped.covariance(), fit.covariance(), atol=1e-8)
    # swapped results and swapped orders: the scale turned upside down, the advantage as it was
    reversed_ = fit_bradley_terry(losers, winners, 9, winner_first=~first)
    np.testing.assert_allclose(reversed_.scores, -fit.scores, atol=1e-8)


def test_without_reading_orders_there_is_no_order_effect():
    winners, losers, _, _ = read_judgments(5, 30, 5, advantage=0.0)
    fit = fit_bradley_terry(winners, losers, 5)
    assert (fit.order_effect, fit.order_effect_se) == (None, None)


def test_without_judgments_the_advantage_is_what_its_prior_says():
    fit = fit_bradley_terry([], [], 3, winner_first=np.zeros(0, dtype=bool))
    assert fit.order_effect == 0.0
    assert fit.order_effect_se == pytest.approx(1.0)


def test_when_the_first_always_wins_the_advantage_is_large_and_finite_and_no_score_stands_out():
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    winners, losers = np.array(pairs).T
    fit = fit_bradley_terry(winners, losers, 8, winner_first=np.ones(56, dtype=bool))
    assert 2.0 < fit.order_effect < 6.0
    np.testing.assert_allclose(fit.scores, 0.0, atol=1e-9)
    assert fit.converged


@pytest.mark.slow
def test_a_strong_order_effect_ignored_leaves_intervals_too_narrow_and_fitted_it_does_not():
    inside = {True: [], False: []}
    for seed in range(40):
        winners, losers, first, truth = read_judgments(20, 300, seed, advantage=1.5, sd=1.5)
        for fitted in inside:
            fit = fit_bradley_terry(winners, losers, 20, winner_first=first if fitted else None)
            error = np.abs(fit.scores - (truth - truth.mean()))
            inside[fitted].append(np.mean(error < 1.96 * fit.standard_errors()))
            if fitted:
                assert abs(fit.order_effect - 1.5) < 4 * fit.order_effect_se
    # Monte Carlo error of each mean, over exams, is about .01
    assert 0.92 < np.mean(inside[True]) < 0.98
    assert np.mean(inside[False]) < np.mean(inside[True]) - 0.01


def test_the_mode_of_a_tables_readings_is_where_the_slope_of_the_posterior_vanishes():
    rng = np.random.default_rng(10)
    winners = rng.integers(0, 10, 40)
    losers = (winners + rng.integers(1, 10, 40)) % 10
    table = judgment_table(winners, losers, 10, rng.random(40) < 0.7)
    mode = find_mode(counts_of(table.readings, ordered=True), IndependentPrior(1.7), np.zeros(10), 0.0, 1e-9)
    estimate = np.append(mode.scores, mode.advantage)

    def log_posterior(x):
        sign = np.where(table.winner_read_first, 1.0, -1.0)
        eta = x[table.winners] - x[table.losers] + sign * x[10]
        return -np.logaddexp(0, -eta).sum() - 0.5 * (x[:10] ** 2).sum() / 1.7**2 - 0.5 * x[10] ** 2

    for k in range(11):
        step = np.zeros(11)
        step[k] = 1e-5
        slope = (log_posterior(estimate + step) - log_posterior(estimate - step)) / 2e-5
        assert abs(slope) < 1e-5
