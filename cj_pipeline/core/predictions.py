"""What the fit predicts of judgments: how often favourites win, and which judgments to look at first.

Each judgment is predicted from the judgments of other pairs, so that a prediction can fail. Gauges only: no decision
depends on them.

References:
    MacKay, D. J. C. (1992). The evidence framework applied to classification networks. Neural Computation 4, 720-736.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import pi
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cj_pipeline.core.bradley_terry import STEP_TOLERANCE, fit_bradley_terry
from cj_pipeline.core.bradley_terry_mode import find_mode
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_table import JudgmentTable, logistic
from cj_pipeline.core.pair_counts import counts_of
from cj_pipeline.core.score_prior import IndependentPrior
from cj_pipeline.core.shares import Share, share_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CALIBRATION_EDGES: Final = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class CalibrationBin:
    """Judgments whose favourite had a predicted chance between `low` and `high`.

    Attributes:
        low, high: edges of the bin.
        predicted: mean predicted chance of the favourite; None for an empty bin.
        won: share of these judgments that the favourite won, with its interval.
    """

    low: float
    high: float
    predicted: float | None
    won: Share


def predict_wins(
    table: JudgmentTable,
    *,
    seed: int,
    prior_sd: float | None = None,
    folds: int = 10,
    order_effect: bool = False,
) -> FloatArray:
    """(n_judgments,) chance that each judgment's winner had, predicted from the judgments of other pairs.

    Pairs (in either order) are dealt into folds; each fold is predicted from the fit to all others, the uncertainty of
    the difference included: logistic(d / √(1 + π v / 8)), v its variance (MacKay 1992).

    Args:
        table: the judgments.
        seed: of the deal.
        prior_sd: logits; the width scores are fitted under, fitted here when not given.
        folds: at least 2.
        order_effect: whether the reading order is in the model.

    Raises:
        InputError: fewer than 2 folds, or a reading order that is wanted and not known.
    """
    if folds < 2:
        raise InputError(f"folds must be at least 2, not {folds}")
    if not len(table):
        return np.zeros(0)
    width = prior_sd or fit_bradley_terry(table.winners, table.losers, table.n_items).prior_sd or 2.0
    n_pairs = len(table.pairs.first)
    fold = (np.random.default_rng(seed).permutation(n_pairs) % folds)[table.pairs.row]
    sign = np.where(table.known_order(), 1.0, -1.0) if order_effect else np.zeros(len(table))
    predicted = np.empty(len(table))
    for k in range(min(folds, n_pairs)):
        rest, held = table.rows(fold != k), np.flatnonzero(fold == k)
        counts = counts_of(rest.readings if order_effect else rest.pairs, ordered=order_effect)
        mode = find_mode(counts, IndependentPrior(width), np.zeros(table.n_items), 0.0, STEP_TOLERANCE)
        known = mode.information
        covariance = known.inverse()
        i, j = table.winners[held], table.losers[held]
        difference = mode.scores[i] - mode.scores[j] + sign[held] * mode.advantage
        variance = covariance[i, i] + covariance[j, j] - 2.0 * covariance[i, j]
        if order_effect:
            # scores and advantage have the covariance -border / complement
            with_advantage = 1.0 - 2.0 * sign[held] * (known.border[i] - known.border[j])
            variance += with_advantage * known.advantage_variance
        predicted[held] = logistic(difference / np.sqrt(1.0 + pi * variance / 8.0))
    return predicted


def calibration_table(winner_chances: ArrayLike) -> list[CalibrationBin]:
    """How often favourites won, by how likely they were to win; see `predict_wins`.

    Args:
        winner_chances: (n_judgments,) the chance each winner had, 0 to 1. Where it is exactly 1/2 there was no
            favourite, and the judgment is left out.

    Raises:
        InputError: a chance outside 0 to 1.
    """
    chances = np.asarray(winner_chances, dtype=np.float64)
    if not ((chances >= 0.0) & (chances <= 1.0)).all():
        raise InputError("winner_chances must be between 0 and 1")
    chances = chances[chances != 0.5]
    favourite = np.maximum(chances, 1.0 - chances)
    position = np.clip(np.searchsorted(CALIBRATION_EDGES, favourite, side="right") - 1, 0, len(CALIBRATION_EDGES) - 2)
    table = []
    for k, (low, high) in enumerate(pairwise(CALIBRATION_EDGES)):
        inside = position == k
        won = share_of(int((chances[inside] > 0.5).sum()), int(inside.sum()))
        table.append(CalibrationBin(low, high, float(favourite[inside].mean()) if won.total else None, won))
    return table


@dataclass(frozen=True)
class Surprise:
    """A judgment that the fitted scores make unlikely.

    Attributes:
        row: its row in the table.
        winner, loser: item indices.
        chance: the chance the winner had under the fit, below 1/2.
    """

    row: int
    winner: int
    loser: int
    chance: float


def surprising_judgments(
    table: JudgmentTable, scores: ArrayLike, *, most: int = 10, order_effect: float = 0.0
) -> list[Surprise]:
    """The judgments whose winner had the least chance, most surprising first; equal ones by their row.

    Args:
        table: the judgments.
        scores: (n_items,) fitted scores, logits.
        most: how many at most.
        order_effect: fitted advantage of the essay read first, logits; needs the reading order when not zero.

    Raises:
        InputError: `scores` has another length, or the reading order is needed and not known.
    """
    values = table.checked_scores(scores)
    difference = values[table.winners] - values[table.losers]
    if order_effect:
        difference += np.where(table.known_order(), order_effect, -order_effect)
    chance = logistic(difference)
    rows = np.lexsort((np.arange(chance.size), chance))[: max(most, 0)]
    return [
        Surprise(int(row), int(table.winners[row]), int(table.losers[row]), float(chance[row]))
        for row in rows
        if chance[row] < 0.5
    ]
