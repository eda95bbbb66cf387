"""Planned waves against brute force over all matchings, against networkx, and against the rules they must keep."""

import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import combinations, combinations_with_replacement, pairwise, permutations, product

import networkx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cj_pipeline.core.errors import PlanningError
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, PlannedPair, Winner
from cj_pipeline.core.pairing import (
    PositionCount,
    WaveSize,
    _lexicographic_weights,
    plan_single_wave,
    plan_wave,
    positions,
    repeats,
    wave_size,
)

COVERAGE, RESAMPLING = PairMode.COVERAGE, PairMode.RESAMPLING
PLANNED, JUDGED, FAILED, WITHDRAWN = (
    ComparisonStatus.PLANNED,
    ComparisonStatus.JUDGED,
    ComparisonStatus.FAILED,
    ComparisonStatus.WITHDRAWN,
)
SOME_WAVES = settings(deadline=None, max_examples=60)


def names(n):
    return [f"essay-{i:04d}" for i in range(n)]


def comparison(number, a, b, status=JUDGED, wave=1):
    winner = Winner.A if status is JUDGED else None
    return Comparison(
        comparison_id=f"{number:06d}",
        wave=wave,
        essay_a=a,
        essay_b=b,
        pair_mode=COVERAGE,
        status=status,
        winner=winner,
    )


def history_of(*orders, status=JUDGED):
    return [comparison(number, a, b, status) for number, (a, b) in enumerate(orders)]


def plan(
    essay_ids, history=(), *, mode=COVERAGE, size=10, scores=None, ses=None, seed=7, wave=1, small_net=False, **kw
):
    return plan_wave(
        essay_ids,
        history,
        mode=mode,
        size=size,
        scores=scores or {},
        ses=ses or {},
        seed=seed,
        batch_id=kw.pop("batch_id", "batch"),
        wave=wave,
        small_net=small_net,
        **kw,
    )


def judge(history, pairs, wave, chance=None, failure_rate=0.0):
    for pair in pairs:
        failed = chance is not None and chance.random() < failure_rate
        status = FAILED if failed else JUDGED
        history.append(comparison(len(history), pair.essay_a, pair.essay_b, status, wave))


def orders(pairs):
    return [(pair.essay_a, pair.essay_b) for pair in pairs]


def unordered(pairs):
    return [frozenset((pair.essay_a, pair.essay_b)) for pair in pairs]


def seen_pairs(history):
    return {frozenset((c.essay_a, c.essay_b)) for c in history if c.status in (JUDGED, PLANNED)}


def judged_pairs(history):
    return {frozenset((c.essay_a, c.essay_b)) for c in history if c.status is JUDGED}


def skews(history):
    counts = Counter()
    for c in history:
        if c.status is not WITHDRAWN:
            counts[c.essay_a] += 1
            counts[c.essay_b] -= 1
    return counts


def worst_skew_after_each_comparison(history):
    counts, worst = Counter(), []
    for c in history:
        counts[c.essay_a] += 1
        counts[c.essay_b] -= 1
        worst.append(max(map(abs, counts.values())))
    return worst


# The documented objective, worked out again from the history


class Costs:
    """Eligibility and costs of every pair as the module's docstring defines them."""

    def __init__(self, essay_ids, history, scores, ses):
        self.essay_ids, self.scores, self.ses = sorted(essay_ids), scores, ses
        self.skew = skews(history)
        self.seen = seen_pairs(history)
        self.count = Counter(essay for c in history for essay in (c.essay_a, c.essay_b))
        self.judged = Counter((c.essay_a, c.essay_b) for c in history if c.status is JUDGED)

    def eligible(self, *, seen):
        return [
            (i, j)
            for i, j in combinations(self.essay_ids, 2)
            if (frozenset((i, j)) in self.seen) is seen and self.skew[i] * self.skew[j] != 1
        ]

    def coverage(self, i, j):
        distance = abs(round(self.scores[i] * 10_000) - round(self.scores[j] * 10_000))
        before = abs(self.skew[i]) + abs(self.skew[j])
        first, second = (i, j) if self.skew[i] <= self.skew[j] else (j, i)
        growth = abs(self.skew[first] + 1) + abs(self.skew[second] - 1) - before
        return (self.count[i] + self.count[j], distance, growth)

    def resampling(self, i, j):
        orders_allowed = [(i, j), (j, i)]
        if self.skew[i] != self.skew[j]:
            orders_allowed = [(i, j) if self.skew[i] < self.skew[j] else (j, i)]
        p = 1 / (1 + math.exp(self.scores[j] - self.scores[i]))
        uncertainty = p * (1 - p) * (self.ses[i] ** 2 + self.ses[j] ** 2)
        return (min(self.judged[order] for order in orders_allowed), -round(uncertainty * 1_000_000))


def matchings(edges):
    """Every matching of a graph, by branching on its first edge."""
    if not edges:
        yield []
        return
    (i, j), rest = edges[0], edges[1:]
    yield from matchings(rest)
    for matching in matchings([edge for edge in rest if i not in edge and j not in edge]):
        yield [(i, j), *matching]


def summed(costs):
    return tuple(map(sum, zip(*costs, strict=True)))


def least_cost(edges, cost, limit):
    every = list(matchings(edges))
    most = min(limit, max(map(len, every)))
    return most, min(summed(cost(*pair) for pair in m) for m in every if len(m) == most)


def past(chance, n, waves):
    """A history of fair waves of a larger net, with failures, and scores for the next."""
    essay_ids, history = names(n), []
    # few distinct values, so that the lower levels of the objective decide too
    scores = {essay: chance.choice([-1.0, 0.0, 0.3, chance.gauss(0, 1)]) for essay in essay_ids}
    ses = {essay: chance.choice([0.4, 0.4, 1.1]) for essay in essay_ids}
    for wave in range(1, waves + 1):
        mode = chance.choice([COVERAGE, COVERAGE, RESAMPLING])
        pairs = plan(essay_ids, history, mode=mode, size=chance.randint(1, n), scores=scores, ses=ses, wave=wave)
        judge(history, pairs, wave, chance, failure_rate=0.2)
    return essay_ids, history, scores, ses


@SOME_WAVES
@given(seed=st.integers(0, 2**32), n=st.integers(2, 7), waves=st.integers(0, 3))
def test_a_coverage_matching_costs_as_little_as_the_best_of_all_matchings(seed, n, waves):
    chance = random.Random(seed)
    essay_ids, history, scores, ses = past(chance, n, waves)
    costs = Costs(essay_ids, history, scores, ses)
    edges = costs.eligible(seen=False)
    assume(edges)
    size = chance.randint(1, n // 2)
    most, least = least_cost(edges, costs.coverage, size)
    pairs = plan(essay_ids, history, size=size, scores=scores, ses=ses, seed=seed, wave=9)[:most]
    assert len(set().union(*unordered(pairs))) == 2 * most
    assert summed(costs.coverage(*order) for order in orders(pairs)) == least


@SOME_WAVES
@given(seed=st.integers(0, 2**32), n=st.integers(2, 7), waves=st.integers(1, 3))
def test_a_resampling_matching_costs_as_little_as_the_best_of_all_matchings(seed, n, waves):
    chance = random.Random(seed)
    essay_ids, history, scores, ses = past(chance, n, waves)
    costs = Costs(essay_ids, history, scores, ses)
    edges = costs.eligible(seen=True)
    assume(edges)
    size = chance.randint(1, n // 2)
    most, least = least_cost(edges, costs.resampling, size)
    pairs = plan(essay_ids, history, mode=RESAMPLING, size=size, scores=scores, ses=ses, seed=seed, wave=9)[:most]
    assert len(set().union(*unordered(pairs))) == 2 * most
    assert summed(costs.resampling(*order) for order in orders(pairs)) == least


def test_all_matchings_of_eight_essays_are_no_better_than_the_one_planned():
    chance = random.Random(8)
    essay_ids = names(8)
    scores = {essay: chance.gauss(0, 1) for essay in essay_ids}
    history = history_of(*zip(essay_ids[::2], essay_ids[1::2], strict=True))
    costs = Costs(essay_ids, history, scores, {})
    for size in (1, 2, 3, 4):
        most, least = least_cost(costs.eligible(seen=False), costs.coverage, size)
        pairs = plan(essay_ids, history, size=size, scores=scores)
        assert most == size == len(pairs)
        assert summed(costs.coverage(*order) for order in orders(pairs)) == least


@pytest.mark.parametrize(("n", "seed"), [(20, 1), (31, 2), (40, 3), (60, 4)])
def test_matchings_of_medium_nets_cost_the_same_as_those_of_networkx(n, seed):
    chance = random.Random(seed)
    essay_ids, history, scores, ses = past(chance, n, waves=4)
    costs = Costs(essay_ids, history, scores, ses)
    for mode, cost in ((COVERAGE, costs.coverage), (RESAMPLING, costs.resampling)):
        graph = networkx.Graph()
        for i, j in costs.eligible(seen=mode is RESAMPLING):
            weight = 0
            for level in cost(i, j):
                weight = weight * 2**40 - level
            graph.add_edge(i, j, weight=weight)
        best = networkx.max_weight_matching(graph, maxcardinality=True)
        pairs = plan(essay_ids, history, mode=mode, size=n // 2, scores=scores, ses=ses, wave=9)[: len(best)]
        assert len(set().union(*unordered(pairs))) == 2 * len(best) >= n - 8
        assert summed(cost(*order) for order in orders(pairs)) == summed(cost(*pair) for pair in best)


def test_sums_of_three_weights_rank_exactly_as_sums_of_three_costs():
    costs = list(product(range(-1, 3), range(4), (0, 7)))
    weights = _lexicographic_weights(costs, most=3)
    assert min(weights) >= 0
    weight_of = {}
    for chosen in combinations_with_replacement(range(len(costs)), 3):
        cost = summed(costs[k] for k in chosen)
        weight_of.setdefault(cost, set()).add(sum(weights[k] for k in chosen))
    assert all(len(found) == 1 for found in weight_of.values())
    ranked = [found.pop() for _, found in sorted(weight_of.items())]
    assert all(cheaper > dearer for cheaper, dearer in pairwise(ranked))


# Positions


@SOME_WAVES
@given(data=st.data(), n=st.integers(2, 16), seed=st.integers(0, 2**32))
def test_in_a_larger_net_no_comparison_ever_leaves_an_essay_more_than_one_from_balance(data, n, seed):
    chance = random.Random(seed)
    essay_ids, history = names(n), []
    for wave in range(1, data.draw(st.integers(1, 12), label="waves") + 1):
        mode = data.draw(st.sampled_from(PairMode), label="mode")
        size = data.draw(st.integers(1, 2 * n), label="size")
        scores = {essay: chance.gauss(0, 2) for essay in essay_ids}
        pairs = plan(essay_ids, history, mode=mode, size=size, scores=scores, seed=seed, wave=wave)
        assert 1 <= len(pairs) <= size
        assert mode is RESAMPLING or len(pairs) == size
        judge(history, pairs, wave, chance, failure_rate=0.25)
    assert max(worst_skew_after_each_comparison(history)) == 1


@SOME_WAVES
@given(data=st.data(), n=st.integers(2, 9), seed=st.integers(0, 2**32))
def test_in_a_small_net_an_imbalance_of_two_is_the_most_and_the_next_plan_starts_by_repairing_it(data, n, seed):
    chance = random.Random(seed)
    essay_ids, history = names(n), []
    for wave in range(1, data.draw(st.integers(1, 15), label="waves") + 1):
        mode = data.draw(st.sampled_from(PairMode), label="mode")
        size = data.draw(st.integers(1, 2 * n), label="size")
        scores = {essay: chance.gauss(0, 2) for essay in essay_ids}
        unseen_left = len(seen_pairs(history)) < math.comb(n, 2)
        worst_before = max(map(abs, skews(history).values()), default=0)
        pairs = plan(essay_ids, history, mode=mode, size=size, scores=scores, seed=seed, wave=wave, small_net=True)
        assert pairs or (mode is COVERAGE and not unseen_left and worst_before <= 1)
        start = len(history)
        judge(history, pairs, wave, chance, failure_rate=0.25)
        if pairs and worst_before == 2:
            assert worst_skew_after_each_comparison(history)[start] <= 1
    assert max(worst_skew_after_each_comparison(history), default=0) <= 2


STUCK = [
    *(("e", "a"), ("a", "c"), ("c", "e"), ("e", "b"), ("b", "d"), ("d", "e"), ("a", "d"), ("b", "c")),
]
"""Five essays, all pairs judged but a-b (both once too often A) and c-d (both once too often B)."""


def test_a_small_net_whose_coverage_is_stuck_takes_a_blocked_pair_and_the_next_plan_repairs_it():
    history = history_of(*STUCK)
    assert skews(history) == {"a": 1, "b": 1, "c": -1, "d": -1, "e": 0}
    stuck = plan("abcde", history, small_net=True, wave=2)
    assert [pair.pair_mode for pair in stuck] == [COVERAGE]
    judge(history, stuck, 2)
    (skewed,) = (essay for essay, skew in skews(history).items() if abs(skew) == 2)
    repair = plan("abcde", history, small_net=True, wave=3)
    assert skewed in unordered(repair)[0]
    assert [pair.pair_mode for pair in repair] == [RESAMPLING, COVERAGE]
    judge(history, repair, 3)
    assert len(judged_pairs(history)) == 10
    assert max(map(abs, skews(history).values())) == 1


def test_a_larger_net_frees_a_blocked_pair_by_judging_a_seen_one_again():
    history = history_of(*STUCK)
    pairs = plan("abcde", history, size=4, wave=2)
    assert pairs[0].pair_mode is RESAMPLING
    assert pairs[1].pair_mode is COVERAGE
    judge(history, pairs, 2)
    assert max(worst_skew_after_each_comparison(history)) == 1
    assert len(judged_pairs(history)) == 10


@pytest.mark.parametrize(
    ("essay_ids", "compared", "scores", "order"),
    [
        ("abc", [("a", "b")], {"b": 9.0}, ("c", "a")),  # skews +1 and 0
        ("abc", [("a", "b")], {"a": 9.0}, ("b", "c")),  # skews -1 and 0
        ("abcd", [("a", "b"), ("c", "d")], {"b": 9.0, "c": -9.0}, ("d", "a")),  # skews -1 and +1
    ],
)
def test_the_essay_read_first_too_often_is_read_second(essay_ids, compared, scores, order):
    for seed in range(10):
        assert orders(plan(essay_ids, history_of(*compared), size=1, scores=scores, seed=seed)) == [order]


def test_of_equally_good_pairs_the_one_with_opposite_skews_is_judged():
    # a walk: whoever it passes through is in balance. Unseen are a-b (3 + 5 comparisons) and c-d (4 + 4)
    history = history_of(*pairwise("acbceadbdeb"))
    assert {essay: skew for essay, skew in skews(history).items() if skew} == {"a": 1, "b": -1}
    for seed in range(10):
        assert orders(plan("abcde", history, size=1, seed=seed)) == [("b", "a")]


def test_in_balance_a_pair_is_read_in_the_order_not_yet_seen():
    # every essay in balance, every pair seen in one order
    history = history_of(("a", "b"), ("b", "c"), ("c", "a"))
    assert not any(skews(history).values())
    firsts = {orders(plan("abc", history, mode=RESAMPLING, size=1, seed=seed))[0] for seed in range(40)}
    assert firsts == {("b", "a"), ("c", "b"), ("a", "c")}


def test_without_history_either_order_occurs():
    assert {orders(plan("ab", seed=seed, size=1))[0] for seed in range(40)} == {("a", "b"), ("b", "a")}


def test_without_balancing_the_order_is_drawn_and_every_pair_is_eligible():
    history = history_of(("a", "c"), ("b", "c"))
    drawn = [plan("abc", history, size=1, seed=seed, balance_positions=False) for seed in range(60)]
    times = Counter(order for pairs in drawn for order in orders(pairs))
    assert set(times) == {("a", "b"), ("b", "a")}
    assert min(times.values()) >= 15


def test_without_balancing_a_pair_judged_many_times_is_still_read_in_both_orders():
    pairs = plan("ab", size=30, balance_positions=False)
    assert len(pairs) == 30
    times = Counter(orders(pairs))
    assert min(times["a", "b"], times["b", "a"]) >= 5


def test_anchors_and_students_are_read_first_and_second_equally_often():
    anchors, students = [f"anchor-{i}" for i in range(12)], [f"student-{i}" for i in range(12)]
    history = []
    for wave in range(1, 7):
        judge(history, plan(anchors + students, history, size=12, wave=wave), wave)
    counts = positions(history, anchors + students)
    assert all(count.as_a == count.as_b == 3 for count in counts.values())
    mixed = [c for c in history if (c.essay_a in anchors) != (c.essay_b in anchors)]
    assert {c.essay_a in anchors for c in mixed} == {True, False}


# Coverage


@pytest.mark.parametrize("small_net", [True, False])
@pytest.mark.parametrize("n", range(2, 13))
def test_coverage_completes_in_as_many_waves_as_its_pairs_fill(n, small_net):
    essay_ids, history = names(n), []
    size = wave_size(n, least=10, budget_left=1000).size
    # a larger net may spend a few pairs on setting blocked ones free
    most_waves = math.ceil(math.comb(n, 2) / size) + (0 if small_net else 1)
    chance = random.Random(n)
    for wave in range(1, most_waves + 1):
        scores = {essay: chance.gauss(0, 1) for essay in essay_ids}
        judge(history, plan(essay_ids, history, size=size, scores=scores, wave=wave, small_net=small_net), wave)
    assert len(judged_pairs(history)) == math.comb(n, 2)
    assert max(worst_skew_after_each_comparison(history)) == 1
    assert not small_net or len(history) == math.comb(n, 2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n", [5, 7, 9])
def test_a_small_net_is_covered_by_one_comparison_a_pair_whatever_its_scores(n, seed):
    essay_ids, history, chance = names(n), [], random.Random(seed)
    scores = {essay: chance.gauss(0, 1) for essay in essay_ids}
    for wave in range(1, math.ceil(math.comb(n, 2) / 10) + 1):
        judge(history, plan(essay_ids, history, scores=scores, seed=seed, wave=wave, small_net=True), wave)
    assert len(history) == len(judged_pairs(history)) == math.comb(n, 2)


@pytest.mark.parametrize("seed", range(30))
def test_five_essays_are_covered_by_one_wave_of_ten_comparisons(seed):
    essay_ids = ["L1", "L2", "L3", "L4", "L5"]
    pairs = plan(essay_ids, seed=seed, small_net=True)
    assert sorted(map(sorted, unordered(pairs))) == sorted(map(list, combinations(essay_ids, 2)))
    assert all(count == PositionCount(2, 2) for count in positions(history_of(*orders(pairs))).values())


@SOME_WAVES
@given(n=st.integers(2, 9), seed=st.integers(0, 2**32), size=st.integers(1, 12))
def test_coverage_of_a_small_net_completes_despite_failures(n, seed, size):
    chance = random.Random(seed)
    essay_ids, history, wave = names(n), [], 0
    while len(judged_pairs(history)) < math.comb(n, 2):
        wave += 1
        # every fourth comparison fails; the worst wave judges nothing new, as when it is one repair
        assert wave <= 8 * math.comb(n, 2) + 40
        pairs = plan(essay_ids, history, size=size, seed=seed, wave=wave, small_net=True)
        judge(history, pairs, wave, chance, failure_rate=0.25)


@SOME_WAVES
@given(n=st.integers(2, 14), seed=st.integers(0, 2**32), size=st.integers(1, 60), small_net=st.booleans())
def test_a_first_wave_has_no_essay_against_itself_and_no_pair_twice(n, seed, size, small_net):
    pairs = plan(names(n), size=size, seed=seed, small_net=small_net)
    assert all(pair.essay_a != pair.essay_b for pair in pairs)
    covering = [pair for pair in pairs if pair.pair_mode is COVERAGE]
    if small_net and n <= 9:
        assert len(pairs) == min(size, math.comb(n, 2))
    if not small_net:
        assert len(pairs) == size
    assert len(set(unordered(covering))) == len(covering)
    again = [pair for pair in pairs if pair.pair_mode is RESAMPLING]
    assert not (small_net and again)
    passes = math.ceil(len(again) / math.comb(n, 2)) + 1
    assert max(Counter(unordered(again)).values(), default=0) <= passes


def test_a_pair_that_only_failed_is_planned_again_as_unseen():
    judged = [pair for pair in combinations("abcd", 2) if pair != ("a", "d")]
    for status, expected in ((FAILED, [{"a", "d"}]), (JUDGED, []), (PLANNED, [])):
        history = [*history_of(*judged), comparison(99, "a", "d", status)]
        planned = plan("abcd", history, small_net=True, balance_positions=False, wave=2)
        assert unordered(planned) == expected
        assert all(pair.pair_mode is COVERAGE for pair in planned)


def test_a_failed_comparison_counts_for_positions():
    history = history_of(("a", "b"), status=FAILED)
    assert {orders(plan("ab", history, size=1, seed=seed))[0] for seed in range(20)} == {("b", "a")}


def test_withdrawn_comparisons_change_nothing():
    essay_ids = names(9)
    history = history_of(*zip(essay_ids[:4], essay_ids[4:8], strict=True))
    withdrawn = [comparison(50 + k, a, b, WITHDRAWN) for k, (a, b) in enumerate(permutations(essay_ids[:5], 2))]
    for mode in PairMode:
        expected = plan(essay_ids, history, mode=mode, wave=2)
        assert expected == plan(essay_ids, [*withdrawn, *history], mode=mode, wave=2)


def test_essays_with_fewest_comparisons_come_first_whatever_their_scores():
    history = history_of(("a", "b"), ("b", "c"), ("c", "a"))
    scores = {"a": 0.0, "b": 0.1, "c": 0.2, "d": -9.0, "e": 9.0}
    assert unordered(plan("abcde", history, size=1, scores=scores)) == [{"d", "e"}]


def test_a_later_matching_of_a_wave_does_not_repeat_the_pairs_of_an_earlier_one():
    pairs = plan(names(10), size=15)
    assert len(set(unordered(pairs))) == 15
    assert [len(set().union(*unordered(pairs[start : start + 5]))) for start in (0, 5, 10)] == [10, 10, 10]


def test_a_small_net_ends_its_coverage_wave_where_a_larger_net_fills_it_up():
    essay_ids = names(6)
    small = plan(essay_ids, size=40, small_net=True)
    larger = plan(essay_ids, size=40, small_net=False)
    assert Counter(pair.pair_mode for pair in small) == {COVERAGE: 15}
    assert Counter(pair.pair_mode for pair in larger) == {COVERAGE: 15, RESAMPLING: 25}
    assert max(worst_skew_after_each_comparison(history_of(*orders(larger)))) == 1
    assert plan(essay_ids, history_of(*orders(small)), size=5, small_net=True, wave=2) == []


# Resampling


def test_a_resampling_wave_prefers_the_order_not_yet_seen_to_the_more_uncertain_pair():
    # a-b was judged in both orders, c-d in one; a-b is by far the more uncertain
    history = history_of(("a", "b"), ("b", "a"), ("c", "d"))
    ses = {"a": 2.0, "b": 2.0, "c": 0.1, "d": 0.1}
    pairs = plan("abcd", history, mode=RESAMPLING, size=1, ses=ses, wave=2)
    assert pairs == [PlannedPair(essay_a="d", essay_b="c", pair_mode=RESAMPLING)]


@pytest.mark.parametrize(
    ("scores", "ses"),
    [
        ({"a": 0.0, "b": 3.0, "c": 0.2}, {}),  # the closest
        ({}, {"a": 1.0, "b": 0.5, "c": 1.0}),  # the least known
        ({"b": 2000.0}, {"b": math.inf, "a": 1.0, "c": 1.0}),  # a foregone result, however little is known of b
        ({"a": 0.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 0.1, "c": 2.0}),  # p(1-p) 0.197 x 5 against 0.25 x 1.01
    ],
)
def test_a_resampling_wave_prefers_the_pair_with_most_uncertainty(scores, ses):
    history = history_of(("a", "b"), ("b", "c"), ("c", "a"))
    for seed in range(10):
        pairs = plan("abc", history, mode=RESAMPLING, size=1, scores=scores, ses=ses, seed=seed, wave=2)
        assert unordered(pairs) == [{"a", "c"}]


def test_an_essay_of_unknown_standing_is_judged_again_before_the_others():
    history = history_of(("a", "b"), ("b", "c"), ("c", "a"))
    for seed in range(10):
        (pair,) = plan("abc", history, mode=RESAMPLING, size=1, ses={"a": 1.0, "b": math.inf, "c": 1.0}, seed=seed)
        assert "b" in (pair.essay_a, pair.essay_b)


def test_an_essay_without_standard_error_is_taken_for_as_uncertain_as_the_most_uncertain():
    history = history_of(("a", "b"), ("b", "c"), ("c", "a"))
    pairs = plan("abc", history, mode=RESAMPLING, size=1, ses={"a": 0.2, "b": 0.9}, wave=2)
    assert unordered(pairs) == [{"b", "c"}]


def test_a_resampling_wave_judges_each_pair_once_in_the_other_order():
    first = plan(names(7), size=21, small_net=True)
    history = history_of(*orders(first))
    assert not any(skews(history).values())
    again = plan(names(7), history, mode=RESAMPLING, size=50, wave=2)
    assert all(pair.pair_mode is RESAMPLING for pair in again)
    assert len(set(unordered(again))) == len(again) >= 18
    reversed_orders = {(b, a) for a, b in orders(first)}
    assert len(reversed_orders & set(orders(again))) >= 0.6 * len(again)


def test_a_resampling_wave_without_a_seen_pair_sees_new_ones():
    pairs = plan(names(4), mode=RESAMPLING, size=2)
    assert len(set().union(*unordered(pairs))) == 4
    assert all(pair.pair_mode is COVERAGE for pair in pairs)


# Determinism


def plan_of_a_past(essay_ids, **kw):
    history = history_of(("e1", "e2"), ("e3", "e4"), ("e5", "e6"), ("e2", "e3"))
    scores = {f"e{i}": i / 7 for i in range(1, 7)}
    return [orders(plan(essay_ids, history, mode=mode, size=9, scores=scores, **kw)) for mode in PairMode]


def test_the_order_of_the_essays_does_not_matter():
    essay_ids = [f"e{i}" for i in range(12)]
    shuffled = random.Random(3).sample(essay_ids, 12)
    assert shuffled != essay_ids
    assert plan_of_a_past(essay_ids) == plan_of_a_past(shuffled)


def test_seed_batch_and_wave_each_change_the_plan():
    essay_ids = [f"e{i}" for i in range(12)]
    plans = [plan_of_a_past(essay_ids, **kw)[0] for kw in ({}, {"seed": 8}, {"batch_id": "other"}, {"wave": 2})]
    assert len(set(map(tuple, plans))) == 4


def test_a_process_with_another_hash_seed_makes_the_same_plans():
    program = (
        "import json; from cj_pipeline_tests.core.test_pairing import plan_of_a_past, plan, orders, names; "
        "print(json.dumps([*plan_of_a_past([f'e{i}' for i in range(12)]), orders(plan(names(150), size=75))]))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [*plan_of_a_past([f"e{i}" for i in range(12)]), orders(plan(names(150), size=75))]
    assert [json.loads(text) for text in printed] == [json.loads(json.dumps(here))]


# Scale


def test_a_thousand_essays_with_thousands_of_comparisons_get_a_full_wave_of_close_pairs():
    chance = random.Random(1000)
    essay_ids, history = names(1000), []
    scores = {essay: chance.gauss(0, 1.5) for essay in essay_ids}
    # eight rounds on a circle: a fair history of 4000 comparisons
    for step in range(1, 5):
        for i in range(1000):
            history.append(comparison(len(history), essay_ids[i], essay_ids[(i + step) % 1000]))
    extra = plan(essay_ids, history, size=200, scores=scores, wave=9)
    judge(history, extra, 9, chance, failure_rate=0.1)
    pairs = plan(essay_ids, history, size=500, scores=scores, wave=10)
    assert len(set(unordered(pairs))) == len(pairs) == 500
    assert not set(unordered(pairs)) & judged_pairs(history)
    assert all(pair.pair_mode is COVERAGE for pair in pairs)
    assert len(set().union(*unordered(pairs))) >= 990
    distances = [abs(scores[pair.essay_a] - scores[pair.essay_b]) for pair in pairs]
    assert sum(distances) / 500 < 0.2  # 1.69 for pairs drawn at random
    judge(history, pairs, 10)
    assert max(map(abs, skews(history).values())) <= 1


def test_a_net_just_too_large_for_all_pairs_is_matched_almost_as_closely(monkeypatch):
    essay_ids, history, scores, ses = past(random.Random(5), 130, waves=2)
    costs = Costs(essay_ids, history, scores, ses)
    likely = plan(essay_ids, history, size=65, scores=scores, wave=9)
    monkeypatch.setattr("cj_pipeline.core.pairing.EXACT_UP_TO_ESSAYS", 130)
    exact = plan(essay_ids, history, size=65, scores=scores, wave=9)
    assert len(likely) == len(exact) == 65
    spread, least = (summed(costs.coverage(*order) for order in orders(pairs)) for pairs in (likely, exact))
    assert least <= spread
    assert spread[0] == least[0]


# Counts, sizes, errors


def test_positions_count_everything_but_withdrawn_comparisons():
    history = [
        comparison(0, "a", "b"),
        comparison(1, "a", "c", FAILED),
        comparison(2, "b", "a", PLANNED),
        comparison(3, "c", "b", WITHDRAWN),
    ]
    counts = positions(history, ["d", "c"])
    assert counts == {
        "d": PositionCount(0, 0),
        "c": PositionCount(0, 1),
        "a": PositionCount(2, 1),
        "b": PositionCount(1, 1),
    }
    assert {essay: count.skew for essay, count in counts.items()} == {"d": 0, "c": -1, "a": 1, "b": 0}


def test_repeats_count_an_ordered_pair_without_its_withdrawn_comparisons():
    history = [
        comparison(0, "a", "b"),
        comparison(1, "a", "b", FAILED),
        comparison(2, "a", "b", WITHDRAWN),
        comparison(3, "b", "a"),
    ]
    assert (repeats(history, "a", "b"), repeats(history, "b", "a"), repeats(history, "a", "c")) == (2, 1, 0)


@pytest.mark.parametrize(
    ("n", "least", "budget_left", "expected"),
    [
        (24, 10, 100, WaveSize(12, False)),
        (5, 10, 100, WaveSize(10, False)),
        (36, 10, 18, WaveSize(18, False)),
        (36, 10, 17, WaveSize(17, True)),
        (5, 1000, 150, WaveSize(150, True)),
    ],
)
def test_a_wave_is_half_the_essays_or_the_least_within_what_the_budget_leaves(n, least, budget_left, expected):
    assert wave_size(n, least=least, budget_left=budget_left) == expected


@pytest.mark.parametrize("budget_left", [0, -3])
def test_a_spent_budget_has_no_next_wave(budget_left):
    with pytest.raises(PlanningError, match=f"the budget leaves {budget_left} comparisons"):
        wave_size(10, least=10, budget_left=budget_left)


@pytest.mark.parametrize(
    ("essay_ids", "kw", "message"),
    [
        (["a"], {}, "at least two essays, this batch has 1"),
        ([], {}, "at least two essays, this batch has 0"),
        (["a", "b", "a"], {}, "listed more than once: a"),
        (["a", "b"], {"size": 0}, "a wave of 0 comparisons"),
        (["a", "b"], {"history": history_of(("a", "z"))}, "not in the batch: z"),
        (["a", "b"], {"scores": {"b": math.nan}}, "score or standard error for: b"),
        (["a", "b"], {"scores": {"a": math.inf}}, "score or standard error for: a"),
        (["a", "b"], {"ses": {"a": math.nan}}, "score or standard error for: a"),
        (["a", "b"], {"ses": {"b": -0.1}}, "score or standard error for: b"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_reason(essay_ids, kw, message):
    with pytest.raises(PlanningError, match=message):
        plan(essay_ids, **kw)


# --- everything as one wave ------------------------------------------------------------------------------------------


def single_wave(n, budget, *, passes=None, history=(), least=10):
    return plan_single_wave(
        names(n), list(history), budget_left=budget, least=least, passes=passes, seed=1, batch_id="b", wave=1
    )


@SOME_WAVES
@given(n=st.integers(10, 30), budget=st.integers(1, 500))
def test_one_wave_of_a_larger_net_uses_the_whole_budget_and_repeats_a_pair_only_where_fairness_bars_all_unseen(
    n, budget
):
    pairs = single_wave(n, budget)
    assert len(pairs) == budget
    unseen = {frozenset(pair) for pair in combinations(names(n), 2)}
    skew = Counter()
    for pair in pairs:
        both = frozenset((pair.essay_a, pair.essay_b))
        assert (pair.pair_mode is COVERAGE) == (both in unseen)
        if both not in unseen:
            # whichever of the two were read first, one of them would be read first too often or too seldom
            assert all(skew[one] == skew[other] != 0 for one, other in unseen)
        unseen.discard(both)
        skew[pair.essay_a] += 1
        skew[pair.essay_b] -= 1


@SOME_WAVES
@given(n=st.integers(10, 30), budget=st.integers(1, 400))
def test_one_wave_is_fair_to_every_essay_after_every_comparison(n, budget):
    skew = Counter()
    for pair in single_wave(n, budget):
        skew[pair.essay_a] += 1
        skew[pair.essay_b] -= 1
        assert max(map(abs, skew.values())) <= 1


@pytest.mark.parametrize(("n", "passes"), [(5, 2), (6, 2), (5, 0), (9, 1)])
def test_one_wave_of_a_small_net_is_its_pairs_and_its_passes_and_no_more(n, passes):
    modes = Counter(pair.pair_mode for pair in single_wave(n, 1000, passes=passes))
    # fairness may leave a pass one or two pairs short
    assert modes[COVERAGE] == n * (n - 1) // 2
    assert passes * 8 <= modes[RESAMPLING] <= passes * 10


def test_one_wave_of_a_small_net_stops_at_the_budget():
    assert len(single_wave(6, 7, passes=2)) == 7


def test_one_wave_goes_on_from_what_was_judged_before():
    before = history_of(*[(pair.essay_a, pair.essay_b) for pair in single_wave(10, 20)])
    pairs = single_wave(10, 25, history=before)
    old = {frozenset((c.essay_a, c.essay_b)) for c in before}
    assert len(pairs) == 25
    assert not any(frozenset((p.essay_a, p.essay_b)) in old for p in pairs)
