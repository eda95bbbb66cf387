"""The fit against other programs, published tables, brute force and the symmetries of the model.

Published tables:
    BASEBALL: wins of seven teams of the American League East, 1987. Agresti (2002), Categorical Data Analysis, 2nd
        ed., Table 10.10; log abilities in Table 10.11, column 3, standard errors in the recorded output of the R
        package BradleyTerry2 (Turner & Firth 2012, J. Stat. Software 48(9)), tests/baseball.Rout.save.
    CITATIONS: Stigler (1994), Statistical Science 9, 94-108, in Agresti (2002) p. 448; abilities and standard
        errors, also in the sum-to-zero convention, in BradleyTerry2, tests/BTabilities.Rout.save.
"""

import dataclasses

import choix
import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_t, norm

from cj_pipeline.core import bradley_terry_mode, sparse_bradley_terry
from cj_pipeline.core.bradley_terry import fit_bradley_terry, log_marginal_likelihood
from cj_pipeline.core.bradley_terry_mode import (
    find_mode,
    maximise_likelihood_of_few,
    start_of_likelihood,
)
from cj_pipeline.core.errors import DisconnectedError, InputError, SeparationError
from cj_pipeline.core.judgment_table import judgment_table
from cj_pipeline.core.pair_counts import count_pairs
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.score_prior import IndependentPrior

# rows beat columns: Milwaukee, Detroit, Toronto, New York, Boston, Cleveland, Baltimore
BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ]
)
BASEBALL_ABILITIES = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68]
BASEBALL_CONTRAST_SES = [0.3433, 0.3396, 0.3367, 0.3359, 0.3339, 0.3319]
# rows are cited by columns: Biometrika, Communications in Statistics, JASA, JRSS-B
CITATIONS = np.array([[0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]])


def from_matrix(wins, **options):
    """Fit from a matrix of wins, rows over columns, one weighted judgment per non-zero cell."""
    winners, losers = np.nonzero(wins)
    return fit_bradley_terry(winners, losers, len(wins), weights=wins[winners, losers], **options)


def random_judgments(n_items, n_judgments, seed, sd=1.0):
    """Judgments by the model's own law, over a random design with a ring so that everything is connected."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, sd, n_items)
    first = np.concatenate([np.arange(n_items), rng.integers(0, n_items, n_judgments - n_items)])
    second = (
        first + np.concatenate([np.ones(n_items, int), rng.integers(1, n_items, n_judgments - n_items)])
    ) % n_items
    wins = rng.random(n_judgments) < 1 / (1 + np.exp(truth[second] - truth[first]))
    return np.where(wins, first, second), np.where(wins, second, first)


def log_posterior(scores, winners, losers, prior_sd):
    """The penalised log likelihood, spelt out judgment by judgment."""
    likelihood = sum(-np.log1p(np.exp(scores[lo] - scores[wi])) for wi, lo in zip(winners, losers, strict=True))
    return likelihood - (np.sum(scores**2) / (2 * prior_sd**2) if prior_sd else 0.0)


def numerical_hessian(function, at, step=1e-4):
    """Second differences of a function of a vector."""
    n = len(at)
    hessian = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            values = [function(at + step * (a * np.eye(n)[i] + b * np.eye(n)[j])) * a * b for a, b in signs]
            hessian[i, j] = sum(values) / (4 * step**2)
    return hessian


# -- maximum likelihood ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_items", "n_judgments", "seed"), [(5, 60, 1), (24, 300, 2), (60, 1500, 3)])
def test_scores_agree_with_choix_to_six_decimals(n_items, n_judgments, seed):
    winners, losers = random_judgments(n_items, n_judgments, seed)
    fit = fit_bradley_terry(winners, losers, n_items, prior_sd=None)
    data = list(zip(winners.tolist(), losers.tolist(), strict=True))
    expected = choix.ilsr_pairwise(n_items, data, alpha=0.0, max_iter=1000, tol=1e-12)
    np.testing.assert_allclose(fit.scores, expected - expected.mean(), atol=1e-6)
    assert fit.converged


def test_scores_agree_with_choix_where_every_item_but_one_pair_is_lopsided():
    wins = np.array([[0, 40, 1], [1, 0, 40], [0, 1, 0]])
    winners, losers = np.repeat(np.argwhere(wins), wins[wins > 0], axis=0).T
    fit = fit_bradley_terry(winners, losers, 3, prior_sd=None)
    data = list(zip(winners.tolist(), losers.tolist(), strict=True))
    expected = choix.opt_pairwise(3, data, alpha=0.0, method="Newton-CG", tol=1e-14)
    np.testing.assert_allclose(fit.scores, expected - expected.mean(), atol=1e-6)


def test_baseball_scores_agree_with_agrestis_table_to_two_decimals():
    scores = from_matrix(BASEBALL, prior_sd=None).scores
    assert [round(float(score - scores[6]), 2) for score in scores[:6]] == BASEBALL_ABILITIES


def test_baseball_contrast_standard_errors_agree_with_the_published_fit_to_four_decimals():
    fit = from_matrix(BASEBALL, prior_sd=None)
    assert [round(fit.standard_error_of_contrast(i, 6), 4) for i in range(6)] == BASEBALL_CONTRAST_SES


def test_citation_scores_and_sum_to_zero_standard_errors_agree_with_the_published_fit():
    fit = from_matrix(CITATIONS, prior_sd=None)
    np.testing.assert_allclose(fit.scores, [0.7899221, -2.1591504, 0.3103523, 1.0588761], atol=1e-7)
    np.testing.assert_allclose(fit.standard_errors(), [0.04333047, 0.07257974, 0.04164102, 0.05304699], atol=1e-8)


def test_citation_contrasts_agree_with_the_published_fit_for_either_reference_journal():
    fit = from_matrix(CITATIONS, prior_sd=None)
    against_biometrika = [fit.standard_error_of_contrast(0, j) for j in (1, 2, 3)]
    against_jasa = [fit.standard_error_of_contrast(j, 2) for j in (0, 1, 3)]
    np.testing.assert_allclose(against_biometrika, [0.10254534, 0.06058873, 0.07082997], atol=1e-8)
    np.testing.assert_allclose(against_jasa, [0.06058873, 0.09817049, 0.07294356], atol=1e-8)


def test_two_items_have_the_log_odds_as_difference_and_its_delta_method_error():
    fit = fit_bradley_terry([0, 1], [1, 0], 2, weights=[30, 10], prior_sd=None)
    assert fit.scores[0] - fit.scores[1] == pytest.approx(np.log(3), abs=1e-12)
    assert fit.standard_error_of_contrast(0, 1) == pytest.approx(np.sqrt(1 / 30 + 1 / 10), abs=1e-12)


def test_a_long_chain_converges_to_the_exact_sum_of_its_log_odds():
    n = 300
    links = np.arange(n - 1)
    winners, losers = np.concatenate([links, links + 1]), np.concatenate([links + 1, links])
    weights = np.concatenate([np.full(n - 1, 3.0), np.full(n - 1, 2.0)])
    fit = fit_bradley_terry(winners, losers, n, weights=weights, prior_sd=None)
    exact = -np.log(1.5) * np.arange(n)
    np.testing.assert_allclose(fit.scores, exact - exact.mean(), atol=1e-9)
    assert fit.standard_error_of_contrast(0, n - 1) == pytest.approx(np.sqrt((n - 1) * (1 / 3 + 1 / 2)), rel=1e-9)


RUNS_AWAY_FROM_ZERO = np.array(
    [
        [0, 12, 8, 3, 126914],
        [37, 0, 271, 1, 0],
        [296247, 62, 0, 150803, 11169],
        [1, 0, 3, 0, 130],
        [0, 8, 60, 310, 0],
    ]
)
RUNS_AWAY_FROM_WIN_RATES = np.array(
    [
        [0, 1, 356, 5264, 0],
        [0, 0, 35186, 965, 0],
        [51846, 0, 0, 18487, 0],
        [5, 0, 366897, 0, 1],
        [1, 771206, 553683, 8, 0],
    ]
)
SINGULAR_AT_THE_START = np.array([[0, 1, 7984, 0], [61299, 0, 1, 0], [581, 2, 0, 1], [1, 29, 0, 0]])


def assert_expected_wins_are_those_there_were(wins, fit):
    """The likelihood equations (Ford 1957)."""
    expected = ((wins + wins.T) / (1 + np.exp(fit.scores[None, :] - fit.scores[:, None]))).sum(axis=1)
    np.testing.assert_allclose(expected, wins.sum(axis=1), rtol=1e-8)


def sparse_from_win_rates(pairs):
    """`find_sparse_mode` without its second try."""
    likelihood = sparse_bradley_terry._Likelihood(pairs, 0.0)
    return sparse_bradley_terry._climb(pairs, likelihood, start_of_likelihood(pairs), 1e-9)


@pytest.mark.parametrize(
    ("wins", "top"),
    [
        (RUNS_AWAY_FROM_ZERO, lambda pairs: find_mode(pairs, IndependentPrior(None), np.zeros(5), 0.0, 1e-9)),
        (RUNS_AWAY_FROM_WIN_RATES, lambda pairs: maximise_likelihood_of_few(pairs, 1e-9)),
        (RUNS_AWAY_FROM_WIN_RATES, sparse_from_win_rates),
    ],
    ids=["dense", "few", "sparse"],
)
def test_newton_is_damped_where_its_full_steps_would_diverge(wins, top, monkeypatch):
    """Tables found by search among lopsided ones."""
    pairs = count_pairs(*np.nonzero(wins), 5, wins[wins > 0], None)
    found = top(pairs)
    assert found.converged
    assert_expected_wins_are_those_there_were(wins, found)
    monkeypatch.setattr(bradley_terry_mode, "_SURELY_UPHILL", np.inf)
    monkeypatch.setattr(sparse_bradley_terry, "_SAFE_RANGE", np.inf)
    with np.errstate(all="ignore"):
        try:
            assert not top(pairs).converged
        except InputError as undamped:
            assert "singular" in str(undamped)


def test_many_items_are_fitted_from_zero_where_the_start_from_wins_fails(monkeypatch):
    wins = np.kron(np.eye(40, dtype=int), RUNS_AWAY_FROM_WIN_RATES)
    for k in range(0, 200, 5):
        wins[k, (k + 5) % 200] = wins[(k + 5) % 200, k] = 1
    monkeypatch.setattr(sparse_bradley_terry, "start_of_likelihood", lambda pairs: np.full(200, np.nan))
    with np.errstate(invalid="ignore"):
        fit = from_matrix(wins, prior_sd=None)
    assert fit.converged
    assert_expected_wins_are_those_there_were(wins, fit)


def test_few_items_are_fitted_where_the_information_at_the_start_is_singular_to_working_precision():
    pairs = count_pairs(*np.nonzero(SINGULAR_AT_THE_START), 4, SINGULAR_AT_THE_START[SINGULAR_AT_THE_START > 0], None)
    assert not maximise_likelihood_of_few(pairs, 1e-9).converged
    fit = from_matrix(SINGULAR_AT_THE_START, prior_sd=None)
    assert fit.converged
    assert_expected_wins_are_those_there_were(SINGULAR_AT_THE_START, fit)


@settings(deadline=None)
@given(n=st.integers(3, 9), seed=st.integers(0, 2**32), orders_of_magnitude=st.floats(0.0, 5.0))
def test_however_lopsided_a_table_is_expected_wins_are_those_there_were(n, seed, orders_of_magnitude):
    rng = np.random.default_rng(seed)
    wins = np.rint(10 ** rng.uniform(0, orders_of_magnitude, (n, n)) * (rng.random((n, n)) < 0.7)).astype(int)
    np.fill_diagonal(wins, 0)
    wins[np.arange(n), (np.arange(n) + 1) % n] += 1
    fit = from_matrix(wins, prior_sd=None)
    assert fit.converged
    assert_expected_wins_are_those_there_were(wins, fit)


def test_maximum_likelihood_covariance_is_the_pseudo_inverse_of_the_numerical_hessian():
    winners, losers = random_judgments(6, 60, 11)
    fit = fit_bradley_terry(winners, losers, 6, prior_sd=None)
    hessian = numerical_hessian(lambda s: log_posterior(s, winners, losers, None), fit.scores)
    # rcond: second differences are good to 1e-7, so the eigenvalue of the constant vector is not exactly zero
    np.testing.assert_allclose(fit.covariance(), np.linalg.pinv(-hessian, rcond=1e-4), atol=1e-5)


# -- when there is no finite estimate ----------------------------------------------------------------------------


def test_an_unbeaten_item_is_named_and_a_remedy_given():
    with pytest.raises(SeparationError, match=r"item\(s\) 3\. Judge more .*prior_sd='fitted'") as caught:
        fit_bradley_terry([0, 1, 2, 3, 3], [1, 2, 0, 0, 1], 4, prior_sd=None)
    assert caught.value.items == [3]
    assert not isinstance(caught.value, DisconnectedError)


def test_a_group_that_only_wins_against_the_rest_is_named_although_nobody_is_unbeaten():
    with pytest.raises(SeparationError) as caught:
        fit_bradley_terry([0, 1, 2, 3, 4, 0], [1, 0, 3, 4, 2, 2], 5, prior_sd=None)
    assert caught.value.items == [0, 1]


def test_all_items_are_named_when_the_judgments_are_a_perfect_order():
    with pytest.raises(SeparationError) as caught:
        fit_bradley_terry([0, 1, 0], [1, 2, 2], 3, prior_sd=None)
    assert caught.value.items == [0, 1, 2]


def test_items_that_no_judgment_links_to_the_others_are_named():
    with pytest.raises(DisconnectedError, match=r"2 components.*item\(s\) 3, 4 ") as caught:
        fit_bradley_terry([0, 1, 2, 3, 4], [1, 2, 0, 4, 3], 5, prior_sd=None)
    assert caught.value.items == [3, 4]


def test_an_item_without_judgments_is_disconnected():
    with pytest.raises(DisconnectedError) as caught:
        fit_bradley_terry([0, 1], [1, 0], 3, prior_sd=None)
    assert caught.value.items == [2]


def test_components_are_labelled_in_the_order_of_their_lowest_item():
    fit = fit_bradley_terry([5, 0, 4, 2], [1, 3, 0, 4], 6)
    assert fit.components.tolist() == [0, 1, 0, 0, 0, 1]
    assert fit.win_components.tolist() == [0, 1, 2, 3, 4, 5]
    assert fit_bradley_terry([5, 1, 4, 2], [1, 5, 2, 4], 6).win_components.tolist() == [0, 1, 2, 3, 2, 1]


@pytest.mark.parametrize("n_items", [10, 64, 65])
@pytest.mark.parametrize("seed", range(3))
def test_components_of_few_and_of_many_items_are_those_of_networkx(n_items, seed):
    rng = np.random.default_rng(seed)
    winners, losers = rng.integers(0, n_items, (2, round((0.4 + 0.4 * seed) * n_items)))
    winners, losers = winners[winners != losers], losers[winners != losers]
    fit = fit_bradley_terry(winners, losers, n_items, prior_sd=1.0)
    graph = networkx.DiGraph(zip(winners.tolist(), losers.tolist(), strict=True))
    graph.add_nodes_from(range(n_items))
    for found, parts in (
        (fit.components, networkx.weakly_connected_components(graph)),
        (fit.win_components, networkx.strongly_connected_components(graph)),
    ):
        expected = np.empty(n_items, dtype=int)
        for label, part in enumerate(sorted(parts, key=min)):
            expected[list(part)] = label
        assert found.tolist() == expected.tolist()


# -- a prior of given width --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_sd", [0.3, 1.0, 5.0])
def test_the_mode_under_a_prior_agrees_with_a_general_optimiser(prior_sd):
    winners, losers = random_judgments(7, 25, 5, sd=2.0)
    fit = fit_bradley_terry(winners, losers, 9, prior_sd=prior_sd)  # items 7 and 8 are not judged
    found = minimize(
        lambda s: -log_posterior(s, winners, losers, prior_sd), np.zeros(9), method="BFGS", options={"gtol": 1e-7}
    )
    np.testing.assert_allclose(fit.scores, found.x, atol=1e-5)
    assert fit.prior_sd == prior_sd
    assert fit.prior_sd_interval is None


@pytest.mark.parametrize("prior_sd", [0.5, 3.0])
def test_covariance_under_a_prior_is_the_centred_inverse_of_the_numerical_hessian(prior_sd):
    winners, losers = random_judgments(5, 20, 6)
    fit = fit_bradley_terry(winners, losers, 7, prior_sd=prior_sd)
    hessian = numerical_hessian(lambda s: log_posterior(s, winners, losers, prior_sd), fit.scores)
    centring = np.eye(7) - 1 / 7
    np.testing.assert_allclose(fit.covariance(), centring @ np.linalg.inv(-hessian) @ centring, rtol=1e-4, atol=1e-5)


def test_standard_errors_and_contrasts_are_read_from_the_covariance():
    fit = from_matrix(BASEBALL, prior_sd=1.5)
    covariance = fit.covariance()
    np.testing.assert_allclose(fit.standard_errors() ** 2, np.diag(covariance), rtol=1e-12)
    contrast = np.zeros(7)
    contrast[[2, 5]] = 1, -1
    assert fit.standard_error_of_contrast(2, 5) == pytest.approx(np.sqrt(contrast @ covariance @ contrast), rel=1e-12)
    assert fit.standard_error_of_contrast(4, 4) == 0.0
    np.testing.assert_allclose(covariance.sum(axis=0), 0, atol=1e-14)


def test_a_contrast_of_an_item_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="items 0 to 6 only"):
        from_matrix(BASEBALL).standard_error_of_contrast(0, -1)


def test_a_wide_prior_on_separated_judgments_still_converges_to_the_balance_of_pull_and_prior():
    fit = fit_bradley_terry([0], [1], 2, prior_sd=1e4)
    half = fit.scores[0]
    # stationarity: P(loser wins) = score / prior variance, at the difference 2 * half
    assert np.exp(-np.logaddexp(0, 2 * half)) == pytest.approx(half / 1e8, rel=1e-12, abs=0)
    assert fit.converged


def test_a_single_item_scores_zero_with_no_error():
    fit = fit_bradley_terry([], [], 1)
    assert fit.scores.tolist() == [0.0]
    assert fit.standard_errors()[0] == pytest.approx(0.0, abs=1e-12)


# -- the fitted width --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("won", "lost"), [(6, 4), (20, 10), (3, 1)])
@pytest.mark.parametrize("prior_sd", [0.3, 1.0, 4.0])
def test_the_marginal_likelihood_of_two_items_is_that_of_numerical_integration(won, lost, prior_sd):
    # only the difference d ~ N(0, 2 sd²) matters, and one pair has one site, which is exact
    d = np.linspace(-100, 100, 200_001)
    log_integrand = -won * np.logaddexp(0, -d) - lost * np.logaddexp(0, d) - d**2 / (4 * prior_sd**2)
    exact = np.log(np.trapezoid(np.exp(log_integrand), d) / np.sqrt(4 * np.pi * prior_sd**2))
    approximate = log_marginal_likelihood([0, 1], [1, 0], 2, weights=[won, lost], prior_sd=prior_sd)
    assert approximate == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("prior_sd", [0.2, 1.0, 5.0])
def test_disjoint_pairs_say_nothing_about_the_width_of_the_prior_however_many_they_are(prior_sd):
    # each outcome has probability 1/2 by symmetry, whatever the width
    pairs = 200
    winners = np.arange(0, 2 * pairs, 2)
    found = log_marginal_likelihood(winners, winners + 1, 2 * pairs, prior_sd=prior_sd)
    assert found == pytest.approx(-pairs * np.log(2), abs=0.01)


@pytest.mark.parametrize("prior_sd", [0.5, 2.0])
def test_the_marginal_likelihood_of_a_sparse_round_is_that_of_importance_sampling(prior_sd):
    n = 8
    winners, losers = np.array([0, 1, 2, 3, 4, 5, 6, 0, 3]), np.array([1, 2, 3, 4, 5, 6, 7, 4, 0])
    fit = fit_bradley_terry(winners, losers, n, prior_sd=prior_sd)
    factor = np.linalg.cholesky(fit.covariance() + np.full((n, n), prior_sd**2 / n))
    rng = np.random.default_rng(11)
    z, degrees = rng.standard_normal((400_000, n)), 8.0
    heavy = z / np.sqrt(rng.chisquare(degrees, len(z)) / degrees)[:, None]
    scores = fit.scores + heavy @ factor.T
    log_target = -np.logaddexp(0, scores[:, losers] - scores[:, winners]).sum(axis=1)
    log_target += norm.logpdf(scores, scale=prior_sd).sum(axis=1)
    log_proposal = multivariate_t.logpdf(heavy, shape=np.eye(n), df=degrees) - np.log(np.diag(factor)).sum()
    weights = np.exp(log_target - log_proposal)
    exact, noise = np.log(weights.mean()), weights.std() / weights.mean() / np.sqrt(len(weights))
    found = log_marginal_likelihood(winners, losers, n, prior_sd=prior_sd)
    # expectation propagation takes pairs that share an item as jointly normal: a few hundredths at these widths
    assert found == pytest.approx(exact, abs=0.06 + 4 * noise)


def test_one_sparse_round_of_many_essays_leaves_the_width_where_its_prior_has_it():
    # before each essay has met a second opponent there is nothing to learn about the width: log σ ~ N(log 2, 1)
    winners = np.arange(0, 400, 2)
    fit = fit_bradley_terry(winners, winners + 1, 400)
    assert fit.prior_sd == pytest.approx(2.0, rel=0.01)
    assert fit.prior_sd_interval == pytest.approx((2 * np.exp(-1.96), 2 * np.exp(1.96)), rel=0.02)


@pytest.mark.parametrize(("repeats", "tolerance"), [(1, 0.04), (4, 0.01)])
def test_the_marginal_likelihood_of_three_items_is_that_of_numerical_integration(repeats, tolerance):
    # what remains falls with the number of judgments
    wins = np.array([[0, 7, 9], [4, 0, 6], [2, 5, 0]]) * repeats
    prior_sd = 1.3
    axis = np.linspace(-7, 7, 141)  # five and more prior sds each way
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    log_integrand = -(grid**2).sum(axis=1) / (2 * prior_sd**2)
    for i, j in zip(*np.nonzero(wins), strict=True):
        log_integrand -= wins[i, j] * np.logaddexp(0, grid[:, j] - grid[:, i])
    volume = np.exp(log_integrand).sum() * (axis[1] - axis[0]) ** 3
    exact = np.log(volume / (2 * np.pi * prior_sd**2) ** 1.5)
    winners, losers = np.nonzero(wins)
    found = log_marginal_likelihood(winners, losers, 3, weights=wins[winners, losers], prior_sd=prior_sd)
    assert found == pytest.approx(exact, abs=tolerance)


def test_fitted_width_and_interval_agree_with_brute_force_over_scores_and_width():
    # one pair is integrated exactly; the lattice moves these by less than 2 %
    d = np.linspace(-100, 100, 40_001)
    log_widths = np.linspace(np.log(2) - 6, np.log(2) + 6, 601)
    likelihood = np.exp(-20 * np.logaddexp(0, -d) - 10 * np.logaddexp(0, d))
    marginal = [
        np.trapezoid(likelihood * np.exp(-(d**2) / (4 * s * s)), d) / np.sqrt(4 * np.pi * s * s)
        for s in np.exp(log_widths)
    ]
    mass = np.array(marginal) * np.exp(-0.5 * (log_widths - np.log(2)) ** 2)
    mass /= mass.sum()
    fit = fit_bradley_terry([0, 1], [1, 0], 2, weights=[20, 10])
    assert fit.prior_sd == pytest.approx(np.exp(mass @ log_widths), rel=0.02)
    expected = np.exp(np.interp([0.025, 0.975], mass.cumsum(), log_widths))
    np.testing.assert_allclose(fit.prior_sd_interval, expected, rtol=0.02)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_adaptive_grid_integrates_the_width_like_a_dense_one(seed):
    winners, losers = random_judgments(12, 80, seed, sd=2.0)
    log_widths = np.linspace(np.log(2) - 4, np.log(2) + 4, 81)
    marginals = [log_marginal_likelihood(winners, losers, 12, prior_sd=float(np.exp(t))) for t in log_widths]
    log_mass = np.array(marginals) - 0.5 * (log_widths - np.log(2)) ** 2
    mass = np.exp(log_mass - log_mass.max())
    mass /= mass.sum()
    fit = fit_bradley_terry(winners, losers, 12)
    # grid ends at exp(-10) of the highest density: what is cut off weighs some 1e-5
    assert np.log(fit.prior_sd) == pytest.approx(mass @ log_widths, abs=1e-4)
    modes = [fit_bradley_terry(winners, losers, 12, prior_sd=float(np.exp(t))).scores for t in log_widths]
    spread = np.cov(np.array(modes).T, aweights=mass, ddof=0)
    at_centre = fit_bradley_terry(winners, losers, 12, prior_sd=fit.prior_sd)
    assert fit.scores.tobytes() == at_centre.scores.tobytes()
    np.testing.assert_allclose(fit.covariance() - at_centre.covariance(), spread, atol=1e-4 * spread.max())
    assert spread.max() > 1e-3  # so that the comparison above sees it


def test_score_intervals_are_those_of_gibbs_draws_on_a_wide_scale_where_the_mode_and_its_error_are_off():
    winners, losers = random_judgments(20, 100, 6, sd=4.0)
    fit = fit_bradley_terry(winners, losers, 20)
    draws = draw_posterior(judgment_table(winners, losers, 20), seed=1, n_draws=2500, thin=1)
    intervals = fit.score_intervals()
    assert intervals.mean(axis=1) == pytest.approx(fit.posterior.moments()[0])
    spread = draws.scores.std(axis=0)
    # a normal curve has its ends elsewhere than a skew one, by a few tenths of a standard deviation
    assert np.abs((fit.posterior.moments()[0] - draws.means) / spread).max() < 0.25
    assert fit.posterior.moments()[1].mean() == pytest.approx(spread.mean(), rel=0.1)
    assert np.linalg.norm(fit.posterior.moments()[0] - draws.means) < 0.25 * np.linalg.norm(fit.scores - draws.means)


def test_posterior_moments_are_those_of_gibbs_draws_at_the_same_width_where_the_mode_and_its_covariance_are_off():
    winners, losers = random_judgments(12, 40, 8, sd=3.0)
    fit = fit_bradley_terry(winners, losers, 12, prior_sd=3.0)
    means, covariance = fit.posterior_moments()
    draws = draw_posterior(judgment_table(winners, losers, 12), seed=2, n_draws=6000, width_prior=3.0).scores
    exact = np.cov(draws.T)
    assert np.linalg.norm(means - draws.mean(axis=0)) < 0.3 * np.linalg.norm(fit.scores - draws.mean(axis=0))
    assert np.linalg.norm(covariance - exact) < 0.5 * np.linalg.norm(fit.covariance() - exact)
    assert means.sum() == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(covariance.sum(axis=0), 0.0, atol=1e-9)


def test_integrated_moments_are_those_of_gibbs_draws_of_scores_and_width():
    winners, losers = random_judgments(12, 120, 8, sd=2.0)
    fit = fit_bradley_terry(winners, losers, 12)
    means, covariance = fit.integrated_moments()
    draws = draw_posterior(judgment_table(winners, losers, 12), seed=2, n_draws=6000)
    exact = np.cov(draws.scores.T)
    np.testing.assert_allclose(means, draws.means, atol=0.1 * np.sqrt(np.diag(exact)).min())
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), np.sqrt(np.diag(exact)), rtol=0.08)
    for worse in (fit.covariance(), fit.posterior_moments()[1]):
        assert np.linalg.norm(covariance - exact) < np.linalg.norm(worse - exact)


def test_widened_moments_have_the_precision_that_judgments_gave_and_that_of_a_wider_prior():
    winners, losers = random_judgments(9, 60, 5, sd=2.0)
    fit = fit_bradley_terry(winners, losers, 9, winner_first=np.arange(60) % 3 == 0)
    (means, covariance), (same, wider) = fit.integrated_moments(), fit.integrated_moments(widened=2.0)
    np.testing.assert_array_equal(means, same)
    spread = covariance - fit.posterior_moments()[1]
    # judgments and centring see differences only, so all commute with the centring matrix
    gained = np.linalg.pinv(covariance - spread, rtol=1e-9) - np.linalg.pinv(wider - spread, rtol=1e-9)
    np.testing.assert_allclose(gained, 0.75 / fit.prior_sd**2 * (np.eye(9) - 1 / 9), atol=1e-9)


def test_maximum_likelihood_has_no_posterior_moments():
    with pytest.raises(InputError, match="prior"):
        fit_bradley_terry([0, 1], [1, 0], 2, prior_sd=None).posterior_moments()


def test_score_intervals_need_a_fitted_prior():
    with pytest.raises(InputError, match="fitted"):
        fit_bradley_terry([0, 1], [1, 0], 2, prior_sd=1.0).score_intervals()


@pytest.mark.slow
def test_the_fitted_width_recovers_the_spread_of_a_large_batch():
    winners, losers = random_judgments(300, 9000, 4, sd=1.5)
    fit = fit_bradley_terry(winners, losers, 300)
    low, high = fit.prior_sd_interval
    assert low < 1.5 < high
    assert fit.prior_sd == pytest.approx(1.5, rel=0.15)
    # the sd of 300 normal values is known to 1/sqrt(600) = 4 %; judgment noise adds little
    assert np.log(high / low) == pytest.approx(2 * 1.96 / np.sqrt(600), rel=0.3)


def test_without_judgments_scores_are_zero_and_errors_are_the_prior():
    fit = fit_bradley_terry([], [], 5)
    assert fit.scores.tolist() == [0.0] * 5
    assert fit.iterations > 11  # one at each width of the grid at least, and the fit itself
    assert fit.prior_sd == pytest.approx(2.0, rel=1e-9)
    np.testing.assert_allclose(fit.standard_errors(), 2.0 * np.sqrt(4 / 5), rtol=1e-9)
    # the 2.5 % and 97.5 % points of the hyperprior itself
    np.testing.assert_allclose(np.log(fit.prior_sd_interval), np.log(2) + np.array([-1.96, 1.96]), atol=0.02)
    assert fit.prior_free_standard_errors().tolist() == [np.inf] * 5


def test_unbeaten_winless_and_unjudged_items_get_finite_scores_and_errors_that_say_how_little_is_known():
    winners, losers = random_judgments(10, 200, 8)
    extra_winners = [10, 10, 0, 1]  # 10 never loses, 11 never wins, 12 is not judged
    extra_losers = [0, 1, 11, 11]
    fit = fit_bradley_terry(np.append(winners, extra_winners), np.append(losers, extra_losers), 13)
    errors = fit.standard_errors()
    assert np.isfinite(fit.scores).all()
    assert fit.scores[10] > fit.scores[[0, 1]].max()
    assert fit.scores[11] < fit.scores[[0, 1]].min()
    assert fit.scores[12] == 0.0
    assert errors[10:12].min() > 1.5 * errors[:10].max()
    assert errors[12] > errors[10:12].max()
    assert errors[12] == pytest.approx(fit.prior_sd, rel=0.1)  # nothing but the prior


def test_scores_sum_to_zero_in_every_component_under_a_prior():
    fit = fit_bradley_terry([0, 1, 0, 2, 3, 3], [1, 0, 1, 3, 2, 2], 4)
    assert fit.components.tolist() == [0, 0, 1, 1]
    assert fit.scores[:2].sum() == pytest.approx(0, abs=1e-14)
    assert fit.scores[2:].sum() == pytest.approx(0, abs=1e-14)


# -- standard errors without the prior ---------------------------------------------------------------------------


def test_prior_free_errors_are_the_ordinary_ones_under_maximum_likelihood():
    fit = from_matrix(BASEBALL, prior_sd=None)
    np.testing.assert_allclose(fit.prior_free_standard_errors(), fit.standard_errors(), rtol=1e-10)


def test_prior_free_errors_come_from_the_likelihood_alone_centred_within_components():
    wins = np.array([[0, 5, 0, 0, 0], [3, 0, 0, 0, 0], [0, 0, 0, 4, 0], [0, 0, 2, 0, 0], [0, 0, 0, 0, 0]])
    fit = from_matrix(wins, prior_sd=1.0)
    expected = []
    for i, j, n in [(0, 1, 8), (2, 3, 6)]:
        p = 1 / (1 + np.exp(fit.scores[j] - fit.scores[i]))
        # the difference has variance 1/(n p q), each of the two centred scores a quarter of it
        expected += [0.5 / np.sqrt(n * p * (1 - p))] * 2
    np.testing.assert_allclose(fit.prior_free_standard_errors(), [*expected, np.inf], rtol=1e-10)


# -- properties --------------------------------------------------------------------------------------------------

N_ITEMS = 6
JUDGMENTS = st.lists(
    st.tuples(st.integers(0, N_ITEMS - 1), st.integers(1, N_ITEMS - 1), st.integers(1, 4)), min_size=1, max_size=30
).map(lambda rows: [np.array(column) for column in zip(*[(i, (i + k) % N_ITEMS, w) for i, k, w in rows], strict=True)])
PRIORS = st.sampled_from([0.5, 2.0, "fitted"])


def rounding(prior_sd):
    """Logits by which rounding may move a score: a fitted width is that of sweeps that stop at a tolerance."""
    return 1e-6 if prior_sd == "fitted" else 1e-9


@settings(max_examples=40, deadline=None)
@given(JUDGMENTS, PRIORS)
def test_a_weight_is_the_judgment_repeated(judgments, prior_sd):
    winners, losers, weights = judgments
    weighted = fit_bradley_terry(winners, losers, N_ITEMS, weights=weights, prior_sd=prior_sd)
    repeated = fit_bradley_terry(np.repeat(winners, weights), np.repeat(losers, weights), N_ITEMS, prior_sd=prior_sd)
    assert weighted.scores.tobytes() == repeated.scores.tobytes()
    assert weighted.covariance().tobytes() == repeated.covariance().tobytes()
    expected = np.bincount(np.concatenate([winners, losers]), np.concatenate([weights, weights]), N_ITEMS)
    assert weighted.comparison_counts.tolist() == repeated.comparison_counts.tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(JUDGMENTS, PRIORS)
def test_reversing_every_judgment_reverses_every_score_and_keeps_every_error(judgments, prior_sd):
    winners, losers, weights = judgments
    fit = fit_bradley_terry(winners, losers, N_ITEMS, weights=weights, prior_sd=prior_sd)
    reverse = fit_bradley_terry(losers, winners, N_ITEMS, weights=weights, prior_sd=prior_sd)
    np.testing.assert_allclose(reverse.scores, -fit.scores, atol=rounding(prior_sd))
    np.testing.assert_allclose(reverse.standard_errors(), fit.standard_errors(), atol=rounding(prior_sd))


@settings(max_examples=40, deadline=None)
@given(JUDGMENTS, PRIORS, st.permutations(range(N_ITEMS)))
def test_renaming_the_items_renames_the_result(judgments, prior_sd, renaming):
    winners, losers, weights = judgments
    names = np.array(renaming)
    fit = fit_bradley_terry(winners, losers, N_ITEMS, weights=weights, prior_sd=prior_sd)
    renamed = fit_bradley_terry(names[winners], names[losers], N_ITEMS, weights=weights, prior_sd=prior_sd)
    np.testing.assert_allclose(renamed.scores[names], fit.scores, atol=rounding(prior_sd))
    np.testing.assert_allclose(
        renamed.covariance()[np.ix_(names, names)], fit.covariance(), atol=10 * rounding(prior_sd)
    )


@settings(max_examples=60, deadline=None)
@given(JUDGMENTS, PRIORS)
def test_scores_sum_to_zero_and_errors_are_positive_and_finite(judgments, prior_sd):
    winners, losers, weights = judgments
    fit = fit_bradley_terry(winners, losers, N_ITEMS, weights=weights, prior_sd=prior_sd)
    assert fit.converged
    assert abs(fit.scores.sum()) < 1e-12
    assert (fit.standard_errors() > 0).all()
    assert np.isfinite(fit.standard_errors()).all()
    assert (np.isinf(fit.prior_free_standard_errors()) == (fit.comparison_counts == 0)).all()


def test_the_same_judgments_in_any_order_give_the_same_bits():
    winners, losers = random_judgments(20, 150, 9)
    shuffle = np.random.default_rng(0).permutation(150)
    first = fit_bradley_terry(winners, losers, 20)
    second = fit_bradley_terry(winners[shuffle], losers[shuffle], 20)
    assert first.scores.tobytes() == second.scores.tobytes()
    assert first.standard_errors().tobytes() == second.standard_errors().tobytes()


def test_a_fit_cannot_be_changed_by_accident():
    fit = from_matrix(BASEBALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.converged = False
    with pytest.raises(ValueError, match="read-only"):
        fit.covariance()[0, 0] = 1.0


# -- input that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 1], [1], 2), {}, "equal length, not 2 and 1"),
        (([0.0], [1.0], 2), {}, "winners must be integers"),
        (([True], [False], 2), {}, "winners must be integers"),
        (([[0]], [[1]], 2), {}, "one-dimensional"),
        (([0], [2], 2), {}, r"losers\[0\] is 2: there are items 0 to 1 only"),
        (([-1], [1], 2), {}, r"winners\[0\] is -1"),
        (([0, 1], [1, 1], 2), {}, "judgment 1: item 1 is compared with itself"),
        (([], [], 0), {}, "n_items must be a positive integer"),
        (([0], [1], 2), {"weights": [1, 1]}, "weights must be 1 numbers"),
        (([0], [1], 2), {"weights": [0]}, r"weights\[0\] is 0"),
        (([0], [1], 2), {"weights": [np.nan]}, r"weights\[0\] is nan"),
        (([0], [1], 2), {"prior_sd": 0}, "prior_sd 0.0 is outside"),
        (([0], [1], 2), {"prior_sd": np.inf}, "prior_sd inf is outside"),
        (([0], [1], 2), {"prior_sd": "fited"}, "prior_sd 'fited' is not known"),
        (([0], [1], 2), {"prior_sd": True}, "prior_sd must be"),
        (([0], [1], 2), {"winner_first": [1]}, "winner_first must be 1 booleans"),
        (([0], [1], 2), {"winner_first": [True, False]}, "winner_first must be 1 booleans"),
    ],
)
def test_unusable_input_is_refused_with_the_place_and_the_reason(arguments, options, message):
    with pytest.raises(InputError, match=message):
        fit_bradley_terry(*arguments, **options)


def test_weights_beyond_working_precision_are_refused_in_words():
    with pytest.raises(InputError, match="orders of magnitude"):
        fit_bradley_terry(
            [0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2], 4, weights=[1e30, 1e30, 1e-30, 1e-30, 1e30, 1e30], prior_sd=None
        )
