"""Expectation propagation against brute-force integration, the Gibbs sampler, and the symmetries of the model."""

import numpy as np
import pytest
from scipy.integrate import quad

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.expectation_propagation import propagate, tilted_moments
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.pair_counts import count_pairs
from cj_pipeline.core.posterior import draw_posterior, effective_sizes
from cj_pipeline.core.score_prior import AnchoredPrior, IndependentPrior, known_items

TIGHT = 1e-10


def simulated(n, per_item, sd, seed, effect=0.5):
    """Winners, losers and whether the winner was read first: a perfect judge on random pairs."""
    rng = np.random.default_rng(seed)
    truth = sd * rng.standard_normal(n)
    a = rng.integers(0, n, n * per_item // 2)
    b = (a + 1 + rng.integers(0, n - 1, a.size)) % n
    a_wins = rng.random(a.size) < 1.0 / (1.0 + np.exp(truth[b] - truth[a] - effect))
    return np.where(a_wins, a, b), np.where(a_wins, b, a), a_wins


def propagated(winners, losers, n, prior, winner_first=None, weights=None, start=None):
    return propagate(count_pairs(winners, losers, n, weights, winner_first), prior, start, tolerance=TIGHT)


def covariance(found):
    """Centred covariance of the scores."""
    inverse = found.information.inverse()
    half = inverse - inverse.mean(axis=0)
    return half - half.mean(axis=1)[:, None]


def brute_force(winners, losers, winner_first, n, sd):
    """Centred means and covariance of scores, mean and variance of the advantage, and log evidence.

    By sums over a grid of n - 1 orthonormal contrasts, each N(0, sd²) as scores are, and the advantage.
    """
    contrasts = np.linalg.svd(np.eye(n) - 1.0 / n)[0][:, : n - 1]
    axes = [np.linspace(-6.5, 6.5, 161 if n == 3 else 41) * sd] * (n - 1) + [np.linspace(-5.0, 5.0, 25)] * (
        winner_first is not None
    )
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    advantage = grid[n - 1] if winner_first is not None else 0.0
    log_density = -0.5 * sum((x / sd) ** 2 for x in grid[: n - 1]) - (n - 1) * np.log(sd * np.sqrt(2 * np.pi))
    if winner_first is not None:
        log_density = log_density - 0.5 * advantage**2 - 0.5 * np.log(2 * np.pi)
    for k, (winner, loser) in enumerate(zip(winners, losers, strict=True)):
        d = sum(c * x for c, x in zip(contrasts[winner] - contrasts[loser], grid[: n - 1], strict=True))
        if winner_first is not None:
            d = d + (advantage if winner_first[k] else -advantage)
        log_density = log_density - np.logaddexp(0.0, -d)
    density = np.exp(log_density)
    mass = density.sum()
    density /= mass
    means = np.array([(density * x).sum() for x in grid])
    off = [x - m for x, m in zip(grid, means, strict=True)]
    second = np.array([[(density * x * y).sum() for y in off] for x in off])
    cell = np.prod([axis[1] - axis[0] for axis in axes])
    of_scores = contrasts @ second[: n - 1, : n - 1] @ contrasts.T
    own = (means[n - 1], second[n - 1, n - 1]) if winner_first is not None else None
    return contrasts @ means[: n - 1], of_scores, own, float(np.log(mass * cell))


# -- one site --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wins", "losses", "mean", "variance"),
    [(1, 0, -3, 4), (1, 0, 0, 100), (0, 1, 3, 1e4), (5, 2, 1, 0.3), (50, 1, -2, 9), (300, 200, 0, 4), (2, 0, -60, 100)],
)
def test_moments_of_a_likelihood_times_a_normal_are_those_of_adaptive_quadrature(wins, losses, mean, variance):
    def log_density(x):
        return wins * x - (wins + losses) * np.logaddexp(0.0, x) - 0.5 * (x - mean) ** 2 / variance

    reach = 12.0 * variance**0.5
    fine = np.linspace(mean - reach, mean + reach, 20_001)
    top = log_density(fine).max()
    centre = fine[log_density(fine).argmax()]

    def integral(power, about=0.0):
        options = {"limit": 500, "epsabs": 1e-13, "epsrel": 1e-12, "points": [centre, 0.0]}
        return quad(
            lambda x: (x - about) ** power * np.exp(log_density(x) - top), centre - reach, centre + reach, **options
        )[0]

    mass = integral(0)
    expected = integral(1) / mass
    spread = integral(2, expected) / mass
    found = tilted_moments(*(np.array([float(x)]) for x in (wins, losses, mean, variance)))
    assert found[0][0] == pytest.approx(expected, abs=2e-4 * spread**0.5)
    assert found[1][0] == pytest.approx(spread, rel=2e-4)
    assert found[2][0] == pytest.approx(np.log(mass) + top - 0.5 * np.log(2 * np.pi * variance), abs=2e-4)


def test_a_single_pair_is_integrated_exactly():
    """One site: the difference then has its exact moments, and the evidence is the integral itself."""
    found = propagated([0, 0, 1], [1, 1, 0], 2, IndependentPrior(3.0))
    d = np.linspace(-60.0, 60.0, 200_001)
    density = np.exp(-2 * np.logaddexp(0.0, -d) - np.logaddexp(0.0, d) - 0.5 * d**2 / 18.0)
    mass = density.sum() * (d[1] - d[0]) / np.sqrt(2 * np.pi * 18.0)
    mean = (density * d).sum() / density.sum()
    assert found.log_evidence == pytest.approx(np.log(mass), abs=1e-9)
    assert found.means[0] - found.means[1] == pytest.approx(mean, abs=1e-9)
    spread = (density * (d - mean) ** 2).sum() / density.sum()
    assert found.information.predictor_variances()[0] == pytest.approx(spread, rel=1e-9)


def test_disjoint_pairs_say_nothing_about_the_width_and_the_evidence_is_flat_in_it():
    """Each outcome has probability 1/2 under every symmetric prior."""
    for sd in (0.1, 1.0, 10.0, 50.0):
        found = propagated([0, 3, 4, 7], [1, 2, 5, 6], 9, IndependentPrior(sd))
        assert found.log_evidence == pytest.approx(4 * np.log(0.5), abs=1e-4)


# -- several items ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sd", [0.7, 2.0, 5.0])
def test_three_items_have_the_moments_and_the_evidence_found_by_brute_force(sd):
    winners, losers = [0, 0, 0, 1, 1, 2, 1], [1, 1, 2, 2, 0, 1, 2]
    means, second, _, evidence = brute_force(winners, losers, None, 3, sd)
    found = propagated(winners, losers, 3, IndependentPrior(sd))
    # what remains is that the posterior is not normal
    spread = np.sqrt(np.diag(second))
    assert np.abs(found.means - means).max() < 0.015 * spread.min()
    assert np.abs(covariance(found) - second).max() < 0.08 * spread.max() ** 2
    assert found.log_evidence == pytest.approx(evidence, abs=0.01)


def test_four_items_with_an_order_effect_agree_with_brute_force():
    winners, losers = [0, 0, 1, 2, 3, 1, 2, 0], [1, 2, 2, 3, 0, 3, 1, 1]
    first = np.array([True, False, True, True, True, False, True, False])
    means, second, (advantage, advantage_variance), evidence = brute_force(winners, losers, first, 4, 1.5)
    found = propagated(winners, losers, 4, IndependentPrior(1.5), winner_first=first)
    spread = np.sqrt(np.diag(second))
    assert np.abs(found.means - means).max() < 0.005 * spread.min()
    assert found.advantage == pytest.approx(advantage, abs=0.005 * advantage_variance**0.5)
    assert np.abs(covariance(found) - second).max() < 0.01 * spread.max() ** 2
    assert found.information.advantage_variance == pytest.approx(advantage_variance, rel=0.01)
    assert found.log_evidence == pytest.approx(evidence, abs=0.01)


def test_on_a_wide_scale_it_agrees_with_the_gibbs_sampler_where_the_mode_does_not():
    winners, losers, _ = simulated(20, 10, 4.0, seed=3)
    table = judgment_table(winners, losers, 20)
    draws = draw_posterior(table, seed=1, n_draws=4000, thin=1, width_prior=4.0)
    spread = draws.scores.std(axis=0)
    error = 4.5 / np.sqrt(effective_sizes(draws.scores))
    found = propagated(winners, losers, 20, IndependentPrior(4.0))
    assert (np.abs(found.means - draws.means) < (error + 0.08) * spread).all()
    # a normal curve has no tail to one side: its sd is somewhat short where an essay won or lost everything
    ratio = np.sqrt(np.diag(covariance(found))) / spread
    assert ratio.min() > 0.83
    assert 0.92 < ratio.mean() < 1.03
    assert (
        np.abs(fit_bradley_terry(table.winners, table.losers, table.n_items, prior_sd=4.0).scores - draws.means).max()
        > 0.5 * spread.min()
    )


def test_known_items_enter_as_their_normal_prior():
    """Against brute force over two known items and a third around a level that is free."""
    known = known_items([0, 1], [1.0, -0.5], [[0.3, 0.1], [0.1, 0.4]], 3)
    prior = AnchoredPrior(known, 1.2, 3)
    winners, losers = [2, 0, 2, 1], [0, 2, 1, 0]
    axis = np.linspace(-8.0, 9.0, 171)
    grid = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    off = [x - m for x, m in zip(grid, prior.mean, strict=True)]
    log_density = -0.5 * sum(prior.precision_matrix[i, j] * off[i] * off[j] for i in range(3) for j in range(3))
    for winner, loser in zip(winners, losers, strict=True):
        log_density = log_density - np.logaddexp(0.0, grid[loser] - grid[winner])
    density = np.exp(log_density)
    density /= density.sum()
    means = np.array([(density * x).sum() for x in grid])
    spread = np.array([(density * (x - m) ** 2).sum() for x, m in zip(grid, means, strict=True)])
    found = propagated(winners, losers, 3, prior)
    assert np.abs(found.means - means).max() < 0.02
    assert np.diag(found.information.inverse()) == pytest.approx(spread, rel=0.05)


# -- symmetries and what a fixed point is ----------------------------------------------------------------------


def test_reversing_every_judgment_negates_the_means_and_keeps_the_rest():
    winners, losers, first = simulated(12, 8, 2.0, seed=5)
    one = propagated(winners, losers, 12, IndependentPrior(2.0), winner_first=first)
    other = propagated(losers, winners, 12, IndependentPrior(2.0), winner_first=~first)
    assert np.abs(one.means + other.means).max() < 1e-8
    assert one.log_evidence == pytest.approx(other.log_evidence, abs=1e-8)
    assert np.abs(covariance(one) - covariance(other)).max() < 1e-8
    # who won the pair was exchanged, and who was read first was not
    assert one.advantage == pytest.approx(-other.advantage, abs=1e-8)


def test_renaming_the_items_renames_the_result():
    winners, losers, first = simulated(12, 8, 2.0, seed=6)
    rename = np.random.default_rng(1).permutation(12)
    one = propagated(winners, losers, 12, IndependentPrior(2.0), winner_first=first)
    other = propagated(rename[winners], rename[losers], 12, IndependentPrior(2.0), winner_first=first)
    assert np.abs(other.means[rename] - one.means).max() < 1e-8
    assert other.log_evidence == pytest.approx(one.log_evidence, abs=1e-8)
    assert np.abs(covariance(other)[np.ix_(rename, rename)] - covariance(one)).max() < 1e-8


def test_a_weight_is_the_judgment_given_as_often():
    winners, losers, first = simulated(10, 6, 1.0, seed=7)
    weights = np.random.default_rng(2).integers(1, 4, winners.size)
    weighted = propagated(winners, losers, 10, IndependentPrior(1.0), winner_first=first, weights=weights)
    repeated = propagated(
        *(np.repeat(x, weights) for x in (winners, losers)), 10, IndependentPrior(1.0), np.repeat(first, weights)
    )
    assert np.array_equal(weighted.means, repeated.means)
    assert weighted.log_evidence == repeated.log_evidence


def test_components_without_a_judgment_between_them_do_not_see_each_other():
    one = simulated(6, 6, 1.5, seed=8)
    other = simulated(5, 6, 1.5, seed=9)
    both = propagated(
        np.concatenate([one[0], other[0] + 6]), np.concatenate([one[1], other[1] + 6]), 12, IndependentPrior(1.5)
    )
    parts = [propagated(w, lost, n, IndependentPrior(1.5)) for (w, lost, _), n in ((one, 6), (other, 5))]
    assert np.abs(both.means - np.concatenate([parts[0].means, parts[1].means, [0.0]])).max() < 1e-8
    assert both.log_evidence == pytest.approx(parts[0].log_evidence + parts[1].log_evidence, abs=1e-8)


@pytest.mark.parametrize("sd", [0.05, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("weight", [1, 200])
def test_sites_have_no_negative_precision_and_the_fixed_point_is_reached_at_any_likely_width(sd, weight):
    winners, losers, first = simulated(30, 8, 4.0, seed=10)
    pairs = count_pairs(winners, losers, 30, np.full(winners.size, weight), first)
    found = propagate(pairs, IndependentPrior(sd))
    assert found.converged
    assert (found.sites.precisions >= 0.0).all()


def test_where_it_starts_does_not_matter():
    winners, losers, first = simulated(15, 8, 3.0, seed=11)
    elsewhere = propagated(winners, losers, 15, IndependentPrior(0.5), winner_first=first)
    cold = propagated(winners, losers, 15, IndependentPrior(3.0), winner_first=first)
    warm = propagated(winners, losers, 15, IndependentPrior(3.0), winner_first=first, start=elsewhere.sites)
    assert np.abs(cold.means - warm.means).max() < 1e-7
    assert cold.log_evidence == pytest.approx(warm.log_evidence, abs=1e-8)


def test_the_evidence_found_at_the_default_tolerance_is_right_to_a_thousandth():
    winners, losers, first = simulated(40, 10, 4.0, seed=12)
    pairs = count_pairs(winners, losers, 40, None, first)
    quick = propagate(pairs, IndependentPrior(4.0))
    exact = propagate(pairs, IndependentPrior(4.0), tolerance=TIGHT)
    assert quick.log_evidence == pytest.approx(exact.log_evidence, abs=1e-3)
    assert np.abs(quick.means - exact.means).max() < 0.02 * np.sqrt(np.diag(covariance(exact))).min()


def test_draws_have_the_mean_and_the_covariance_of_the_result():
    winners, losers, first = simulated(6, 6, 1.5, seed=13)
    # item 6 has no judgment: a component of its own
    found = propagated(winners, losers, 7, IndependentPrior(1.5), winner_first=first)
    scores, advantages = found.draw(200_000, np.random.default_rng(3))
    both = np.column_stack([scores, advantages])
    inverse = found.information.inverse()
    assert np.abs(both.mean(axis=0) - np.append(found.means, found.advantage)).max() < 0.02
    assert np.abs(np.cov(scores.T) - inverse).max() < 0.03
    assert advantages.var() == pytest.approx(found.information.advantage_variance, rel=0.02)
    # by how much the scores move with the advantage
    assert np.cov(both.T)[-1, :7] == pytest.approx(
        -found.information.border * found.information.advantage_variance, abs=0.01
    )


def test_without_judgments_the_posterior_is_the_prior():
    found = propagated(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 3, IndependentPrior(1.5))
    assert np.array_equal(found.means, np.zeros(3))
    assert found.information.inverse() == pytest.approx(1.5**2 * np.eye(3))
    assert found.log_evidence == pytest.approx(0.0, abs=1e-12)
