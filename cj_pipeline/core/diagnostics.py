"""How good the data of a batch are: standard-error and coverage summaries, and the flags read from them.

Gauges, not steering wheels: no decision of the program may depend on anything in here. Scores and standard errors
are made in `bradley_terry`, which uses this module and not the other way round; thresholds come from the settings
through a protocol.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import fsum
from typing import Protocol

from cj_pipeline.core.errors import InputError

SeScope = dict[str, float | int | None]
SeSummary = dict[str, SeScope]


class QualityThresholds(Protocol):
    """The settings that `bt_quality_flags` compares with."""

    @property
    def bt_mean_se_warn_threshold(self) -> float:
        """Logits."""

    @property
    def bt_max_se_warn_threshold(self) -> float:
        """Logits."""

    @property
    def bt_min_mean_comparisons_per_item(self) -> float:
        """Judged comparisons per essay."""

    @property
    def bt_max_isolated_items_tolerated(self) -> int:
        """Essays."""


def bt_se_summary(
    ses: Mapping[str, float],
    prior_free_ses: Mapping[str, float],
    judged_pairs: Sequence[tuple[str, str]],
    *,
    cap: float,
    anchor_ids: Collection[str] = (),
) -> SeSummary:
    """Summarise standard errors and coverage over all essays, over anchors and over students.

    Args:
        ses: reported (capped) standard error of each essay, logits.
        prior_free_ses: standard error of each essay from its judgments alone, logits; infinite without judgments.
        judged_pairs: the two essays of each judged comparison, once per judgment, in any order.
        cap: logits. An essay is at the cap when its *prior-free* SE reaches it: a prior makes every SE finite and
            would hide the essays about which the judgments say next to nothing.
        anchor_ids: the essays that are anchors; all others are students.

    Returns:
        A JSON-serialisable dict with the keys `all`, `anchors` and `students`, each with `mean_se`, `max_se`,
        `min_se` (logits), `item_count`, `comparison_count` (judged comparisons with at least one essay of the
        group, so that one between an anchor and a student counts for both), `items_at_cap`, `isolated_items`
        (essays without a judged comparison), `mean_comparisons_per_item`, `min_comparisons_per_item` and
        `max_comparisons_per_item`. A mean, minimum or maximum over an empty group is None.

    Raises:
        InputError: if the two mappings name different essays, or a pair or anchor names an essay without an SE.
    """
    if ses.keys() != prior_free_ses.keys():
        raise InputError("bt_se_summary: ses and prior_free_ses must name the same essays")
    _require_known("judged_pairs", (essay for pair in judged_pairs for essay in pair), ses)
    _require_known("anchor_ids", anchor_ids, ses)
    anchors = set(anchor_ids)
    groups = {"all": set(ses), "anchors": anchors, "students": set(ses) - anchors}
    return {name: _scope(group, ses, prior_free_ses, judged_pairs, cap) for name, group in groups.items()}


def bt_quality_flags(
    summary: Mapping[str, Mapping[str, float | int | None]], settings: QualityThresholds
) -> dict[str, bool]:
    """Compare a batch's `bt_se_summary` with the warning thresholds. Observability only: nothing may decide by it.

    Args:
        summary: as `bt_se_summary` returns it; only its `all` scope is read.
        settings: the thresholds, in the units of the summary.

    Returns:
        `bt_se_inflated`: the mean or the largest reported SE is above its threshold.
        `comparison_coverage_sparse`: the mean number of judged comparisons per essay is below its threshold.
        `has_isolated_items`: more essays without a judged comparison than tolerated.
        All three are False for a batch without essays.
    """
    scope = summary["all"]
    return {
        "bt_se_inflated": _above(scope["mean_se"], settings.bt_mean_se_warn_threshold)
        or _above(scope["max_se"], settings.bt_max_se_warn_threshold),
        "comparison_coverage_sparse": _above(
            settings.bt_min_mean_comparisons_per_item, scope["mean_comparisons_per_item"]
        ),
        "has_isolated_items": _above(scope["isolated_items"], settings.bt_max_isolated_items_tolerated),
    }


def _above(value: float | None, threshold: float | None) -> bool:
    """Whether value > threshold; a missing side (no essays) raises no flag."""
    return value is not None and threshold is not None and bool(value > threshold)


def _require_known(what: str, essay_ids: Iterable[str], known: Mapping[str, float]) -> None:
    unknown = sorted({essay for essay in essay_ids if essay not in known})
    if unknown:
        raise InputError(f"bt_se_summary: {what} names essays that have no standard error: {', '.join(unknown[:10])}")


def _scope(
    group: set[str],
    ses: Mapping[str, float],
    prior_free_ses: Mapping[str, float],
    judged_pairs: Sequence[tuple[str, str]],
    cap: float,
) -> SeScope:
    counts = dict.fromkeys(group, 0)
    touching = 0
    for pair in judged_pairs:
        members = [essay for essay in pair if essay in group]
        touching += bool(members)
        for essay in members:
            counts[essay] += 1
    values = [float(ses[essay]) for essay in group]
    return {
        # fsum is exact, so the mean does not depend on the order of a set
        "mean_se": fsum(values) / len(values) if values else None,
        "max_se": max(values, default=None),
        "min_se": min(values, default=None),
        "item_count": len(group),
        "comparison_count": touching,
        "items_at_cap": sum(bool(prior_free_ses[essay] >= cap) for essay in group),
        "isolated_items": sum(count == 0 for count in counts.values()),
        "mean_comparisons_per_item": sum(counts.values()) / len(group) if group else None,
        "min_comparisons_per_item": min(counts.values(), default=None),
        "max_comparisons_per_item": max(counts.values(), default=None),
    }
