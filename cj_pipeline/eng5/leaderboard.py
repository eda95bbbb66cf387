"""The leaderboard of judges and prompts against the experts, as the ledger tells it.

Here: which batches count, what makes a row, its figures, and the table that analysts query. Not here: the figures of
one row (`core.alignment`), the comparison of rows (`core.leaderboard`), the page and the files (`leaderboard_report`).

A row is a configuration: a judge with what was asked of it, and the texts of its prompts. All batches of a
configuration are one row, their judgments taken together, because all of them say something about the same judge. Rows
are compared only within a group: the same anchor texts with the same expert grades.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import polars as pl

from cj_pipeline.core.alignment import Alignment, AlignmentTargets, TargetVerdict, judge_targets, measure_and_draw
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.leaderboard import Standing, standings
from cj_pipeline.core.models import BatchKind, Comparison, Essay
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline.eng5.alignment_report import ReportedPrompt
from cj_pipeline.eng5.anchor_align import RUBRIC, SYSTEM, TASK, reported_prompts
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import BatchTunables
from cj_pipeline.workflow.frames import UTC, Column, Table

N_DRAWS: Final = 1000
"""Posterior draws of a row, of τ-b nearly independent ones: a probability near 1/2 is known to ± 0.02."""

_ASKED: Final = (
    "reasoning_effort",
    "output_verbosity",
    "llm_temperature",
    "thinking_budget_tokens",
    "llm_max_tokens",
)
"""Settings that change how a judge answers, and so make another configuration."""


@dataclass(frozen=True)
class Configuration:
    """A judge with what was asked of it, and what it read.

    Attributes:
        judge: the name it was submitted under.
        asked: settings that change its answers, by name; only those that were given.
        prompts: role → prompt. Two configurations with the same texts are the same whatever the prompts are called.
    """

    judge: str
    provider: str
    model: str
    simulated: bool
    asked: Mapping[str, Any]
    prompts: Mapping[str, ReportedPrompt] = field(repr=False)

    @property
    def key(self) -> str:
        """12 hexadecimal digits: the same for the same configuration, in every ledger."""
        texts = {role: prompt.sha256 for role, prompt in self.prompts.items()}
        content = [self.judge, self.provider, self.model, dict(self.asked), texts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def judge_text(self) -> str:
        """The judge as a reader knows it."""
        asked = ", ".join(f"{name.removeprefix('llm_')} {value}" for name, value in self.asked.items())
        return self.judge + (f" ({asked})" if asked else "")

    def prompt_name(self, role: str) -> str:
        """What a prompt is called; a dash where there is none."""
        prompt = self.prompts.get(role)
        return "–" if prompt is None else prompt.name

    def prompt_hash(self, role: str) -> str | None:
        """SHA-256 of a prompt's text; None where there is none."""
        prompt = self.prompts.get(role)
        return None if prompt is None else prompt.sha256


@dataclass(frozen=True)
class Row:
    """A configuration with what its judgments came to.

    Attributes:
        batches: ids of its batches, oldest first.
        alignment: of all their judgments together.
        verdicts: one per target.
        standing: among the rows of its group.
        failed: comparisons without a judgment.
        cost_usd: of all its batches; None if a price is unknown.
        tokens_in, tokens_out: over all calls.
        first_at, last_at: when its first batch was submitted and its last one ended, UTC.
    """

    configuration: Configuration
    batches: tuple[str, ...]
    alignment: Alignment
    verdicts: tuple[TargetVerdict, ...]
    standing: Standing
    failed: int
    cost_usd: float | None
    tokens_in: int
    tokens_out: int
    first_at: datetime
    last_at: datetime | None

    @property
    def targets_met(self) -> bool:
        """Whether every target was met."""
        return all(verdict.met for verdict in self.verdicts)


@dataclass(frozen=True)
class Group:
    """Rows that can be compared: the same anchors with the same grades.

    Attributes:
        key: 12 hexadecimal digits over the anchors' texts and grades.
        grades: of the anchors, low to high.
        rows: best first, by the posterior mean of τ-b.
    """

    key: str
    grades: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def one_swap(self) -> float:
        """By how much τ-b moves when two anchors of different grades that stand next to each other change places."""
        return self.rows[0].alignment.tau.one_swap

    @property
    def simulated(self) -> bool:
        """Whether no real judge is among the rows."""
        return all(row.configuration.simulated for row in self.rows)


@dataclass(frozen=True)
class Leaderboard:
    """All groups, the one with the latest batch first, and the batches that count for nothing, with the reason."""

    grade_scale: str
    groups: tuple[Group, ...]
    left_out: tuple[tuple[str, str], ...]

    @property
    def rows(self) -> int:
        """How many configurations there are."""
        return sum(len(group.rows) for group in self.groups)


# --- from the ledger ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """A batch that counts."""

    batch: BatchRecord
    essays: Sequence[Essay]
    configuration: Configuration
    seed: int


def ledger_leaderboard(
    ledger: Ledger, scale: GradeScale, targets: AlignmentTargets, *, n_draws: int = N_DRAWS
) -> Leaderboard:
    """The leaderboard over all finished batches of anchors judged as students, from the ledger alone.

    The same judgments give the same leaderboard. Some 3 s a row on one core at the default number of draws.

    Args:
        ledger: where the batches are.
        scale: of the expert grades.
        targets: what every row is held against.
        n_draws: posterior draws of a row.
    """
    left_out: dict[str, str] = {}
    by_anchors: dict[str, list[_Read]] = defaultdict(list)
    for batch in ledger.batches():
        if batch.kind is not BatchKind.ANCHOR_ALIGN:
            continue
        essays = ledger.essays(batch.batch_id)
        reason = _why_left_out(ledger, batch, essays, scale)
        if reason is not None:
            left_out[batch.batch_id] = reason
            continue
        by_anchors[_anchors_key(essays)].append(_read(ledger, batch, essays))
    groups = [_group(ledger, key, read, scale, targets, n_draws, left_out) for key, read in by_anchors.items()]
    groups.sort(key=lambda group: (max(row.first_at for row in group.rows), group.key), reverse=True)
    return Leaderboard(scale.name, tuple(groups), tuple(sorted(left_out.items())))


def countable_batches(ledger: Ledger) -> list[BatchRecord]:
    """The finished batches of anchors judged as students: when there is one more, the leaderboard is out of date."""
    return [batch for batch in ledger.batches() if batch.kind is BatchKind.ANCHOR_ALIGN and batch.status.has_grades]


def _why_left_out(ledger: Ledger, batch: BatchRecord, essays: Sequence[Essay], scale: GradeScale) -> str | None:
    if not batch.status.is_final:
        return f"is {batch.status.value}, not over yet"
    if not batch.status.has_grades:
        return f"ended as {batch.status.value} ({batch.stop_reason})"
    if any(essay.known_grade is None for essay in essays):
        return "has essays without an expert grade"
    strangers = sorted({essay.known_grade or "" for essay in essays} - set(scale.labels))
    if strangers:
        return f"has grades that are not on the scale {scale.name}: {', '.join(strangers)}"
    if len({essay.known_grade for essay in essays}) < 2:
        return "has anchors of one grade only"
    if not ledger.state(batch.batch_id).judged:
        return "has no judgment"
    return None


def _read(ledger: Ledger, batch: BatchRecord, essays: Sequence[Essay]) -> _Read:
    tunables = BatchTunables.model_validate(batch.settings)
    stated = {name: getattr(tunables, name) for name in _ASKED}
    return _Read(
        batch=batch,
        essays=essays,
        configuration=Configuration(
            judge=batch.judge_profile,
            provider=batch.provider,
            model=batch.model,
            simulated=batch.simulated,
            asked={name: value for name, value in stated.items() if value is not None},
            prompts={prompt.role: prompt for prompt in reported_prompts(ledger, batch, tunables)},
        ),
        seed=tunables.pair_generation_seed,
    )


def _anchors_key(essays: Iterable[Essay]) -> str:
    content = sorted([essay.text_sha256, essay.known_grade] for essay in essays)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _group(
    ledger: Ledger,
    key: str,
    read: Sequence[_Read],
    scale: GradeScale,
    targets: AlignmentTargets,
    n_draws: int,
    left_out: dict[str, str],
) -> Group:
    members: dict[str, list[_Read]] = defaultdict(list)
    for one in read:
        members[one.configuration.key].append(one)
    measured = [
        _measured(ledger, _distinct(of_row, left_out), read[0].essays, scale, n_draws) for of_row in members.values()
    ]
    # ties between leaders are settled by the key, not by the order in which batches came
    measured.sort(key=lambda one: one.configuration.key)
    stands = standings(np.stack([one.taus for one in measured], axis=1))
    rows = [one.row(targets, standing) for one, standing in zip(measured, stands, strict=True)]
    rows.sort(key=lambda row: -row.standing.mean)
    grades = sorted((essay.known_grade or "" for essay in read[0].essays), key=scale.index)
    return Group(key, tuple(grades), tuple(rows))


def _distinct(read: Sequence[_Read], left_out: dict[str, str]) -> list[_Read]:
    """The batches of a row without those of a simulated judge that drew the same random numbers again."""
    kept: dict[Any, _Read] = {}
    for one in read:
        twin = kept.setdefault(one.seed if one.configuration.simulated else one.batch.batch_id, one)
        if twin is not one:
            left_out[one.batch.batch_id] = (
                f"is simulated with the same seed as {twin.batch.batch_id}, so its answers are the same again"
            )
    return list(kept.values())


@dataclass(frozen=True)
class _Measured:
    configuration: Configuration
    batches: tuple[BatchRecord, ...]
    alignment: Alignment
    taus: np.ndarray
    failed: int
    cost_usd: float | None
    tokens_in: int
    tokens_out: int

    def row(self, targets: AlignmentTargets, standing: Standing) -> Row:
        ends = [batch.completed_at for batch in self.batches if batch.completed_at is not None]
        return Row(
            configuration=self.configuration,
            batches=tuple(batch.batch_id for batch in self.batches),
            alignment=self.alignment,
            verdicts=judge_targets(self.alignment, targets),
            standing=standing,
            failed=self.failed,
            cost_usd=self.cost_usd,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            first_at=min(batch.created_at for batch in self.batches),
            last_at=max(ends, default=None),
        )


def _measured(
    ledger: Ledger, read: Sequence[_Read], reference: Sequence[Essay], scale: GradeScale, n_draws: int
) -> _Measured:
    """All judgments of a configuration as if of one batch, under the essay ids of the group's first batch."""
    grades = {essay.essay_id: essay.known_grade or "" for essay in reference}
    comparisons = [one for each in read for one in _comparisons(ledger, each, reference)]
    records = [record for each in read for record in ledger.comparison_records(each.batch.batch_id)]
    costs = [ledger.cost_usd(each.batch.batch_id) for each in read]
    known = [cost for cost in costs if cost is not None]
    tunables = BatchTunables.model_validate(read[0].batch.settings)
    fitted = compute_bt_scores_and_se(comparisons, list(grades), tunables)
    batches = tuple(each.batch for each in read)
    # rows must not share random numbers: their draws are compared as independent ones
    content = [read[0].configuration.key, *(batch.batch_id for batch in batches)]
    seed = int.from_bytes(hashlib.sha256("\n".join(content).encode()).digest()[:6], "big")
    alignment, draws = measure_and_draw(
        comparisons, grades, fitted.scores, fitted.ses_uncapped, scale, seed=seed, n_draws=n_draws
    )
    return _Measured(
        configuration=read[0].configuration,
        batches=batches,
        alignment=alignment,
        taus=draws.tau_b,
        failed=sum(ledger.state(batch.batch_id).failed for batch in batches),
        cost_usd=sum(known) if len(known) == len(costs) else None,
        tokens_in=sum(record.tokens_in for record in records),
        tokens_out=sum(record.tokens_out for record in records),
    )


def _comparisons(ledger: Ledger, read: _Read, reference: Sequence[Essay]) -> list[Comparison]:
    def by_text(essays: Sequence[Essay]) -> list[str]:
        return [
            essay.essay_id for essay in sorted(essays, key=lambda one: (one.text_sha256, one.known_grade, one.essay_id))
        ]

    names = dict(zip(by_text(read.essays), by_text(reference), strict=True))
    batch_id = read.batch.batch_id
    return [
        comparison.model_copy(
            update={
                "comparison_id": f"{batch_id}/{comparison.comparison_id}",
                "essay_a": names[comparison.essay_a],
                "essay_b": names[comparison.essay_b],
            }
        )
        for comparison in ledger.comparisons(batch_id)
    ]


# --- the table ---------------------------------------------------------------------------------------------------

_TEXTS: Final = pl.List(pl.String)

ALIGNMENT_LEADERBOARD: Final = Table(
    "alignment_leaderboard",
    "one row per judge and prompts, held against the experts; compare rows only within an anchor group",
    (
        Column("anchor_group", pl.String, "the anchors' texts and grades: rows of other groups are not comparable"),
        Column("place", pl.Int64, "within the group, 1 the best, by tau_b_mean; see may_be_best before believing it"),
        Column(
            "may_be_best", pl.Boolean, "true if it cannot be told apart from the leader: the difference may be noise"
        ),
        Column("configuration", pl.String, "judge, what was asked of it and the prompts' texts, as a key"),
        Column("judge", pl.String, "the judge as it was submitted"),
        Column("provider", pl.String, "who judged"),
        Column("model", pl.String, "the judge's model"),
        Column("simulated", pl.Boolean, "true if no real judge was asked: prompts then make no difference"),
        Column("asked", pl.String, "settings that change the answers, as JSON"),
        Column("system_prompt", pl.String, "name of the system prompt"),
        Column("system_prompt_sha256", pl.String, "of its text", nullable=True),
        Column("rubric", pl.String, "name of the rubric"),
        Column("rubric_sha256", pl.String, "of its text", nullable=True),
        Column("student_prompt_sha256", pl.String, "of what the students were asked", nullable=True),
        Column("batches", _TEXTS, "the batches whose judgments are taken together"),
        Column("grade_scale", pl.String, "the grade scale"),
        Column("anchors", pl.Int64, "how many anchors"),
        Column("judgments", pl.Int64, "over all its batches"),
        Column("failed", pl.Int64, "comparisons without a judgment"),
        Column("tau_b", pl.Float64, "Kendall's tau-b between grades and fitted scores"),
        Column("tau_b_mean", pl.Float64, "posterior mean of tau-b of the true scores"),
        Column("tau_b_low", pl.Float64, "lower end of its 95 % interval"),
        Column("tau_b_high", pl.Float64, "upper end"),
        Column("tau_b_attainable", pl.Float64, "the greatest tau-b possible with these grades"),
        Column("one_swap", pl.Float64, "by how much tau-b moves when one pair changes places"),
        Column("p_best", pl.Float64, "probability that no row of the group is better; sums to 1 over the group"),
        Column("p_above_leader", pl.Float64, "probability that it is better than the leader, ties counted half"),
        Column("rank_low", pl.Int64, "best rank of its 95 % interval"),
        Column("rank_high", pl.Int64, "worst rank of its 95 % interval"),
        Column("expected_rank", pl.Float64, "posterior mean of the rank"),
        Column("inversions", pl.Int64, "pairs of anchors in which the lower-graded one won at least once"),
        Column("zero_win_anchors", _TEXTS, "anchors that won nothing"),
        Column("top_regressions", _TEXTS, "anchors of the two highest grades below a lower-graded one"),
        Column("first_wins", pl.Float64, "share of judgments won by the essay read first", nullable=True),
        Column("first_wins_low", pl.Float64, "lower end of its 95 % interval"),
        Column("first_wins_high", pl.Float64, "upper end"),
        Column("targets_met", pl.Boolean, "whether every target was met"),
        Column("targets_missed", _TEXTS, "names of the missed targets"),
        Column("cost_usd", pl.Float64, "US dollars over all calls; null if a price is unknown", nullable=True),
        Column("cost_usd_per_judgment", pl.Float64, "the same per judgment", nullable=True),
        Column("tokens_in", pl.Int64, "over all calls"),
        Column("tokens_out", pl.Int64, "over all calls"),
        Column("first_at", UTC, "its first batch was submitted, UTC"),
        Column("last_at", UTC, "its last batch ended, UTC", nullable=True),
    ),
)


def leaderboard_frame(leaderboard: Leaderboard) -> pl.DataFrame:
    """The leaderboard as rows of `ALIGNMENT_LEADERBOARD`, group by group, best first."""
    return ALIGNMENT_LEADERBOARD.frame(
        [
            _table_row(leaderboard.grade_scale, group, place, row)
            for group in leaderboard.groups
            for place, row in enumerate(group.rows, start=1)
        ]
    )


def _table_row(grade_scale: str, group: Group, place: int, row: Row) -> dict[str, Any]:
    configuration, alignment, standing = row.configuration, row.alignment, row.standing
    tau, position = alignment.tau, alignment.position.first_wins

    return {
        "anchor_group": group.key,
        "place": place,
        "may_be_best": standing.may_be_best,
        "configuration": configuration.key,
        "judge": configuration.judge,
        "provider": configuration.provider,
        "model": configuration.model,
        "simulated": configuration.simulated,
        "asked": json.dumps(dict(configuration.asked), sort_keys=True),
        "system_prompt": configuration.prompt_name(SYSTEM),
        "system_prompt_sha256": configuration.prompt_hash(SYSTEM),
        "rubric": configuration.prompt_name(RUBRIC),
        "rubric_sha256": configuration.prompt_hash(RUBRIC),
        "student_prompt_sha256": configuration.prompt_hash(TASK),
        "batches": list(row.batches),
        "grade_scale": grade_scale,
        "anchors": len(alignment.anchors),
        "judgments": alignment.judgments,
        "failed": row.failed,
        "tau_b": tau.tau_b,
        "tau_b_mean": standing.mean,
        "tau_b_low": tau.interval[0],
        "tau_b_high": tau.interval[1],
        "tau_b_attainable": tau.attainable,
        "one_swap": tau.one_swap,
        "p_best": standing.p_best,
        "p_above_leader": standing.p_above_leader,
        "rank_low": standing.rank_interval[0],
        "rank_high": standing.rank_interval[1],
        "expected_rank": standing.expected_rank,
        "inversions": len(alignment.inversions),
        "zero_win_anchors": list(alignment.zero_win),
        "top_regressions": [top.essay_id for top in alignment.top_regressions],
        "first_wins": position.share,
        "first_wins_low": position.interval[0],
        "first_wins_high": position.interval[1],
        "targets_met": row.targets_met,
        "targets_missed": [verdict.name for verdict in row.verdicts if not verdict.met],
        "cost_usd": row.cost_usd,
        "cost_usd_per_judgment": None if row.cost_usd is None else row.cost_usd / alignment.judgments,
        "tokens_in": row.tokens_in,
        "tokens_out": row.tokens_out,
        "first_at": row.first_at,
        "last_at": row.last_at,
    }
