"""Shapes of the scores' prior: integrals by brute force, another sampler, known truths, symmetries."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import gaussian_kde

from cj_pipeline.core.anchor_bank import night_scores
from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.expectation_propagation import propagate
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.pair_counts import count_pairs
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.prior_shape import SHAPED_FROM
from cj_pipeline.core.score_prior import IndependentPrior
from cj_pipeline.core.score_shape import ScoreShape, score_shape

PLACES = np.linspace(-12.0, 12.0, 2401)


def log_density_at(shape, scores):
    return np.interp(scores, shape.places, shape.log_density, left=-np.inf, right=-np.inf)


def normal(sd):
    return score_shape(PLACES, -0.5 * (PLACES / sd) ** 2)


def humps(apart=3.0, share=0.3):
    left, right = -0.5 * (PLACES + apart / 2) ** 2, -0.5 * ((PLACES - apart / 2) / 0.7) ** 2
    return score_shape(PLACES, np.logaddexp(np.log(share) + left, np.log(1 - share) + right))


def tail(sd=2.0):
    """Steep on the left, an exponential tail on the right."""
    return score_shape(PLACES, -np.logaddexp(0.0, -8.0 * PLACES / sd) - PLACES / sd)


def judged(truth, per_item, seed):
    """Winners, losers and whether the winner was read first: a perfect judge on random pairs."""
    rng = np.random.default_rng(seed)
    n = len(truth)
    a = rng.integers(0, n, n * per_item // 2)
    return outcomes(truth, a, (a + rng.integers(1, n, a.size)) % n, rng)


def outcomes(truth, a, b, rng):
    a_wins = rng.random(a.size) < expit(truth[a] - truth[b])
    return np.where(a_wins, a, b), np.where(a_wins, b, a), a_wins


def judged_near(truth, seed, waves=6):
    """Winners and losers: six judgments an item in random pairs, then waves of neighbours by the scores so far."""
    rng = np.random.default_rng(seed)
    n = len(truth)
    winners, losers, _ = judged(truth, 6, seed)
    for _ in range(waves):
        order = np.argsort(fit_bradley_terry(winners, losers, n, prior_sd=4.0).scores)
        apart = int(rng.integers(1, 12))
        won, lost, _ = outcomes(truth, order[:-apart], order[apart:], rng)
        winners, losers = np.concatenate([winners, won]), np.concatenate([losers, lost])
    return winners, losers


@pytest.mark.parametrize("mean, variance", [(0.0, 1e6), (0.4, 0.02), (-2.0, 1.0), (9.0, 0.5), (-8.0, 3.0)])
@pytest.mark.parametrize("shape", [humps(), tail(), normal(1.5)], ids=["humps", "tail", "normal"])
def test_moments_of_a_shape_against_a_cavity_are_those_of_adaptive_quadrature(shape, mean, variance):
    low, high = PLACES[0], PLACES[-1]
    near = float(np.clip(mean, low, high))
    top = float(log_density_at(shape, np.array(near))) - 0.5 * (near - mean) ** 2 / variance

    def integral(power, about=0.0):
        def integrand(x):
            log_value = float(log_density_at(shape, np.array(x))) - 0.5 * (x - mean) ** 2 / variance - top
            return np.exp(log_value) * (x - about) ** power

        reach = 12.0 * variance**0.5
        start, end = max(low, near - reach), min(high, near + reach)
        return quad(integrand, start, end, limit=2000, epsabs=1e-9, epsrel=1e-6)[0]

    mass = integral(0)
    exact_mean = integral(1) / mass
    exact_variance = integral(2, exact_mean) / mass
    found_mean, found_variance, log_mass = (
        float(value[0]) for value in shape.tilted_moments(np.array([mean]), np.array([variance]))
    )
    assert found_mean == pytest.approx(exact_mean, abs=1e-3 * exact_variance**0.5)
    assert found_variance == pytest.approx(exact_variance, rel=3e-3)
    assert log_mass == pytest.approx(np.log(mass) + top - 0.5 * np.log(2 * np.pi * variance), abs=2e-3)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_normal_density_as_a_shape_is_the_normal_prior(ordered):
    truth = 1.5 * np.random.default_rng(1).standard_normal(40)
    winners, losers, first = judged(truth, 8, 2)
    pairs = count_pairs(winners, losers, 40, None, first if ordered else None)
    plain, shaped = propagate(pairs, IndependentPrior(1.5)), propagate(pairs, normal(1.5))
    assert shaped.converged
    assert shaped.log_evidence == pytest.approx(plain.log_evidence, abs=2e-3)
    np.testing.assert_allclose(shaped.means, plain.means, atol=1e-3)
    np.testing.assert_allclose(shaped.information.inverse(), plain.information.inverse(), atol=1e-3)
    assert shaped.advantage == pytest.approx(plain.advantage, abs=1e-4)


@pytest.mark.parametrize("shape, close", [(humps(2.0), 0.05), (tail(1.2), 0.15)], ids=["humps", "tail"])
def test_three_items_under_a_shape_have_the_moments_and_the_evidence_found_by_brute_force(shape, close):
    winners, losers = np.array([0, 0, 1, 2, 0, 1]), np.array([1, 2, 2, 1, 1, 2])
    axis = np.linspace(-6.0, 12.0, 226)
    x = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    log_density = sum(log_density_at(shape, each) for each in x)
    for winner, loser in zip(winners, losers, strict=True):
        log_density = log_density - np.logaddexp(0.0, x[loser] - x[winner])
    density = np.exp(log_density)
    mass = density.sum()
    means = np.array([(density * each).sum() / mass for each in x])
    sds = np.array([(density * (each - mean) ** 2).sum() / mass for each, mean in zip(x, means, strict=True)]) ** 0.5
    found = propagate(count_pairs(winners, losers, 3, None, None), shape)
    np.testing.assert_allclose(found.means, means, atol=close * sds.max())
    np.testing.assert_allclose(np.sqrt(np.diag(found.information.inverse())), sds, rtol=close)
    assert found.log_evidence == pytest.approx(np.log(mass * (axis[1] - axis[0]) ** 3), abs=close)


def test_without_judgments_the_posterior_is_the_shape():
    shape = tail()
    found = propagate(count_pairs(np.array([0]), np.array([1]), 4, None, None), shape)
    mean, sd = shape.moments
    np.testing.assert_allclose(found.means[2:], mean, atol=1e-3)
    np.testing.assert_allclose(np.diag(found.information.inverse())[2:], sd**2, rtol=1e-3)


def test_a_stretched_shape_is_the_density_of_stretched_scores():
    shape, factor = humps(), 1.7
    x = np.linspace(-5.0, 5.0, 31)
    wide = shape.stretched(factor)
    np.testing.assert_allclose(np.exp(log_density_at(wide, factor * x)) * factor, np.exp(log_density_at(shape, x)))
    assert wide.sd == pytest.approx(factor * shape.sd)
    assert np.trapezoid(np.exp(wide.log_density), wide.places) == pytest.approx(1.0, abs=1e-6)


def test_scores_that_are_all_but_known_show_the_density_that_a_kernel_estimate_sees():
    rng = np.random.default_rng(3)
    truth = np.where(rng.random(200) < 0.4, rng.normal(-1.5, 0.5, 200), rng.normal(1.0, 0.6, 200))
    winners, losers, _ = judged(truth, 200, 4)
    posterior = fit_bradley_terry(winners, losers, 200).posterior
    assert posterior.normal_share < 1e-6
    shape = posterior.priors[int(np.argmax(posterior.masses))]
    assert isinstance(shape, ScoreShape)
    x = np.linspace(-4.0, 4.0, 801)
    mean = shape.moments[0]
    learned = np.exp(log_density_at(shape, x + mean))
    kernel = gaussian_kde(truth - truth.mean(), 0.2)(x)
    apart = 0.5 * np.trapezoid(np.abs(learned - kernel), x)
    bell = np.exp(-0.5 * (x / truth.std()) ** 2) / (truth.std() * np.sqrt(2 * np.pi))
    assert apart < 0.12
    assert apart < 0.5 * 0.5 * np.trapezoid(np.abs(bell - kernel), x)


# with 4 judgments each, expectation propagation alone thinks too well of other shapes
@pytest.mark.parametrize(
    "n, per_item, sd, seeds",
    [(100, 16, 2.0, (1, 2, 3, 4)), (200, 16, 2.0, (1, 2)), pytest.param(600, 4, 6.0, (1,), marks=pytest.mark.slow)],
)
def test_scores_that_are_normally_spread_keep_the_normal_prior(n, per_item, sd, seeds):
    shares = []
    for seed in seeds:
        truth = sd * np.random.default_rng([seed, 7]).standard_normal(n)
        rng = np.random.default_rng(seed)
        a, b = np.concatenate([rng.permutation(n).reshape(2, -1) for _ in range(per_item)], axis=1)
        fit = fit_bradley_terry(*outcomes(truth, a, b, rng)[:2], n)
        assert fit.posterior.examined
        shares.append(fit.posterior.normal_share)
    # even draws from a normal distribution look a little otherwise now and then
    assert min(shares) > 0.2
    assert np.mean(shares) > 0.6


def test_of_pairs_that_meet_nobody_else_the_evidence_is_nearly_that_of_tossed_coins():
    winners, losers = np.arange(0, 200, 2), np.arange(1, 200, 2)
    pairs = count_pairs(winners, losers, 200, None, None)
    # two items that are drawn alike are even, whatever from; a long tail is where a normal stand-in fits least
    for shape, error in ((normal(2.0), 1e-5), (humps(), 0.01), (tail(), 0.05)):
        found = propagate(pairs, shape)
        assert found.converged
        assert found.log_evidence / 100 == pytest.approx(np.log(0.5), abs=error)


def test_scores_and_errors_under_a_shape_are_those_of_the_average_and_the_normal_fit_is_at_hand():
    rng = np.random.default_rng(15)
    winners, losers = judged_near(exponential(rng, 160), 16)
    fit = fit_bradley_terry(winners, losers, 160)
    assert fit.posterior.normal_share < 0.5
    means, sds = fit.posterior.moments()
    np.testing.assert_allclose(fit.scores, means)
    assert np.abs(fit.standard_errors() / sds - 1.0).mean() < 0.1
    plain = fit_bradley_terry(winners, losers, 160, prior_sd=fit.prior_sd)
    at_normal = fit.at_normal_prior()
    np.testing.assert_allclose(at_normal.scores, plain.scores, atol=1e-8)
    np.testing.assert_allclose(at_normal.covariance(), plain.covariance(), atol=1e-8)
    np.testing.assert_allclose(fit.posterior_moments()[1], plain.posterior_moments()[1], atol=1e-6)
    assert plain.at_normal_prior() is plain


def test_weights_of_neighbouring_widths_of_a_shape_do_not_jump():
    truth = np.where(np.arange(130) < 6, 8.0, 0.0) + np.linspace(0, 1, 130)
    posterior = fit_bradley_terry(*judged(truth, 8, 12)[:2], 130).posterior
    logs = {}
    for prior, width, mass in zip(posterior.priors, posterior.widths, posterior.masses, strict=True):
        kind = tuple(np.round(prior.places / prior.sd, 6)[[0, 1]]) if isinstance(prior, ScoreShape) else "normal"
        logs.setdefault(kind, []).append((width, np.log(mass)))
    for found in logs.values():
        weights = np.array([log for _, log in sorted(found)])
        assert np.abs(np.diff(weights)).max(initial=0.0) < 8.0


def test_fewer_items_keep_the_normal_prior_whatever_their_spread():
    truth = np.where(np.arange(SHAPED_FROM - 1) % 2 == 0, -3.0, 3.0)
    fit = fit_bradley_terry(*judged(truth, 30, 1)[:2], SHAPED_FROM - 1)
    assert fit.posterior.normal_share == 1.0
    assert all(isinstance(prior, IndependentPrior) for prior in fit.posterior.priors)


def within(fit, truth):
    low, high = fit.score_intervals().T
    return float(np.mean((low <= truth) & (truth <= high)))


def two_groups(rng, n):
    return np.where(rng.random(n) < 0.5, -2.5, 2.5) + 0.5 * rng.standard_normal(n)


def exponential(rng, n):
    return 3.5 * rng.exponential(size=n)


@pytest.mark.parametrize("spread", [two_groups, pytest.param(exponential, marks=pytest.mark.slow)])
def test_intervals_of_near_pairs_on_a_long_scale_hold_the_truth_though_it_is_not_normally_spread(spread):
    rng = np.random.default_rng(5)
    held, held_if_normal, off, off_if_normal = [], [], [], []
    for seed in range(4):
        truth = spread(rng, 160)
        truth -= truth.mean()
        winners, losers = judged_near(truth, seed)
        fit = fit_bradley_terry(winners, losers, 160)
        means, _ = fit.posterior.moments()
        only = [isinstance(prior, IndependentPrior) for prior in fit.posterior.priors]
        share = fit.posterior.masses[only] / fit.posterior.masses[only].sum()
        plain = share @ fit.posterior.means[only]
        plain_sds = np.sqrt(share @ (fit.posterior.variances[only] + (fit.posterior.means[only] - plain) ** 2))
        held.append(within(fit, truth))
        held_if_normal.append(float(np.mean(np.abs(plain - truth) <= 1.96 * plain_sds)))
        off.append(float(np.sqrt(np.mean((means - truth) ** 2))))
        off_if_normal.append(float(np.sqrt(np.mean((plain - truth) ** 2))))
    assert np.mean(held) > 0.9
    assert np.mean(held) > np.mean(held_if_normal) + 0.02
    assert np.mean(off) < 0.9 * np.mean(off_if_normal)


def test_reversing_every_judgment_mirrors_the_result_and_renaming_the_items_renames_it():
    rng = np.random.default_rng(6)
    truth = 2.5 * rng.exponential(size=120)
    winners, losers, _ = judged(truth, 20, 7)
    forth = fit_bradley_terry(winners, losers, 120).posterior
    back = fit_bradley_terry(losers, winners, 120).posterior
    assert forth.normal_share < 0.2
    np.testing.assert_allclose(back.moments()[0], -forth.moments()[0], atol=0.03)
    np.testing.assert_allclose(back.moments()[1], forth.moments()[1], rtol=0.03)
    names = rng.permutation(120)
    renamed = fit_bradley_terry(names[winners], names[losers], 120).posterior
    np.testing.assert_allclose(renamed.moments()[0][names], forth.moments()[0], atol=1e-6)


@pytest.mark.slow
def test_draws_of_a_batch_that_is_not_normally_spread_come_from_its_shape_and_say_so():
    rng = np.random.default_rng(8)
    truth = np.where(rng.random(110) < 0.5, -2.0, 2.0) + 0.3 * rng.standard_normal(110)
    winners, losers, _ = judged(truth, 20, 9)
    table = judgment_table(winners, losers, 110)
    draws = draw_posterior(table, seed=1, n_draws=1500)
    assert draws.method == "ep"
    fit = fit_bradley_terry(winners, losers, 110)
    means, sds = fit.posterior.moments()
    assert np.abs((draws.means - means) / sds).mean() < 0.15
    assert draws.scores.std(axis=0).mean() == pytest.approx(sds.mean(), rel=0.1)
    plain = draw_posterior(table, seed=1, n_draws=200, width_prior=2.0)
    assert plain.method == "gibbs"


@pytest.mark.slow
def test_draws_under_a_shape_agree_with_another_sampler():
    rng = np.random.default_rng(10)
    truth = 3.0 * rng.exponential(size=SHAPED_FROM)
    winners, losers, _ = judged(truth, 16, 11)
    table = judgment_table(winners, losers, SHAPED_FROM)
    draws = draw_posterior(table, seed=2, n_draws=2000)
    assert draws.method == "ep"
    fit = fit_bradley_terry(winners, losers, SHAPED_FROM)
    shape = fit.posterior.priors[int(np.argmax(fit.posterior.masses))]
    chain = random_walk(winners, losers, SHAPED_FROM, shape, rng)
    spread = chain.std(axis=0)
    assert np.abs((draws.means - chain.mean(axis=0)) / spread).mean() < 0.2
    assert draws.scores.std(axis=0).mean() == pytest.approx(spread.mean(), rel=0.15)


def random_walk(winners, losers, n, shape, rng, sweeps=6000):
    """Draws at one prior by a random walk, one score at a time, every tenth sweep; centred."""
    scores = np.full(n, shape.moments[0])
    wins = [losers[winners == item] for item in range(n)]
    losses = [winners[losers == item] for item in range(n)]
    kept = []
    for sweep in range(sweeps):
        for item in range(n):
            proposal = scores[item] + 1.2 * rng.standard_normal()
            gain = log_density_at(shape, np.array(proposal)) - log_density_at(shape, np.array(scores[item]))
            for sign, others in ((1.0, scores[wins[item]]), (-1.0, scores[losses[item]])):
                gain += np.logaddexp(0.0, sign * (others - scores[item])).sum()
                gain -= np.logaddexp(0.0, sign * (others - proposal)).sum()
            if np.log(rng.random()) < gain:
                scores[item] = proposal
        if sweep >= 500 and sweep % 10 == 0:
            kept.append(scores - scores.mean())
    return np.array(kept)


@pytest.mark.parametrize(
    "truth, per_item, perfect",
    [
        (np.zeros(100), 4, False),
        (8.0 * (np.arange(110) % 2), 8, False),
        pytest.param(3.0 * (np.arange(120) % 3), 2, False, marks=pytest.mark.slow),
        pytest.param(np.concatenate([[25.0, 25.0], np.linspace(-1, 1, 98)]), 20, False, marks=pytest.mark.slow),
        pytest.param(np.arange(100.0), 6, True, marks=pytest.mark.slow),
        (np.where(np.arange(130) < 6, 8.0, 0.0) + np.linspace(0, 1, 130), 8, False),
    ],
    ids=["nobody is better", "two groups", "three groups", "two outliers", "never contradicted", "a rare kind"],
)
def test_whatever_the_judgments_moments_are_finite_and_covariances_are_covariances(truth, per_item, perfect):
    winners, losers, _ = judged(np.asarray(truth) * (1e6 if perfect else 1.0), per_item, 12)
    n = len(truth)
    fit = fit_bradley_terry(winners, losers, n)
    means, sds = fit.posterior.moments()
    assert np.isfinite(means).all()
    assert (sds > 0.0).all() and np.isfinite(sds).all()
    assert means.sum() == pytest.approx(0.0, abs=1e-6 * n * np.abs(means).max())
    assert fit.posterior.masses.sum() == pytest.approx(1.0)
    covariance = fit.integrated_moments(widened=2.0)[1]
    assert np.linalg.eigvalsh(covariance)[0] > -1e-6 * np.abs(covariance).max()
    draws = draw_posterior(judgment_table(winners, losers, n), seed=1, n_draws=20, burn_in=5, width_prior="flat")
    assert np.isfinite(draws.scores).all()
    assert draws.widths.max() <= 10.0 * (1.0 + 1e-9)


def test_pairing_goes_by_the_covariance_under_the_shape_and_its_spread():
    rng = np.random.default_rng(13)
    fit = fit_bradley_terry(*judged_near(exponential(rng, 160), 14), 160)
    assert fit.posterior.normal_share < 0.5
    means, covariance = fit.integrated_moments()
    np.testing.assert_allclose(means, fit.posterior.moments()[0])
    # at the likeliest width of the likeliest shape, where the average is near to it
    assert np.sqrt(np.diag(covariance)).mean() == pytest.approx(fit.posterior.moments()[1].mean(), rel=0.05)
    widened = fit.integrated_moments(widened=2.0)[1]
    assert np.trace(widened) > 1.02 * np.trace(covariance)
    with pytest.raises(InputError, match="at least 1"):
        fit.integrated_moments(widened=0.5)


def test_the_middle_of_a_learned_density_stays_at_zero_though_judgments_do_not_see_it():
    winners, losers = judged_near(exponential(np.random.default_rng(13), 160), 14)
    posterior = fit_bradley_terry(winners, losers, 160).posterior
    shapes = [prior for prior in posterior.priors if isinstance(prior, ScoreShape)]
    assert shapes
    assert max(abs(shape.moments[0]) / shape.sd for shape in shapes) < 0.01


def test_what_a_night_tells_the_bank_is_that_of_the_normal_prior_whatever_the_shape():
    rng = np.random.default_rng(21)
    winners, losers = judged_near(exponential(rng, 160), 22)
    fit = fit_bradley_terry(winners, losers, 160)
    assert fit.posterior.normal_share < 0.5
    anchors = {f"a{item}": item for item in range(0, 160, 20)}
    night = night_scores("n", anchors, fit)
    plain = night_scores("n", anchors, fit_bradley_terry(winners, losers, 160, prior_sd=fit.prior_sd))
    np.testing.assert_allclose(night.scores, plain.scores, atol=1e-7)
    np.testing.assert_allclose(night.covariance, plain.covariance, atol=1e-7)
