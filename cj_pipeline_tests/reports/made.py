"""Frames and figures of one batch, made up to be drawn and tabled."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from cj_pipeline.core.alignment import Alignment, measure_alignment
from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, Winner
from cj_pipeline.workflow import frames

SCALE = ["F", "F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A"]
LONG_IDS = [f"{'district-school-group-':x<60}{number:04d}" for number in range(10_000)]
EMPTY_SCORES = frames.BT_SCORES.frame([])
EMPTY_PROJECTIONS = frames.GRADE_PROJECTIONS.frame([])
EMPTY_COMPARISONS = frames.COMPARISONS.frame([])
EMPTY_WAVES = frames.WAVES.frame([])


def made_scores(count: int, *, anchors: int = 0, ids: list[str] | None = None, **changes: Any) -> pl.DataFrame:
    """`count` essays, best first; the last `anchors` of every other row are anchors with grades by rank."""
    values = np.random.default_rng(7).normal(0, 1.6, count)
    values = np.sort(values - values.mean())[::-1]
    anchor_rows = set(range(count)[:: max(1, count // anchors)][:anchors]) if anchors else set()
    rows = []
    for row, value in enumerate(values):
        is_anchor = row in anchor_rows
        plain = ids[row] if ids else f"essay-{row:03d}"
        rows.append(
            {
                "batch_id": "batch",
                "essay_id": f"ANCHOR_np-{row:03d}_{row:08x}" if is_anchor else plain,
                "is_anchor": is_anchor,
                "known_grade": SCALE[-1 - row * len(SCALE) // count] if is_anchor else None,
                "rank": row + 1,
                "score": float(value),
                "se": 0.3 + 0.01 * (row % 20),
                "se_uncapped": 0.3 + 0.01 * (row % 20),
                # farther out than in, as on a wide scale
                "score_low": float(value) - 0.6 - 0.1 * (value < 0),
                "score_high": float(value) + 0.6 + 0.1 * (value > 0),
                "comparisons": 10,
                "wins": 5,
                "losses": 5,
                "component": 0,
                "simulated": True,
                **changes,
            }
        )
    return frames.BT_SCORES.frame(rows)


def made_projections(
    scores: pl.DataFrame, *, scale: list[str] = SCALE, reason: str | None = None, confidence: float = 0.634
) -> pl.DataFrame:
    """A projection per essay, by rank; unavailable ones if a reason is given."""
    rows = []
    for row, essay in enumerate(scores.iter_rows(named=True)):
        grade = scale[-1 - row * len(scale) // scores.height]
        rows.append(
            {
                "batch_id": "batch",
                "essay_id": essay["essay_id"],
                "is_anchor": essay["is_anchor"],
                "known_grade": essay["known_grade"],
                "available": reason is None,
                "reason": reason,
                "grade": grade if reason is None else None,
                "confidence": confidence if reason is None else None,
                "label": "MID" if reason is None else None,
                "probabilities": [{"grade": name, "probability": 0.1} for name in scale] if reason is None else [],
                "simulated": True,
            }
        )
    return frames.GRADE_PROJECTIONS.frame(rows)


def made_comparisons(pairs: list[tuple[str, str]], *, status: str = "judged") -> pl.DataFrame:
    return frames.COMPARISONS.frame(
        [
            {
                "batch_id": "batch",
                "wave": 1,
                "comparison_id": f"c{number:05d}",
                "essay_a": essay_a,
                "essay_b": essay_b,
                "winner": "a" if status == "judged" else None,
                "winner_id": essay_a if status == "judged" else None,
                "loser_id": essay_b if status == "judged" else None,
                "justification": "it quotes the essay",
                "status": status,
                "tokens_in": 0,
                "tokens_out": 0,
                "attempts": 1,
                "pair_mode": "coverage",
            }
            for number, (essay_a, essay_b) in enumerate(pairs)
        ]
    )


def neighbours(scores: pl.DataFrame) -> pl.DataFrame:
    """Every essay against the next three."""
    ids = scores["essay_id"].to_list()
    return made_comparisons([(ids[i], ids[j]) for i in range(len(ids)) for j in range(i + 1, min(i + 4, len(ids)))])


def made_waves(changes: list[float | None], **last: Any) -> pl.DataFrame:
    """A wave per change, the first half coverage; each asks for more, unless `last` says otherwise of the last."""
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    rows = []
    for number, change in enumerate(changes, start=1):
        mode = "coverage" if number <= max(1, len(changes) // 2) else "resampling"
        rows.append(
            {
                "batch_id": "batch",
                "wave": number,
                "pair_mode": mode,
                "planned": 12,
                "judged": 11,
                "failed": 1,
                "callbacks": 12 * number,
                "max_score_change": change,
                "mean_se": 1.0 / number,
                "max_se": 2.0 / number,
                "decision": "REQUEST_MORE_COMPARISONS",
                "reason": mode,
                "started_at": moment,
                "ended_at": moment,
            }
        )
    rows[-1].update(last)
    return frames.WAVES.frame(rows)


def made_alignment(ids: Sequence[str] | None = None, *, inverted: int = 1) -> Alignment:
    """Twelve anchors on the ENG5 scale, a judgment per pair; the `inverted` lowest neighbours are swapped."""
    scale = get_grade_scale("eng5_np_legacy_9_step")
    ids = ids or [f"vt_{number:03}" for number in range(1, 13)]
    grades = dict(zip(ids, ("F+", "F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "B", "A", "A"), strict=True))
    order = list(ids)
    for swap in range(inverted):
        order[2 * swap + 2 : 2 * swap + 4] = order[2 * swap + 3 : 2 * swap + 1 : -1]
    comparisons = [
        Comparison(
            comparison_id=f"c{number:04}",
            wave=1,
            essay_a=worse,
            essay_b=better,
            pair_mode=PairMode.COVERAGE,
            status=ComparisonStatus.JUDGED,
            winner=Winner.B,
        )
        for number, (worse, better) in enumerate(combinations(order, 2))
    ]
    scores = {essay: 0.8 * (place - 5.5) for place, essay in enumerate(order)}
    return measure_alignment(comparisons, grades, scores, dict.fromkeys(ids, 0.6), scale, seed=1, n_draws=20)
