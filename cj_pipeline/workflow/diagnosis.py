"""How far a batch's scale can be trusted: reliability, misfit, bias and validity, computed afresh from the ledger.

Everything here is for people: no decision reads it, and nothing is stored. What the figures are is in
`core.reliability`, `core.judgment_fit`, `core.judge_habits`, `core.predictions` and `core.validity`; this puts together
what is said about one batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isinf, isnan, log2, nan
from pathlib import Path
from typing import Any, Final

import numpy as np

from cj_pipeline.core.anchor_bank import AnchorBank, check_drift, night_scores
from cj_pipeline.core.bradley_terry import BradleyTerryFit, fit_bradley_terry
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.judge_habits import PositionBias, RepeatAgreement, position_bias, repeat_agreement
from cj_pipeline.core.judgment_fit import JudgmentFit, assess_fit
from cj_pipeline.core.judgment_table import judgment_table_of
from cj_pipeline.core.models import ComparisonStatus, Essay
from cj_pipeline.core.posterior import draw_posterior
from cj_pipeline.core.predictions import calibration_table, predict_wins, surprising_judgments
from cj_pipeline.core.reliability import (
    expected_r_squared,
    indistinguishable_groups,
    rank_intervals,
    score_intervals,
    shrunken_reliability,
    split_half,
)
from cj_pipeline.core.validity import Association, association_given_grade, group_differences
from cj_pipeline.core.words import quoted
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.workflow.calibration import anchor_items
from cj_pipeline.workflow.data_files import read_csv
from cj_pipeline.workflow.problems import name_in
from cj_pipeline.workflow.registration import scale_of

MISFIT_P: Final = 0.01
"""Essays whose infit or outfit has a p-value below this are listed; it takes 200 simulated judges to have one."""

LEAST_JUDGMENTS: Final = 10
"""Fewer judgments in the batch tell nothing about fit."""

_NAMED: Final = 10


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found, ready for JSON.

    Attributes:
        batch_id: the batch.
        summary: figures about the batch by name; None for one that cannot be had.
        essays: one row per essay, best first: score, interval, rank and its interval, infit and outfit with p-values
            and the limits (2.5 %, 97.5 %) of a perfect judge on the same pairs, None for an essay without judgments.
        groups: essays, by id and in the order of `essays`, that cannot be told apart (`reliability.told_apart`).
        surprises: the judgments to look at first.
        calibration: how often favourites won, by predicted chance.
        judges: infit and outfit of each provider and model that judged (prompts are a batch's own), likewise.
        drift: each anchor of the bank the batch was submitted with, as the batch's own judgments see it; empty without.
        validity: what goes with scores among essays of the same expert grade: length, and the groups given.
        notes: what to know when reading this, in sentences.
    """

    batch_id: str
    summary: dict[str, Any]
    essays: list[dict[str, Any]]
    groups: list[list[str]]
    surprises: list[dict[str, Any]]
    calibration: list[dict[str, Any]]
    judges: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    validity: list[dict[str, Any]]
    notes: list[str]


Groups = Mapping[str, Mapping[str, str]]
"""Column → essay id → the group the essay is in."""


def diagnose(
    ledger: Ledger,
    batch_id: str,
    *,
    groups: Groups | None = None,
    seed: int = 1,
    replications: int = 200,
    draws: int = 1000,
) -> Diagnosis:
    """Assess a batch's judgments and scale.

    Args:
        ledger: the ledger.
        batch_id: the batch.
        groups: of essays, as `read_groups` reads them, to be held against each other at the same expert grade.
        seed: of posterior draws and simulated judges.
        replications: simulated judges.
        draws: from the posterior.

    Raises:
        UnknownBatchError: no such batch.
        InputError: fewer than three essays, or fewer than `LEAST_JUDGMENTS` judgments.
    """
    batch = ledger.batch(batch_id)
    essays = sorted(ledger.essays(batch_id), key=lambda essay: essay.essay_id)
    ids = [essay.essay_id for essay in essays]
    judged = sorted(
        (c for c in ledger.comparisons(batch_id) if c.status is ComparisonStatus.JUDGED), key=lambda c: c.comparison_id
    )
    if len(ids) < 3 or len(judged) < LEAST_JUDGMENTS:
        raise InputError(
            f"batch {batch_id} has {len(ids)} essays and {len(judged)} judgments: a diagnosis needs at least 3 and "
            f"{LEAST_JUDGMENTS}"
        )
    table = judgment_table_of(judged, ids)
    fit = fit_bradley_terry(table.winners, table.losers, len(ids), winner_first=table.known_order())
    order_effect, prior_sd = fit.order_effect or 0.0, fit.prior_sd or 2.0
    drawn = draw_posterior(table, seed=seed, n_draws=draws, order_effect=True)
    flat = draw_posterior(table, seed=seed, n_draws=draws, width_prior="flat", order_effect=True)
    judges = {
        record.comparison_id: f"{record.provider} {record.model}" for record in ledger.comparison_records(batch_id)
    }
    misfit = assess_fit(
        table,
        drawn,
        seed=seed,
        prior_sd=prior_sd,
        replications=replications,
        judges=[judges[comparison.comparison_id] for comparison in judged],
    )
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
        "normal_share": _normal_share(fit),
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
                **_mean_square("infit", misfit.infit[item], misfit.infit_limits[item], misfit.infit_p[item]),
                **_mean_square("outfit", misfit.outfit[item], misfit.outfit_limits[item], misfit.outfit_p[item]),
            }
            for rank, item in enumerate(best_first, start=1)
        ],
        groups=[[ids[item] for item in group] for group in indistinguishable_groups(drawn, order=best_first)],
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
        judges=[
            {
                "judge": judge.judge,
                "judgments": judge.judgments,
                **_mean_square("infit", judge.infit, judge.infit_limits, judge.infit_p),
                **_mean_square("outfit", judge.outfit, judge.outfit_limits, judge.outfit_p),
            }
            for judge in misfit.judges
        ],
        drift=_drift(batch, ids, fit),
        validity=_validity(fit.scores.tolist(), essays, _expert_grades(ledger, batch_id, essays), groups or {}),
        notes=[*_notes(bias, misfit, ids), *_shape_notes(fit), *_bank_notes(batch)],
    )


def _drift(batch: BatchRecord, ids: Sequence[str], fit: BradleyTerryFit) -> list[dict[str, Any]]:
    """The batch's anchors against its bank, from its own judgments: `fit` is without the bank."""
    if batch.anchor_bank is None:
        return []
    bank = AnchorBank.model_validate(batch.anchor_bank)
    try:
        seen = check_drift(bank, night_scores(batch.batch_id, anchor_items(batch, bank, ids), fit))
    except InputError:
        return []  # too few anchors are connected yet
    return [
        {"anchor": one.anchor, "drift": one.drift, "se": None if isinf(one.se) else one.se, "z": one.z}
        | {"detectable": None if isinf(one.detectable) else one.detectable}
        for one in seen
    ]


def _normal_share(fit: BradleyTerryFit) -> float | None:
    """Probability that scores are normally spread; None where that was not examined."""
    if fit.posterior is None or not fit.posterior.examined:
        return None
    return fit.posterior.normal_share


def _shape_notes(fit: BradleyTerryFit) -> list[str]:
    if fit.posterior is None or fit.posterior.likeliest_shape() is None:
        return []
    return ["The scores are probably not normally spread: they and their intervals are those under a learned shape."]


def _bank_notes(batch: BatchRecord) -> list[str]:
    if batch.anchor_bank is None:
        return []
    nights = ", ".join(batch.anchor_bank["nights"])
    return [
        f"The batch was scored with an anchor bank (nights: {nights}); all figures here are of its own judgments "
        "alone, so that scores differ from the published ones."
    ]


def read_groups(path: Path) -> dict[str, dict[str, str]]:
    """Groups of essays from a CSV file with a column essay_id and one column per grouping; blank cells are unknown.

    Raises:
        InputError: the file cannot be read, or its faults, all at once, by row.
    """
    problems: list[str] = []
    rows = read_csv(path, path.parent, (("essay_id",),), problems)
    columns: dict[str, dict[str, str]] = {name: {} for name in (rows[0][1] if rows else {}) if name != "essay_id"}
    seen: set[str] = set()
    for where, cells in rows:
        essay_id = cells["essay_id"].strip()
        if essay_id in seen:
            problems.append(f"{where}: names the essay {quoted(essay_id)} again: keep one row")
        seen.add(essay_id)
        for name, groups in columns.items():
            if cells[name].strip():
                groups[essay_id] = cells[name].strip()
    if not columns:
        problems.append(f"{name_in(path, path.parent)}: has no groups: give essay_id and at least one more column")
    if problems:
        raise InputError("\n".join(problems))
    return columns


def _expert_grades(ledger: Ledger, batch_id: str, essays: Iterable[Essay]) -> list[float]:
    """The number of each essay's expert grade on its scale; not a number where it has none."""
    scale = scale_of(ledger, ledger.batch(batch_id))
    return [nan if scale is None or essay.known_grade is None else scale.index(essay.known_grade) for essay in essays]


def _validity(
    scores: Sequence[float], essays: Sequence[Essay], grades: Sequence[float], groups: Groups
) -> list[dict[str, Any]]:
    doublings = [log2(essay.word_count) if essay.word_count else nan for essay in essays]
    found: list[tuple[str, str, Association | None]] = [
        ("length", "per doubling", association_given_grade(scores, grades, doublings))
    ]
    for column, members in groups.items():
        unknown = sorted(set(members) - {essay.essay_id for essay in essays})
        if unknown:
            raise InputError(f"groups, {column}: {quoted(unknown[0])} is no essay of this batch: correct the id")
        differences = group_differences(scores, grades, [members.get(essay.essay_id) for essay in essays])
        found += [(column, str(group), difference) for group, difference in differences.items()]
    return [
        {
            "trait": trait,
            "value": value,
            "logits": None if told is None else told.slope,
            "low": None if told is None else told.low,
            "high": None if told is None else told.high,
            "p": None if told is None else told.p_value,
            "essays": 0 if told is None else told.essays,
        }
        for trait, value, told in found
    ]


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
                (f"{name}_low", None if figure.expected is None else figure.interval[0]),
                (f"{name}_high", None if figure.expected is None else figure.interval[1]),
                (f"{name}_p", figure.p_value),
            )
            for name, figure in figures.items()
        )
    )


def _mean_square(name: str, value: float, limits: Sequence[float], p: float) -> dict[str, float | None]:
    """One mean square, the limits of a perfect judge on the same pairs, and its p-value; None without judgments."""
    figures = {name: value, f"{name}_low": limits[0], f"{name}_high": limits[1], f"{name}_p": p}
    return {key: None if isnan(figure) else float(figure) for key, figure in figures.items()}


def _notes(bias: PositionBias, misfit: JudgmentFit, ids: list[str]) -> list[str]:
    return [
        "Expected r² is how well the best estimates of the scores should correlate, squared, with the scores that "
        "endless judging would give. It is the headline; the two figures below it mislead unless pairing ignored the "
        "results.",
        bias.verdict,
        _misfits(misfit, ids),
        _power(misfit),
        "All of this is precision. Whether the judge values what the rubric asks for, it cannot say.",
    ]


def _misfits(misfit: JudgmentFit, ids: list[str]) -> str:
    if misfit.least_p >= MISFIT_P:
        enough = round(2.0 / MISFIT_P)
        return f"{misfit.replications} simulated judges are too few to say which essays fit unusually: take {enough}."
    least = {essay: min(p, q) for essay, p, q in zip(ids, misfit.infit_p, misfit.outfit_p, strict=True) if not isnan(p)}
    unusual = [essay for essay in sorted(least, key=lambda essay: (least[essay], essay)) if least[essay] < MISFIT_P]
    if not unusual:
        return "No essay fits unusually badly or well."
    more = f" and {len(unusual) - _NAMED} more" if len(unusual) > _NAMED else ""
    return (
        f"Unusual fit (p < {MISFIT_P}): {len(unusual)} of {len(least)} essays, at most about "
        f"{2 * MISFIT_P * len(least):.1f} are expected by chance: {', '.join(unusual[:_NAMED])}{more}. Read them first."
    )


def _power(misfit: JudgmentFit) -> str:
    low, high = np.nanmedian(misfit.infit_limits, axis=0)
    return (
        f"A perfect judge's infit of the typical essay lies between {low:.2f} and {high:.2f} on these pairs (95 %): "
        "misfit within such limits these judgments cannot show."
    )
