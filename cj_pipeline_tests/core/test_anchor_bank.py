"""The anchor bank: closed forms, coverage over simulated nights, what it gives a batch, and drift with its power."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import norm

from cj_pipeline.core.anchor_bank import (
    DETECTABLE,
    NIGHT_SD_LOG_SD,
    NIGHT_SD_MEDIAN,
    SLOPE_SD,
    AnchorBank,
    NightScores,
    check_drift,
    estimate_bank,
    night_scores,
)
from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError

NAMES = tuple(f"k{i:02d}" for i in range(8))


def centring(n):
    return np.eye(n) - 1 / n


def made_night(name, truth, rng, *, night_sd, noise_sd=0.2, slope=1.0, anchors=NAMES):
    """A night that sees the truth with the errors it claims, from a zero of its own."""
    places = [NAMES.index(anchor) for anchor in anchors]
    k = len(places)
    factor = noise_sd * (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    seen = slope * truth[places] + night_sd * rng.standard_normal(k) + factor @ rng.standard_normal(k)
    return NightScores(name, tuple(anchors), centring(k) @ seen, centring(k) @ factor @ factor.T @ centring(k))


def made_nights(count, truth, rng, *, night_sd, slope_sd=0.0, **options):
    return [
        made_night(f"n{t:03d}", truth, rng, night_sd=night_sd, slope=1 + slope_sd * rng.standard_normal(), **options)
        for t in range(count)
    ]


def night_sd_from_prior(rng):
    return NIGHT_SD_MEDIAN * np.exp(NIGHT_SD_LOG_SD * rng.standard_normal())


# -- the bank --------------------------------------------------------------------------------------------------


def test_one_night_is_a_bank_with_the_prior_of_the_night_to_night_spread():
    night = made_night("n", np.linspace(-2, 2, 8), np.random.default_rng(1), night_sd=0.0)
    bank = estimate_bank([night])
    np.testing.assert_allclose(bank.positions, night.scores, atol=1e-12)
    variance = NIGHT_SD_MEDIAN**2 * np.exp(2 * NIGHT_SD_LOG_SD**2)
    assert bank.night_variance == pytest.approx(variance, rel=1e-3)
    np.testing.assert_allclose(bank.covariance, night.covariance + variance * centring(8), rtol=1e-3, atol=1e-6)
    low, high = NIGHT_SD_MEDIAN * np.exp(norm.ppf([0.025, 0.975]) * NIGHT_SD_LOG_SD)
    assert bank.night_sd_interval == pytest.approx((low, high), rel=0.03)


def test_two_anchors_on_several_nights_are_what_integration_over_the_spread_gives():
    differences, variances = np.array([0.9, 1.6, 0.2, 1.1]), np.array([0.05, 0.2, 0.1, 0.08])
    half = np.array([[0.25, -0.25], [-0.25, 0.25]])
    nights = [
        NightScores(f"n{t}", ("a", "b"), np.array([d, -d]) / 2, v * half)
        for t, (d, v) in enumerate(zip(differences, variances, strict=True))
    ]
    bank = estimate_bank(nights)
    # spelt out: each difference is N(θ, v + 2τ²); flat θ, over a fine grid of τ
    log_widths = np.log(NIGHT_SD_MEDIAN) + np.linspace(-5, 5, 20001) * NIGHT_SD_LOG_SD
    total = variances + 2 * np.exp(2 * log_widths)[:, None]
    precision = (1 / total).sum(axis=1)
    mean = (differences / total).sum(axis=1) / precision
    fit = ((differences - mean[:, None]) ** 2 / total).sum(axis=1) + np.log(total).sum(axis=1) + np.log(precision)
    log_mass = -0.5 * fit - 0.5 * ((log_widths - np.log(NIGHT_SD_MEDIAN)) / NIGHT_SD_LOG_SD) ** 2
    mass = np.exp(log_mass - log_mass.max())
    mass /= mass.sum()
    expected = mass @ mean
    variance = mass @ (1 / precision + (mean - expected) ** 2)
    assert bank.positions[0] - bank.positions[1] == pytest.approx(expected, abs=1e-4)
    c = np.array(bank.covariance)
    assert c[0, 0] + c[1, 1] - 2 * c[0, 1] == pytest.approx(variance, rel=1e-3)
    assert bank.night_variance == pytest.approx(mass @ np.exp(2 * log_widths), rel=1e-3)


def test_many_nights_recover_positions_and_the_night_to_night_spread():
    rng = np.random.default_rng(2)
    truth = centring(8) @ np.linspace(-3, 3, 8)
    bank = estimate_bank(made_nights(150, truth, rng, night_sd=0.35))
    assert np.abs(np.array(bank.positions) - truth).max() < 0.15
    assert bank.night_variance**0.5 == pytest.approx(0.35, abs=0.03)
    assert bank.night_sd_interval[0] < 0.35 < bank.night_sd_interval[1]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "slope_sd", "banks"), [(1, 0.0, 100), (4, 0.0, 100), (4, 0.1, 50)])
def test_intervals_of_positions_and_of_another_night_hold_the_truth_in_95_of_100_cases(count, slope_sd, banks):
    """Banks of `count` nights, τ from its prior. 8 anchors of a bank share its τ: Monte Carlo error .01 to .016."""
    known, tonight = [], []
    for seed in range(banks):
        rng = np.random.default_rng(seed)
        truth = centring(8) @ rng.normal(0, 1.5, 8)
        night_sd = night_sd_from_prior(rng)
        bank = estimate_bank(made_nights(count, truth, rng, night_sd=night_sd, slope_sd=slope_sd), slope_sd=slope_sd)
        off = np.array(bank.positions) - truth
        covariance = np.array(bank.covariance)
        known.append(np.mean(np.abs(off) < 1.96 * np.sqrt(np.diag(covariance))))
        another = centring(8) @ (truth + night_sd * rng.standard_normal(8))
        expected = covariance + bank.night_variance * centring(8)
        tonight.append(np.mean(np.abs(another - np.array(bank.positions)) < 1.96 * np.sqrt(np.diag(expected))))
    assert 0.91 < np.mean(known) < 0.985
    assert 0.91 < np.mean(tonight) < 0.985


def test_nights_with_other_anchors_are_joined_by_those_they_share():
    rng = np.random.default_rng(3)
    truth = centring(8) @ np.linspace(-3, 3, 8)
    nights = [
        made_night(f"n{t:02d}", truth, rng, night_sd=0.1, anchors=NAMES[:5] if t % 2 else NAMES[3:]) for t in range(40)
    ]
    bank = estimate_bank(nights)
    assert bank.anchors == NAMES
    assert np.abs(np.array(bank.positions) - truth).max() < 4 * max(bank.standard_errors().values()) < 0.6
    with pytest.raises(InputError, match="k05, k06, k07"):
        estimate_bank(
            [
                made_night("a", truth, rng, night_sd=0, anchors=NAMES[:5]),
                made_night("b", truth, rng, night_sd=0, anchors=NAMES[5:]),
            ]
        )


def test_neither_the_order_of_nights_nor_a_nights_zero_matters():
    rng = np.random.default_rng(4)
    nights = made_nights(5, np.linspace(-2, 2, 8), rng, night_sd=0.2)
    bank = estimate_bank(nights, slope_sd=0.1)
    assert estimate_bank(nights[::-1], slope_sd=0.1) == bank
    moved = [NightScores(n.night, n.anchors, n.scores + 7.0, n.covariance + 3.0) for n in nights]
    np.testing.assert_allclose(estimate_bank(moved, slope_sd=0.1).positions, bank.positions, atol=1e-10)
    np.testing.assert_allclose(estimate_bank(moved, slope_sd=0.1).covariance, bank.covariance, atol=1e-10)


def test_a_bank_comes_back_from_json_as_it_was():
    bank = estimate_bank(made_nights(3, np.linspace(-2, 2, 8), np.random.default_rng(5), night_sd=0.2))
    assert AnchorBank.model_validate_json(bank.model_dump_json()) == bank


@pytest.mark.parametrize(
    "change",
    [
        {"anchors": NAMES[::-1]},
        {"positions": (0.0,) * 7},
        {"night_variance": 0.0},
        {"covariance": tuple(tuple(row) for row in (-np.eye(8)).tolist())},
    ],
)
def test_a_bank_that_makes_no_sense_is_not_read(change):
    bank = estimate_bank(made_nights(2, np.linspace(-2, 2, 8), np.random.default_rng(5), night_sd=0.2))
    with pytest.raises(ValidationError):
        AnchorBank.model_validate({**bank.model_dump(), **change})


def test_no_nights_or_one_twice_make_no_bank():
    night = made_night("n", np.zeros(8), np.random.default_rng(1), night_sd=0.0)
    for nights in ([], [night, night]):
        with pytest.raises(InputError, match="each given once"):
            estimate_bank(nights)


# -- what a fit says of its anchors ----------------------------------------------------------------------------


def judged(truth, n_judgments, rng, *, advantage=0.0):
    first = rng.integers(0, len(truth), n_judgments)
    second = (first + rng.integers(1, len(truth), n_judgments)) % len(truth)
    wins = rng.random(n_judgments) < 1 / (1 + np.exp(truth[second] - truth[first] - advantage))
    return np.where(wins, first, second), np.where(wins, second, first), wins


def test_a_night_of_many_judgments_is_its_maximum_likelihood_fit_however_narrow_the_prior():
    truth = np.array([-1.0, -0.4, 0.0, 0.5, 0.9])
    winners, losers, _ = judged(truth, 4000, np.random.default_rng(6))
    ml = fit_bradley_terry(winners, losers, 5, prior_sd=None)
    night = night_scores("n", {f"a{i}": i for i in range(5)}, fit_bradley_terry(winners, losers, 5, prior_sd=0.5))
    np.testing.assert_allclose(night.scores, ml.scores, atol=0.003)
    np.testing.assert_allclose(night.covariance, ml.covariance(), rtol=0.02, atol=1e-6)


def test_prior_and_night_together_are_the_posterior_again_for_some_of_the_essays():
    rng = np.random.default_rng(7)
    winners, losers, first = judged(rng.normal(0, 1, 10), 60, rng, advantage=0.5)
    fit = fit_bradley_terry(winners, losers, 10, prior_sd=0.9, winner_first=first)
    night = night_scores("n", {"x": 2, "y": 5, "z": 9}, fit)
    contrast = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])
    prior, alone = 0.81 * contrast @ contrast.T, contrast @ night.covariance @ contrast.T
    posterior = np.linalg.inv(np.linalg.inv(prior) + np.linalg.inv(alone))
    at = [2, 5, 9]
    np.testing.assert_allclose(posterior, contrast @ fit.covariance()[np.ix_(at, at)] @ contrast.T, rtol=1e-8)
    mean = posterior @ np.linalg.solve(alone, contrast @ night.scores)
    np.testing.assert_allclose(mean, contrast @ fit.scores[at], rtol=1e-8)


def test_anchors_without_a_place_and_fits_without_the_right_prior_are_refused():
    fit = fit_bradley_terry([0, 1, 2], [1, 2, 0], 5)
    with pytest.raises(InputError, match="no judgment links anchors d, e"):
        night_scores("n", dict(zip("abcde", range(5), strict=True)), fit)
    with pytest.raises(InputError, match="two anchors"):
        night_scores("n", {"a": 0}, fit)
    with pytest.raises(InputError, match="independent prior"):
        night_scores("n", {"a": 0, "b": 1}, fit_bradley_terry([0, 1], [1, 0], 2, prior_sd=None))


# -- what a bank gives a batch ---------------------------------------------------------------------------------


def test_a_batch_gets_positions_with_se_squared_night_variance_and_a_free_slope():
    bank = estimate_bank(made_nights(4, np.linspace(-2, 2, 8), np.random.default_rng(8), night_sd=0.2))
    known = bank.known_items({"k02": 10, "k07": 3, "k00": 4, "stranger": 1}, 12, batch="tonight")
    assert known.items.tolist() == [4, 10, 3]
    places = [0, 2, 7]
    mean = np.array(bank.positions)[places]
    np.testing.assert_allclose(known.mean, mean)
    off = mean - mean.mean()
    expected = np.array(bank.covariance)[np.ix_(places, places)] + bank.night_variance * np.eye(3)
    np.testing.assert_allclose(known.covariance, expected + SLOPE_SD**2 * np.outer(off, off))


def test_judgments_that_are_in_the_bank_are_never_scored_with_it():
    nights = made_nights(3, np.linspace(-2, 2, 8), np.random.default_rng(8), night_sd=0.2)
    bank = estimate_bank(nights)
    with pytest.raises(InputError, match="count twice"):
        bank.known_items({"k00": 0, "k01": 1}, 4, batch="n001")
    with pytest.raises(InputError, match="count twice"):
        check_drift(bank, nights[1])
    with pytest.raises(InputError, match="none of the batch's anchors"):
        bank.known_items({"other": 0}, 4, batch="tonight")
    with pytest.raises(InputError, match="does not have other"):
        bank.position_of("other")


# -- drift -----------------------------------------------------------------------------------------------------


def test_without_drift_z_is_standard_normal_and_with_the_detectable_shift_it_is_found_in_80_of_100_batches():
    rng = np.random.default_rng(9)
    truth = centring(8) @ np.linspace(-2.5, 2.5, 8)
    still, found = [], []
    for _ in range(400):
        bank = AnchorBank(
            anchors=NAMES,
            positions=tuple(centring(8) @ (truth + 0.15 * rng.standard_normal(8))),
            covariance=tuple(map(tuple, (0.15**2 * centring(8)).tolist())),
            night_variance=0.04,
            night_sd_interval=(0.1, 0.4),
            nights=("n",),
        )
        batch = made_night("tonight", truth, rng, night_sd=0.2, slope=rng.uniform(0.8, 1.2))
        rows = check_drift(bank, batch)
        still.append([row.z for row in rows])
        moved = batch.scores.copy()
        moved[3] += rows[3].detectable
        after = check_drift(bank, NightScores("tonight", NAMES, moved, batch.covariance))[3]
        assert after.drift == pytest.approx(rows[3].drift + rows[3].detectable, rel=0.05, abs=0.05)
        found.append(abs(after.z) > 1.96)
    # eight z of a batch are nearly independent: 400 batches, Monte Carlo error of the share .005
    assert 0.035 < np.mean(np.abs(still) > 1.96) < 0.065
    assert 0.74 < np.mean(found) < 0.86  # Monte Carlo error .02


def test_drift_is_the_distance_from_the_line_through_the_other_anchors():
    """By regression without the anchor, its prediction error added: the deletion residual."""
    bank = AnchorBank(
        anchors=("a", "b", "c", "d"),
        positions=(-1.5, -0.5, 0.5, 1.5),
        covariance=tuple(map(tuple, (0.01 * centring(4)).tolist())),
        night_variance=0.02,
        night_sd_interval=(0.1, 0.2),
        nights=("n",),
    )
    seen = np.array([-1.2, -0.6, 1.0, 0.8])
    rows = check_drift(bank, NightScores("tonight", bank.anchors, seen, 0.05 * centring(4)))
    mean = np.array(bank.positions)
    for k, row in enumerate(rows):
        others = [i for i in range(4) if i != k]
        design = np.column_stack([np.ones(3), mean[others]])
        line = np.linalg.lstsq(design, seen[others])[0]
        assert row.drift == pytest.approx(seen[k] - line @ [1.0, mean[k]], abs=1e-9)
        assert row.z == pytest.approx(row.drift / row.se)
        assert row.detectable == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * row.se)
    assert pytest.approx(norm.ppf(0.975) + norm.ppf(0.8)) == DETECTABLE


def test_an_anchor_alone_at_its_place_has_no_line_to_be_held_against():
    bank = AnchorBank(
        anchors=("a", "b", "c"),
        positions=(-1.0, 0.5, 0.5),
        covariance=tuple(map(tuple, (0.01 * centring(3)).tolist())),
        night_variance=0.02,
        night_sd_interval=(0.1, 0.2),
        nights=("n",),
    )
    rows = check_drift(bank, NightScores("tonight", bank.anchors, np.array([-1.0, 0.4, 0.6]), 0.05 * centring(3)))
    assert (rows[0].drift, rows[0].z, rows[0].detectable) == (None, None, np.inf)
    assert rows[1].z == pytest.approx(-rows[2].z)
    with pytest.raises(InputError, match="at least two other anchors"):
        check_drift(bank, NightScores("tonight", ("a", "b"), np.array([-1.0, 1.0]), 0.05 * centring(2)))
