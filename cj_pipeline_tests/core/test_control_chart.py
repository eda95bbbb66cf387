"""Control charts: limits against scipy's distributions, false alarms over simulated nights, and what is found when."""

import numpy as np
import pytest
from scipy import stats

from cj_pipeline.core.anchor_bank import NightScores, check_drift, estimate_bank
from cj_pipeline.core.control_chart import (
    ChartRules,
    NightFigure,
    Side,
    Verdict,
    anchor_charts,
    control_chart,
)
from cj_pipeline.core.errors import InputError

NAMES = tuple(f"k{i:02d}" for i in range(8))
TRUTH = np.linspace(-3, 3, 8)


def figures(values, se=0.0):
    return [NightFigure(night=f"n{i:03d}", value=None if v is None else float(v), se=se) for i, v in enumerate(values)]


def chart(values, *, side=Side.BOTH, se=0.0, least_sd=1e-9, **rules):
    return control_chart(figures(values, se), side=side, least_sd=least_sd, rules=ChartRules(**rules))


# -- one figure ----------------------------------------------------------------------------------------------------


def test_limits_are_the_prediction_interval_of_student():
    values = [0.91, 0.93, 0.88, 0.94, 0.90, 0.92, 0.89]
    point = chart([*values, 0.9], min_nights=5)[-1]
    share = 2 * stats.norm.sf(3)
    low, high = stats.t.interval(1 - share, 6, np.mean(values), np.std(values, ddof=1) * np.sqrt(1 + 1 / 7))
    assert (point.baseline, point.centre) == (7, pytest.approx(np.mean(values)))
    assert (point.low, point.high) == (pytest.approx(low), pytest.approx(high))


def test_the_value_on_the_limit_is_as_far_out_as_the_rule_says():
    values = [0.1, 0.4, -0.3, 0.2, 0.0, -0.1]
    high = chart([*values, 0.0], sigmas=2.5)[-1].high
    assert chart([*values, high], sigmas=2.5)[-1].z == pytest.approx(2.5)
    assert chart([*values, high + 1e-6], sigmas=2.5)[-1].verdict is Verdict.BEYOND
    assert chart([*values, high - 1e-6], sigmas=2.5)[-1].verdict is not Verdict.BEYOND


def test_scores_of_nights_in_control_are_standard_normal_and_independent_however_few_nights_there_were():
    rng = np.random.default_rng(5)
    # limits far out, so that no night is kept out of the baseline
    runs = [[p.z for p in chart(rng.normal(2, 0.7, 12), sigmas=8)[5:]] for _ in range(1500)]
    scores = np.array(runs)
    for night in range(scores.shape[1]):
        assert stats.kstest(scores[:, night], "norm").pvalue > 0.001
    correlations = np.corrcoef(scores.T)[np.triu_indices(scores.shape[1], k=1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(1500)


def test_the_ewma_of_nights_in_control_has_the_spread_its_limits_assume():
    rng = np.random.default_rng(6)
    runs = np.array([[p.ewma for p in chart(rng.normal(size=20), sigmas=8)[5:]] for _ in range(1500)])
    np.testing.assert_allclose(runs.std(axis=0), 1.0, atol=4 / np.sqrt(2 * 1500))


def test_the_first_nights_have_no_verdict():
    points = chart([1.0, 50.0, 1.0, 1.0, 1.0, 1.0], min_nights=5)
    assert [point.verdict for point in points[:5]] == [Verdict.TOO_FEW] * 5
    assert points[0].z is points[0].low is None
    assert points[5].verdict is Verdict.IN_CONTROL


def test_a_night_measured_less_exactly_has_wider_limits():
    steady = figures([0.1, -0.1, 0.2, -0.2, 0.1, 0.0], se=0.1)
    exact, vague = (
        control_chart([*steady, NightFigure(night="x", value=1.2, se=se)], side=Side.BOTH, least_sd=0.01)[-1]
        for se in (0.1, 0.6)
    )
    assert exact.verdict is Verdict.BEYOND
    assert vague.verdict is Verdict.IN_CONTROL


@pytest.mark.parametrize(("side", "out"), [(Side.BELOW, (-1,)), (Side.ABOVE, (1,)), (Side.BOTH, (-1, 1))])
def test_a_one_sided_chart_watches_one_side(side, out):
    steady = [0.1, -0.1, 0.2, -0.2, 0.1, 0.0, 0.05]
    for sign in (-1, 1):
        point = chart([*steady, sign * 5.0], side=side)[-1]
        assert point.verdict.is_alarm == (sign in out)
    assert (point.low is None) == (side is Side.ABOVE)
    assert (point.high is None) == (side is Side.BELOW)


def test_a_night_out_of_control_never_becomes_part_of_what_later_nights_are_held_against():
    steady = [0.1, -0.1, 0.2, -0.2, 0.1, 0.0]
    points = chart([*steady, 9.0, 9.0, 0.0])
    assert [point.verdict for point in points[6:8]] == [Verdict.BEYOND, Verdict.BEYOND]
    assert points[-1].baseline == 6
    assert points[-1].centre == pytest.approx(np.mean(steady))


def test_the_baseline_stands_once_it_is_full():
    rng = np.random.default_rng(3)
    values = rng.normal(size=20)
    points = chart(values, min_nights=5, baseline_nights=8, sigmas=8)
    assert [point.baseline for point in points[8:]] == [8] * 12
    assert points[-1].centre == pytest.approx(values[:8].mean())


def test_a_small_lasting_shift_is_found_by_the_ewma_where_no_single_night_is_beyond_limits():
    steady = [0.4, -0.4, 0.5, -0.5, 0.3, -0.3, 0.4, -0.4, 0.5, -0.5, 0.1, -0.1]
    points = chart([*steady, *[1.2] * 8])
    found = [point.verdict for point in points[12:]]
    assert Verdict.BEYOND not in found
    assert found.index(Verdict.DRIFTING) <= 4
    # and the nights since it began are no longer what later ones are held against
    assert found[-1] is Verdict.DRIFTING
    assert points[-1].centre == pytest.approx(np.mean(steady), abs=0.05)


def test_one_wild_night_does_not_make_the_nights_after_it_drift():
    steady = [0.4, -0.4, 0.5, -0.5, 0.3, -0.3, 0.4, -0.4, 0.5, -0.5]
    points = chart([*steady, 1000.0, 0.1, -0.1, 0.2])
    assert [point.verdict for point in points[10:]] == [Verdict.BEYOND] + [Verdict.IN_CONTROL] * 3


def test_a_figure_that_is_always_the_same_raises_no_alarm_about_a_difference_of_no_interest():
    assert chart([1.0] * 8 + [1.02], least_sd=0.05)[-1].verdict is Verdict.IN_CONTROL
    assert chart([1.0] * 8 + [1.9], least_sd=0.05)[-1].verdict is Verdict.BEYOND
    with pytest.raises(InputError, match="least_sd"):
        chart([1.0], least_sd=0.0)


def test_a_night_without_a_value_is_said_to_have_none_and_counts_for_nothing():
    points = chart([1.0, None, float("nan"), 1.1, 0.9, 1.0, 1.05, 1.0])
    assert [point.verdict for point in points[1:3]] == [Verdict.NO_VALUE] * 2
    assert points[-1].baseline == 5


# -- anchors -------------------------------------------------------------------------------------------------------


def night(number, rng, *, shift=None, noise=0.5, night_sd=0.2, anchors=NAMES):
    """Scores with the errors they claim; `shift` moves one anchor."""
    places = [NAMES.index(anchor) for anchor in anchors]
    k = len(places)
    centring = np.eye(k) - 1 / k
    truth = TRUTH.copy()
    for anchor, logits in (shift or {}).items():
        truth[NAMES.index(anchor)] += logits
    seen = truth[places] + np.hypot(noise, night_sd) * rng.standard_normal(k)
    return NightScores(f"n{number:03d}", tuple(anchors), centring @ seen, noise**2 * centring)


def test_several_charts_share_the_false_alarms_of_one():
    shared = ChartRules(sigmas=3.0).shared_between(12)
    assert 12 * stats.norm.sf(shared.sigmas) == pytest.approx(stats.norm.sf(3.0))
    assert ChartRules().shared_between(1).sigmas == pytest.approx(3.0)


def test_an_anchors_point_is_its_drift_against_the_bank_of_earlier_nights():
    rng = np.random.default_rng(1)
    nights = [night(i, rng) for i in range(7)]
    charts = anchor_charts(nights)
    expected = {one.anchor: one for one in check_drift(estimate_bank(nights[:6]), nights[6])}
    for anchor, points in charts.items():
        assert points[4].verdict is Verdict.TOO_FEW
        assert points[6].value == pytest.approx(expected[anchor].drift)
        assert points[6].z == pytest.approx(expected[anchor].z)
        assert points[6].high == pytest.approx(ChartRules().shared_between(8).sigmas * expected[anchor].se)


def test_an_anchor_that_the_judge_reads_otherwise_from_one_night_on_is_found_and_no_other():
    rng = np.random.default_rng(2)
    nights = [night(i, rng, shift={"k03": 1.5} if i >= 20 else None) for i in range(30)]
    alarms = {
        anchor: [i for i, point in enumerate(points) if point.verdict.is_alarm]
        for anchor, points in anchor_charts(nights).items()
    }
    assert {anchor for anchor, found in alarms.items() if found} == {"k03"}
    assert 20 <= min(alarms["k03"]) <= 24


def test_an_anchor_that_came_later_is_judged_once_enough_nights_had_it():
    rng = np.random.default_rng(4)
    nights = [night(i, rng, anchors=NAMES[:7] if i < 6 else NAMES) for i in range(14)]
    points = anchor_charts(nights)["k07"]
    assert [point.verdict for point in points[:6]] == [Verdict.NO_VALUE] * 6
    assert [point.verdict for point in points[6:11]] == [Verdict.TOO_FEW] * 5
    assert points[11].verdict is Verdict.IN_CONTROL
    assert points[11].baseline == 5


def test_nights_without_common_anchors_have_no_verdict():
    rng = np.random.default_rng(4)
    nights = [night(i, rng, anchors=NAMES[:4] if i < 6 else NAMES[4:]) for i in range(9)]
    assert {points[-1].verdict for points in anchor_charts(nights).values()} <= {Verdict.TOO_FEW, Verdict.NO_VALUE}


@pytest.mark.slow
def test_nights_in_control_raise_alarms_about_as_rarely_as_the_rules_say():
    rng = np.random.default_rng(8)
    runs, span = 60, 20
    beyond = drifting = 0
    for _ in range(runs):
        points = anchor_charts([night(i, rng) for i in range(span)])
        tonight = [{points[anchor][i].verdict for anchor in NAMES} for i in range(span)]
        beyond += sum(Verdict.BEYOND in verdicts for verdicts in tonight)
        drifting += sum(Verdict.DRIFTING in verdicts for verdicts in tonight)
    judged = runs * (span - 5)
    # 2.4 are expected; nights after a false alarm are not independent of it, so the bound is wide
    assert stats.binom.sf(beyond - 1, judged, 2 * stats.norm.sf(3)) > 0.001
    assert drifting <= 2 * max(beyond, 3)
