"""Which pairs are judged next, and in which order the judge reads them.

Here: the design of one wave (coverage or resampling), the orientation of its pairs, A/B counts per essay, and the
size of a wave. Pure functions: equal arguments give equal plans on every platform, whatever the order of the essays.
Not here: when to plan another wave and in which mode (`completion`), scores and standard errors (`bradley_terry`),
and the record of what was planned (the ledger).

How a wave is made. Matchings are planned one after another until the wave is full; an essay is in at most one pair of
a matching. A matching has as many pairs as the eligible pairs and the room in the wave allow, and among those
matchings the one whose summed costs are lexicographically least (a maximum-weight matching, Edmonds 1965, over exact
integer weights; beyond `EXACT_UP_TO_ESSAYS` essays over each essay's likely partners, and cut to the room left):

    coverage (pairs without judgment):  1. comparisons of the two essays so far; 2. distance of their scores, in steps
        of 1e-4 logits; 3. growth of the two |A - B| counts, so opposite skews first; 4. a hash.
    resampling (pairs with a judgment): 1. judgments of the pair in the order it would be read, so the order not yet
        seen first; 2. uncertainty, greatest first: p(1-p)(SE_i^2 + SE_j^2) with p = logistic(score_i - score_j), in
        steps of 1e-6; 3. a hash.

Skews, counts and judgments are brought up to date between matchings. The hash is of (seed, batch, wave, pair); it makes
the best matching unique (up to collisions, cf. the isolation lemma, Mulmuley, Vazirani & Vazirani 1987), so that it
does not depend on the solver.

Positions. skew = A - B over history and the plan so far. Of two essays the one with the higher skew is read as B; a
pair whose essays have skews of the same sign, neither zero, is not eligible. So |skew| <= 1 holds after every
comparison. Skews sum to zero, so some pair is always eligible; it need not be an unseen one. A larger net then
re-judges a pair that sets an unseen one free. A small net must not pay for that, so it looks ahead: if coverage cannot
be carried to its end from the plan made, plans with other hashes are tried. Where none is found, the wave ends when no
unseen pair is eligible; if nothing is planned in it yet, it takes an unseen pair all the same. |skew| may then reach 2,
and the next plan starts with such essays, re-judging a pair if no unseen one will do.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

import rustworkx

from cj_pipeline.core.errors import PlanningError
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, PlannedPair

EXACT_UP_TO_ESSAYS: Final = 128
"""Up to here every eligible pair is weighed (a matching takes 0.1 s); beyond, each essay's likely partners are."""

PARTNERS_PER_ORDER: Final = (8, 16, 32)
"""Beyond `EXACT_UP_TO_ESSAYS`: partners per essay in each of three orders; the next number if the matching is short."""

LOOK_AHEAD_ATTEMPTS: Final = 32
"""How many plans of a small net's coverage wave are tried for one after which coverage cannot get stuck."""

LOOK_AHEAD_PAIRS: Final = 120
"""Nets with more pairs than this (16 essays) are planned without looking ahead."""

SCORE_STEPS_PER_LOGIT: Final = 10_000
UNCERTAINTY_STEPS: Final = 1_000_000
# Caps keep summed weights below 2^115 for 10 000 essays: rustworkx computes in 128-bit integers.
MAX_DISTANCE: Final = 2**17 - 1
MAX_UNCERTAINTY: Final = 2**24 - 1
MAX_COUNT: Final = 1023
TIE_BITS: Final = 32

SEEN: Final = (ComparisonStatus.JUDGED, ComparisonStatus.PLANNED)
"""Statuses that make a pair seen. One whose comparisons only failed is planned as if for the first time."""

_Pair = tuple[int, int]


@dataclass(frozen=True)
class PositionCount:
    """How often an essay was read as A and as B, in comparisons."""

    as_a: int = 0
    as_b: int = 0

    @property
    def skew(self) -> int:
        """A - B: positive for an essay read first too often."""
        return self.as_a - self.as_b


@dataclass(frozen=True)
class WaveSize:
    """How many comparisons the next wave may have, and whether the budget made it smaller than it should be."""

    size: int
    cut_by_budget: bool


def positions(history: Iterable[Comparison], essay_ids: Iterable[str] = ()) -> dict[str, PositionCount]:
    """A/B counts per essay over all comparisons that were not withdrawn.

    Args:
        history: comparisons, in any order.
        essay_ids: essays to list even if they were never compared; they come first, in this order.
    """
    counted = [comparison for comparison in history if comparison.status is not ComparisonStatus.WITHDRAWN]
    as_a = Counter(comparison.essay_a for comparison in counted)
    as_b = Counter(comparison.essay_b for comparison in counted)
    return {essay: PositionCount(as_a[essay], as_b[essay]) for essay in dict.fromkeys([*essay_ids, *as_a, *as_b])}


def repeats(history: Iterable[Comparison], essay_a: str, essay_b: str) -> int:
    """How many comparisons that were not withdrawn have this ordered pair."""
    return sum(
        (comparison.essay_a, comparison.essay_b) == (essay_a, essay_b)
        and comparison.status is not ComparisonStatus.WITHDRAWN
        for comparison in history
    )


def wave_size(n_essays: int, *, least: int, budget_left: int) -> WaveSize:
    """Size of the next wave: max(least, n_essays // 2) comparisons, cut to what the budget leaves.

    Args:
        n_essays: nodes of the batch, anchors included.
        least: smallest wave after which stability is looked at, in comparisons.
        budget_left: total_budget - submitted, in comparisons.

    Raises:
        PlanningError: the budget is spent.
    """
    if budget_left < 1:
        raise PlanningError(
            f"no wave can be planned: the budget leaves {budget_left} comparisons. "
            "Finalise the batch, or submit it again with a larger budget"
        )
    wanted = max(least, n_essays // 2)
    return WaveSize(size=min(wanted, budget_left), cut_by_budget=budget_left < wanted)


def plan_wave(
    essay_ids: Sequence[str],
    history: Sequence[Comparison],
    *,
    mode: PairMode,
    size: int,
    scores: Mapping[str, float],
    ses: Mapping[str, float],
    seed: int,
    batch_id: str,
    wave: int,
    small_net: bool,
    balance_positions: bool = True,
) -> list[PlannedPair]:
    """Plan the pairs of one wave, in the order in which they should be judged.

    The module's docstring says how. In a resampling wave an unordered pair occurs at most once, so the wave may be
    shorter than `size`. A coverage wave that has no unseen pair left is shorter in a small net; in a larger net
    resampling pairs fill it up, in passes of which each judges a pair at most once. Never empty, except in coverage
    mode for a small net with every pair seen.

    Args:
        essay_ids: the nodes of the batch, in any order.
        history: every comparison of the batch. Withdrawn ones count for nothing; all others count for positions and
            counts; only `SEEN` ones make a pair seen.
        mode: what the wave is for. Each pair says for itself whether it is seen for the first time (`COVERAGE`).
        size: most pairs in the wave, >= 1.
        scores: logits, of the wave before. An essay without one has 0.
        ses: their standard errors, logits, possibly infinite. An essay without one has the largest of the others'.
        seed, batch_id, wave: decide ties, and nothing else.
        small_net: whether the batch stops after its resampling passes.
        balance_positions: False: the order of each pair is a hash's, and every pair is eligible.

    Raises:
        PlanningError: fewer than two essays, an essay twice, size < 1, a score or standard error that is not a
            number, or a history of other essays.
    """
    check_wave_request(essay_ids, history, size, scores, ses)
    attempts = LOOK_AHEAD_ATTEMPTS if mode is PairMode.COVERAGE and small_net and balance_positions else 1
    plans = (
        _Plan(
            essay_ids=sorted(essay_ids),
            history=history,
            scores=scores,
            ses=ses,
            salt=(str(seed), batch_id, str(wave)),
            attempt=attempt,
            small_net=small_net,
            balanced=balance_positions,
        )
        for attempt in range(attempts)
    )
    first = next(plans)
    pairs = first.fill(mode, size)
    if attempts == 1 or first.can_cover_the_rest():
        return pairs
    others = ((plan.fill(mode, size), plan) for plan in plans)
    return next((other for other, plan in others if plan.can_cover_the_rest()), pairs)


def plan_single_wave(
    essay_ids: Sequence[str],
    history: Sequence[Comparison],
    *,
    budget_left: int,
    least: int,
    passes: int | None,
    seed: int,
    batch_id: str,
    wave: int,
    balance_positions: bool = True,
) -> list[PlannedPair]:
    """Plan everything a batch may submit as one wave, for judges that take a whole job at once.

    Coverage first, then resampling passes until the budget is reached; a small net gets at most `passes` of them,
    each of the size an ordinary wave has. Later pairs of the wave know of the earlier ones, but no score.

    Args:
        essay_ids: the nodes of the batch.
        history: every comparison of the batch so far.
        budget_left: comparisons the budget leaves, >= 1.
        least: smallest ordinary wave, in comparisons.
        passes: resampling passes a small net may have; None for a larger net, which fills its budget.
        seed, batch_id, wave: decide ties.
        balance_positions: see `plan_wave`.

    Raises:
        PlanningError: see `plan_wave`.
    """
    planned: list[PlannedPair] = []
    known = list(history)

    def add(mode: PairMode, size: int) -> int:
        pairs = plan_wave(
            essay_ids,
            known,
            mode=mode,
            size=size,
            scores={},
            ses={},
            seed=seed,
            batch_id=batch_id,
            wave=wave,
            small_net=passes is not None,
            balance_positions=balance_positions,
        )
        known.extend(
            Comparison(
                comparison_id=f"w{wave:05d}-p{len(known) + index:06d}",
                wave=wave,
                essay_a=pair.essay_a,
                essay_b=pair.essay_b,
                pair_mode=pair.pair_mode,
                status=ComparisonStatus.PLANNED,
            )
            for index, pair in enumerate(pairs)
        )
        planned.extend(pairs)
        return len(pairs)

    while (left := budget_left - len(planned)) > 0 and add(PairMode.COVERAGE, left):
        pass
    if passes is not None:
        for _ in range(passes):
            left = budget_left - len(planned)
            if left > 0:
                add(PairMode.RESAMPLING, min(left, max(least, len(essay_ids) // 2)))
    return planned


def check_wave_request(
    essay_ids: Sequence[str],
    history: Sequence[Comparison],
    size: int,
    scores: Mapping[str, float],
    ses: Mapping[str, float],
) -> None:
    """Check what every design is given to plan a wave from.

    Raises:
        PlanningError: see `plan_wave`.
    """
    known = set(essay_ids)
    if len(known) < 2:
        raise PlanningError(f"a wave needs at least two essays, this batch has {len(known)}. Submit more essays")
    if len(known) < len(essay_ids):
        twice = sorted(essay for essay, times in Counter(essay_ids).items() if times > 1)
        raise PlanningError(f"essays listed more than once: {', '.join(twice)}. List every node of the batch once")
    if size < 1:
        raise PlanningError(f"a wave of {size} comparisons cannot be planned; the least is 1")
    strangers = sorted({essay for c in history for essay in (c.essay_a, c.essay_b)} - known)
    if strangers:
        raise PlanningError(
            f"the history compares essays that are not in the batch: {', '.join(strangers[:5])}. "
            "Plan with all nodes of the batch, anchors included"
        )
    unusable = sorted(
        {essay for essay in known & scores.keys() if not math.isfinite(scores[essay])}
        | {essay for essay in known & ses.keys() if not ses[essay] >= 0}
    )
    if unusable:
        raise PlanningError(
            f"no usable score or standard error for: {', '.join(unusable[:5])}. "
            "Scores must be finite and standard errors at least 0"
        )


class _Edge(NamedTuple):
    """A pair that may be planned: essays by index, in reading order, and its costs, dearest level first."""

    essay_a: int
    essay_b: int
    costs: tuple[int, ...]


class _Plan:
    """One wave in the making. Essays are indices into the sorted ids; unordered pairs are (lower, higher) index."""

    def __init__(
        self,
        *,
        essay_ids: list[str],
        history: Iterable[Comparison],
        scores: Mapping[str, float],
        ses: Mapping[str, float],
        salt: tuple[str, ...],
        attempt: int,
        small_net: bool,
        balanced: bool,
    ) -> None:
        n = len(essay_ids)
        unknown_se = max((ses[essay] for essay in essay_ids if essay in ses), default=1.0)
        self._chosen: list[PlannedPair] = []
        self._ids = essay_ids
        self._scores = [scores.get(essay, 0.0) for essay in essay_ids]
        self._score_steps = [round(score * SCORE_STEPS_PER_LOGIT) for score in self._scores]
        self._variances = [ses.get(essay, unknown_se) ** 2 for essay in essay_ids]
        self._salt = (*salt, str(attempt))
        self._size = 0
        self._small_net = small_net
        self._balanced = balanced
        self._skew = [0] * n
        self._count = [0] * n
        self._least_count = 0
        self._planned: Counter[_Pair] = Counter()  # unordered
        self._judged: Counter[_Pair] = Counter()  # ordered, of SEEN comparisons
        self._seen: set[_Pair] = set()
        self._rejudged: set[_Pair] = set()  # in this pass
        self._to_repair: set[int] = set()
        self._ties: dict[_Pair, int] = {}
        self._recall(history)

    def fill(self, mode: PairMode, size: int) -> list[PlannedPair]:
        """Plan matchings until there are `size` pairs or no more to plan; all pairs so far."""
        self._size = size
        next_matching = self._cover if mode is PairMode.COVERAGE else self._resample
        while self._room and next_matching():
            pass
        return list(self._chosen)

    def can_cover_the_rest(self) -> bool:
        """Whether planning on leads to full coverage of a small net without getting stuck.

        Assumed of nets with more than `LOOK_AHEAD_PAIRS` pairs, where looking is slow. The plan is spent afterwards.
        """
        if math.comb(len(self._ids), 2) > LOOK_AHEAD_PAIRS:
            return True
        self.fill(PairMode.COVERAGE, len(self._chosen) + 2 * LOOK_AHEAD_PAIRS)
        return next(self._unseen(), None) is None and max(map(abs, self._skew)) <= 1

    @property
    def _room(self) -> int:
        return self._size - len(self._chosen)

    def _recall(self, history: Iterable[Comparison]) -> None:
        index = {essay: i for i, essay in enumerate(self._ids)}
        for comparison in history:
            if comparison.status is not ComparisonStatus.WITHDRAWN:
                self._note(index[comparison.essay_a], index[comparison.essay_b], seen=comparison.status in SEEN)
        if self._balanced:
            self._to_repair = {i for i, skew in enumerate(self._skew) if abs(skew) > 1}

    def _cover(self) -> bool:
        """Plan the next matching of a coverage wave; False when there is none."""
        return (
            self._repair(self._unseen)
            or self._repair(self._rejudgeable)
            or self._plan(self._match_unseen())
            or self._go_on_without_eligible_unseen()
        )

    def _resample(self) -> bool:
        """Plan the next matching of a resampling wave; False when there is none."""
        return (
            self._repair(self._rejudgeable)
            or self._repair(self._unseen)
            or self._plan(self._match(self._eligible(self._rejudgeable())))
            or (not self._chosen and self._plan(self._match_unseen()))
        )

    def _go_on_without_eligible_unseen(self) -> bool:
        unseen = list(self._unseen())
        if self._small_net:
            # blocked pairs are equally skewed, +1 or -1 twice: an essay at 2 would have been repaired by now
            return bool(unseen) and not self._chosen and self._plan([self._cheapest(unseen)])
        if not unseen:
            return self._plan(self._match(self._of_this_pass(range(len(self._ids)))))
        # one pair changes a skew and so makes an unseen pair eligible
        freeing = self._of_this_pass({essay for pair in unseen for essay in pair})
        return self._plan([self._cheapest(freeing)])

    def _repair(self, source: Callable[[], Iterable[_Pair]]) -> bool:
        """Plan pairs of `source` with the essays that an earlier plan left at |skew| > 1, until none is left so."""
        skewed = {essay for essay in self._to_repair if abs(self._skew[essay]) > 1}
        if not skewed:
            return False
        pairs = self._eligible(pair for pair in source() if not skewed.isdisjoint(pair))
        return self._plan(self._match(pairs))

    # --- pairs to choose from ------------------------------------------------------------------------------------

    def _unseen(self) -> Iterator[_Pair]:
        return (pair for pair in combinations(range(len(self._ids)), 2) if pair not in self._seen)

    def _rejudgeable(self) -> list[_Pair]:
        return sorted(self._seen - self._rejudged)

    def _eligible(self, pairs: Iterable[_Pair]) -> list[_Pair]:
        return [pair for pair in pairs if self._is_eligible(*pair)]

    def _is_eligible(self, i: int, j: int) -> bool:
        return not self._balanced or self._skew[i] * self._skew[j] <= 0

    def _of_this_pass(self, essays: Iterable[int]) -> list[_Pair]:
        """Eligible seen pairs with one of `essays`, each once in a pass; a new pass begins when none is left."""
        wanted = set(essays)
        for pass_so_far in (self._rejudged, set[_Pair]()):
            self._rejudged = pass_so_far
            pairs = [pair for pair in self._eligible(self._rejudgeable()) if not wanted.isdisjoint(pair)]
            if pairs:
                return pairs
        return []

    def _match_unseen(self) -> list[_Edge]:
        if len(self._ids) <= EXACT_UP_TO_ESSAYS:
            return self._match(self._eligible(self._unseen()))
        signs = Counter((skew > 0) - (skew < 0) for skew in self._skew)
        reachable = min(self._room, len(self._ids) // 2, len(self._ids) - max(signs[1], signs[-1]))
        matching: list[_Edge] = []
        for partners in PARTNERS_PER_ORDER:
            matching = self._match(self._likely_unseen(partners))
            if len(matching) >= reachable:
                break
        return matching

    def _likely_unseen(self, partners: int) -> list[_Pair]:
        """Eligible unseen pairs of essays that are near each other by score, by count, or by chance.

        Every essay with an eligible unseen partner has one here, so the list is empty only if there is none at all.
        """
        n = len(self._ids)
        chance = [self._hash("essay", essay) for essay in self._ids]
        orders = (
            sorted(range(n), key=lambda i: (self._score_steps[i], chance[i], i)),
            sorted(range(n), key=lambda i: (self._count[i], self._score_steps[i], chance[i], i)),
            sorted(range(n), key=lambda i: (chance[i], i)),
        )
        pairs = {pair for order in orders for place in range(n) for pair in self._near(order, place, partners)}
        return sorted(pairs)

    def _near(self, order: list[int], place: int, partners: int) -> list[_Pair]:
        essay, found = order[place], []
        for distance in range(1, len(order)):
            for other in (place - distance, place + distance):
                if not 0 <= other < len(order):
                    continue
                pair = (min(essay, order[other]), max(essay, order[other]))
                if pair not in self._seen and self._is_eligible(*pair):
                    found.append(pair)
            if len(found) >= partners:
                break
        return found

    # --- what a pair costs ---------------------------------------------------------------------------------------

    def _edge(self, pair: _Pair) -> _Edge:
        order = self._oriented(*pair)
        return _Edge(*order, self._resampling_costs(*order) if pair in self._seen else self._coverage_costs(*pair))

    def _coverage_costs(self, i: int, j: int) -> tuple[int, ...]:
        return (self._surplus(i) + self._surplus(j), self._distance(i, j), self._growth(i, j), self._tie(i, j))

    def _resampling_costs(self, i: int, j: int) -> tuple[int, ...]:
        return (min(MAX_COUNT, self._judged[i, j]), MAX_UNCERTAINTY - self._uncertainty(i, j), self._tie(i, j))

    def _surplus(self, i: int) -> int:
        return min(MAX_COUNT, self._count[i] - self._least_count)

    def _distance(self, i: int, j: int) -> int:
        return min(MAX_DISTANCE, abs(self._score_steps[i] - self._score_steps[j]))

    def _growth(self, i: int, j: int) -> int:
        """How much |skew| of the two essays grows by the pair: -2 for opposite skews, 0 for one zero, 2 for two."""
        low, high = sorted((self._skew[i], self._skew[j]))
        return abs(low + 1) - abs(low) + abs(high - 1) - abs(high)

    def _uncertainty(self, i: int, j: int) -> int:
        odds = math.exp(-abs(self._scores[i] - self._scores[j]))
        share = odds / (1.0 + odds) ** 2
        if share == 0.0:
            return 0
        value = share * (self._variances[i] + self._variances[j]) * UNCERTAINTY_STEPS
        return round(min(float(MAX_UNCERTAINTY), value))

    def _oriented(self, i: int, j: int) -> _Pair:
        if self._balanced and self._skew[i] != self._skew[j]:
            return (i, j) if self._skew[i] < self._skew[j] else (j, i)
        if self._balanced and self._judged[i, j] != self._judged[j, i]:
            return (i, j) if self._judged[i, j] < self._judged[j, i] else (j, i)
        coin = self._hash("order", self._ids[i], self._ids[j], str(self._planned[i, j]))
        return (i, j) if coin % 2 else (j, i)

    def _tie(self, i: int, j: int) -> int:
        pair = (min(i, j), max(i, j))
        if pair not in self._ties:
            self._ties[pair] = self._hash("pair", self._ids[pair[0]], self._ids[pair[1]])
        return self._ties[pair]

    def _hash(self, *words: str) -> int:
        text = "\x1f".join((*self._salt, *words))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=TIE_BITS // 8).digest(), "big")

    # --- choosing ------------------------------------------------------------------------------------------------

    def _cheapest(self, pairs: Iterable[_Pair]) -> _Edge:
        self._least_count = min(self._count)
        return min(map(self._edge, pairs), key=_judging_order)

    def _match(self, pairs: Iterable[_Pair]) -> list[_Edge]:
        self._least_count = min(self._count)
        return _best_matching([self._edge(pair) for pair in pairs], len(self._ids), self._room)

    def _plan(self, edges: Iterable[_Edge]) -> bool:
        before = len(self._chosen)
        for edge in edges:
            i, j = edge.essay_a, edge.essay_b
            pair = (min(i, j), max(i, j))
            seen = pair in self._seen
            if seen:
                self._rejudged.add(pair)
            mode = PairMode.RESAMPLING if seen else PairMode.COVERAGE
            self._chosen.append(PlannedPair(essay_a=self._ids[i], essay_b=self._ids[j], pair_mode=mode))
            self._note(i, j, seen=True)
        return len(self._chosen) > before

    def _note(self, i: int, j: int, *, seen: bool) -> None:
        pair = (min(i, j), max(i, j))
        for essay, change in ((i, 1), (j, -1)):
            self._skew[essay] += change
            self._count[essay] += 1
        self._planned[pair] += 1
        if seen:
            self._judged[i, j] += 1
            self._seen.add(pair)


def _judging_order(edge: _Edge) -> tuple[tuple[int, ...], int, int]:
    return edge.costs, edge.essay_a, edge.essay_b


def _best_matching(edges: list[_Edge], n_essays: int, limit: int) -> list[_Edge]:
    """A matching of min(limit, the most possible) edges with lexicographically least summed costs, cheapest edge first.

    Exactly `limit` edges come from n - 2·limit idle nodes that may be matched with any essay at no cost: a perfect
    matching then leaves 2·limit essays to each other. Beyond `EXACT_UP_TO_ESSAYS` that is too slow (30 s for 1000
    essays), and the cheapest `limit` edges of a largest matching are taken.
    """
    idle = max(0, n_essays - 2 * limit) if n_essays <= EXACT_UP_TO_ESSAYS else 0
    weights = _lexicographic_weights([edge.costs for edge in edges], most=n_essays // 2)
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(n_essays + idle))
    graph.add_edges_from(
        [(edge.essay_a, edge.essay_b, weight) for edge, weight in zip(edges, weights, strict=True)]
        + [(essay, n_essays + spare, 0) for essay in range(n_essays) for spare in range(idle)]
    )
    matched = rustworkx.max_weight_matching(graph, max_cardinality=True, weight_fn=int)
    pairs = {frozenset(ends) for ends in matched}
    return sorted((edge for edge in edges if {edge.essay_a, edge.essay_b} in pairs), key=_judging_order)[:limit]


def _lexicographic_weights(costs: Sequence[tuple[int, ...]], *, most: int) -> list[int]:
    """Integers >= 0 whose sums over equally many edges, at most `most`, rank as the summed costs do, least first.

    Each level becomes a digit of a mixed-radix number, wide enough that a sum never carries into the level above.
    """
    weights = [0] * len(costs)
    for level in zip(*costs, strict=True):
        dearest = max(level)
        radix = most * (dearest - min(level)) + 1
        weights = [weight * radix + dearest - cost for weight, cost in zip(weights, level, strict=True)]
    return weights
