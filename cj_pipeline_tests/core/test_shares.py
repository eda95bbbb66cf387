"""Shares and their intervals against published ones."""

import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.shares import share_of


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_of_shares_are_those_published_by_newcombe(count, total, low, high):
    """Newcombe (1998), Statistics in Medicine 17, 857-872, Table I, method 3."""
    assert share_of(count, total).interval == pytest.approx((low, high), abs=5e-5)


def test_a_share_of_nothing_is_unknown():
    assert share_of(0, 0).share is None
    assert share_of(0, 0).interval == (0.0, 1.0)


def test_more_cases_than_there_are_is_no_share():
    with pytest.raises(InputError, match="count <= total"):
        share_of(3, 2)
