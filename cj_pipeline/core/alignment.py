"""Judge against experts: how far the judgments of an anchors-only batch put graded anchors in the experts' order.

Here: per anchor its score, rank and record; inversions, zero-win anchors, Kendall's τ, top-grade regressions, position
bias; and the targets they are held against. Not here: the model behind the intervals (`alignment_posterior`), the
scores (`bradley_terry`), and how any of it is shown.

Two kinds of figures, kept apart. Inversions, zero-win anchors, τ and regressions describe these judgments and are what
targets are about. Intervals and probabilities say what the judgments let one know of the judge:
`TauAgreement.interval`, `NeighbourInversion.probability` (both from `draw_alignment`, which knows the grades) and rank
intervals (from `draw_posterior`, which does not). Small differences between two batches are noise: among five essays a
single pair that changes places moves τ by 0.2, among twelve by 0.03.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from cj_pipeline.core.alignment_posterior import AlignmentDraws, KendallTau, draw_alignment, kendall_tau
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.judge_habits import PositionBias, position_bias
from cj_pipeline.core.judgment_table import judgment_table_of
from cj_pipeline.core.models import Comparison, ComparisonStatus, Value
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.reliability import rank_intervals

TOP_GRADES: Final = 2
"""How many of a scale's highest grades regressions are about: A and B on the legacy scale of ENG5."""


class AnchorAlignment(Value):
    """One anchor: where the experts and where the judge put it.

    Attributes:
        score, se: logits, as the batch's fit reports them.
        rank: by score, 1 the best; equal scores share the mean of their ranks.
        rank_interval: 95 % posterior interval of the rank by true score.
        expected_rank: by expert grade, 1 the best; equal grades share the mean of their ranks.
        wins, losses: of its judgments.
    """

    essay_id: str
    grade: str
    score: float
    se: float
    rank: float
    rank_interval: tuple[int, int]
    expected_rank: float
    wins: int
    losses: int

    @property
    def win_rate(self) -> float | None:
        """Share of its judgments that it won; None without any."""
        judged = self.wins + self.losses
        return self.wins / judged if judged else None


class DirectInversion(Value):
    """A pair of anchors whose lower-graded one won at least one judgment against the other. Counted once per pair.

    Attributes:
        lower, higher: essay ids, by expert grade.
        lower_wins, higher_wins: judgments of the pair that each won; where the pair was judged often, a single lapse
            is an inversion too.
        comparison_ids: of the judgments that the lower-graded one won, ascending.
    """

    lower: str
    higher: str
    lower_grade: str
    higher_grade: str
    lower_wins: int
    higher_wins: int
    comparison_ids: tuple[str, ...]


class NeighbourInversion(Value):
    """Two anchors of neighbouring grades, and how probable it is that the lower-graded one truly scores higher.

    Neighbouring are grades with no anchor between them. Above 1/2 judge and experts probably differ; a probability near
    neither 0 nor 1 says that these judgments do not settle it.
    """

    lower: str
    higher: str
    lower_grade: str
    higher_grade: str
    probability: float


class TopRegression(Value):
    """An anchor of one of the `TOP_GRADES` highest grades whose score is below that of a lower-graded anchor.

    Attributes:
        essay_id, grade: the anchor.
        below: the lower-graded anchors that score higher, highest score first.
    """

    essay_id: str
    grade: str
    below: tuple[str, ...]


class TauAgreement(Value):
    """Kendall's τ between expert grades and scores.

    Attributes:
        tau_b: of the fitted scores: (concordant − discordant) / √(pairs of unequal grade · pairs of unequal score);
            0 if all scores are equal.
        tau_a: the same numerator over all pairs, tied grades included.
        attainable: the greatest τ-b possible here. Anchors of equal grade are tied for the experts, never for the
            scores, so it is below 1.
        concordant, discordant: pairs of anchors.
        interval: 95 % posterior interval of τ-b of the true scores.
        posterior_mean: of the same.
        one_swap: by how much τ-b moves when one pair changes places.
    """

    tau_b: float
    tau_a: float
    attainable: float
    concordant: int
    discordant: int
    interval: tuple[float, float]
    posterior_mean: float
    one_swap: float


class Alignment(Value):
    """How a judge's order of the anchors agrees with the experts'. Made by `measure_alignment`.

    Attributes:
        grade_scale: name of the scale.
        judgments: of the batch.
        anchors: best score first.
        tau: see `TauAgreement`.
        inversions: direct ones, widest apart in grade first.
        top_grades: the grades that regressions are about, highest first.
        zero_win: essay ids of anchors that won no judgment, those without any judgment included, lowest grade first.
        top_regressions: highest grade first.
        neighbours: most probably inverted first.
        position: whether being read first helped.
    """

    grade_scale: str
    judgments: int
    anchors: tuple[AnchorAlignment, ...]
    tau: TauAgreement
    inversions: tuple[DirectInversion, ...]
    zero_win: tuple[str, ...]
    top_grades: tuple[str, ...]
    top_regressions: tuple[TopRegression, ...]
    neighbours: tuple[NeighbourInversion, ...]
    position: PositionBias


def measure_alignment(
    comparisons: Iterable[Comparison],
    grades: Mapping[str, str],
    scores: Mapping[str, float],
    ses: Mapping[str, float],
    scale: GradeScale,
    *,
    seed: int,
    n_draws: int = 1000,
) -> Alignment:
    """Hold the judgments of an anchors-only batch against expert grades.

    The result depends on the judgments, not on their order or that of the anchors.

    Args:
        comparisons: the batch's; only those with status JUDGED count.
        grades: essay id → expert grade, for every essay of the batch.
        scores, ses: essay id → score and standard error, logits; not capped, because intervals are read off them.
        scale: the scale of the grades.
        seed: of the posterior draws.
        n_draws: posterior draws.

    Raises:
        GradeScaleError: a grade that is not on the scale.
        InputError: fewer than two grades, an essay without a score or standard error, no judgment, or a judgment of an
            essay without a grade.
    """
    return measure_and_draw(comparisons, grades, scores, ses, scale, seed=seed, n_draws=n_draws)[0]


def measure_and_draw(
    comparisons: Iterable[Comparison],
    grades: Mapping[str, str],
    scores: Mapping[str, float],
    ses: Mapping[str, float],
    scale: GradeScale,
    *,
    seed: int,
    n_draws: int,
) -> tuple[Alignment, AlignmentDraws]:
    """`measure_alignment`, and the posterior draws behind its intervals, for comparing batches by draws of τ-b.

    Arguments and errors are those of `measure_alignment`.
    """
    anchors = _Graded(grades, scores, ses, scale)
    judged = sorted(
        (comparison for comparison in comparisons if comparison.status is ComparisonStatus.JUDGED),
        key=lambda comparison: comparison.comparison_id,
    )
    if not judged:
        raise InputError("no comparison of the batch has been judged: alignment needs judgments")
    table = judgment_table_of(judged, anchors.ids)
    true = draw_alignment(table, anchors.numbers, seed=seed, n_draws=n_draws)
    ranks = rank_intervals(draw_posterior(table, seed=seed, n_draws=n_draws, order_effect=True))
    wins, losses = (np.bincount(side, minlength=len(anchors.ids)) for side in (table.winners, table.losers))
    alignment = Alignment(
        grade_scale=scale.name,
        judgments=len(table),
        anchors=anchors.aligned(ranks, wins, losses),
        tau=_tau_agreement(kendall_tau(anchors.numbers, anchors.scores), true),
        inversions=_direct_inversions(judged, anchors),
        zero_win=tuple(anchors.ids[k] for k in np.argsort(anchors.numbers, kind="stable") if not wins[k]),
        top_grades=scale.labels[: -TOP_GRADES - 1 : -1],
        top_regressions=_top_regressions(anchors),
        neighbours=_neighbour_inversions(anchors, true),
        position=position_bias(table),
    )
    return alignment, true


class _Graded:
    """The anchors as arrays, in ascending order of essay id, which stable sorts below keep among equals."""

    def __init__(
        self, grades: Mapping[str, str], scores: Mapping[str, float], ses: Mapping[str, float], scale: GradeScale
    ) -> None:
        self.scale = scale
        self.ids = sorted(grades)
        missing = [essay for essay in self.ids if essay not in scores or essay not in ses]
        if missing:
            raise InputError(f"no score and standard error for {', '.join(missing[:5])}: score the whole batch first")
        self.grades = [grades[essay] for essay in self.ids]
        self.numbers = np.array([scale.index(grade) for grade in self.grades], dtype=np.int64)
        self.scores = np.array([scores[essay] for essay in self.ids], dtype=np.float64)
        self.ses = np.array([ses[essay] for essay in self.ids], dtype=np.float64)
        self.index = {essay: k for k, essay in enumerate(self.ids)}

    def aligned(
        self, rank_bounds: NDArray[np.int64], wins: NDArray[Any], losses: NDArray[Any]
    ) -> tuple[AnchorAlignment, ...]:
        from scipy.stats import rankdata

        ranks, expected = rankdata(-self.scores), rankdata(-self.numbers)
        return tuple(
            AnchorAlignment(
                essay_id=self.ids[k],
                grade=self.grades[k],
                score=float(self.scores[k]),
                se=float(self.ses[k]),
                rank=float(ranks[k]),
                rank_interval=(int(rank_bounds[k, 0]), int(rank_bounds[k, 1])),
                expected_rank=float(expected[k]),
                wins=int(wins[k]),
                losses=int(losses[k]),
            )
            for k in np.argsort(-self.scores, kind="stable")
        )


def _tau_agreement(tau: KendallTau, true: AlignmentDraws) -> TauAgreement:
    return TauAgreement(
        tau_b=tau.tau_b if tau.tied_scores < tau.pairs else 0.0,
        tau_a=tau.tau_a,
        attainable=tau.attainable,
        concordant=tau.concordant,
        discordant=tau.discordant,
        interval=true.tau_b_interval(),
        posterior_mean=float(true.tau_b.mean()),
        one_swap=2.0 / sqrt((tau.pairs - tau.tied_grades) * tau.pairs),
    )


def _direct_inversions(judged: Sequence[Comparison], anchors: _Graded) -> tuple[DirectInversion, ...]:
    won: dict[tuple[str, str], list[str]] = defaultdict(list)
    for comparison in judged:
        won[cast(str, comparison.winner_id), cast(str, comparison.loser_id)].append(comparison.comparison_id)
    number = {essay: int(anchors.numbers[k]) for essay, k in anchors.index.items()}
    inverted = [pair for pair in won if number[pair[0]] < number[pair[1]]]
    return tuple(
        DirectInversion(
            lower=lower,
            higher=higher,
            lower_grade=anchors.grades[anchors.index[lower]],
            higher_grade=anchors.grades[anchors.index[higher]],
            lower_wins=len(won[lower, higher]),
            higher_wins=len(won.get((higher, lower), ())),
            comparison_ids=tuple(won[lower, higher]),
        )
        for lower, higher in sorted(inverted, key=lambda pair: (number[pair[0]] - number[pair[1]], pair))
    )


def _top_regressions(anchors: _Graded) -> tuple[TopRegression, ...]:
    by_score = np.argsort(-anchors.scores, kind="stable")
    top = [
        k
        for k in np.argsort(-anchors.numbers, kind="stable")
        if anchors.numbers[k] >= len(anchors.scale.labels) - TOP_GRADES
    ]
    above = {
        k: [m for m in by_score if anchors.numbers[m] < anchors.numbers[k] and anchors.scores[m] > anchors.scores[k]]
        for k in top
    }
    return tuple(
        TopRegression(essay_id=anchors.ids[k], grade=anchors.grades[k], below=tuple(anchors.ids[m] for m in above[k]))
        for k in top
        if above[k]
    )


def _neighbour_inversions(anchors: _Graded, true: AlignmentDraws) -> tuple[NeighbourInversion, ...]:
    present = np.unique(anchors.numbers)
    pairs = [
        (int(low), int(high))
        for lower, higher in pairwise(present)
        for low in np.flatnonzero(anchors.numbers == lower)
        for high in np.flatnonzero(anchors.numbers == higher)
    ]
    inverted = [
        NeighbourInversion(
            lower=anchors.ids[low],
            higher=anchors.ids[high],
            lower_grade=anchors.grades[low],
            higher_grade=anchors.grades[high],
            probability=float((true.scores[:, low] > true.scores[:, high]).mean()),
        )
        for low, high in pairs
    ]
    return tuple(sorted(inverted, key=lambda pair: (-pair.probability, pair.lower, pair.higher)))


# -- targets ---------------------------------------------------------------------------------------------------

TargetName = Literal["inversions", "zero_win", "tau_b", "top_regressions"]


class AlignmentTargets(Value):
    """What a judge and prompt should reach on the ENG5 anchors (document 002; its baseline had 5, 1, .82 and 0).

    Attributes:
        most_inversions: direct inversions, at most.
        most_zero_win: anchors without a win, at most. Where every pair is judged once and no three judgments go in a
            circle, some anchor is last and wins nothing, so 0 asks for more judgments: the two of the lowest grade are
            equals and should each win when they meet again.
        least_tau_b: τ-b of the scores, at least.
        most_top_regressions: anchors of the two highest grades that score below a lower-graded one, at most.
    """

    most_inversions: int = 1
    most_zero_win: int = 0
    least_tau_b: float = 0.90
    most_top_regressions: int = 0


class TargetVerdict(Value):
    """One figure against its target.

    Attributes:
        name: of the target.
        value, target: the figure and its limit.
        met: whether it is within.
        text: in plain words, naming the anchors concerned.
    """

    name: TargetName
    value: float
    target: float
    met: bool
    text: str


def judge_targets(alignment: Alignment, targets: AlignmentTargets | None = None) -> tuple[TargetVerdict, ...]:
    """Hold an alignment against targets, one verdict each; the defaults if none are given."""
    limits = targets or AlignmentTargets()
    inverted = [
        f"{pair.lower} ({pair.lower_grade}) beat {pair.higher} ({pair.higher_grade})" for pair in alignment.inversions
    ]
    fallen = [f"{top.essay_id} ({top.grade}) is below {_some(top.below)}" for top in alignment.top_regressions]
    return (
        _at_most("inversions", "direct inversions", inverted, limits.most_inversions),
        _zero_win_verdict(alignment, limits.most_zero_win),
        _tau_verdict(alignment.tau, limits.least_tau_b),
        _at_most(
            "top_regressions", f"{'/'.join(alignment.top_grades)} regressions", fallen, limits.most_top_regressions
        ),
    )


def _at_most(name: TargetName, what: str, found: Sequence[str], most: int, hint: str = "") -> TargetVerdict:
    named = f" ({_some(found)})" if found else ""
    met = len(found) <= most
    text = f"{what}: {len(found)}{named}, at most {most} wanted" + ("" if met else hint)
    return TargetVerdict(name=name, value=len(found), target=most, met=met, text=text)


def _zero_win_verdict(alignment: Alignment, most: int) -> TargetVerdict:
    lowest = max(alignment.anchors, key=lambda anchor: anchor.expected_rank).grade
    grades = {anchor.essay_id: anchor.grade for anchor in alignment.anchors}
    hint = ""
    if [grades[essay] for essay in alignment.zero_win] == [lowest]:
        hint = (
            f"; it has the lowest grade, {lowest}, and the last of an order without contradictions wins nothing: judge "
            "every pair more than once to see whether it ever wins"
        )
    return _at_most("zero_win", "anchors without a win", alignment.zero_win, most, hint)


def _tau_verdict(tau: TauAgreement, least: float) -> TargetVerdict:
    low, high = tau.interval
    text = f"τ-b is {tau.tau_b:.2f} (of the true scores {low:.2f} to {high:.2f} with 95 %), at least {least:.2f} wanted"
    if least > tau.attainable:
        text += f"; with these grades it cannot exceed {tau.attainable:.2f}, so no judge can reach the target"
    # a target such as 59/√(63·66) written out in decimals is met by itself
    return TargetVerdict(name="tau_b", value=tau.tau_b, target=least, met=tau.tau_b >= least - 1e-12, text=text)


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
