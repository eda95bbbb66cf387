"""Judge against experts as document 002 means it, on batches worked out by hand and by brute force."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from cj_pipeline.core.alignment import (
    Alignment,
    AlignmentTargets,
    judge_targets,
    measure_alignment,
)
from cj_pipeline.core.errors import GradeScaleError, InputError
from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, Winner

LEGACY = get_grade_scale("eng5_np_legacy_9_step")
ENG5 = ("F+", "F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "B", "A", "A")
ANCHORS = {f"a{number:02}": grade for number, grade in enumerate(ENG5, start=1)}


def judged(number, winner, loser, *, winner_first=True, status=ComparisonStatus.JUDGED):
    first, second = (winner, loser) if winner_first else (loser, winner)
    return Comparison(
        comparison_id=f"c{number:04}",
        wave=1,
        essay_a=first,
        essay_b=second,
        pair_mode=PairMode.COVERAGE,
        status=status,
        winner=(Winner.A if winner_first else Winner.B) if status is ComparisonStatus.JUDGED else None,
    )


def aligned(comparisons, grades, order=None, **options):
    """The alignment of a batch whose scores fall by one logit from each essay of `order` to the next."""
    order = order or sorted(grades, key=lambda essay: (-LEGACY.index(grades[essay]), essay))
    scores = {essay: (len(order) - 1) / 2 - place for place, essay in enumerate(order)}
    options = {"seed": 1, "n_draws": 20} | options
    return measure_alignment(comparisons, grades, scores, dict.fromkeys(order, 0.5), LEGACY, **options)


def every_pair_by(order):
    """A judge who puts the better of `order` first in every pair, once."""
    return [
        judged(number, better, worse, winner_first=bool(number % 2))
        for number, (better, worse) in enumerate(combinations(order, 2))
    ]


BEST_FIRST = sorted(ANCHORS, reverse=True)

FOUR = {"w": "F+", "x": "C-", "y": "B", "z": "A"}
BY_HAND = [
    judged(1, "z", "w"),
    judged(2, "z", "x"),
    judged(3, "y", "z", winner_first=False),  # B beats A
    judged(4, "x", "y"),  # C- beats B …
    judged(5, "x", "y", winner_first=False),  # … twice …
    judged(6, "y", "x"),  # … and loses once: one inversion all the same
    judged(7, "y", "w"),
    judged(8, "w", "y", status=ComparisonStatus.FAILED),
    judged(9, "x", "w"),
]


@pytest.fixture(scope="module")
def by_hand() -> Alignment:
    return aligned(BY_HAND, FOUR, ["x", "z", "y", "w"])


# -- figures of one batch ----------------------------------------------------------------------------------------


def test_wins_losses_and_win_rates_are_counted_over_successful_judgments(by_hand):
    record = {a.essay_id: (a.wins, a.losses, a.win_rate) for a in by_hand.anchors}
    assert record == {"x": (3, 2, 0.6), "z": (2, 1, 2 / 3), "y": (3, 2, 0.6), "w": (0, 3, 0.0)}
    assert by_hand.judgments == 8
    assert [a.essay_id for a in by_hand.anchors] == ["x", "z", "y", "w"]
    assert [(a.rank, a.expected_rank) for a in by_hand.anchors] == [(1, 3), (2, 1), (3, 2), (4, 4)]


def test_an_inversion_is_a_pair_however_often_it_was_judged_and_names_the_comparisons(by_hand):
    assert [(i.lower, i.higher, i.lower_wins, i.higher_wins, i.comparison_ids) for i in by_hand.inversions] == [
        ("x", "y", 2, 1, ("c0004", "c0005")),
        ("y", "z", 1, 0, ("c0003",)),
    ]
    assert (by_hand.inversions[0].lower_grade, by_hand.inversions[0].higher_grade) == ("C-", "B")


def test_an_anchor_without_a_win_is_named_and_so_is_one_without_judgments(by_hand):
    assert by_hand.zero_win == ("w",)
    assert aligned(BY_HAND, FOUR | {"v": "D+"}).zero_win == ("w", "v")


def test_tops_that_scored_below_a_lower_grade_are_named_with_those_above_them(by_hand):
    assert [(r.essay_id, r.grade, r.below) for r in by_hand.top_regressions] == [("z", "A", ("x",)), ("y", "B", ("x",))]


def test_only_the_two_highest_grades_can_regress():
    order = ["a12", "a11", "a10", "a09", "a01", "a08", "a07", "a06", "a05", "a04", "a03", "a02"]
    alignment = aligned(every_pair_by(order), ANCHORS, order)
    assert alignment.tau.discordant == 6
    assert alignment.top_regressions == ()
    assert alignment.top_grades == ("A", "B")


def test_equal_grades_share_their_expected_rank_and_are_never_inverted():
    alignment = aligned(every_pair_by(BEST_FIRST), ANCHORS)
    expected = {a.essay_id: a.expected_rank for a in alignment.anchors}
    assert [expected[f"a{n:02}"] for n in range(1, 13)] == [11.5, 11.5, 10, 9, 8, 7, 6, 5, 3.5, 3.5, 1.5, 1.5]
    assert alignment.inversions == ()
    assert alignment.tau.tau_b == alignment.tau.attainable == pytest.approx(np.sqrt(63 / 66))
    assert alignment.tau.tau_a == pytest.approx(63 / 66)


def test_inversions_and_neighbours_are_those_found_by_trying_every_pair():
    rng = np.random.default_rng(1)
    ids = list(ANCHORS)
    comparisons = [judged(n, *rng.choice(ids, 2, replace=False), winner_first=rng.random() < 0.5) for n in range(150)]
    alignment = aligned(comparisons, ANCHORS)
    won = Counter((c.winner_id, c.loser_id) for c in comparisons)
    found = {(i.lower, i.higher): (i.lower_wins, i.higher_wins) for i in alignment.inversions}
    assert found == {
        (a, b): (won[a, b], won[b, a])
        for a in ids
        for b in ids
        if LEGACY.index(ANCHORS[a]) < LEGACY.index(ANCHORS[b]) and won[a, b]
    }
    # all nine grades have anchors, so neighbours are one step apart
    steps = {(a, b): LEGACY.index(ANCHORS[b]) - LEGACY.index(ANCHORS[a]) for a in ids for b in ids}
    assert {(n.lower, n.higher) for n in alignment.neighbours} == {pair for pair, step in steps.items() if step == 1}
    probabilities = [n.probability for n in alignment.neighbours]
    assert probabilities == sorted(probabilities, reverse=True)


def test_grades_with_none_between_them_are_neighbours_however_far_apart(by_hand):
    assert {(n.lower_grade, n.higher_grade) for n in by_hand.neighbours} == {("F+", "C-"), ("C-", "B"), ("B", "A")}


def test_a_pair_the_judge_always_inverts_is_probably_inverted_and_the_others_are_not():
    order = ["a12", "a11", "a10", "a09", "a08", "a07", "a05", "a06", "a04", "a03", "a02", "a01"]
    comparisons = [
        judged(10 * n + k, c.winner_id, c.loser_id, winner_first=bool(k % 2))
        for k in range(6)
        for n, c in enumerate(every_pair_by(order))
    ]
    alignment = aligned(comparisons, ANCHORS, order, n_draws=200)
    worst, *rest = alignment.neighbours
    assert (worst.lower, worst.higher) == ("a05", "a06")
    assert worst.probability > 0.9
    assert max(pair.probability for pair in rest) < 0.1
    assert all(a.rank_interval[0] <= a.rank <= a.rank_interval[1] for a in alignment.anchors)


def test_position_bias_is_that_of_the_reading_order():
    alignment = aligned([judged(n, "z", "w", winner_first=True) for n in range(12)], FOUR)
    assert alignment.position.first_wins.count == 12
    assert "favours the essay read first" in alignment.position.verdict


def test_neither_the_order_of_comparisons_nor_that_of_anchors_matters(by_hand):
    shuffled = {essay: FOUR[essay] for essay in "yzwx"}
    assert aligned(BY_HAND[::-1], shuffled, ["x", "z", "y", "w"]) == by_hand


def test_an_alignment_survives_json(by_hand):
    assert Alignment.model_validate_json(by_hand.model_dump_json()) == by_hand


def test_what_cannot_be_aligned_is_refused():
    with pytest.raises(InputError, match="no comparison of the batch has been judged"):
        aligned([judged(1, "z", "w", status=ComparisonStatus.FAILED)], FOUR)
    with pytest.raises(InputError, match="at least two grades"):
        aligned([judged(1, "z", "w")], {"z": "A", "w": "A"})
    with pytest.raises(InputError, match="names essay s1"):
        aligned([judged(1, "z", "s1")], FOUR)
    with pytest.raises(GradeScaleError, match="'G' is not on the scale"):
        aligned(BY_HAND, FOUR | {"w": "G"}, ["x", "z", "y", "w"])
    with pytest.raises(InputError, match="no score and standard error for w"):
        measure_alignment(BY_HAND, FOUR, dict.fromkeys("xyz", 0.0), dict.fromkeys("wxyz", 1.0), LEGACY, seed=1)


# -- targets -----------------------------------------------------------------------------------------------------


def verdicts(alignment, targets=None):
    return {verdict.name: verdict for verdict in judge_targets(alignment, targets)}


def swapped(*pairs):
    order = list(BEST_FIRST)
    for one, other in pairs:
        i, j = order.index(one), order.index(other)
        order[i], order[j] = order[j], order[i]
    return order


def test_five_inversions_of_twelve_anchors_are_the_tau_of_the_documents_baseline():
    """Document 002: batch 108 had 5 direct inversions, Kendall's τ of about 0.82, no A/B regression."""
    order = ["a12", "a11", "a10", "a09", "a07", "a08", "a05", "a06", "a01", "a03", "a04", "a02"]
    alignment = aligned(every_pair_by(order), ANCHORS, order)
    assert len(alignment.inversions) == alignment.tau.discordant == 5
    assert alignment.tau.tau_b == pytest.approx(0.82, abs=0.005)
    met = {name: verdict.met for name, verdict in verdicts(alignment).items()}
    assert met == {"inversions": False, "zero_win": False, "tau_b": False, "top_regressions": True}


def test_one_inversion_is_within_the_targets_and_two_are_not():
    one = swapped(("a06", "a05"))
    alignment = aligned(every_pair_by(one), ANCHORS, one)
    assert [name for name, verdict in verdicts(alignment).items() if not verdict.met] == ["zero_win"]
    # the last of an order without contradictions cannot win: only another judgment of the two lowest can help it
    again = [*every_pair_by(one), judged(999, "a01", "a02")]
    assert all(verdict.met for verdict in judge_targets(aligned(again, ANCHORS, one)))
    two = swapped(("a06", "a05"), ("a04", "a03"))
    found = verdicts(aligned(every_pair_by(two), ANCHORS, two))
    assert not found["inversions"].met and found["tau_b"].met
    assert "a05 (D-) beat a06 (D+)" in found["inversions"].text


def test_a_verdict_on_anchors_without_a_win_says_when_the_lowest_grade_could_not_help_it(by_hand):
    text = verdicts(by_hand)["zero_win"].text
    assert text.startswith("anchors without a win: 1 (w), at most 0 wanted; it has the lowest grade, F+")
    order = ["z", "w", "y", "x"]
    text = verdicts(aligned(every_pair_by(order), FOUR, order))["zero_win"].text
    assert text == "anchors without a win: 1 (x), at most 0 wanted"


def test_a_tau_that_ties_put_out_of_reach_is_called_so():
    grades = {"a": "F+", "b": "F+", "c": "F+", "d": "A", "e": "A"}
    order = ["e", "d", "c", "b", "a"]
    verdict = verdicts(aligned(every_pair_by(order), grades, order))["tau_b"]
    assert not verdict.met and "cannot exceed 0.77" in verdict.text
    exact = AlignmentTargets(least_tau_b=float(np.sqrt(6 / 10)))
    assert verdicts(aligned(every_pair_by(order), grades, order), exact)["tau_b"].met
