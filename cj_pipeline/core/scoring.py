"""The scores of one batch by essay id: from its comparisons to scores, standard errors, intervals and counts.

Here judgments are checked and put in order, so that the same judgments give the same bits, and what the fit says of
items is said of essays. The fit itself is in `bradley_terry`, summaries are in `diagnostics`; `completion` says when a
batch is done, and grades are for `grades`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import numpy as np

from cj_pipeline.core.bradley_terry import BradleyTerryFit, FloatArray, IntArray, fit_bradley_terry
from cj_pipeline.core.diagnostics import SeSummary, bt_se_summary
from cj_pipeline.core.errors import InputError, listed
from cj_pipeline.core.models import Comparison, ComparisonStatus, Winner
from cj_pipeline.core.score_prior import KnownItems


class ScoringSettings(Protocol):
    """The setting that scoring reads."""

    @property
    def bt_standard_error_max(self) -> float:
        """Logits. Reported standard errors are capped here."""


@dataclass(frozen=True)
class BTScoringResult:
    """Scores, standard errors and counts of one batch by essay id. Made by `compute_bt_scores_and_se`.

    Attributes:
        essay_ids: ascending; the order of the items in `fit`, and of every dict below.
        scores: logits, summing to zero.
        ses: reported standard errors, logits, capped at `bt_standard_error_max`.
        ses_uncapped: the same without the cap; what pairs and whether anchors carry grades go by these.
        prior_free_ses: standard errors from the judgments alone, logits; infinite for an isolated essay.
        intervals: 95 % posterior intervals of the scores, logits (`BradleyTerryFit.score_intervals`).
        per_essay_counts: judged comparisons of each essay.
        wins, losses: of those, won and lost.
        components: label of each essay's connected component of the comparison graph; known anchors connect, too.
        se_summary: see `diagnostics.bt_se_summary`.
        fit: the fit itself, with the full covariance.
    """

    essay_ids: tuple[str, ...]
    scores: dict[str, float]
    ses: dict[str, float]
    ses_uncapped: dict[str, float]
    prior_free_ses: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    per_essay_counts: dict[str, int]
    wins: dict[str, int]
    losses: dict[str, int]
    components: dict[str, int]
    se_summary: SeSummary
    fit: BradleyTerryFit

    def ranking(self) -> list[str]:
        """Essay ids, best first; equal scores by id."""
        return sorted(self.essay_ids, key=lambda essay: (-self.scores[essay], essay))


def compute_bt_scores_and_se(
    judgments: Sequence[Comparison],
    essay_ids: Sequence[str],
    settings: ScoringSettings,
    *,
    anchor_ids: Collection[str] = (),
    known: KnownItems | None = None,
) -> BTScoringResult:
    """Score a batch from its comparisons, under the prior whose width is fitted to it, with the order effect.

    Scores and standard errors are those of the batch frame, with known anchors too.

    The result does not depend on the order of `judgments` or of `essay_ids`, to the last bit.

    Args:
        judgments: the batch's comparisons; only those with status JUDGED count.
        essay_ids: all essays of the batch, anchors included, judged or not; at least one.
        settings: where reported standard errors are capped, logits.
        anchor_ids: which of the essays are anchors (for `se_summary` only).
        known: anchors that the bank has placed, as items of the ascending essay ids (`AnchorBank.known_items`).

    Raises:
        InputError: no essay, an essay or comparison id given twice, a comparison or anchor that names an essay
            not in `essay_ids`, or a judged comparison without a winner.
    """
    ordered_ids = tuple(sorted(essay_ids))
    index = {essay: position for position, essay in enumerate(ordered_ids)}
    _require_sound_judgments(judgments, ordered_ids, index, anchor_ids)
    judged = sorted(
        (comparison for comparison in judgments if comparison.status is ComparisonStatus.JUDGED),
        key=lambda comparison: comparison.comparison_id,
    )
    results = [(cast(str, comparison.winner_id), cast(str, comparison.loser_id)) for comparison in judged]
    fit = fit_bradley_terry(
        np.array([index[winner] for winner, _ in results], dtype=np.int64),
        np.array([index[loser] for _, loser in results], dtype=np.int64),
        len(ordered_ids),
        winner_first=np.array([comparison.winner is Winner.A for comparison in judged], dtype=np.bool_),
        known=known,
    )
    wins = dict.fromkeys(ordered_ids, 0)
    losses = dict.fromkeys(ordered_ids, 0)
    for winner, loser in results:
        wins[winner] += 1
        losses[loser] += 1
    related = _related(fit.components, known)
    cap = settings.bt_standard_error_max
    uncapped = _by_id(ordered_ids, fit.standard_errors())
    capped = {essay: min(se, cap) for essay, se in uncapped.items()}
    prior_free = _by_id(ordered_ids, fit.prior_free_standard_errors())
    return BTScoringResult(
        essay_ids=ordered_ids,
        scores=_by_id(ordered_ids, fit.scores),
        ses=capped,
        ses_uncapped=uncapped,
        prior_free_ses=prior_free,
        intervals={
            essay: (low, high) for essay, (low, high) in zip(ordered_ids, fit.score_intervals().tolist(), strict=True)
        },
        per_essay_counts={essay: wins[essay] + losses[essay] for essay in ordered_ids},
        wins=wins,
        losses=losses,
        components={essay: int(related[position]) for essay, position in index.items()},
        se_summary=bt_se_summary(capped, prior_free, results, cap=cap, anchor_ids=anchor_ids),
        fit=fit,
    )


def _related(components: IntArray, known: KnownItems | None) -> IntArray:
    """Labels of what scores compare within: components that hold known items are one, since their places are known."""
    if known is None:
        return components
    of_known = np.unique(components[known.items])
    return np.where(np.isin(components, of_known), of_known[0], components)


def max_score_change(previous: Mapping[str, float] | None, current: Mapping[str, float]) -> float | None:
    """Largest |change of a score| over the essays in both, logits; None when there is nothing to compare with."""
    if not previous:
        return None
    return max((abs(current[essay] - previous[essay]) for essay in previous if essay in current), default=None)


def _require_sound_judgments(
    judgments: Sequence[Comparison], ordered_ids: Sequence[str], known: Mapping[str, int], anchor_ids: Collection[str]
) -> None:
    if not ordered_ids:
        raise InputError("essay_ids is empty: there is nothing to score")
    repeated = sorted({a for a, b in pairwise(ordered_ids) if a == b})
    if repeated:
        raise InputError(f"essay_ids names essays more than once: {listed(repeated)}")
    strangers = sorted(essay for essay in anchor_ids if essay not in known)
    if strangers:
        raise InputError(f"anchor_ids names essays that are not in essay_ids: {listed(strangers)}")
    seen: set[str] = set()
    for comparison in judgments:
        where = f"comparison {comparison.comparison_id}"
        if comparison.comparison_id in seen:
            raise InputError(f"{where} is given twice: a judgment counts once")
        seen.add(comparison.comparison_id)
        for essay in (comparison.essay_a, comparison.essay_b):
            if essay not in known:
                raise InputError(f"{where} names essay {essay}, which is not in essay_ids")
        if comparison.status is ComparisonStatus.JUDGED and comparison.winner is None:
            raise InputError(f"{where} is judged but has no winner")


def _by_id(essay_ids: Sequence[str], values: FloatArray) -> dict[str, float]:
    return {essay: float(value) for essay, value in zip(essay_ids, values, strict=True)}
