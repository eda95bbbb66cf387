"""The table of judgments: what it adds up, what it refuses, and how comparisons become rows."""

import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import judgment_table, judgment_table_of
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, Winner


def comparison(name, a, b, winner, status=ComparisonStatus.JUDGED):
    return Comparison(
        comparison_id=name, wave=1, essay_a=a, essay_b=b, pair_mode=PairMode.COVERAGE, status=status, winner=winner
    )


def test_pairs_add_up_whatever_the_reading_order_and_readings_keep_it_apart():
    table = judgment_table([0, 2, 2, 0], [2, 0, 0, 1], 3, [True, True, False, False])
    pairs, readings = table.pairs, table.readings
    assert list(zip(pairs.first, pairs.second, pairs.first_wins, pairs.second_wins, strict=True)) == [
        (0, 1, 1, 0),
        (0, 2, 1, 2),
    ]
    assert list(zip(readings.first, readings.second, readings.first_wins, readings.second_wins, strict=True)) == [
        (0, 2, 1, 1),
        (1, 0, 0, 1),
        (2, 0, 1, 0),
    ]
    assert table.judgment_counts().tolist() == [4, 1, 3]


def test_comparisons_become_rows_in_the_order_of_their_ids_and_only_judged_ones_count():
    table = judgment_table_of(
        [
            comparison("c2", "x", "y", Winner.B),
            comparison("c1", "z", "x", Winner.A),
            comparison("c3", "x", "y", None, ComparisonStatus.FAILED),
        ],
        ["x", "y", "z"],
    )
    assert table.winners.tolist() == [2, 1]
    assert table.losers.tolist() == [0, 0]
    assert table.known_order().tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0], [1, 2], 3), "equal length"),
        (([0], [3], 3), r"losers\[0\] is 3"),
        (([1], [1], 3), "compared with itself"),
        (([0.5], [1], 3), "must be integers"),
        (([0], [1], 0), "positive integer"),
        (([0], [1], 2, [1]), "booleans"),
    ],
)
def test_arrays_that_are_no_judgments_are_refused_in_words(arguments, words):
    with pytest.raises(InputError, match=words):
        judgment_table(*arguments)


def test_an_essay_that_is_not_listed_is_refused_by_name():
    with pytest.raises(InputError, match="c1 names essay y"):
        judgment_table_of([comparison("c1", "x", "y", Winner.A)], ["x"])


def test_the_reading_order_must_be_known_where_it_is_used():
    with pytest.raises(InputError, match="winner_read_first"):
        _ = judgment_table([0], [1], 2).readings
