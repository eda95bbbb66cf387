"""Hints that count, hints that do not, and how a wave is cut into bundles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cj_pipeline.judges.batching import bundle_hint, bundle_size, bundles


@pytest.mark.parametrize("hint", [1, 2, 63, 64])
def test_an_integer_from_1_to_64_is_a_hint(hint):
    assert bundle_hint(hint) == hint


@pytest.mark.parametrize("hint", [0, -1, 65, 10**9, 1.0, 7.5, "8", "", None, True, False, [8]])
def test_anything_else_is_none(hint):
    assert bundle_hint(hint) is None


@pytest.mark.parametrize(
    ("wave", "hint", "use_hints", "largest", "expected"),
    [
        (18, None, True, 64, 18),  # the wave's own size
        (100, None, True, 64, 64),  # capped
        (18, 5, True, 64, 5),
        (18, 65, True, 64, 18),  # no hint: as if none were given
        (100, 50, True, 32, 32),  # never above what is allowed
        (18, 5, False, 64, 64),  # hints switched off
        (18, 5, False, 16, 16),
        (1, None, True, 64, 1),
    ],
)
def test_a_bundle_is_as_large_as_hint_wave_and_cap_allow(wave, hint, use_hints, largest, expected):
    assert bundle_size(wave, hint=hint, use_hints=use_hints, largest=largest) == expected


@given(count=st.integers(0, 300), size=st.integers(1, 64))
def test_bundles_hold_everything_once_and_in_order(count, size):
    items = list(range(count))
    cut = [list(bundle) for bundle in bundles(items, size)]
    assert [item for bundle in cut for item in bundle] == items
    assert all(len(bundle) == size for bundle in cut[:-1])
    assert all(1 <= len(bundle) <= size for bundle in cut)
