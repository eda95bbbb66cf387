"""Which design plans a wave: coverage, random, balanced, adaptive or calibrated, behind one protocol.

Here: the designs that `pair_design` chooses between, what they are given (`WaveRequest`), and the two functions the
wave loop calls. Not here: the matchings of the coverage design and the size of a wave (`pairing`), the fit that the
adaptive and calibrated designs read (`bradley_terry`), where known positions come from (`anchor_bank`), and when to
plan or stop (`completion`).

What every design keeps. A plan has as many pairs as were asked for (only `coverage` may be shorter, see `pairing`). It
is a function of its request alone: ties and chance come from a hash of (seed, batch, wave), whatever the order of
essays and history. The order in which a pair is read is decided when it is chosen: of two essays the one with the
higher skew (A - B over history and plan so far) is read as B, and a pair whose skews have the same sign, neither zero,
is not eligible; so |skew| <= 1 after every comparison. Skews sum to zero, so some pair is always eligible. Failed
comparisons count for positions and exposure, but not as seen. Essays that withdrawn comparisons left at |skew| > 1 are
compared first.

- `random`: every pair is drawn uniformly among the eligible ones whose reading order has not been seen.
- `balanced`: random rounds. In a round, the essays with fewest comparisons are paired with each other at random, each
  once, in pairs not seen before as far as possible; so exposures differ by at most one after every comparison.
- `adaptive`: rounds of `balanced` until every essay has had `OPENING` judgments (`OPENING_WITH_ANCHORS` with anchors),
  then one after another the pair whose judgment tells most. A pair is repeated only in the other order, once.
- `calibrated`: from the first comparison the pair that tells most about where essays stand on the scale of the anchor
  bank, whose anchors have a place before anything is judged. A pair is repeated as under `adaptive`.

What a judgment is worth, in a covariance of the scores that is brought up to date after each pair, so that the pairs of
a wave complement each other, is in `judgment_worth`: for `adaptive` the fall of the scores' summed variances, and where
there are students to be graded by anchors of several grades that of the grades' expected RPS. Covariance and means are
those of expectation propagation, the uncertainty of the prior's width included, and the prior widened (`WIDENED`):
without that, pairs of neighbours look best throughout, and the stretch of the scale is left to the prior. For
`calibrated` it is the fall of the summed variances of all essays that the bank has not placed, in the bank frame, at
the mode and the fitted width. Because the level of the others is free, these are the variances of contrasts: an essay
minus the weighted mean of the known anchors, which no comparison moves.

Beyond `ONE_BY_ONE_UP_TO_ESSAYS` pairs come in blocks: all pairs are weighed once, a greedy pass takes the best pair
whose essays are in none yet, and the covariance learns from the block as a whole. There `adaptive` goes by the scores,
with anchors, too: in blocks that gave better grades. Beyond `COVARIANCE_UP_TO_ESSAYS` no
covariance is computed: scores are taken as independent with their standard errors, essays within `REACH` in score are
candidates, and all candidates are weighed once per block."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.bradley_terry import BradleyTerryFit, fit_bradley_terry
from cj_pipeline.core.errors import PlanningError
from cj_pipeline.core.judgment_worth import (
    expected_fall,
    expected_information,
    grade_boundaries,
    importance_for_grades,
    learn,
)
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairDesign, PairMode, PlannedPair, Winner
from cj_pipeline.core.pairing import SEEN, check_wave_request, plan_single_wave, plan_wave
from cj_pipeline.core.score_prior import KnownItems

OPENING: Final = 6
"""Judgments per essay from balanced rounds before pairing looks at scores: they protect early accuracy."""

OPENING_WITH_ANCHORS: Final = 4
"""The same with anchors; from here to `OPENING` judgments it is scores that pairing goes by, and then grades."""

ONE_BY_ONE_UP_TO_ESSAYS: Final = 200
"""Up to here pairs are chosen one by one; beyond, in blocks, each weighed once. In 44 exams of 100 students with 12
anchors, one by one and by the grades needed .65 of the judgments of `balanced` for the same grade RPS, and .75 for the
same RMSE; blocks by the scores .68 and .71."""

BLUR: Final = 0.4
"""In grade steps. Within this of a boundary an essay's place matters, however well it is known. In 60 exams 0, .4 and
.6 needed .63, .60 and .61 of the judgments that `balanced` needs for the same grade RPS."""

WIDENED: Final = 2.0
"""How many times as wide as fitted the prior is taken to be, so that the stretch and the shape of the whole scale are
learned from judgments and not taken from the prior: scores need not be spread normally. Normal ones lose nothing."""

LOOKED_AT: Final = 40
"""A block is chosen among the best pairs, so many per essay on average; going through all pairs takes longer."""

LEAST_SHARE: Final = 1e-3
"""A block has no pair that is worth less than this share of its best, as one of two anchors with known places is."""

COVARIANCE_UP_TO_ESSAYS: Final = 3_000
"""Up to here every pair is weighed against the full covariance; beyond, neighbours in score against standard errors."""

CANDIDATES: Final = 8
"""Beyond `COVARIANCE_UP_TO_ESSAYS`: how many essays at most `REACH` higher in score are candidates for each."""

REACH: Final = 1.0
"""Logits. Within it a judgment tells nearly as much as between equals, and links are not only between neighbours."""

LARGEST_SE: Final = 10.0
"""Logits. Standard errors above it are taken as this."""

DRAWS: Final = 200
"""How often the random design draws a pair before it goes through all of them."""

GAIN_TOLERANCE: Final = 1e-9
"""Gains that differ by no more than this share (in a block: of its best gain) are ties, so that rounding errors hardly
ever decide."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class WaveRequest:
    """What a design knows when it plans a wave.

    Attributes:
        essay_ids: the nodes of the batch, in any order.
        history: every comparison of the batch. Withdrawn ones count for nothing; all others count for positions and
            exposure; only `pairing.SEEN` ones make a pair seen.
        size: comparisons to plan, >= 1.
        scores: logits, of the wave before. Empty: nothing is known. An essay without one has 0.
        ses: their standard errors, logits, possibly infinite. An essay without one has the largest of the others'.
        fit: of all that was judged so far, prior width and order effect fitted, items being the ascending essay ids,
            and with `known` where the design is the calibrated one. Only the adaptive and the calibrated design read
            it. None: they make one where they need it.
        seed, batch_id, wave: decide chance and ties, and nothing else.
        mode: what the wave is for; only the coverage design reads it.
        small_net: whether the batch stops after its resampling passes; it is then planned by the coverage design.
        anchor_grades: essay id to expert grade, of the anchors.
        balance_positions: False: the order of each pair is drawn, and every pair is eligible.
        known: anchors that the bank has placed, as items of the ascending essay ids (`AnchorBank.known_items`). Only
            the calibrated design reads it, and needs it.
    """

    essay_ids: Sequence[str]
    history: Sequence[Comparison]
    size: int
    scores: Mapping[str, float]
    ses: Mapping[str, float]
    seed: int
    batch_id: str
    wave: int
    mode: PairMode = PairMode.COVERAGE
    small_net: bool = False
    anchor_grades: Mapping[str, str] = field(default_factory=dict)
    balance_positions: bool = True
    fit: BradleyTerryFit | None = None
    known: KnownItems | None = None


class Design(Protocol):
    """A way to choose pairs."""

    def plan(self, request: WaveRequest) -> list[PlannedPair]:
        """The pairs of one wave, in the order in which they should be judged.

        Each pair says for itself whether it is seen for the first time (`PairMode.COVERAGE`).

        Raises:
            PlanningError: fewer than two essays, an essay twice, size < 1, a score or standard error that is not a
                number, a history of other essays, or the calibrated design without known anchors.
        """


def plan_next_wave(design: PairDesign, request: WaveRequest) -> list[PlannedPair]:
    """Plan one wave by `design`; a small net is planned by the coverage design whatever was chosen.

    Raises:
        PlanningError: see `Design.plan`.
    """
    return DESIGNS[PairDesign.COVERAGE if request.small_net else design].plan(request)


def plan_whole_budget(
    design: PairDesign, request: WaveRequest, *, least: int, passes: int | None = None
) -> list[PlannedPair]:
    """Plan all that a batch may submit as one wave, for judges that take a whole job at once.

    There are no scores to go by within such a wave, so `adaptive` and `calibrated` are `balanced` here.

    Args:
        design: how pairs are chosen.
        request: `size` is what the budget leaves. Scores are not looked at.
        least: smallest ordinary wave, in comparisons.
        passes: resampling passes that a small net may have; not used for a larger net.

    Raises:
        PlanningError: see `Design.plan`.
    """
    if request.small_net or design is PairDesign.COVERAGE:
        return plan_single_wave(
            request.essay_ids,
            request.history,
            budget_left=request.size,
            least=least,
            passes=passes if request.small_net else None,
            seed=request.seed,
            batch_id=request.batch_id,
            wave=request.wave,
            balance_positions=request.balance_positions,
        )
    blind = PairDesign.BALANCED if design in (PairDesign.ADAPTIVE, PairDesign.CALIBRATED) else design
    return DESIGNS[blind].plan(replace(request, scores={}, ses={}))


class CoverageDesign:
    """Every pair once, then again where it is uncertain: see `pairing`."""

    def plan(self, request: WaveRequest) -> list[PlannedPair]:
        """See `Design.plan` and `pairing.plan_wave`."""
        return plan_wave(
            request.essay_ids,
            request.history,
            mode=request.mode,
            size=request.size,
            scores=request.scores,
            ses=request.ses,
            seed=request.seed,
            batch_id=request.batch_id,
            wave=request.wave,
            small_net=request.small_net,
            balance_positions=request.balance_positions,
        )


class RandomDesign:
    """Pairs drawn uniformly, in an order not seen yet while there is one."""

    def plan(self, request: WaveRequest) -> list[PlannedPair]:
        """See `Design.plan`."""
        wave = _Wave(request)
        _repair(wave)
        while wave.room:
            wave.add(*self._draw(wave))
        return wave.pairs

    def _draw(self, wave: "_Wave") -> tuple[int, int]:
        for _ in range(DRAWS):
            i, j = wave.draw(wave.n), wave.draw(wave.n - 1)
            pair = (i, j + (j >= i))
            if wave.is_eligible(*pair) and wave.times_seen_as_read(*pair) == 0:
                return pair
        return min(
            (pair for pair in _pairs(wave.shuffled(range(wave.n))) if wave.is_eligible(*pair)),
            key=lambda pair: wave.times_seen_as_read(*pair),
        )


class BalancedDesign:
    """Random rounds that show every essay equally often."""

    def plan(self, request: WaveRequest) -> list[PlannedPair]:
        """See `Design.plan`."""
        wave = _Wave(request)
        _repair(wave)
        _add_balanced(wave, wave.room)
        return wave.pairs


class AdaptiveDesign:
    """Balanced rounds first, then the pairs whose judgment is expected to tell most of scores, or of grades."""

    def plan(self, request: WaveRequest) -> list[PlannedPair]:
        """See `Design.plan`."""
        wave = _Wave(request)
        _repair(wave)
        rounds = OPENING_WITH_ANCHORS if request.anchor_grades else OPENING
        opening = math.ceil(rounds * wave.n / 2) - wave.seen_comparisons
        _add_balanced(wave, wave.room if not request.scores else min(wave.room, max(0, opening)))
        if wave.room:
            choose = _add_by_covariance if wave.n <= COVARIANCE_UP_TO_ESSAYS else _add_by_neighbours
            choose(wave, request)
        # every pair has been seen in both orders
        _add_balanced(wave, wave.room)
        return wave.pairs


class CalibratedDesign:
    """The pairs that tell most about where essays stand among anchors that the bank has placed."""

    def plan(self, request: WaveRequest) -> list[PlannedPair]:
        """See `Design.plan`."""
        if request.known is None:
            raise PlanningError(
                "pair_design calibrated needs anchors that an anchor bank has placed, and none are given: make a bank "
                "of batches of kind calibration (core/anchor_bank.py), or choose another CJ_PAIR_DESIGN (pair_design), "
                "such as adaptive"
            )
        wave = _Wave(request)
        _repair(wave)
        if wave.n <= COVARIANCE_UP_TO_ESSAYS:
            _add_by_places(wave, request, request.known)
        elif request.scores:
            _add_by_neighbours(wave, request)
        # every pair has been seen in both orders, or there is nothing to go by
        _add_balanced(wave, wave.room)
        return wave.pairs


DESIGNS: Final[Mapping[PairDesign, Design]] = {
    PairDesign.COVERAGE: CoverageDesign(),
    PairDesign.RANDOM: RandomDesign(),
    PairDesign.BALANCED: BalancedDesign(),
    PairDesign.ADAPTIVE: AdaptiveDesign(),
    PairDesign.CALIBRATED: CalibratedDesign(),
}


class _Wave:
    """A wave in the making: its pairs, and every essay's positions and exposure over history and plan so far.

    Essays are indices into the sorted ids.
    """

    def __init__(self, request: WaveRequest) -> None:
        check_wave_request(request.essay_ids, request.history, request.size, request.scores, request.ses)
        self.ids = sorted(request.essay_ids)
        self.n = len(self.ids)
        self.pairs: list[PlannedPair] = []
        self.skew = [0] * self.n
        self.count = [0] * self.n
        self.seen: Counter[tuple[int, int]] = Counter()  # in reading order
        self.seen_comparisons = 0
        self._size = request.size
        self.balances = request.balance_positions
        words = "\x1f".join((str(request.seed), request.batch_id, str(request.wave), "design"))
        # only random() is used: its sequence is the same on every platform and version of Python
        self._chance = random.Random(int.from_bytes(hashlib.blake2b(words.encode(), digest_size=16).digest(), "big"))
        index = {essay: i for i, essay in enumerate(self.ids)}
        for comparison in request.history:
            if comparison.status is not ComparisonStatus.WITHDRAWN:
                self._note(index[comparison.essay_a], index[comparison.essay_b], seen=comparison.status in SEEN)

    @property
    def room(self) -> int:
        """Pairs still to be planned."""
        return self._size - len(self.pairs)

    def add(self, i: int, j: int) -> tuple[int, int]:
        """Plan the pair, deciding the order in which it is to be read; that order."""
        a, b = self._order(i, j)
        first_sight = (a, b) not in self.seen and (b, a) not in self.seen
        mode = PairMode.COVERAGE if first_sight else PairMode.RESAMPLING
        self.pairs.append(PlannedPair(essay_a=self.ids[a], essay_b=self.ids[b], pair_mode=mode))
        self._note(a, b, seen=True)
        return a, b

    def _order(self, i: int, j: int) -> tuple[int, int]:
        """(A, B): the higher skew is read second; of equals the order seen less often, else a coin decides."""
        if self.balances and self.skew[i] != self.skew[j]:
            return (i, j) if self.skew[i] < self.skew[j] else (j, i)
        if self.seen[i, j] != self.seen[j, i]:
            return (i, j) if self.seen[i, j] < self.seen[j, i] else (j, i)
        return (i, j) if self.draw(2) else (j, i)

    def is_eligible(self, i: int, j: int) -> bool:
        """Whether the pair can be read in an order that leaves no skew larger than it finds it."""
        return not self.balances or self.skew[i] * self.skew[j] <= 0

    def times_seen(self, i: int, j: int) -> int:
        """How often the pair was seen, in either order."""
        return self.seen[i, j] + self.seen[j, i]

    def times_seen_as_read(self, i: int, j: int) -> int:
        """How often the pair was seen in the order in which it would be read."""
        if self.balances and self.skew[i] != self.skew[j]:
            return self.seen[i, j] if self.skew[i] < self.skew[j] else self.seen[j, i]
        return min(self.seen[i, j], self.seen[j, i])

    def may_be_chosen(self, i: int, j: int) -> bool:
        """Whether the adaptive design may choose the pair: eligible, and its reading order not seen yet."""
        return self.is_eligible(i, j) and self.times_seen_as_read(i, j) == 0

    def draw(self, below: int) -> int:
        """A uniform whole number from 0 to below - 1."""
        return int(self._chance.random() * below)

    def chance(self) -> float:
        """A uniform number in [0, 1)."""
        return self._chance.random()

    def shuffled(self, items: Sequence[int]) -> list[int]:
        """The items in random order."""
        keyed = [(self._chance.random(), item) for item in items]
        return [item for _, item in sorted(keyed)]

    def _note(self, a: int, b: int, *, seen: bool) -> None:
        self.skew[a] += 1
        self.skew[b] -= 1
        self.count[a] += 1
        self.count[b] += 1
        if seen:
            self.seen[a, b] += 1
            self.seen_comparisons += 1


def _pairs(order: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((i, j) for place, i in enumerate(order) for j in order[place + 1 :])


def _repair(wave: _Wave) -> None:
    """Compare essays whose skew withdrawn comparisons left beyond 1 until it is 1 again, or the wave is full."""
    while wave.room and wave.balances and max(map(abs, wave.skew)) > 1:
        i = max(wave.shuffled(range(wave.n)), key=lambda i: abs(wave.skew[i]))
        others = [j for j in wave.shuffled(range(wave.n)) if j != i and wave.is_eligible(i, j)]
        wave.add(i, min(others, key=lambda j: (-abs(wave.skew[j]), wave.times_seen_as_read(i, j), wave.count[j])))


# -- balanced rounds -------------------------------------------------------------------------------------------


def _add_balanced(wave: _Wave, number: int) -> None:
    """Add `number` pairs of balanced rounds."""
    while number > 0:
        pairs = _round(wave)[:number]
        for pair in pairs:
            wave.add(*pair)
        number -= len(pairs)


def _round(wave: _Wave) -> list[tuple[int, int]]:
    """Pairs in which the essays with fewest comparisons meet each other at random; never empty.

    Each essay is in at most one pair. An odd one out meets an essay with more comparisons. Where skews are at most 1
    as they should be, the fewest are balanced in sign, so that all of them find a partner.
    """
    least = min(wave.count)
    chance = wave.shuffled(range(wave.n))
    # an essay at |skew| > 1 (comparisons were withdrawn) goes first, while there is choice
    queue = sorted(chance, key=lambda i: (wave.count[i], -max(1, abs(wave.skew[i]))))
    pairs: list[tuple[int, int]] = []
    while len(queue) > 1 and wave.count[queue[0]] == least:
        i = queue.pop(0)
        place = _partner(wave, i, queue)
        if place is not None:
            pairs.append((i, queue.pop(place)))
    for place in range(len(pairs)):
        _avoid_repeat(wave, pairs, place)
    # an essay with more comparisons than the least comes last, or it would be ahead by two
    return sorted(pairs, key=lambda pair: max(wave.count[i] for i in pair))


def _partner(wave: _Wave, i: int, queue: Sequence[int]) -> int | None:
    """Place in the queue of the first eligible essay with fewest comparisons, not yet met if there is such a one."""
    found: tuple[tuple[int, int], int] | None = None
    for place, j in enumerate(queue):
        if found is not None and wave.count[j] > found[0][0]:
            break
        if not wave.is_eligible(i, j):
            continue
        cost = (wave.count[j], wave.times_seen(i, j))
        if found is None or cost < found[0]:
            found = (cost, place)
        if cost[1] == 0:
            break
    return None if found is None else found[1]


def _avoid_repeat(wave: _Wave, pairs: list[tuple[int, int]], place: int) -> None:
    """If the pair was seen before, exchange partners with another pair of the round so that fewer are repeated."""
    i, j = pairs[place]
    for other, (k, m) in enumerate(pairs):
        if wave.times_seen(i, j) == 0:
            return
        if other == place:
            continue
        for new in (((i, k), (j, m)), ((i, m), (j, k))):
            fair = all(wave.is_eligible(*pair) for pair in new)
            before = wave.times_seen(i, j) + wave.times_seen(k, m)
            if fair and sum(wave.times_seen(*pair) for pair in new) < before:
                pairs[place], pairs[other] = new
                return


# -- adaptive choice -------------------------------------------------------------------------------------------


def _add_by_covariance(wave: _Wave, request: WaveRequest) -> None:
    """Add pairs by what they tell about all scores, or about grades where there are any, until none may be chosen."""
    means, covariance = _fit(wave, request, None).integrated_moments(widened=WIDENED)
    grades = {item: request.anchor_grades[name] for item, name in enumerate(wave.ids) if name in request.anchor_grades}
    students = np.setdiff1d(np.arange(wave.n), list(grades))
    boundaries, step = grade_boundaries(means, grades)

    def worth(difference: FloatArray, covariance: FloatArray) -> FloatArray:
        importance = None
        opened = 2 * wave.seen_comparisons >= OPENING * wave.n
        if opened and step > 0.0 and students.size and wave.n <= ONE_BY_ONE_UP_TO_ESSAYS:
            importance = importance_for_grades(means, covariance, students, boundaries, BLUR * step)
        return expected_fall(difference, covariance, importance)

    _add_best(wave, means, covariance, worth)


def _add_by_places(wave: _Wave, request: WaveRequest, known: KnownItems) -> None:
    """Add pairs by what they tell about places on the bank's scale, until none may be chosen."""
    fit = _fit(wave, request, known)
    importance: FloatArray | None = None
    # with every essay in the bank, it is their places that remain
    if known.items.size < wave.n:
        importance = np.eye(wave.n)
        importance[known.items, known.items] = 0.0
    _add_best(
        wave,
        fit.scores,
        fit.bank_covariance_at_width().copy(),
        lambda difference, covariance: expected_fall(difference, covariance, importance),
    )


def _add_best(
    wave: _Wave,
    scores: FloatArray,
    covariance: FloatArray,
    worth: Callable[[FloatArray, FloatArray], FloatArray],
) -> None:
    """Add the best pairs, one by one or in blocks, the covariance brought up to date in between, until none is left.

    Args:
        wave: the wave in the making.
        scores: (n,) logits.
        covariance: (n, n) logits²; changed in place.
        worth: what a judgment of each pair is worth, from (n, n) differences and the covariance.
    """
    index = {essay: i for i, essay in enumerate(wave.ids)}
    difference = scores[:, None] - scores[None, :]
    rank = np.argsort(wave.shuffled(range(wave.n)))
    seen: BoolArray = np.zeros((wave.n, wave.n), dtype=np.bool_)
    for pair, times in wave.seen.items():
        seen[pair] = times > 0
    choose = _best_pair if wave.n <= ONE_BY_ONE_UP_TO_ESSAYS else _best_matching
    # what was left of the opening
    added = [(index[planned.essay_a], index[planned.essay_b]) for planned in wave.pairs]
    while wave.room:
        learn(covariance, difference, added)
        gain = np.where(_choosable(wave, seen), worth(difference, covariance), -np.inf)
        added = [wave.add(i, j) for i, j in choose(gain, rank, wave.room)]
        if not added:
            return
        for pair in added:
            seen[pair] = True


def _best_pair(gain: FloatArray, rank: IntArray, room: int) -> list[tuple[int, int]]:
    """The pair of the highest gain, as a list; empty if none may be chosen."""
    best = float(gain.max())
    if best == -np.inf:
        return []
    ties = np.argwhere(np.triu(gain >= best - GAIN_TOLERANCE * abs(best), 1))
    first = int(np.lexsort(np.sort(rank[ties], axis=1).T)[0])
    return [(int(ties[first, 0]), int(ties[first, 1]))]


def _best_matching(gain: FloatArray, rank: IntArray, room: int) -> list[tuple[int, int]]:
    """At most `room` pairs, no essay in two of them: what a greedy pass over the best pairs finds, the best first.

    It goes through the best `LOOKED_AT` pairs per essay, so some essays may be left out.
    """
    n = len(rank)
    best = float(gain.max())
    cells = np.flatnonzero(np.triu(gain >= max(LEAST_SHARE * best, np.finfo(np.float64).tiny), 1))
    # gains that are equal but for rounding are so from here on
    steps = np.rint(gain.ravel()[cells] / (GAIN_TOLERANCE * best))
    if cells.size > LOOKED_AT * n:
        # of ties at the edge all are kept
        kept = steps >= -np.partition(-steps, LOOKED_AT * n)[LOOKED_AT * n]
        cells, steps = cells[kept], steps[kept]
    row, column = np.divmod(cells, n)
    low, high = np.minimum(rank[row], rank[column]), np.maximum(rank[row], rank[column])
    free = np.ones(n, dtype=np.bool_)
    pairs: list[tuple[int, int]] = []
    for at in np.lexsort((high, low, -steps)).tolist():
        i, j = int(row[at]), int(column[at])
        if free[i] and free[j] and len(pairs) < room:
            free[i] = free[j] = False
            pairs.append((i, j))
    return pairs


def _fit(wave: _Wave, request: WaveRequest, known: KnownItems | None) -> BradleyTerryFit:
    """The fit of what was judged so far, with the order effect as in any score: the request's, if it is such a one."""
    if request.fit is not None and (request.fit.bank_scores is None) == (known is None):
        return request.fit
    index = {essay: i for i, essay in enumerate(wave.ids)}
    judged = sorted((c for c in request.history if c.winner_id and c.loser_id), key=lambda c: c.comparison_id)
    winners = np.array([index[c.winner_id or ""] for c in judged], dtype=np.int64)
    losers = np.array([index[c.loser_id or ""] for c in judged], dtype=np.int64)
    first = np.array([c.winner is Winner.A for c in judged], dtype=np.bool_)
    return fit_bradley_terry(winners, losers, wave.n, winner_first=first, known=known)


def _add_by_neighbours(wave: _Wave, request: WaveRequest) -> None:
    """Add pairs in blocks, each the best matching that a greedy pass over the candidates finds, until none is found."""
    known = [request.ses[essay] for essay in wave.ids if essay in request.ses]
    errors = np.array([request.ses.get(essay, max(known, default=1.0)) for essay in wave.ids])
    variances = np.minimum(errors, LARGEST_SE) ** 2
    scores = np.array([request.scores.get(essay, 0.0) for essay in wave.ids])
    index = {essay: i for i, essay in enumerate(wave.ids)}
    block = [(index[pair.essay_a], index[pair.essay_b]) for pair in wave.pairs]  # what is left of the opening
    while wave.room:
        _learn_apart(variances, scores, block)
        block = []
        met: set[int] = set()
        for i, j in _candidates(wave, scores, variances):
            if wave.room and i not in met and j not in met and wave.may_be_chosen(i, j):
                met.update((i, j))
                block.append(wave.add(i, j))
        if not block:
            return


def _candidates(wave: _Wave, scores: FloatArray, variances: FloatArray) -> list[tuple[int, int]]:
    """Pairs of neighbours, and of essays drawn at most `REACH` apart in score; first what promises to tell most."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    within = np.maximum(np.searchsorted(ranked, ranked + REACH, side="right") - 1 - np.arange(wave.n), 1)
    chance = np.array([wave.chance() for _ in range(wave.n * CANDIDATES)]).reshape(wave.n, CANDIDATES)
    higher = np.arange(wave.n)[:, None] + 1 + np.floor(chance * within[:, None]).astype(np.int64)
    # the next higher essay is one of them, so that nobody is left out
    higher[:, 0] = np.arange(wave.n) + 1
    lower, column = np.nonzero(higher < wave.n)
    i, j = order[lower], order[higher[lower, column]]
    variance = variances[i] + variances[j]
    gain = expected_information(scores[i] - scores[j], variance) * variance
    best = np.argsort(-gain, kind="stable")
    return list(zip(i[best].tolist(), j[best].tolist(), strict=True))


def _learn_apart(variances: FloatArray, scores: FloatArray, block: Sequence[tuple[int, int]]) -> None:
    """Bring independent variances up to date, in place, for one judgment of each pair of a block."""
    if not block:
        return
    i, j = np.array(block).T
    variance = variances[i] + variances[j]
    weight = expected_information(scores[i] - scores[j], variance)
    share = weight / (1.0 + weight * variance)
    for essays in (i, j):
        variances[essays] -= share * variances[essays] ** 2


def _choosable(wave: _Wave, seen: BoolArray) -> BoolArray:
    """(n, n) symmetric; which pairs the adaptive design may choose, see `_Wave.may_be_chosen`."""
    skew = np.array(wave.skew) * wave.balances
    first = skew[:, None] < skew[None, :]
    read_before = np.where(first, seen, np.where(first.T, seen.T, seen & seen.T))
    allowed: BoolArray = (skew[:, None] * skew[None, :] <= 0) & ~read_before
    np.fill_diagonal(allowed, False)
    return allowed
