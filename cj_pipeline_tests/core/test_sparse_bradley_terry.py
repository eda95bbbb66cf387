"""The sparse engine against the dense one, choix, scipy's minimiser, closed forms and the symmetries of the model."""

from collections import Counter

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import minres

from cj_pipeline.core import bradley_terry, sparse_bradley_terry
from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import DisconnectedError, InputError, SeparationError

DESIGNS = ["chain", "ring", "random", "matchings", "near", "near by noisy scores", "star", "uneven", "grid", "tree"]


def pairs_of(design, n, rng, truth):
    """Judged pairs, connected in every design."""
    items = np.arange(n)
    if design == "chain":
        return items[:-1], items[1:]
    if design == "ring":
        return items, np.roll(items, 1)
    if design == "star":
        return np.zeros(n - 1, int), items[1:]
    if design == "tree":
        return np.array([rng.integers(0, i) for i in items[1:]]), items[1:]
    if design == "grid":
        side = int(np.sqrt(n))
        table = items[: side * side].reshape(side, side)
        first = np.concatenate([table[:, :-1].ravel(), table[:-1].ravel()])
        second = np.concatenate([table[:, 1:].ravel(), table[1:].ravel()])
        rest = items[side * side :]
        return np.concatenate([first, rest]), np.concatenate([second, rest - 1])
    if design in ("near", "near by noisy scores"):
        noise, reach = (0.1, 6) if design == "near" else (1.0, n // 15)
        order = np.argsort(truth + rng.normal(0, noise, n))
        place = np.concatenate([np.arange(n - 1), rng.integers(0, n - reach, 4 * n)])
        step = np.concatenate([np.ones(n - 1, int), rng.integers(1, reach, 4 * n)])
        return order[place], order[place + step]
    if design == "matchings":
        rounds = [rng.permutation(n) for _ in range(10)]
        first = np.concatenate([items, *(r[: n // 2] for r in rounds)])
        return first, np.concatenate([np.roll(items, 1), *(r[n // 2 : 2 * (n // 2)] for r in rounds)])
    share = rng.pareto(1.2, n) + 0.05 if design == "uneven" else np.ones(n)
    first = np.concatenate([items, rng.choice(n, 4 * n, p=share / share.sum())])
    second = np.concatenate([np.roll(items, 1), rng.choice(n, 4 * n, p=share / share.sum())])
    return first[first != second], second[first != second]


def judged(design, n, seed, sd):
    """Weighted judgments with a finite maximum-likelihood estimate: each pair was also once judged the other way."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, sd, n)
    first, second = pairs_of(design, n, rng, truth)
    first, second = np.repeat(first, 3), np.repeat(second, 3)
    won = rng.random(first.size) < 1 / (1 + np.exp(truth[second] - truth[first]))
    winners, losers = np.where(won, first, second), np.where(won, second, first)
    weights = np.repeat([1.0, 0.25], winners.size)
    return np.concatenate([winners, losers]), np.concatenate([losers, winners]), weights


def fits(monkeypatch, winners, losers, n, *, weights, prior_sd):
    """The same judgments by the sparse and by the dense engine; the sparse fit is made to take itself for large."""
    dense = with_engine(monkeypatch, False, winners, losers, n, weights=weights, prior_sd=prior_sd)
    expected = dense.standard_errors(), dense.prior_free_standard_errors()
    sparse = with_engine(monkeypatch, True, winners, losers, n, weights=weights, prior_sd=prior_sd)
    return sparse, dense, *expected


def with_engine(monkeypatch, sparse, *arguments, **options):
    monkeypatch.setattr(bradley_terry, "SPARSE_FROM", 1 if sparse else 10**9)
    monkeypatch.setattr(bradley_terry, "DENSE_UP_TO", 0 if sparse else 10**9)
    return fit_bradley_terry(*arguments, **options)


# -- against the dense engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_sd", [None, 0.7, 1e4])
@pytest.mark.parametrize("sd", [1, 4])
@pytest.mark.parametrize("design", DESIGNS)
def test_scores_and_errors_agree_with_the_dense_engine_on_every_design(monkeypatch, design, sd, prior_sd):
    n = 220
    winners, losers, weights = judged(design, n, 5, sd)
    sparse, dense, errors, prior_free = fits(monkeypatch, winners, losers, n, weights=weights, prior_sd=prior_sd)
    assert sparse.converged
    np.testing.assert_allclose(sparse.scores, dense.scores, atol=1e-8)
    np.testing.assert_allclose(sparse.standard_errors(exact=True), errors, rtol=1e-5)
    np.testing.assert_allclose(sparse.standard_errors(), errors, rtol=0.03)
    np.testing.assert_allclose(sparse.prior_free_standard_errors(), prior_free, rtol=0.03)


@pytest.mark.parametrize("prior_sd", [None, 1.0])
@pytest.mark.parametrize("sd", [1, 4])
@pytest.mark.parametrize("design", ["random", "matchings", "near by noisy scores", "star", "uneven", "grid", "tree"])
def test_estimated_errors_are_off_by_no_more_than_they_say_where_no_ordering_helps(monkeypatch, design, sd, prior_sd):
    monkeypatch.setattr(sparse_bradley_terry, "_BAND_WORK", 0.0)
    n = 200
    winners, losers, weights = judged(design, n, 6, sd)
    sparse, dense, errors, _ = fits(monkeypatch, winners, losers, n, weights=weights, prior_sd=prior_sd)
    np.testing.assert_allclose(sparse.scores, dense.scores, atol=1e-8)
    accuracy = sparse.standard_error_accuracy
    off = np.abs(sparse.standard_errors() / errors - 1)
    assert accuracy.probes > 0
    assert (off <= accuracy.relative_error + 1e-4).all()
    assert off[accuracy.exact].max(initial=0) < 1e-5
    assert accuracy.relative_error.max() <= sparse_bradley_terry.ERROR_LIMIT
    np.testing.assert_allclose(sparse.standard_errors(exact=True), errors, rtol=1e-5)


def test_what_is_too_dear_to_solve_for_is_left_in_doubt_and_said_so(monkeypatch):
    monkeypatch.setattr(sparse_bradley_terry, "_BAND_WORK", 0.0)
    monkeypatch.setattr(sparse_bradley_terry, "_EXACT_WORK", 0.0)
    winners, losers, weights = judged("tree", 200, 6, 1)
    sparse, _, errors, _ = fits(monkeypatch, winners, losers, 200, weights=weights, prior_sd=None)
    accuracy = sparse.standard_error_accuracy
    assert not accuracy.exact.any()
    assert accuracy.relative_error.max() > sparse_bradley_terry.ERROR_LIMIT
    assert (np.abs(sparse.standard_errors() / errors - 1) <= accuracy.relative_error).mean() > 0.95


@pytest.mark.parametrize("prior_sd", [None, 1.0])
def test_contrasts_agree_with_the_dense_engine(monkeypatch, prior_sd):
    winners, losers, weights = judged("random", 160, 2, 1)
    sparse, dense, _, _ = fits(monkeypatch, winners, losers, 160, weights=weights, prior_sd=prior_sd)
    for i, j in [(0, 1), (5, 100), (159, 7), (3, 3)]:
        monkeypatch.setattr(bradley_terry, "DENSE_UP_TO", 10**9)
        expected = dense.standard_error_of_contrast(i, j)
        monkeypatch.setattr(bradley_terry, "DENSE_UP_TO", 0)
        assert sparse.standard_error_of_contrast(i, j) == pytest.approx(expected, rel=1e-6)


def test_several_components_and_isolated_items_agree_with_the_dense_engine_under_a_prior(monkeypatch):
    parts = [judged("random", 80, 1, 2), judged("chain", 60, 2, 1), judged("star", 40, 3, 1)]
    starts = [0, 80, 140]  # and items 180 to 189 are never judged
    winners = np.concatenate([part[0] + start for part, start in zip(parts, starts, strict=True)])
    losers = np.concatenate([part[1] + start for part, start in zip(parts, starts, strict=True)])
    weights = np.concatenate([part[2] for part in parts])
    sparse, dense, errors, prior_free = fits(monkeypatch, winners, losers, 190, weights=weights, prior_sd=1.5)
    np.testing.assert_allclose(sparse.scores, dense.scores, atol=1e-9)
    np.testing.assert_allclose(sparse.standard_errors(exact=True), errors, rtol=1e-6)
    np.testing.assert_allclose(sparse.standard_errors(), errors, rtol=0.03)
    np.testing.assert_allclose(sparse.prior_free_standard_errors(), prior_free, rtol=0.03)
    monkeypatch.setattr(bradley_terry, "DENSE_UP_TO", 10**9)
    across = dense.standard_error_of_contrast(0, 100)
    monkeypatch.setattr(bradley_terry, "DENSE_UP_TO", 0)
    assert sparse.standard_error_of_contrast(0, 100) == pytest.approx(across, rel=1e-6)


def test_a_component_has_the_scores_and_prior_free_errors_it_has_alone(monkeypatch):
    one, other = judged("random", 100, 1, 1), judged("grid", 81, 2, 4)
    both = [np.concatenate([one[0], other[0] + 100]), np.concatenate([one[1], other[1] + 100])]
    weights = np.concatenate([one[2], other[2]])
    together = with_engine(monkeypatch, True, *both, 181, weights=weights, prior_sd=1.0)
    alone = with_engine(monkeypatch, True, one[0], one[1], 100, weights=one[2], prior_sd=1.0)
    np.testing.assert_allclose(together.scores[:100], alone.scores, atol=1e-9)
    np.testing.assert_allclose(
        together.prior_free_standard_errors()[:100], alone.prior_free_standard_errors(), rtol=0.03
    )


# -- against others ----------------------------------------------------------------------------------------------


def test_scores_agree_with_choix(monkeypatch):
    winners, losers, _ = judged("random", 60, 3, 1)
    fit = with_engine(monkeypatch, True, winners, losers, 60, prior_sd=None)
    data = list(zip(winners.tolist(), losers.tolist(), strict=True))
    expected = choix.ilsr_pairwise(60, data, alpha=0.0, max_iter=1000, tol=1e-12)
    np.testing.assert_allclose(fit.scores, expected - expected.mean(), atol=1e-7)


def test_scores_are_where_a_general_minimiser_finds_the_posterior_mode(monkeypatch):
    winners, losers, weights = judged("uneven", 40, 3, 2)
    fit = with_engine(monkeypatch, True, winners, losers, 40, weights=weights, prior_sd=1.3)

    def loss(scores):
        difference = scores[winners] - scores[losers]
        pull = weights / (1 + np.exp(difference))
        gradient = np.bincount(losers, pull, 40) - np.bincount(winners, pull, 40) + scores / 1.3**2
        return weights @ np.log1p(np.exp(-difference)) + scores @ scores / (2 * 1.3**2), gradient

    found = minimize(loss, np.zeros(40), jac=True, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(fit.scores, found.x, atol=1e-7)


def test_a_long_chain_has_the_exact_sums_of_its_log_odds_as_scores_and_of_its_variances_as_errors():
    n = 20_000
    links = np.arange(n - 1)
    winners, losers = np.concatenate([links, links + 1]), np.concatenate([links + 1, links])
    weights = np.concatenate([np.full(n - 1, 3.0), np.full(n - 1, 2.0)])
    fit = fit_bradley_terry(winners, losers, n, weights=weights, prior_sd=None)
    exact = -np.log(1.5) * np.arange(n)
    assert fit.converged
    np.testing.assert_allclose(fit.scores, exact - exact.mean(), atol=1e-7)
    # the scores are running sums of independent links, centred: link k moves k + 1 items against the n - 1 - k others
    after = np.arange(1, n) / n
    squares = np.concatenate([[0.0], np.cumsum(after**2)]) + np.concatenate(
        [np.cumsum(((1 - after) ** 2)[::-1])[::-1], [0.0]]
    )
    np.testing.assert_allclose(fit.standard_errors(), np.sqrt(squares * (1 / 3 + 1 / 2)), rtol=1e-7)
    assert fit.standard_error_accuracy.exact.all()


def test_a_large_star_has_log_odds_as_contrasts_with_their_delta_method_errors():
    n = 5_000
    rim = np.arange(1, n)
    wins, losses = 1.0 + rim % 3, 1.0 + rim % 5
    winners = np.concatenate([np.zeros(n - 1, int), rim])
    losers = np.concatenate([rim, np.zeros(n - 1, int)])
    fit = fit_bradley_terry(winners, losers, n, weights=np.concatenate([wins, losses]), prior_sd=None)
    np.testing.assert_allclose(fit.scores[0] - fit.scores[1:], np.log(wins / losses), atol=1e-8)
    variance = 1 / wins + 1 / losses
    assert fit.standard_error_of_contrast(0, 77) == pytest.approx(np.sqrt(variance[76]), rel=1e-6)
    # an item's own link counts for 1 - 1/n, every other for -1/n
    expected = np.sqrt(variance * (1 - 2 / n) + variance.sum() / n**2)
    np.testing.assert_allclose(fit.standard_errors()[1:], expected, rtol=0.03)


@pytest.mark.slow
def test_ten_thousand_items_fit_in_a_small_share_of_a_dense_matrix_and_agree_with_exact_errors():
    import tracemalloc

    n, m = 10_000, 200_000
    rng = np.random.default_rng(1)
    first = np.concatenate([np.arange(n), rng.integers(0, n, m)])
    second = np.concatenate([np.roll(np.arange(n), 1), (first[n:] + rng.integers(1, n, m)) % n])
    truth = rng.normal(0, 2, n)
    won = (np.arange(first.size) < n) | (rng.random(first.size) < 1 / (1 + np.exp(truth[second] - truth[first])))
    tracemalloc.start()
    fit = fit_bradley_terry(np.where(won, first, second), np.where(won, second, first), n, prior_sd=None)
    errors = fit.standard_errors()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit.converged
    assert peak < 8 * n * n / 8
    # another solver, one item held at zero, gives the same numbers, item by item
    pairs, sample = fit.pairs, rng.choice(n - 1, 20, replace=False)
    p = 1 / (1 + np.exp(fit.scores[pairs.second] - fit.scores[pairs.first]))
    weight = (pairs.first_wins + pairs.second_wins) * p * (1 - p)
    graph = coo_array((weight, (pairs.first, pairs.second)), shape=(n, n)).tocsr()
    graph = graph + graph.T
    laplacian = (diags_array(graph.sum(axis=1)) - graph).tocsr()[:-1, :-1]
    precondition = diags_array(1 / laplacian.diagonal())
    for item in sample:
        right = -np.full(n, 1 / n)
        right[item] += 1
        solution, _ = minres(laplacian, right[:-1], rtol=1e-10, M=precondition)
        assert errors[item] == pytest.approx(np.sqrt(right[:-1] @ solution), rel=0.03)


# -- properties --------------------------------------------------------------------------------------------------

N_ITEMS = 7
JUDGMENTS = st.lists(
    st.tuples(st.integers(0, N_ITEMS - 1), st.integers(1, N_ITEMS - 1), st.integers(1, 4)), min_size=1, max_size=30
).map(lambda rows: [np.array(column) for column in zip(*[(i, (i + k) % N_ITEMS, w) for i, k, w in rows], strict=True)])
PRIORS = st.sampled_from([0.5, 2.0, 100.0])


@settings(max_examples=30, deadline=None)
@given(JUDGMENTS, PRIORS, st.permutations(range(N_ITEMS)))
def test_the_sparse_engine_has_the_symmetries_of_the_model(judgments, prior_sd, renaming):
    winners, losers, weights = judgments
    names = np.array(renaming)
    with pytest.MonkeyPatch.context() as patch:

        def fit(*arguments, **options):
            return with_engine(patch, True, *arguments, N_ITEMS, prior_sd=prior_sd, **options)

        plain = fit(winners, losers, weights=weights)
        renamed = fit(names[winners], names[losers], weights=weights)
        reverse = fit(losers, winners, weights=weights)
        repeated = fit(np.repeat(winners, weights), np.repeat(losers, weights))
        errors = plain.standard_errors(exact=True)
        assert plain.converged
        np.testing.assert_allclose(renamed.scores[names], plain.scores, atol=1e-8)
        np.testing.assert_allclose(reverse.scores, -plain.scores, atol=1e-8)
        assert repeated.scores.tobytes() == plain.scores.tobytes()
        np.testing.assert_allclose(renamed.standard_errors(exact=True)[names], errors, rtol=1e-5)
        np.testing.assert_allclose(reverse.standard_errors(exact=True), errors, rtol=1e-5)
        dense = with_engine(patch, False, winners, losers, N_ITEMS, weights=weights, prior_sd=prior_sd)
        np.testing.assert_allclose(plain.scores, dense.scores, atol=1e-8)
        np.testing.assert_allclose(errors, dense.standard_errors(), rtol=1e-5)


# -- adding up and refusals --------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=40))
def test_judgments_are_added_up_as_a_counter_does_with_and_without_weights(rows):
    results = [(i, (i + k) % 6) for i, k in rows]
    winners, losers = [w for w, _ in results], [loser for _, loser in results]
    counts = Counter(results)
    expected = [
        (i, j, counts[i, j], counts[j, i]) for i in range(6) for j in range(i + 1, 6) if counts[i, j] + counts[j, i]
    ]
    for weights in (None, np.ones(len(results))):
        pairs = fit_bradley_terry(winners, losers, 6, weights=weights, prior_sd=1.0).pairs
        found = zip(pairs.first, pairs.second, pairs.first_wins, pairs.second_wins, strict=True)
        assert [(int(i), int(j), int(a), int(b)) for i, j, a, b in found] == expected


def test_components_are_found_where_many_judgments_leave_two_groups_unlinked():
    rng = np.random.default_rng(1)
    first = rng.integers(0, 50, 40_000)
    second = (first + rng.integers(1, 50, 40_000)) % 50
    half = np.arange(40_000) % 2 * 50
    with pytest.raises(DisconnectedError) as caught:
        fit_bradley_terry(first + half, second + half, 100, prior_sd=None)
    assert caught.value.items in (list(range(50)), list(range(50, 100)))
    # one group always beats the other
    winners, losers = np.append(first + half, range(50)), np.append(second + half, range(50, 100))
    with pytest.raises(SeparationError) as separated:
        fit_bradley_terry(winners, losers, 100, prior_sd=None)
    assert not isinstance(separated.value, DisconnectedError)


def test_the_covariance_of_a_large_fit_is_refused_with_what_to_ask_for_instead(monkeypatch):
    winners, losers, weights = judged("ring", 50, 1, 1)
    fit = with_engine(monkeypatch, True, winners, losers, 50, weights=weights, prior_sd=None)
    with pytest.raises(InputError, match=r"covariance of 50 items.*standard_error_of_contrast"):
        fit.covariance()


def test_small_fits_say_that_their_errors_are_exact():
    fit = fit_bradley_terry([0, 1, 2], [1, 2, 0], 3, prior_sd=None)
    assert fit.standard_error_accuracy.exact.all()
    assert fit.standard_error_accuracy.probes == 0
    assert fit.standard_errors(exact=True).tobytes() == fit.standard_errors().tobytes()
