"""Posterior draws against published moments, brute-force integration, another sampler and known truth."""

from math import log, sqrt

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.posterior import (
    draw_posterior,
    effective_sizes,
)
from cj_pipeline.core.reliability import score_intervals

# who beat whom in a batch of three items
WINNERS, LOSERS = [0, 0, 0, 1, 1, 2, 1], [1, 1, 2, 2, 0, 1, 2]


def simulated(n, per_item, sd, seed, effect=0.0):
    """True scores, and the judgments of a perfect judge on random pairs."""
    rng = np.random.default_rng(seed)
    truth = sd * rng.standard_normal(n)
    a = rng.integers(0, n, n * per_item // 2)
    b = (a + 1 + rng.integers(0, n - 1, a.size)) % n
    a_wins = rng.random(a.size) < 1.0 / (1.0 + np.exp(truth[b] - truth[a] - effect))
    return truth, judgment_table(np.where(a_wins, a, b), np.where(a_wins, b, a), n, a_wins)


def brute_force_three_items(widths, masses):
    """Means and covariance of (s0 - s1, s1 - s2), and the mean of log σ, by summing over a grid."""
    axis = np.linspace(-25, 25, 401)
    u, v = np.meshgrid(axis, axis, indexing="ij")
    differences = {(0, 1): u, (1, 2): v, (0, 2): u + v}
    log_likelihood = np.zeros_like(u)
    for i, j in zip(WINNERS, LOSERS, strict=True):
        d = differences[i, j] if i < j else -differences[j, i]
        log_likelihood -= np.logaddexp(0.0, -d)
    likelihood = np.exp(log_likelihood)
    joint, evidence = np.zeros_like(u), []
    for width, mass in zip(widths, masses, strict=True):
        prior = multivariate_normal(cov=width**2 * np.array([[2.0, -1.0], [-1.0, 2.0]])).pdf(np.dstack([u, v]))
        # in each width's own normalisation on the grid: narrow priors fall between its points
        prior /= prior.sum()
        joint += mass * prior * likelihood
        evidence.append(mass * (prior * likelihood).sum())
    joint /= joint.sum()
    moments = [
        (joint * u).sum(),
        (joint * v).sum(),
        (joint * u * u).sum(),
        (joint * v * v).sum(),
        (joint * u * v).sum(),
    ]
    log_width = np.average(np.log(widths), weights=evidence)
    return np.array(moments), log_width


def moments_with_errors(table, **options):
    draws = draw_posterior(table, seed=3, n_draws=4000, thin=1, **options)
    u, v = draws.scores[:, 0] - draws.scores[:, 1], draws.scores[:, 1] - draws.scores[:, 2]
    values = np.stack([u, v, u * u, v * v, u * v, np.log(draws.widths)], axis=1)
    return values.mean(axis=0), values.std(axis=0) / np.sqrt(effective_sizes(values))


def test_draws_at_a_fixed_width_have_the_moments_found_by_brute_force():
    expected, _ = brute_force_three_items([1.5], [1.0])
    means, errors = moments_with_errors(judgment_table(WINNERS, LOSERS, 3), width_prior=1.5)
    assert (np.abs(means[:5] - expected) < 4.5 * errors[:5]).all()


def test_draws_with_the_width_integrated_have_the_moments_found_by_brute_force():
    # below .05 is half a percent of the flat prior, and there the likelihood is flat
    widths = np.exp(np.linspace(log(0.05), log(10.0), 40))
    expected, log_width = brute_force_three_items(widths, widths)
    means, errors = moments_with_errors(judgment_table(WINNERS, LOSERS, 3), width_prior="flat")
    # 1 % for the edges of the grid
    assert (np.abs(means[:5] - expected) < 4.5 * errors[:5] + 0.01 * np.abs(expected)).all()
    assert abs(means[5] - log_width) < 4.5 * errors[5] + 0.03


def test_the_order_effect_has_the_posterior_found_by_brute_force():
    winner_first = [True] * 6 + [False] * 2
    table = judgment_table([0, 0, 0, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 1, 1, 0], 2, winner_first)
    axis = np.linspace(-15, 15, 601)
    d, g = np.meshgrid(axis, axis, indexing="ij")
    density = np.exp(-0.25 * d**2 / 1.2**2 - 0.5 * g**2)
    for winner, first in zip(table.winners, winner_first, strict=True):
        density *= 1.0 / (1.0 + np.exp(-((d if winner == 0 else -d) + (g if first else -g))))
    density /= density.sum()
    draws = draw_posterior(table, seed=4, n_draws=4000, thin=1, width_prior=1.2, order_effect=True)
    for values, grid in ((draws.scores[:, 0] - draws.scores[:, 1], d), (draws.order_effects, g)):
        for power in (1, 2):
            sample = values**power
            error = sample.std() / sqrt(effective_sizes(sample[:, None])[0])
            assert abs(sample.mean() - (density * grid**power).sum()) < 4.5 * error


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["lognormal", "flat"])
def test_another_sampler_finds_the_same_posterior_of_a_small_batch(prior):
    """Random-walk Metropolis over scores, order effect and log σ, which shares no code with the Gibbs sampler."""
    _, table = simulated(6, 8, 1.0, seed=5, effect=0.5)
    sign = np.where(table.winner_read_first, 1.0, -1.0)
    rng = np.random.default_rng(6)
    n_chains = 400
    # rows are chains: six scores, γ, log σ
    x = np.tile(np.array([0.0] * 7 + [0.5]), (n_chains, 1)) + 0.3 * rng.standard_normal((n_chains, 8))

    def log_density(x):
        s, g, w = x[:, :6], x[:, 6], x[:, 7]
        eta = s[:, table.winners] - s[:, table.losers] + sign * g[:, None]
        value = -np.logaddexp(0.0, -eta).sum(axis=1) - 0.5 * g**2
        value += -6 * w - 0.5 * (s**2).sum(axis=1) * np.exp(-2 * w)
        if prior == "flat":
            return np.where((w > log(1e-3)) & (w < log(10.0)), value + w, -np.inf)
        return np.where(np.abs(w - log(2.0)) < 5.0, value - 0.5 * (w - log(2.0)) ** 2, -np.inf)

    current, kept = log_density(x), []
    for step in range(30_000):
        proposal = x.copy()
        if step % 3 == 0:
            # one coordinate of each chain
            which = rng.integers(8, size=n_chains)
            proposal[np.arange(n_chains), which] += rng.standard_normal(n_chains)
            jacobian = 0.0
        elif step % 3 == 1:
            proposal += 0.25 * rng.standard_normal(x.shape)
            jacobian = 0.0
        else:
            # stretch all scores and σ together
            shift = 0.6 * rng.standard_normal(n_chains)
            proposal[:, :6] *= np.exp(shift)[:, None]
            proposal[:, 7] += shift
            jacobian = 6 * shift
        value = log_density(proposal)
        accept = np.log(rng.random(n_chains)) < value - current + jacobian
        x[accept], current[accept] = proposal[accept], value[accept]
        if step >= 5000 and step % 50 == 0:
            s = x[:, :6] - x[:, :6].mean(axis=1, keepdims=True)
            kept.append(np.concatenate([s, s**2, x[:, 6:], x[:, 6:] ** 2], axis=1))
    by_chain = np.array(kept).mean(axis=0)
    expected, expected_error = by_chain.mean(axis=0), by_chain.std(axis=0) / sqrt(n_chains)
    draws = draw_posterior(table, seed=7, n_draws=20_000, width_prior=prior, order_effect=True)
    log_width, effect = np.log(draws.widths), draws.order_effects
    ours = np.column_stack([draws.scores, draws.scores**2, effect, log_width, effect**2, log_width**2])
    error = ours.std(axis=0) / np.sqrt(effective_sizes(ours))
    assert (np.abs(ours.mean(axis=0) - expected) < 4.5 * np.hypot(error, expected_error)).all()


def test_propagation_agrees_with_gibbs_where_judgments_are_many_and_says_what_it_is():
    _, table = simulated(8, 200, 1.0, seed=9, effect=0.4)
    gibbs = draw_posterior(table, seed=1, n_draws=2000, thin=1, order_effect=True)
    drawn = draw_posterior(table, seed=1, n_draws=2000, order_effect=True, gibbs_up_to=7)
    assert (gibbs.method, drawn.method) == ("gibbs", "ep")
    spread = gibbs.scores.std(axis=0)
    assert np.abs(gibbs.means - drawn.means).max() < 0.15 * spread.min()
    assert np.abs(drawn.scores.std(axis=0) / spread - 1.0).max() < 0.1
    assert abs(gibbs.order_effects.mean() - drawn.order_effects.mean()) < 0.2 * gibbs.order_effects.std()
    assert abs(np.log(gibbs.widths).mean() - np.log(drawn.widths).mean()) < 0.1


@pytest.mark.parametrize("prior", ["lognormal", "flat"])
def test_propagation_agrees_with_gibbs_on_a_wide_scale_with_few_judgments_the_width_integrated(prior):
    _, table = simulated(16, 12, 3.0, seed=15)
    gibbs = draw_posterior(table, seed=1, n_draws=3000, thin=1, width_prior=prior)
    drawn = draw_posterior(table, seed=2, n_draws=2000, width_prior=prior, gibbs_up_to=0)
    spread = gibbs.scores.std(axis=0)
    assert np.abs((drawn.means - gibbs.means) / spread).max() < 0.2
    assert np.abs(drawn.scores.std(axis=0) / spread - 1.0).mean() < 0.1
    # the width itself: within a third of its own posterior standard deviation
    log_gibbs, log_drawn = np.log(gibbs.widths), np.log(drawn.widths)
    assert abs(log_gibbs.mean() - log_drawn.mean()) < 0.33 * log_gibbs.std()
    assert log_drawn.std() == pytest.approx(log_gibbs.std(), rel=0.2)


def test_propagated_draws_are_skewed_like_the_posterior_where_judgments_are_few():
    _, table = simulated(12, 8, 2.0, seed=14)
    gibbs = draw_posterior(table, seed=1, n_draws=4000, thin=1, width_prior=2.0)
    drawn = draw_posterior(table, seed=2, n_draws=2000, width_prior=2.0, gibbs_up_to=0)
    spread = gibbs.scores.std(axis=0)
    assert np.abs(drawn.scores.std(axis=0) / spread - 1.0).max() < 0.1
    # the mode itself is up to .5 sd off
    assert (
        np.abs(fit_bradley_terry(table.winners, table.losers, table.n_items, prior_sd=2.0).scores - gibbs.means).max()
        > 0.25 * spread.min()
    )
    assert np.abs((drawn.means - gibbs.means) / spread).max() < 0.1
    tails = np.abs(
        np.quantile(drawn.scores, [0.025, 0.975], axis=0) - np.quantile(gibbs.scores, [0.025, 0.975], axis=0)
    )
    assert (tails / spread).max() < 0.3


# -- symmetries ------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_draws_whatever_the_order_of_the_judgments():
    _, table = simulated(9, 6, 1.0, seed=11)
    shuffled = table.rows(np.random.default_rng(0).permutation(len(table)))
    one, other = (draw_posterior(t, seed=5, n_draws=50, order_effect=True) for t in (table, shuffled))
    assert np.array_equal(one.scores, other.scores)
    assert np.array_equal(one.order_effects, other.order_effects)
    assert not np.array_equal(one.scores, draw_posterior(table, seed=6, n_draws=50, order_effect=True).scores)


def test_scores_of_every_draw_sum_to_zero():
    _, table = simulated(9, 6, 1.0, seed=12)
    assert np.abs(draw_posterior(table, seed=1, n_draws=50).scores.sum(axis=1)).max() < 1e-9


def test_renaming_the_items_renames_the_scores_and_reversing_the_judgments_negates_them():
    _, table = simulated(8, 10, 1.0, seed=13)
    rename = np.random.default_rng(1).permutation(8)
    base = draw_posterior(table, seed=1, n_draws=2500, thin=1, width_prior=1.0)
    renamed = draw_posterior(
        judgment_table(rename[table.winners], rename[table.losers], 8), seed=2, n_draws=2500, thin=1, width_prior=1.0
    )
    reversed_ = draw_posterior(
        judgment_table(table.losers, table.winners, 8), seed=3, n_draws=2500, thin=1, width_prior=1.0
    )

    def error(draws):
        return draws.scores.std(axis=0) / np.sqrt(effective_sizes(draws.scores))

    allowed = 4.5 * sqrt(2.0) * error(base)
    assert (np.abs(renamed.means[rename] - base.means) < allowed).all()
    assert (np.abs(reversed_.means + base.means) < allowed).all()


def test_without_judgments_the_posterior_is_the_prior():
    draws = draw_posterior(judgment_table([], [], 4), seed=1, n_draws=6000, thin=1, width_prior=1.5)
    # centred: variance σ² (1 - 1/n)
    assert draws.scores.var(axis=0) == pytest.approx(np.full(4, 1.5**2 * 0.75), rel=0.08)


def test_the_effective_size_of_an_autoregressive_chain_is_the_known_one():
    rng = np.random.default_rng(2)
    chain = np.zeros((60_000, 2))
    for t in range(1, len(chain)):
        chain[t] = [0.8, 0.0] * chain[t - 1] + rng.standard_normal(2)
    sizes = effective_sizes(chain)
    assert sizes[0] == pytest.approx(len(chain) * 0.2 / 1.8, rel=0.15)
    assert sizes[1] == pytest.approx(len(chain), rel=0.1)


@pytest.mark.parametrize(
    "options",
    [{"width_prior": "narrow"}, {"width_prior": -1.0}, {"n_draws": 1}, {"thin": 0}, {"order_effect": True}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        draw_posterior(judgment_table([0], [1], 2), seed=1, **options)


# -- coverage --------------------------------------------------------------------------------------------------


def coverage(n, per_item, sd, replications, **options):
    held = []
    for replication in range(replications):
        truth, table = simulated(n, per_item, sd, seed=1000 + replication)
        intervals = score_intervals(draw_posterior(table, seed=replication, **options))
        centred = truth - truth.mean()
        held.append(np.mean((intervals[:, 0] <= centred) & (centred <= intervals[:, 1])))
    return np.mean(held), np.std(held, ddof=1) / sqrt(replications)


def test_intervals_hold_the_truth_in_95_of_100_cases_where_the_truth_comes_from_the_prior():
    rate, error = coverage(20, 6, 1.0, 20, width_prior=1.0, n_draws=500, thin=1, burn_in=50)
    assert error < 0.02
    # quantiles of some 150 effective draws cost about half a percent
    assert abs(rate - 0.95) < 3.5 * error + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("per_item", [4, 20])
def test_intervals_with_a_fitted_width_hold_the_truth_in_93_to_98_of_100_cases(sd, per_item):
    rate, error = coverage(24, per_item, sd, 60, n_draws=400)
    assert 0.93 - 3 * error < rate < 0.98 + 3 * error
