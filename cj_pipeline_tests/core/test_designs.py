"""Designs: what each promises of its plans, the greedy choice against brute force, and adaptive against balanced."""

import math
import random
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cj_pipeline.core import designs
from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.designs import (
    OPENING,
    OPENING_WITH_ANCHORS,
    WaveRequest,
    plan_next_wave,
    plan_whole_budget,
)
from cj_pipeline.core.errors import PlanningError
from cj_pipeline.core.judgment_worth import (
    expected_fall,
    expected_information,
    grade_boundaries,
    importance_for_grades,
)
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairDesign, PairMode, Winner
from cj_pipeline.core.pairing import plan_single_wave, plan_wave
from cj_pipeline.core.score_prior import known_items

# as docs/statistics.md has them: the prior in pairing, in fitted widths, and the blur of boundaries, in grade steps
TWICE, TWO_FIFTHS = 2.0, 0.4
JUDGED, FAILED, WITHDRAWN = ComparisonStatus.JUDGED, ComparisonStatus.FAILED, ComparisonStatus.WITHDRAWN
COVERAGE, RANDOM, BALANCED, ADAPTIVE, CALIBRATED = PairDesign
NEW_DESIGNS = (RANDOM, BALANCED, ADAPTIVE, CALIBRATED)
each_new_design = pytest.mark.parametrize("design", NEW_DESIGNS)
some = settings(deadline=None, max_examples=20)


def names(n):
    return [f"essay-{i:05d}" for i in range(n)]


def placed(essay_ids):
    """Every third essay has a place in a bank, one logit apart."""
    items = np.arange(0, len(essay_ids), 3)
    return known_items(items, np.arange(items.size) - items.size / 2, 0.1 * np.eye(items.size), len(essay_ids))


def request(essay_ids, history=(), *, size=10, wave=1, **changes):
    fields = {"scores": {}, "ses": {}, "seed": 7, "batch_id": "batch", "known": placed(essay_ids)}
    return WaveRequest(essay_ids=essay_ids, history=history, size=size, wave=wave, **{**fields, **changes})


def orders(pairs):
    return [(pair.essay_a, pair.essay_b) for pair in pairs]


def judge(history, pairs, truth, chance, *, wave, failure_rate=0.0):
    """Append the pairs to the history with answers of a judge who knows the truth."""
    for pair in pairs:
        failed = chance.random() < failure_rate
        p = 1.0 / (1.0 + math.exp(truth[pair.essay_b] - truth[pair.essay_a]))
        won = Winner.A if chance.random() < p else Winner.B
        history.append(
            Comparison(
                comparison_id=f"{len(history):06d}",
                wave=wave,
                essay_a=pair.essay_a,
                essay_b=pair.essay_b,
                pair_mode=pair.pair_mode,
                status=FAILED if failed else JUDGED,
                winner=None if failed else won,
            )
        )


def fitted(history, essay_ids, known=None):
    index = {essay: i for i, essay in enumerate(essay_ids)}
    judged = [c for c in history if c.status is JUDGED]
    winners = np.array([index[c.winner_id] for c in judged], dtype=np.int64)
    losers = np.array([index[c.loser_id] for c in judged], dtype=np.int64)
    first = np.array([c.winner is Winner.A for c in judged], dtype=np.bool_)
    return fit_bradley_terry(winners, losers, len(essay_ids), winner_first=first, known=known)


def scored(history, essay_ids):
    """Scores and standard errors as the wave loop hands them on."""
    fit = fitted(history, essay_ids)
    return {
        "scores": dict(zip(essay_ids, fit.scores.tolist(), strict=True)),
        "ses": dict(zip(essay_ids, fit.standard_errors().tolist(), strict=True)),
        "fit": fit,
    }


def examine(design, n, *, sizes, seed, anchors=0, sd=2.0, failure_rate=0.0):
    """Run the waves of one batch; its essays, truth and history."""
    chance = random.Random(seed)
    essay_ids = names(n)
    truth = {essay: chance.gauss(0, sd) for essay in essay_ids}
    grades = {essay: "ABC"[k % 3] for k, essay in enumerate(essay_ids[:anchors])}
    history = []
    for wave, size in enumerate(sizes, start=1):
        reads_scores = design in (COVERAGE, ADAPTIVE, CALIBRATED)
        known = scored(history, essay_ids) if history and reads_scores else {}
        pairs = plan_next_wave(
            design, request(essay_ids, history, size=size, wave=wave, seed=seed, anchor_grades=grades, **known)
        )
        assert len(pairs) == size
        judge(history, pairs, truth, chance, wave=wave, failure_rate=failure_rate)
    return essay_ids, truth, history


def worst_skews(history):
    skew = Counter()
    for c in history:
        skew[c.essay_a] += 1
        skew[c.essay_b] -= 1
        yield max(map(abs, skew.values()))


waves = st.fixed_dictionaries(
    {
        "n": st.integers(2, 14),
        "sizes": st.lists(st.integers(1, 30), min_size=1, max_size=6),
        "seed": st.integers(0, 2**32),
        "anchors": st.integers(0, 4),
        "failure_rate": st.sampled_from([0.0, 0.3]),
    }
)


# --- what every design keeps ---------------------------------------------------------------------------------------


@each_new_design
@some
@given(batch=waves)
def test_after_every_comparison_no_essay_was_read_first_more_than_once_too_often_and_the_size_is_exact(design, batch):
    history = examine(design, **batch)[2]
    assert max(worst_skews(history)) == 1


@each_new_design
@some
@given(batch=waves, order=st.randoms())
def test_a_plan_depends_on_neither_the_order_of_essays_nor_that_of_the_history(design, batch, order):
    essay_ids, _, history = examine(design, **batch)
    asked = {"size": 12, "wave": 9, **scored(history, essay_ids)}
    plan = plan_next_wave(design, request(essay_ids, history, **asked))
    order.shuffle(essay_ids)
    order.shuffle(history)
    assert plan_next_wave(design, request(essay_ids, history, **asked)) == plan


@each_new_design
def test_seed_batch_and_wave_each_change_the_plan(design):
    plans = [
        orders(plan_next_wave(design, request(names(20), **changes)))
        for changes in ({}, {"seed": 8}, {"batch_id": "other"}, {"wave": 2})
    ]
    assert all(a != b for a, b in combinations(plans, 2))


@each_new_design
@some
@given(batch=waves)
def test_a_pair_says_whether_it_is_seen_for_the_first_time_and_failures_do_not_count_as_seen(design, batch):
    seen = set()
    for c in examine(design, **batch)[2]:
        pair = frozenset((c.essay_a, c.essay_b))
        if c.wave == 1 or c.status is JUDGED:  # a failed pair may return in a later wave
            assert (c.pair_mode is PairMode.RESAMPLING) >= (pair in seen)
        if c.status is JUDGED:
            seen.add(pair)


@each_new_design
def test_a_pair_whose_comparison_failed_is_planned_as_if_for_the_first_time(design):
    history = []
    judge(
        history,
        plan_next_wave(design, request(names(2), size=1)),
        dict.fromkeys(names(2), 0.0),
        random.Random(1),
        wave=1,
        failure_rate=1.0,
    )
    (pair,) = plan_next_wave(design, request(names(2), history, size=1, wave=2))
    assert pair.pair_mode is PairMode.COVERAGE
    assert (pair.essay_b, pair.essay_a) == (history[0].essay_a, history[0].essay_b)


@each_new_design
@pytest.mark.parametrize("n", [11, 24])
def test_no_pair_is_read_in_the_same_order_twice_while_there_is_room(design, n):
    # three in four of all unordered pairs
    history = examine(design, n, sizes=[n // 2] * (3 * (n - 1) // 4), seed=3)[2]
    assert max(Counter((c.essay_a, c.essay_b) for c in history).values()) == 1


@each_new_design
def test_withdrawn_comparisons_count_for_nothing(design):
    essay_ids, _, history = examine(design, 8, sizes=[8, 8], seed=1)
    plan = plan_next_wave(design, request(essay_ids, history, wave=3))
    withdrawn = [
        c.model_copy(update={"comparison_id": f"x{c.comparison_id}", "status": WITHDRAWN, "winner": None})
        for c in history
    ]
    assert plan_next_wave(design, request(essay_ids, [*history, *withdrawn], wave=3)) == plan


@each_new_design
@some
@given(seed=st.integers(0, 2**32), n=st.integers(3, 12))
def test_essays_that_withdrawals_left_skewed_are_read_fairly_again(design, seed, n):
    essay_ids, _, history = examine(design, n, sizes=[n, n], seed=seed)
    chance = random.Random(seed)
    kept = [c for c in history if chance.random() < 0.5]
    skew = Counter()
    for c in kept:
        skew.update({c.essay_a: 1})
        skew.subtract({c.essay_b: 1})
    worst = max([1, *map(abs, skew.values())])
    plan = plan_next_wave(design, request(essay_ids, kept, size=3 * n, wave=3))
    assert len(plan) == 3 * n
    for pair in plan:
        skew.update({pair.essay_a: 1})
        skew.subtract({pair.essay_b: 1})
        assert max(map(abs, skew.values())) <= worst
    assert max(map(abs, skew.values())) <= 1


@each_new_design
def test_without_balancing_of_positions_the_order_is_a_coins(design):
    plan = plan_next_wave(design, request(names(40), size=200, balance_positions=False))
    first = Counter(pair.essay_a for pair in plan)
    appearances = Counter(essay for pair in plan for essay in (pair.essay_a, pair.essay_b))
    assert max(abs(2 * first[e] - appearances[e]) for e in names(40)) > 1
    lower_first = sum(pair.essay_a < pair.essay_b for pair in plan)
    assert abs(lower_first - 100) < 40


@each_new_design
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"essay_ids": ["a"]}, "at least two essays"),
        ({"essay_ids": ["a", "b", "a"]}, "more than once"),
        ({"essay_ids": ["a", "b"], "size": 0}, "cannot be planned"),
        ({"essay_ids": ["a", "b"], "scores": {"a": math.nan}}, "no usable score"),
    ],
)
def test_a_request_that_cannot_be_planned_is_refused_in_words(design, asked, words):
    with pytest.raises(PlanningError, match=words):
        plan_next_wave(design, request(**asked))


# --- coverage and small nets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", PairDesign)
def test_a_small_net_is_planned_by_coverage_whatever_the_design(design):
    asked = {"size": 6, "seed": 7, "batch_id": "batch", "wave": 1, "small_net": True}
    expected = plan_wave(names(6), [], mode=PairMode.COVERAGE, scores={}, ses={}, **asked)
    assert plan_next_wave(design, request(names(6), **asked)) == expected
    single = plan_single_wave(names(6), [], budget_left=40, least=10, passes=2, seed=7, batch_id="batch", wave=1)
    whole = request(names(6), size=40, small_net=True)
    assert plan_whole_budget(design, whole, least=10, passes=2) == single


def test_the_coverage_design_is_the_one_of_pairing():
    essay_ids, _, history = examine(BALANCED, 12, sizes=[6, 6, 6], seed=1)
    known = scored(history, essay_ids)
    at = {name: known[name] for name in ("scores", "ses")}
    expected = plan_wave(
        essay_ids, history, mode=PairMode.RESAMPLING, size=5, **at, seed=7, batch_id="batch", wave=4, small_net=False
    )
    asked = request(essay_ids, history, size=5, wave=4, mode=PairMode.RESAMPLING, **known)
    assert plan_next_wave(COVERAGE, asked) == expected


@pytest.mark.parametrize("design", [ADAPTIVE, CALIBRATED])
def test_a_whole_budget_planned_at_once_is_balanced_under_designs_that_go_by_scores(design):
    essay_ids, _, history = examine(design, 12, sizes=[6] * 8, seed=1)
    whole = request(essay_ids, history, size=50, wave=9, **scored(history, essay_ids))
    plan = plan_whole_budget(design, whole, least=10)
    assert len(plan) == 50
    assert plan == plan_whole_budget(BALANCED, whole, least=10)
    assert plan != plan_next_wave(design, whole)


# --- balanced and random -------------------------------------------------------------------------------------------


@some
@given(n=st.integers(2, 25), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_balanced_rounds_keep_exposures_within_one_of_each_other_after_every_comparison(n, sizes, seed):
    count = Counter(dict.fromkeys(names(n), 0))
    for c in examine(BALANCED, n, sizes=sizes, seed=seed)[2]:
        count.update((c.essay_a, c.essay_b))
        assert max(count.values()) - min(count.values()) <= 1


@pytest.mark.parametrize("design", [RANDOM, BALANCED])
def test_every_ordered_pair_is_as_likely_as_any_other_to_come_first(design):
    essay_ids, draws = names(5), 4000
    firsts = Counter(orders(plan_next_wave(design, request(essay_ids, size=1, seed=seed)))[0] for seed in range(draws))
    assert len(firsts) == 20
    chi_square = sum((times - draws / 20) ** 2 / (draws / 20) for times in firsts.values())
    assert chi_square < 43.8  # 99.9 % of chi-square with 19 degrees of freedom


def test_random_exposures_spread_as_those_of_a_random_design_do():
    count = Counter(
        essay
        for pair in plan_next_wave(RANDOM, request(names(200), size=1000))
        for essay in (pair.essay_a, pair.essay_b)
    )
    assert 1.5 < np.std([count[essay] for essay in names(200)]) < 4.0


# --- adaptive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("anchors", "opening"), [(0, OPENING), (6, OPENING_WITH_ANCHORS)])
def test_the_adaptive_design_opens_with_balanced_rounds_and_then_leaves_them(anchors, opening):
    sizes = [6] * opening
    adaptive = examine(ADAPTIVE, 12, sizes=[*sizes, 6], seed=5, anchors=anchors)[2]
    balanced = examine(BALANCED, 12, sizes=[*sizes, 6], seed=5, anchors=anchors)[2]
    assert orders(adaptive[:-6]) == orders(balanced[:-6])
    assert orders(adaptive) != orders(balanced)
    count = Counter(essay for c in adaptive[:-6] for essay in (c.essay_a, c.essay_b))
    assert set(count.values()) == {opening}


def test_failed_comparisons_of_the_opening_are_made_up_for():
    essay_ids, _, history = examine(ADAPTIVE, 12, sizes=[6] * OPENING, seed=5, failure_rate=0.2)
    failed = sum(c.status is FAILED for c in history)
    assert 0 < failed <= 12
    asked = {"size": failed, "wave": OPENING + 1, **scored(history, essay_ids)}
    assert plan_next_wave(ADAPTIVE, request(essay_ids, history, **asked)) == plan_next_wave(
        BALANCED, request(essay_ids, history, **asked)
    )


def after_judging(covariance, i, j, weight):
    """The covariance after a judgment, by inverting twice."""
    x = np.zeros(len(covariance))
    x[i], x[j] = 1.0, -1.0
    return np.linalg.inv(np.linalg.inv(covariance) + weight * np.outer(x, x))


def expected_rps_gain(means, before, after, grades, blur):
    """Sum over students and grade boundaries of exp(-m²/v) / 2πv times the fall of v, spelt out."""
    n = len(means)
    centres = sorted(
        (np.mean([np.eye(n)[i] for i in range(n) if grades.get(i) == grade], axis=0) for grade in set(grades.values())),
        key=lambda row: row @ means,
    )
    step = (centres[-1] - centres[0]) @ means / (len(centres) - 1)
    gain = 0.0
    for k in set(range(n)) - set(grades):
        for low, high in pairwise(centres):
            contrast = np.eye(n)[k] - (low + high) / 2
            v = contrast @ before @ contrast + (blur * step) ** 2
            gain += (
                math.exp(-((contrast @ means) ** 2) / v) / (2 * math.pi * v) * (contrast @ (before - after) @ contrast)
            )
    return gain


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(4, 8),
    seed=st.integers(0, 2**32),
    labels=st.sampled_from(["", "AA", "AB", "BAC"]),
    fit_given=st.booleans(),
    all_opened=st.booleans(),
)
@example(n=16, seed=1, labels="BACDABCD", fit_given=True, all_opened=True)
def test_each_adaptive_choice_is_the_best_of_all_pairs_that_may_be_chosen(n, seed, labels, fit_given, all_opened):
    judged = 3 * n if all_opened or not labels else 2 * n
    essay_ids, _, history = examine(BALANCED, n, sizes=[judged], seed=seed, sd=1.5)
    known = scored(history, essay_ids)
    fit = known["fit"] if fit_given else known.pop("fit")
    grades = dict(enumerate(labels))
    asked = {"anchor_grades": {essay_ids[i]: grade for i, grade in grades.items()}, **known}
    plan = plan_next_wave(ADAPTIVE, request(essay_ids, history, size=2 * n, wave=2, **asked))
    means, covariance = fit.integrated_moments(widened=TWICE)
    # a shift of all scores makes the covariance regular and changes no difference
    covariance = covariance + 1.0
    centring = np.eye(n) - 1.0 / n
    skew, seen = Counter(), set()
    for c in history:
        skew.update({c.essay_a: 1})
        skew.subtract({c.essay_b: 1})
        seen.add((c.essay_a, c.essay_b))
    for place, pair in enumerate(plan):
        told = {}
        for a, b in [(a, b) for a in essay_ids for b in essay_ids if a != b]:
            if skew[a] > skew[b] or skew[a] * skew[b] > 0 or (a, b) in seen:
                continue
            i, j = essay_ids.index(a), essay_ids.index(b)
            variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
            weight = float(expected_information(means[i] - means[j], variance))
            after = after_judging(covariance, i, j, weight)
            gain = np.trace(centring @ (covariance - after) @ centring)
            if len(set(labels)) > 1 and 2 * (judged + place) >= OPENING * n:
                gain = expected_rps_gain(means, covariance, after, grades, TWO_FIFTHS)
            told[a, b] = (gain, after)
        if not told:
            break  # seen in both orders: what remains is balanced
        chosen = told[pair.essay_a, pair.essay_b]
        assert chosen[0] == pytest.approx(max(gain for gain, _ in told.values()), rel=1e-6)
        covariance = chosen[1]
        skew.update({pair.essay_a: 1})
        skew.subtract({pair.essay_b: 1})
        seen.add((pair.essay_a, pair.essay_b))


@settings(deadline=None, max_examples=15)
@given(n=st.integers(3, 8), seed=st.integers(0, 2**32), played=st.booleans())
def test_each_calibrated_choice_leaves_the_least_summed_variance_of_unplaced_essays(n, seed, played):
    essay_ids, _, history = examine(BALANCED, n, sizes=[2 * n], seed=seed, sd=1.5) if played else (names(n), {}, [])
    known = placed(essay_ids)
    plan = plan_next_wave(CALIBRATED, request(essay_ids, history, size=n, wave=2, seed=seed))
    fit = fitted(history, essay_ids, known=known)
    covariance, others = fit.bank_covariance_at_width(), np.setdiff1d(np.arange(n), known.items)
    skew, seen = Counter(), set()
    for c in history:
        skew.update({c.essay_a: 1})
        skew.subtract({c.essay_b: 1})
        seen.add((c.essay_a, c.essay_b))
    for pair in plan:
        left = {}
        for a, b in [(a, b) for a in essay_ids for b in essay_ids if a != b]:
            if skew[a] > skew[b] or skew[a] * skew[b] > 0 or (a, b) in seen:
                continue
            i, j = essay_ids.index(a), essay_ids.index(b)
            variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
            weight = float(expected_information(fit.scores[i] - fit.scores[j], variance))
            after = after_judging(covariance, i, j, weight)
            left[a, b] = (np.diag(after)[others].sum(), after)
        if not left:
            break  # seen in both orders: what remains is balanced
        chosen = left[pair.essay_a, pair.essay_b]
        assert chosen[0] == pytest.approx(min(value[0] for value in left.values()), rel=1e-6)
        covariance = chosen[1]
        skew.update({pair.essay_a: 1})
        skew.subtract({pair.essay_b: 1})
        seen.add((pair.essay_a, pair.essay_b))


@pytest.mark.parametrize("n", [24, 120])
def test_placed_anchors_are_met_from_the_first_wave_on_and_not_compared_with_each_other(n, monkeypatch):
    monkeypatch.setattr(designs, "ONE_BY_ONE_UP_TO_ESSAYS", 100)
    essay_ids = names(n)
    anchors = {essay_ids[item] for item in placed(essay_ids).items}
    plan = plan_next_wave(CALIBRATED, request(essay_ids, size=2 * n // 3))
    assert all(len(anchors & {pair.essay_a, pair.essay_b}) < 2 for pair in plan)
    met = Counter(essay for pair in plan for essay in (pair.essay_a, pair.essay_b) if essay not in anchors)
    assert set(met) == set(essay_ids) - anchors


def test_without_a_bank_the_calibrated_design_is_refused_with_the_setting_and_the_remedy():
    with pytest.raises(PlanningError, match=r"anchor bank.*kind calibration.*CJ_PAIR_DESIGN"):
        plan_next_wave(CALIBRATED, request(names(12), known=None))


def test_a_first_wave_too_large_for_a_covariance_is_balanced_even_with_a_bank(monkeypatch):
    monkeypatch.setattr(designs, "COVARIANCE_UP_TO_ESSAYS", 100)
    asked = request(names(110), size=100)
    assert plan_next_wave(CALIBRATED, asked) == plan_next_wave(BALANCED, asked)


def test_a_net_whose_pairs_were_all_seen_in_both_orders_is_planned_on_evenly():
    history = examine(ADAPTIVE, 5, sizes=[10, 20, 30], seed=2)[2]
    assert len(history) == 60
    assert max(worst_skews(history)) == 1
    assert min(Counter(frozenset((c.essay_a, c.essay_b)) for c in history).values()) >= 2


@pytest.mark.parametrize(("design", "anchors"), [(ADAPTIVE, 0), (ADAPTIVE, 12), (CALIBRATED, 0)])
def test_a_block_of_a_larger_batch_has_the_best_pair_after_another_that_share_no_essay(design, anchors, monkeypatch):
    monkeypatch.setattr(designs, "LOOKED_AT", 10**6)
    monkeypatch.setattr(designs, "ONE_BY_ONE_UP_TO_ESSAYS", 80)
    n = 85
    essay_ids, _, history = examine(BALANCED, n, sizes=[3 * n], seed=4)
    known = placed(essay_ids)
    fit = fitted(history, essay_ids, known if design is CALIBRATED else None)
    grades = {essay: "ABC"[k % 3] for k, essay in enumerate(essay_ids[:anchors])}
    plan = plan_next_wave(
        design, request(essay_ids, history, size=n, wave=2, anchor_grades=grades, **scored(history, essay_ids))
    )
    if design is CALIBRATED:
        means, covariance = fit.scores, fit.bank_covariance_at_width()
        counted = np.setdiff1d(np.arange(n), known.items)
    else:
        means, covariance = fit.integrated_moments(widened=TWICE)
        counted = np.arange(n)
    skew, seen = Counter(), set()
    for c in history:
        skew.update({c.essay_a: 1})
        skew.subtract({c.essay_b: 1})
        seen.add((c.essay_a, c.essay_b))

    def may_be_chosen(a, b):
        return skew[a] <= skew[b] and skew[a] * skew[b] <= 0 and (a, b) not in seen

    blocks, met = [[]], set()
    for pair in plan:
        if met & {pair.essay_a, pair.essay_b}:
            blocks.append([])
            met = set()
        blocks[-1].append(pair)
        met |= {pair.essay_a, pair.essay_b}
    assert len(blocks[0]) >= n // 4
    for block in blocks:
        contrasts = np.eye(n)[:, None] - np.eye(n)[None]
        falls = {}
        for a, b in [(a, b) for a in range(n) for b in range(n) if may_be_chosen(essay_ids[a], essay_ids[b])]:
            column = covariance @ contrasts[a, b]
            variance = column @ contrasts[a, b]
            weight = float(expected_information(means[a] - means[b], variance))
            falls[essay_ids[a], essay_ids[b]] = weight * (column[counted] ** 2).sum() / (1 + weight * variance)
        free = set(essay_ids)
        for pair in block:
            best = max(fall for (a, b), fall in falls.items() if a in free and b in free)
            assert falls[pair.essay_a, pair.essay_b] == pytest.approx(best, rel=1e-6)
            free -= {pair.essay_a, pair.essay_b}
        # all of a block are judged: the precision grows by what each of them tells
        precision = np.linalg.inv(covariance + (0.0 if design is CALIBRATED else 1.0))
        for pair in block:
            a, b = essay_ids.index(pair.essay_a), essay_ids.index(pair.essay_b)
            variance = contrasts[a, b] @ covariance @ contrasts[a, b]
            weight = float(expected_information(means[a] - means[b], variance))
            precision = precision + weight * np.outer(contrasts[a, b], contrasts[a, b])
            skew.update({pair.essay_a: 1})
            skew.subtract({pair.essay_b: 1})
            seen.add((pair.essay_a, pair.essay_b))
        covariance = np.linalg.inv(precision)


def test_pairs_of_a_hundred_students_with_anchors_go_by_their_grades():
    n = 112
    essay_ids, truth, history = examine(BALANCED, n, sizes=[7 * n // 2], seed=5)
    anchors = sorted(essay_ids[:12], key=lambda essay: truth[essay])
    grades = {essay: "CBA"[k // 4] for k, essay in enumerate(anchors)}
    known = scored(history, essay_ids)
    (chosen,) = plan_next_wave(ADAPTIVE, request(essay_ids, history, size=1, wave=2, anchor_grades=grades, **known))
    means, covariance = known["fit"].integrated_moments(widened=TWICE)
    boundaries, step = grade_boundaries(means, {essay_ids.index(essay): grade for essay, grade in grades.items()})
    for_grades = importance_for_grades(means, covariance, np.arange(12, n), boundaries, TWO_FIFTHS * step)
    skew, seen = Counter(), set()
    for c in history:
        skew.update({c.essay_a: 1})
        skew.subtract({c.essay_b: 1})
        seen.add((c.essay_a, c.essay_b))
    pairs = [(a, b) for a, b in combinations(essay_ids, 2) if skew[a] * skew[b] <= 0 and not seen & {(a, b), (b, a)}]

    def best(importance):
        fall = expected_fall(means[:, None] - means, covariance, importance)
        return set(max(pairs, key=lambda pair: fall[essay_ids.index(pair[0]), essay_ids.index(pair[1])]))

    assert {chosen.essay_a, chosen.essay_b} == best(for_grades) != best(None)


@pytest.mark.parametrize("design", [ADAPTIVE, CALIBRATED])
def test_a_block_does_not_depend_on_the_order_of_essays_or_history_and_by_its_seed_on_chance_where_gains_tie(
    design, monkeypatch
):
    monkeypatch.setattr(designs, "ONE_BY_ONE_UP_TO_ESSAYS", 100)
    n = 120
    essay_ids, _, history = examine(BALANCED, n, sizes=[3 * n if design is ADAPTIVE else 1], seed=4)
    known = {**scored(history, essay_ids), "fit": None, "known": placed(essay_ids)}
    plans = [
        plan_next_wave(design, request(ids, judged, size=n, wave=2, seed=seed, **known))
        for ids, judged, seed in [(essay_ids, history, 1), (essay_ids[::-1], history[::-1], 1), (essay_ids, history, 2)]
    ]
    assert plans[0] == plans[1]
    if design is CALIBRATED:  # next to nothing was judged: students are alike
        assert plans[0] != plans[2]


def test_an_all_anchor_batch_is_paired_for_its_scores():
    essay_ids, _, history = examine(BALANCED, 9, sizes=[27], seed=1)
    known = {"size": 9, "wave": 2, **scored(history, essay_ids)}
    grades = {essay: "ABC"[k % 3] for k, essay in enumerate(essay_ids)}
    assert plan_next_wave(ADAPTIVE, request(essay_ids, history, anchor_grades=grades, **known)) == plan_next_wave(
        ADAPTIVE, request(essay_ids, history, **known)
    )


@pytest.mark.slow
def test_on_a_wide_scale_that_is_not_normal_adaptive_pairing_comes_nearer_to_the_truth_than_balanced():
    """160 essays on twenty levels a logit apart, 16 judgments each, beside balanced pairing of as many."""
    miss, held = {}, {}
    for design in (BALANCED, ADAPTIVE):
        chance, n = random.Random(3), 160
        essay_ids, history = names(n), []
        truth = {essay: float(k % 20) - 9.5 for k, essay in enumerate(essay_ids)}
        for wave in range(1, 17):
            known = scored(history, essay_ids) if history else {}
            plan = plan_next_wave(design, request(essay_ids, history, size=n // 2, wave=wave, **known))
            judge(history, plan, truth, chance, wave=wave)
        fit = fitted(history, essay_ids)
        low, high = fit.score_intervals().T
        true = np.array(list(truth.values()))
        miss[design] = float(np.sqrt(np.mean((fit.posterior.moments()[0] - true) ** 2)))
        held[design] = float(np.mean((low <= true) & (true <= high)))
    assert miss[ADAPTIVE] < 0.8 * miss[BALANCED]
    assert held[ADAPTIVE] > 0.8


@pytest.mark.parametrize("design", [ADAPTIVE, CALIBRATED])
def test_beyond_the_covariance_pairs_are_near_in_score_and_complement_each_other(design, monkeypatch):
    monkeypatch.setattr(designs, "COVARIANCE_UP_TO_ESSAYS", 300)
    n = 360
    essay_ids, _, history = examine(BALANCED, n, sizes=[3 * n], seed=2, sd=3.0)
    known = scored(history, essay_ids)
    asked = request(essay_ids, history, size=n // 2, wave=2, **known)
    plan = plan_next_wave(design, asked)
    assert len(plan) == n // 2
    distances = [abs(known["scores"][p.essay_a] - known["scores"][p.essay_b]) for p in plan]
    assert np.quantile(distances, 0.9) < 1.0
    exposure = Counter(essay for p in plan for essay in (p.essay_a, p.essay_b))
    assert max(exposure.values()) <= 3
    chosen = {essay: known["ses"][essay] for essay in exposure}
    assert np.mean(list(chosen.values())) > np.mean([known["ses"][e] for e in essay_ids if e not in chosen])
    assert max(worst_skews([*history, *plan])) == 1


@pytest.mark.parametrize("n", [400, *(pytest.param(n, marks=pytest.mark.slow) for n in (1_000, 10_000))])
def test_a_wave_of_a_large_batch_is_whole_and_fair_to_both_positions(n):
    chance = random.Random(1)
    essay_ids = names(n)
    history = []
    judge(
        history, plan_next_wave(BALANCED, request(essay_ids, size=3 * n)), dict.fromkeys(essay_ids, 0.0), chance, wave=1
    )
    known = {
        "scores": {essay: chance.gauss(0, 2) for essay in essay_ids},
        "ses": {essay: chance.uniform(0.5, 1) for essay in essay_ids},
    }
    asked = request(essay_ids, history, size=n // 2, wave=2, **known)
    plan = plan_next_wave(ADAPTIVE, asked)
    assert len(plan) == n // 2
    assert max(worst_skews([*history, *plan])) == 1


@pytest.mark.slow
def test_adaptive_pairing_is_more_accurate_than_balanced_where_essays_differ_much():
    """RMSE of centred scores, 24 essays of sd 4, 12 judgments each, 40 paired exams."""
    rmse = {design: [] for design in (BALANCED, ADAPTIVE)}
    for design, errors in rmse.items():
        for seed in range(40):
            essay_ids, truth, history = examine(design, 24, sizes=[72, *[12] * 6], seed=seed, sd=4.0)
            miss = fitted(history, essay_ids).scores - np.array([truth[essay] for essay in essay_ids])
            errors.append(float(np.std(miss)))
    difference = np.array(rmse[ADAPTIVE]) - np.array(rmse[BALANCED])
    assert np.mean(rmse[ADAPTIVE]) < 0.92 * np.mean(rmse[BALANCED])
    assert difference.mean() < -3 * difference.std(ddof=1) / math.sqrt(40)


@pytest.mark.slow
def test_calibrated_pairing_places_students_better_on_the_banks_scale_than_balanced_does():
    """RMSE in the bank frame, both scored with the bank: 24 students of sd 2, 12 anchors, 10 judgments per essay."""
    rmse = {design: [] for design in (BALANCED, CALIBRATED)}
    for design, errors in rmse.items():
        for seed in range(20):
            rng, chance = np.random.default_rng(seed), random.Random(seed)
            essay_ids, fit = names(36), None
            truth = np.concatenate([rng.normal(0, 2, 24), np.linspace(-5, 5, 12)])
            known = known_items(np.arange(24, 36), truth[24:] + rng.normal(0, 0.2, 12), 0.04 * np.eye(12), 36)
            history = []
            for wave in range(1, 11):
                asked = request(essay_ids, history, size=18, wave=wave, seed=seed, known=known, fit=fit)
                pairs = plan_next_wave(design, asked)
                judge(history, pairs, dict(zip(essay_ids, truth, strict=True)), chance, wave=wave)
                fit = fitted(history, essay_ids, known=known)
            miss = fit.bank_scores[:24] - truth[:24]
            errors.append(float(np.sqrt(np.mean(miss**2))))
    difference = np.array(rmse[CALIBRATED]) - np.array(rmse[BALANCED])
    assert np.mean(rmse[CALIBRATED]) < 0.85 * np.mean(rmse[BALANCED])
    assert difference.mean() < -3 * difference.std(ddof=1) / math.sqrt(20)
