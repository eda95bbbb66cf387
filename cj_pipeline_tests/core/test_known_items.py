"""Items placed beforehand: the mode, covariance and evidence spelt out, both frames, symmetries and coverage."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

from cj_pipeline.core.bradley_terry import fit_bradley_terry, log_marginal_likelihood
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, Winner
from cj_pipeline.core.score_prior import LEVEL_PRIOR_SD, known_items
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline_tests.core.test_bradley_terry import numerical_hessian, random_judgments

MEAN = np.array([-1.0, 0.3, 1.6])
COVARIANCE = np.array([[0.20, 0.05, 0.02], [0.05, 0.10, 0.03], [0.02, 0.03, 0.30]])
ITEMS = [5, 0, 3]


def judged(n_items=7, n_judgments=60, seed=1):
    """Winners, losers, whether the winner was read first."""
    winners, losers = random_judgments(n_items, n_judgments, seed)
    return winners, losers, np.random.default_rng(seed).random(n_judgments) < 0.6


def known(n_items=7, *, items=ITEMS, mean=MEAN, covariance=COVARIANCE):
    return known_items(items, mean, covariance, n_items)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("prior_sd", [0.6, 2.0])
def test_mode_and_covariances_are_those_of_the_posterior_spelt_out_with_its_level(prior_sd, ordered):
    winners, losers, first = judged()
    sign = np.where(first, 1.0, -1.0) if ordered else np.zeros(len(first))
    others, precision = [1, 2, 4, 6], np.linalg.inv(COVARIANCE)

    def log_posterior(x):
        scores, level, advantage = x[:7], x[7], x[8]
        logits = scores[winners] - scores[losers] + sign * advantage
        off = scores[ITEMS] - MEAN
        prior = off @ precision @ off + np.sum((scores[others] - level) ** 2) / prior_sd**2
        prior += (level - MEAN.mean()) ** 2 / LEVEL_PRIOR_SD**2 + advantage**2
        return -np.logaddexp(0.0, -logits).sum() - prior / 2

    best = minimize(lambda x: -log_posterior(x), np.zeros(9), method="BFGS", options={"gtol": 1e-8}).x
    fit = fit_bradley_terry(
        winners, losers, 7, prior_sd=prior_sd, winner_first=first if ordered else None, known=known()
    )
    assert fit.converged
    np.testing.assert_allclose(fit.bank_scores, best[:7], atol=1e-6)
    np.testing.assert_allclose(fit.scores, best[:7] - best[:7].mean(), atol=1e-6)
    expected = np.linalg.inv(-numerical_hessian(log_posterior, best))
    np.testing.assert_allclose(fit.bank_covariance(), expected[:7, :7], atol=2e-5)
    centring = np.eye(7) - 1 / 7
    np.testing.assert_allclose(fit.covariance(), centring @ expected[:7, :7] @ centring, atol=2e-5)
    if ordered:
        assert fit.order_effect == pytest.approx(best[8], abs=1e-6)
        assert fit.order_effect_se == pytest.approx(expected[8, 8] ** 0.5, abs=1e-5)


def test_all_items_known_as_independent_and_centred_is_the_ordinary_prior():
    winners, losers, first = judged()
    same = known(items=np.arange(7), mean=np.zeros(7), covariance=2.25 * np.eye(7))
    fit = fit_bradley_terry(winners, losers, 7, prior_sd=0.1, winner_first=first, known=same)
    plain = fit_bradley_terry(winners, losers, 7, prior_sd=1.5, winner_first=first)
    np.testing.assert_allclose(fit.bank_scores, plain.scores, atol=1e-8)
    np.testing.assert_allclose(fit.covariance(), plain.covariance(), atol=1e-9)


@pytest.mark.parametrize("prior_sd", [0.4, 3.0])
def test_the_evidence_of_pairs_apart_is_the_product_of_their_integrals(prior_sd):
    # known 0 against known 1 three times, others 2 and 3 against each other twice
    winners, losers = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 3, 3])
    covariance = np.array([[0.5, 0.1], [0.1, 0.3]])
    two = known(4, items=[0, 1], mean=[0.8, -0.2], covariance=covariance)

    def integral(wins, losses, mean, variance):
        def density(x):
            likelihood = np.exp(-wins * np.logaddexp(0, -x) - losses * np.logaddexp(0, x))
            return likelihood * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

        reach = 10 * variance**0.5
        return quad(density, mean - reach, mean + reach, epsabs=1e-13, limit=200)[0]

    exact = np.log(integral(2, 1, 1.0, 0.6)) + np.log(integral(2, 0, 0.0, 2 * prior_sd**2))
    # the part of the evidence that depends on the known items alone
    constant = 0.5 * np.linalg.slogdet(covariance)[1]
    found = log_marginal_likelihood(winners, losers, 4, prior_sd=prior_sd, known=two)
    assert found == pytest.approx(exact + constant, abs=1e-3)


def test_the_width_of_the_others_is_learned_from_the_others():
    winners, losers = random_judgments(40, 1200, 3, sd=0.5)
    far = known(40, items=[0, 1], mean=[-6.0, 6.0], covariance=1e4 * np.eye(2))
    fit = fit_bradley_terry(winners, losers, 40, known=far)
    assert 0.35 < fit.prior_sd < 0.7
    assert fit.prior_sd_interval[0] < 0.5 < fit.prior_sd_interval[1]


def test_moving_the_bank_moves_bank_scores_and_nothing_else():
    winners, losers, first = judged()
    fit = fit_bradley_terry(winners, losers, 7, winner_first=first, known=known())
    moved = fit_bradley_terry(winners, losers, 7, winner_first=first, known=known(mean=MEAN + 40.0))
    np.testing.assert_allclose(moved.bank_scores, fit.bank_scores + 40.0, atol=1e-7)
    np.testing.assert_allclose(moved.scores, fit.scores, atol=1e-7)
    np.testing.assert_allclose(moved.bank_covariance(), fit.bank_covariance(), atol=1e-7)
    assert moved.prior_sd == pytest.approx(fit.prior_sd)


def test_all_results_reversed_over_a_bank_upside_down_turns_the_scale_upside_down():
    winners, losers, first = judged()
    fit = fit_bradley_terry(winners, losers, 7, winner_first=first, known=known())
    reversed_ = fit_bradley_terry(losers, winners, 7, winner_first=~first, known=known(mean=-MEAN))
    np.testing.assert_allclose(reversed_.bank_scores, -fit.bank_scores, atol=1e-8)
    np.testing.assert_allclose(reversed_.bank_covariance(), fit.bank_covariance(), atol=1e-8)


def test_names_of_items_do_not_matter():
    winners, losers, first = judged()
    fit = fit_bradley_terry(winners, losers, 7, winner_first=first, known=known())
    order = np.random.default_rng(4).permutation(7)
    renamed = known(items=order[ITEMS][::-1], mean=MEAN[::-1], covariance=COVARIANCE[::-1, ::-1])
    other = fit_bradley_terry(order[winners], order[losers], 7, winner_first=first, known=renamed)
    np.testing.assert_allclose(other.bank_scores[order], fit.bank_scores, atol=1e-8)
    np.testing.assert_allclose(other.bank_covariance()[np.ix_(order, order)], fit.bank_covariance(), atol=1e-8)


def test_a_weight_of_three_is_the_judgment_given_three_times():
    winners, losers, first = judged(n_judgments=20)
    weighted = fit_bradley_terry(winners, losers, 7, weights=np.full(20, 3), winner_first=first, known=known())
    repeated = fit_bradley_terry(
        *(np.tile(x, 3) for x in (winners, losers)), 7, known=known(), winner_first=np.tile(first, 3)
    )
    np.testing.assert_allclose(weighted.bank_scores, repeated.bank_scores, atol=1e-9)
    np.testing.assert_allclose(weighted.bank_covariance(), repeated.bank_covariance(), atol=1e-9)


def test_contrasts_have_the_same_standard_errors_in_both_frames():
    winners, losers, first = judged()
    fit = fit_bradley_terry(winners, losers, 7, winner_first=first, known=known())
    bank = fit.bank_covariance()
    for i, j in [(0, 1), (1, 2), (3, 5)]:
        expected = (bank[i, i] + bank[j, j] - 2 * bank[i, j]) ** 0.5
        assert fit.standard_error_of_contrast(i, j) == pytest.approx(expected, rel=1e-9)


def test_without_judgments_known_items_are_where_the_bank_has_them_and_others_anywhere():
    fit = fit_bradley_terry([], [], 7, prior_sd=1.0, known=known())
    np.testing.assert_allclose(fit.bank_scores[ITEMS], MEAN, atol=1e-9)
    np.testing.assert_allclose(fit.bank_standard_errors()[ITEMS], np.diag(COVARIANCE) ** 0.5, rtol=1e-9)
    assert fit.bank_standard_errors()[1] > 0.99 * LEVEL_PRIOR_SD


def test_judgments_between_unknown_items_leave_known_ones_where_they_were():
    fit = fit_bradley_terry([1, 1, 2], [2, 4, 4], 7, prior_sd=1.0, known=known())
    np.testing.assert_allclose(fit.bank_scores[ITEMS], MEAN, atol=1e-9)
    np.testing.assert_allclose(fit.bank_covariance()[np.ix_(ITEMS, ITEMS)], COVARIANCE, atol=1e-9)
    # what they do have in common is their level, of which nothing is known
    assert fit.standard_error_of_contrast(1, 2) < 1.4 < LEVEL_PRIOR_SD / 2 < fit.standard_error_of_contrast(1, 0)


def test_intervals_in_the_bank_frame_hold_the_truth_in_95_of_100_cases():
    """Known items drawn around their bank values; 100 exams of 12 students and 4 known items."""
    inside = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        mean = np.array([-2.0, -0.7, 0.7, 2.0])
        covariance = 0.15 * (np.eye(4) + 0.5)
        truth = np.concatenate([rng.normal(1.0, 1.3, 12), rng.multivariate_normal(mean, covariance)])
        first = rng.integers(0, 16, 120)
        second = (first + rng.integers(1, 16, 120)) % 16
        wins = rng.random(120) < 1 / (1 + np.exp(truth[second] - truth[first]))
        winners, losers = np.where(wins, first, second), np.where(wins, second, first)
        placed = known(16, items=np.arange(12, 16), mean=mean, covariance=covariance)
        fit = fit_bradley_terry(winners, losers, 16, prior_sd=1.3, known=placed)
        inside.append(np.mean(np.abs(fit.bank_scores - truth) < 1.96 * fit.bank_standard_errors()))
    # errors of one exam go together, so the Monte Carlo error is that over exams, about .01
    assert 0.92 < np.mean(inside) < 0.98


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"items": []}, "at least one"),
        ({"items": [0, 0, 1]}, "distinct"),
        ({"items": [0, 1, 7]}, "0 to 6"),
        ({"mean": [0.0, 1.0]}, "means of shape"),
        ({"mean": [0.0, 1.0, np.nan]}, "finite"),
        ({"covariance": np.ones((3, 3))}, "positive definite"),
        ({"covariance": COVARIANCE + np.triu(np.ones((3, 3)), 1)}, "symmetric"),
    ],
)
def test_known_items_that_make_no_sense_are_refused_in_words(given, words):
    with pytest.raises(InputError, match=words):
        known(**given)


def test_a_frame_that_is_not_there_and_maximum_likelihood_beside_known_items_are_refused():
    winners, losers, _ = judged()
    with pytest.raises(InputError, match="without known items"):
        fit_bradley_terry(winners, losers, 7).bank_covariance()
    with pytest.raises(InputError, match="the others need a prior"):
        fit_bradley_terry(winners, losers, 7, prior_sd=None, known=known())


def test_a_batch_is_scored_with_known_anchors_by_the_place_of_their_ids():
    essay_ids = ["b", "z", "a", "k1", "k0"]
    judgments = [
        Comparison(
            comparison_id=f"{i}",
            wave=1,
            essay_a=a,
            essay_b=b,
            pair_mode=PairMode.COVERAGE,
            status=ComparisonStatus.JUDGED,
            winner=Winner.A,
        )
        for i, (a, b) in enumerate([("a", "k0"), ("k1", "a"), ("b", "k1"), ("k0", "z"), ("z", "a")])
    ]
    # ascending: a, b, k0, k1, z
    anchors = known(5, items=[2, 3], mean=[-2.0, 2.0], covariance=0.01 * np.eye(2))
    settings = SimpleNamespace(bt_standard_error_max=2.0)
    result = compute_bt_scores_and_se(judgments, essay_ids, settings, anchor_ids=["k0", "k1"], known=anchors)
    assert result.scores["k1"] - result.scores["k0"] == pytest.approx(4.0, abs=0.1)
    assert sum(result.scores.values()) == pytest.approx(0.0, abs=1e-9)
    fit = fit_bradley_terry([0, 3, 1, 2, 4], [2, 0, 3, 4, 0], 5, winner_first=np.ones(5, dtype=bool), known=anchors)
    np.testing.assert_allclose([result.scores[e] for e in sorted(essay_ids)], fit.scores, atol=1e-9)
    assert list(result.ses_uncapped.values()) == pytest.approx(fit.standard_errors().tolist())


def test_posterior_moments_with_known_items_are_those_found_by_brute_force():
    """Two known items and one other, judged against both: a three-dimensional integral, on a grid."""
    known = known_items([0, 1], [-1.0, 1.0], [[0.3, 0.1], [0.1, 0.4]], 3)
    winners, losers = np.array([2, 2, 1, 0, 2]), np.array([0, 0, 2, 2, 1])
    fit = fit_bradley_terry(winners, losers, 3, prior_sd=1.5, known=known)
    axis = np.linspace(-7.0, 7.0, 141)
    theta = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    off = theta - np.array([-1.0, 1.0, 0.0])[:, None]
    variance = np.zeros((3, 3))
    variance[:2, :2] = known.covariance
    variance[2, 2] = 1.5**2 + LEVEL_PRIOR_SD**2
    log_density = -0.5 * np.einsum("ik,ij,jk->k", off, np.linalg.inv(variance), off)
    log_density -= np.logaddexp(0.0, theta[losers] - theta[winners]).sum(axis=0)
    density = np.exp(log_density - log_density.max())
    centred = theta - theta.mean(axis=0)
    expected = (centred * density).sum(axis=1) / density.sum()
    moments = (centred * density) @ centred.T / density.sum() - np.outer(expected, expected)
    means, covariance = fit.posterior_moments()
    np.testing.assert_allclose(means, expected, atol=0.02)
    np.testing.assert_allclose(covariance, moments, atol=0.02)
