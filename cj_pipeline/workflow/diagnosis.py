"""How far a batch's scale can be trusted: reliability, intervals, misfit and bias, computed afresh from the ledger.

Everything here is for people: no decision reads it, and nothing is stored. What the figures are is in
`core.reliability` and `core.judgment_fit`; this puts together what is said about one batch.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judgment_fit import (
    JudgmentFit,
    PositionBias,
    RepeatAgreement,
    assess_fit,
    calibration_table,
    position_bias,
    predict_wins,
    repeat_agreement,
    surprising_judgments,
)
from cj_pipeline.core.judgment_table import judgment_table_of
from cj_pipeline.core.models import ComparisonStatus
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.reliability import (
    expected_r_squared,
    indistinguishable_groups,
    rank_intervals,
    score_intervals,
    shrunken_reliability,
    split_half,
)
from cj_pipeline.ledger import Ledger

MISFIT_P: Final = 0.01
"""Essays whose infit or outfit has a p-value below this are listed."""

LEAST_JUDGMENTS: Final = 10
"""Fewer judgments in the batch tell nothing about fit."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found, ready for JSON.

    Attributes:
        batch_id: the batch.
        summary: figures about the batch by name; None for one that cannot be had.
        essays: one row per essay, best first: score, interval, rank and its interval, infit and outfit with p-values.
        groups: sets of essays, by id, that cannot be told apart (95 %, simultaneously).
        surprises: the judgments to look at first.
        calibration: how often favourites won, by predicted chance.
        notes: what to know when reading this, in sentences.
    """

    batch_id: str
    summary: dict[str, Any]
    essays: list[dict[str, Any]]
    groups: list[list[str]]
    surprises: list[dict[str, Any]]
    calibration: list[dict[str, Any]]
    notes: list[str]


def diagnose(ledger: Ledger, batch_id: str, *, seed: int = 1, replications: int = 200, draws: int = 1000) -> Diagnosis:
    """Assess a batch's judgments and scale.

    Args:
        ledger: the ledger.
        batch_id: the batch.
        seed: of posterior draws and simulated judges.
        replications: simulated judges.
        draws: from the posterior.

    Raises:
        UnknownBatchError: no such batch.
        InputError: fewer than three essays, or fewer than `LEAST_JUDGMENTS` judgments.
    """
    ids = sorted(essay.essay_id for essay in ledger.essays(batch_id))
    judged = sorted(
        (c for c in ledger.comparisons(batch_id) if c.status is ComparisonStatus.JUDGED), key=lambda c: c.comparison_id
    )
    if len(ids) < 3 or len(judged) < LEAST_JUDGMENTS:
        ledger.batch(batch_id)  # an unknown one says so
        raise InputError(
            f"batch {batch_id} has {len(ids)} essays and {len(judged)} judgments: a diagnosis needs at least 3 and "
            f"{LEAST_JUDGMENTS}"
        )
    table = judgment_table_of(judged, ids)
    fit = fit_bradley_terry(table.winners, table.losers, len(ids), winner_first=table.known_order())
    order_effect, prior_sd = fit.order_effect or 0.0, fit.prior_sd or 2.0
    drawn = draw_posterior(table, seed=seed, n_draws=draws, order_effect=True)
    flat = draw_posterior(table, seed=seed, n_draws=draws, width_prior="flat", order_effect=True)
    misfit = assess_fit(table, drawn, seed=seed, prior_sd=prior_sd, replications=replications)
    bias = position_bias(table)
    repeats = repeat_agreement(table, fit.scores, order_effect=order_effect)
    r_squared = expected_r_squared(flat)
    halves = split_half(table, seed=seed, prior_sd=prior_sd)
    scores, ranks = score_intervals(drawn), rank_intervals(drawn)
    best_first = sorted(range(len(ids)), key=lambda item: (-fit.scores[item], ids[item]))
    low, high = fit.prior_sd_interval or (prior_sd, prior_sd)
    summary = {
        "judgments": len(judged),
        "expected_r2": None if r_squared is None else r_squared.mean,
        "expected_r2_low": None if r_squared is None else r_squared.low,
        "split_half": None if halves is None else halves.reliability,
        "shrunken_reliability": shrunken_reliability(fit.scores, fit.standard_errors()),
        "prior_sd": prior_sd,
        "prior_sd_low": low,
        "prior_sd_high": high,
        "order_effect": fit.order_effect,
        "order_effect_se": fit.order_effect_se,
        **_bias(bias),
        **_repeats(repeats),
        **_fit(misfit),
        "draws": drawn.method,
        "seed": seed,
    }
    return Diagnosis(
        batch_id=batch_id,
        summary=summary,
        essays=[
            {
                "rank": rank,
                "essay_id": ids[item],
                "score": float(fit.scores[item]),
                "score_low": float(scores[item, 0]),
                "score_high": float(scores[item, 1]),
                "rank_low": int(ranks[item, 0]),
                "rank_high": int(ranks[item, 1]),
                "judgments": int(fit.comparison_counts[item]),
                "infit": float(misfit.infit[item]),
                "infit_p": float(misfit.infit_p[item]),
                "outfit": float(misfit.outfit[item]),
                "outfit_p": float(misfit.outfit_p[item]),
            }
            for rank, item in enumerate(best_first, start=1)
        ],
        groups=[[ids[item] for item in group] for group in indistinguishable_groups(drawn)],
        surprises=[
            {
                "comparison_id": judged[found.row].comparison_id,
                "winner_id": ids[found.winner],
                "loser_id": ids[found.loser],
                "chance": found.chance,
            }
            for found in surprising_judgments(table, fit.scores, order_effect=order_effect)
        ],
        calibration=[
            {
                "low": part.low,
                "high": part.high,
                "predicted": part.predicted,
                "won": part.won.share,
                "won_low": part.won.interval[0],
                "won_high": part.won.interval[1],
                "judgments": part.won.total,
            }
            for part in calibration_table(predict_wins(table, seed=seed, prior_sd=prior_sd, order_effect=True))
        ],
        notes=_notes(bias, misfit, ids),
    )


def _bias(bias: PositionBias) -> dict[str, Any]:
    return {
        "first_wins": bias.first_wins.share,
        "first_wins_low": bias.first_wins.interval[0],
        "first_wins_high": bias.first_wins.interval[1],
        "swapped_pairs": bias.swapped_pairs,
        "swapped_consistent": bias.consistent,
    }


def _repeats(repeats: RepeatAgreement) -> dict[str, Any]:
    same, other = repeats.same_order, repeats.other_order
    return {
        "repeat_agreement_same_order": same.share,
        "repeat_agreement_same_order_expected": same.expected,
        "repeat_agreement_other_order": other.share,
        "repeat_agreement_other_order_expected": other.expected,
    }


def _fit(misfit: JudgmentFit) -> dict[str, Any]:
    figures = {"transitivity": misfit.transitivity, "upsets": misfit.upsets}
    return dict(
        chain.from_iterable(
            (
                (name, figure.share),
                (f"{name}_expected", figure.expected),
                (f"{name}_p", figure.p_value),
            )
            for name, figure in figures.items()
        )
    )


def _notes(bias: PositionBias, misfit: JudgmentFit, ids: list[str]) -> list[str]:
    unusual = [essay for essay, p, q in zip(ids, misfit.infit_p, misfit.outfit_p, strict=True) if min(p, q) < MISFIT_P]
    by_chance = 2 * MISFIT_P * len(ids)
    notes = [
        "Expected r² is how well these scores should correlate, squared, with the scores that endless judging would "
        "give. It is the headline; the two figures below it are inflated unless pairing ignored the results.",
        bias.verdict,
    ]
    if unusual:
        notes.append(
            f"{len(unusual)} essays fit unusually (p < {MISFIT_P}; about {by_chance:.1f} are expected by chance): "
            f"{', '.join(unusual[:10])}. Read them first."
        )
    else:
        notes.append("No essay fits unusually badly or well.")
    notes.append("All of this is precision. Whether the judge values what the rubric asks for, it cannot say.")
    return notes
