"""Summaries and flags against small batches worked out by hand."""

import json
from math import inf
from types import SimpleNamespace

import pytest

from cj_pipeline.core.diagnostics import bt_quality_flags, bt_se_summary
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.scoring import compute_bt_scores_and_se

# two anchors (A, B), three students (s, t, u); u was never judged
SES = {"A": 0.25, "B": 0.5, "s": 0.75, "t": 2.0, "u": 2.0}
PRIOR_FREE = {"A": 0.3, "B": 0.6, "s": 1.9, "t": 2.0, "u": inf}
PAIRS = [("A", "B"), ("s", "A"), ("A", "s"), ("t", "B")]
THRESHOLDS = {
    "bt_mean_se_warn_threshold": 0.4,
    "bt_max_se_warn_threshold": 0.8,
    "bt_min_mean_comparisons_per_item": 1.0,
    "bt_max_isolated_items_tolerated": 0,
}


def summary_of(ses=SES, prior_free=PRIOR_FREE, pairs=PAIRS, anchor_ids=("A", "B")):
    return bt_se_summary(ses, prior_free, pairs, cap=2.0, anchor_ids=anchor_ids)


def flags_of(scope, **thresholds):
    quiet = {"mean_se": 0.3, "max_se": 0.5, "mean_comparisons_per_item": 4.0, "isolated_items": 0}
    return bt_quality_flags({"all": quiet | scope}, SimpleNamespace(**(THRESHOLDS | thresholds)))


def raised(flags):
    return {name for name, value in flags.items() if value}


def test_the_summary_over_all_essays_is_what_a_hand_count_gives():
    assert summary_of()["all"] == {
        "mean_se": pytest.approx(1.1),
        "max_se": 2.0,
        "min_se": 0.25,
        "item_count": 5,
        "comparison_count": 4,
        "items_at_cap": 2,  # t exactly at it, u infinite; s at 1.9 is not
        "isolated_items": 1,
        "mean_comparisons_per_item": pytest.approx(8 / 5),
        "min_comparisons_per_item": 0,
        "max_comparisons_per_item": 3,
    }


def test_a_comparison_between_an_anchor_and_a_student_counts_for_both_groups():
    summary = summary_of()
    assert summary["anchors"] == {
        "mean_se": pytest.approx(0.375),
        "max_se": 0.5,
        "min_se": 0.25,
        "item_count": 2,
        "comparison_count": 4,
        "items_at_cap": 0,
        "isolated_items": 0,
        "mean_comparisons_per_item": pytest.approx(2.5),
        "min_comparisons_per_item": 2,
        "max_comparisons_per_item": 3,
    }
    assert summary["students"] == {
        "mean_se": pytest.approx(4.75 / 3),
        "max_se": 2.0,
        "min_se": 0.75,
        "item_count": 3,
        "comparison_count": 3,
        "items_at_cap": 2,
        "isolated_items": 1,
        "mean_comparisons_per_item": pytest.approx(1.0),
        "min_comparisons_per_item": 0,
        "max_comparisons_per_item": 2,
    }


def test_items_at_cap_are_counted_by_the_error_without_prior_not_by_the_reported_one():
    reported_small = dict.fromkeys(SES, 0.1)
    assert summary_of(ses=reported_small)["all"]["items_at_cap"] == 2
    assert summary_of(prior_free=dict.fromkeys(SES, 0.1))["all"]["items_at_cap"] == 0


def test_a_group_without_essays_has_zero_counts_and_no_means():
    assert summary_of(anchor_ids=())["anchors"] == {
        "mean_se": None,
        "max_se": None,
        "min_se": None,
        "item_count": 0,
        "comparison_count": 0,
        "items_at_cap": 0,
        "isolated_items": 0,
        "mean_comparisons_per_item": None,
        "min_comparisons_per_item": None,
        "max_comparisons_per_item": None,
    }


def test_a_real_batch_with_an_isolated_essay_gives_a_summary_that_json_carries_unchanged():
    settings = SimpleNamespace(bt_standard_error_max=2.0, **THRESHOLDS)
    summary = compute_bt_scores_and_se([], ["a", "b", "c"], settings, anchor_ids=["a"]).se_summary
    metadata = {"bt_se_summary": summary, "bt_quality_flags": bt_quality_flags(summary, settings)}
    assert json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    assert {type(value) for scope in summary.values() for value in scope.values()} <= {int, float}
    assert {type(value) for value in metadata["bt_quality_flags"].values()} == {bool}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior_free": {"A": 1.0}}, "same essays"),
        ({"pairs": [("A", "x")]}, "judged_pairs names essays that have no standard error: x"),
        ({"anchor_ids": ["y"]}, "anchor_ids names essays that have no standard error: y"),
    ],
)
def test_essays_that_do_not_belong_together_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        summary_of(**changes)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, set()),
        ({"mean_se": 0.41}, {"bt_se_inflated"}),
        ({"max_se": 0.81}, {"bt_se_inflated"}),
        ({"mean_comparisons_per_item": 0.99}, {"comparison_coverage_sparse"}),
        ({"isolated_items": 1}, {"has_isolated_items"}),
        # at its threshold nothing is flagged
        ({"mean_se": 0.4, "max_se": 0.8, "mean_comparisons_per_item": 1.0}, set()),
        (
            {"mean_se": 1.0, "mean_comparisons_per_item": 0.5, "isolated_items": 3},
            {"bt_se_inflated", "comparison_coverage_sparse", "has_isolated_items"},
        ),
        # a batch without essays
        ({"mean_se": None, "max_se": None, "mean_comparisons_per_item": None}, set()),
    ],
)
def test_each_flag_is_raised_by_its_own_figure_alone(scope, expected):
    assert raised(flags_of(scope)) == expected


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ({"bt_mean_se_warn_threshold": 0.29}, {"bt_se_inflated"}),
        ({"bt_max_se_warn_threshold": 0.49}, {"bt_se_inflated"}),
        ({"bt_min_mean_comparisons_per_item": 4.5}, {"comparison_coverage_sparse"}),
    ],
)
def test_each_flag_follows_its_own_setting(thresholds, expected):
    assert raised(flags_of({}, **thresholds)) == expected


def test_isolated_essays_up_to_the_tolerated_number_are_not_flagged():
    assert raised(flags_of({"isolated_items": 2}, bt_max_isolated_items_tolerated=2)) == set()
    assert raised(flags_of({"isolated_items": 3}, bt_max_isolated_items_tolerated=2)) == {"has_isolated_items"}


def test_flags_look_at_all_essays_not_at_a_group():
    # students alone are sparse (mean 1.0 against 1.5), the batch is not
    settings = SimpleNamespace(**(THRESHOLDS | {"bt_min_mean_comparisons_per_item": 1.5}))
    assert not bt_quality_flags(summary_of(), settings)["comparison_coverage_sparse"]
