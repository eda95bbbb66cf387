"""A run with stubbed judgments: the artefact that `execute` would write, complete, before any judge is asked.

Here: planning the batch's budget as one wave, drawing the answers, and the tables they make. Not here: the artefact
itself (`artefact_building`). No judge is opened and no ledger written. The answers are drawn from the seed: they say
nothing about essays or judges, and every one carries the provider `stub`.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from cj_pipeline.core.completion import is_small_net
from cj_pipeline.core.designs import WaveRequest, plan_whole_budget
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import (
    BatchKind,
    BatchStatus,
    ComparisonStatus,
    PlannedPair,
    Winner,
    check_batch_id,
)
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.artefact_building import RecordedRun
from cj_pipeline.eng5.inventory import Inventory, InventoryDocument
from cj_pipeline.eng5.rescoring import scored_tables, unstored_batch
from cj_pipeline.judges.injection import injection_signs
from cj_pipeline.judges.prompts import DEFAULT_SYSTEM_PROMPT, JudgeInstructions, build_prompt
from cj_pipeline.settings import BatchOverrides, BatchTunables, CJSettings, effective_tunables, resolve_budget
from cj_pipeline.workflow import frames
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.registration import code_version
from cj_pipeline.workflow.results import BatchResults

STUB: Final = "stub"
"""Provider and model of every judgment that nobody gave."""

STUB_JUSTIFICATION: Final = "Stub: drawn from the seed of a dry run; no judge was asked."
DRY_RUN_REASON: Final = "dry_run"


@dataclass(frozen=True)
class _Node:
    """An essay of the stubbed batch. `quality`, in grade steps, is what its answers are drawn by."""

    essay_id: str
    known_grade: str | None
    quality: float
    document: InventoryDocument


def dry_run(
    inventory: Inventory,
    scale: GradeScale,
    settings: CJSettings,
    *,
    batch_id: str,
    overrides: BatchOverrides | None = None,
    assignment_id: str | None = None,
    instructions: JudgeInstructions | None = None,
    seed: int | None = None,
    generated_at: datetime | None = None,
) -> RecordedRun:
    """A whole run with stubbed judgments, for `build_artefact` and `write_run`.

    The budget is planned as one wave, whatever the stop rule would say on the way. Answers follow the Bradley-Terry
    law with one logit per grade step; an anchor's place is its grade, a student's its quality, or drawn if it has
    none. The same inventory, settings and seed give the same answers.

    Args:
        inventory: the essays.
        scale: the scale of the anchors' grades.
        settings: what a batch would get.
        batch_id: name of the run.
        overrides: what the batch would bring along.
        assignment_id: the assignment that `execute` would use.
        instructions: what the judge would be told; by default the folder's instructions and judge prompt.
        seed: of the answers; by default the pairing's.
        generated_at: aware; by default now.

    Raises:
        InputError: the batch id is not usable, or the budget is above the cap.
        PlanningError: fewer than two essays.
    """
    check_batch_id(batch_id)
    stated = overrides or BatchOverrides()
    tunables = effective_tunables(settings, stated)
    budget = resolve_budget(settings, stated)
    now = generated_at or datetime.now(UTC)
    told = instructions or _folder_instructions(inventory, tunables)
    draws = random.Random(f"{tunables.pair_generation_seed if seed is None else seed}")
    nodes = _nodes(inventory, scale, batch_id, draws)
    pairs = _plan(nodes, batch_id, budget, tunables)
    comparisons = _stubbed(batch_id, pairs, {node.essay_id: node for node in nodes}, told, draws, now)
    essays = _essays(batch_id, nodes)
    batch = unstored_batch(
        batch_id,
        kind=BatchKind.ASSESSMENT,
        assignment_id=assignment_id,
        judge_profile=STUB,
        provider=STUB,
        model=STUB,
        simulated=True,
        overrides=stated.model_dump(mode="json", exclude_none=True),
        settings=tunables.model_dump(mode="json"),
        total_budget=budget,
        status=BatchStatus.COMPLETE_MAX_COMPARISONS,
        stop_reason=DRY_RUN_REASON,
        code_version=code_version(),
        correlation_id=f"dry-run-{batch_id}",
        created_at=now,
        completed_at=now,
    )
    tables = scored_tables(batch, scale, essays, comparisons) | {
        frames.ESSAYS.name: essays,
        frames.COMPARISONS.name: comparisons,
        frames.ATTEMPTS.name: frames.ATTEMPTS.frame([]),
        frames.BATCHES.name: _batches(batch_id, tunables),
    }
    return RecordedRun(
        mode=RunMode.DRY_RUN,
        results=BatchResults(batch=batch, tables=tables, projection=None, as_of=len(pairs)),
        instructions=told,
        inventory=inventory,
        grade_scale=scale.name,
        grade_scale_definition=None,
        generated_at=now,
    )


def _folder_instructions(inventory: Inventory, tunables: BatchTunables) -> JudgeInstructions:
    return JudgeInstructions(
        system_prompt=tunables.system_prompt or DEFAULT_SYSTEM_PROMPT,
        student_prompt=inventory.instructions.text,
        rubric=tunables.judge_rubric or inventory.prompt.text,
    )


def _nodes(inventory: Inventory, scale: GradeScale, batch_id: str, draws: random.Random) -> list[_Node]:
    lowest = scale.index(scale.grades[0])
    anchors = [
        _Node(
            anchor_node_id(batch_id, anchor.anchor_id),
            anchor.grade,
            float(scale.index(anchor.grade) - lowest),
            anchor.document,
        )
        for anchor in inventory.anchors
    ]
    students = []
    for student in inventory.students:
        drawn = draws.uniform(0.0, len(scale.grades) - 1.0)
        quality = drawn if student.quality is None else student.quality
        students.append(_Node(student.essay_id, None, quality, student.document))
    return sorted(anchors + students, key=lambda node: node.essay_id)


def _plan(nodes: Sequence[_Node], batch_id: str, budget: int, tunables: BatchTunables) -> list[PlannedPair]:
    request = WaveRequest(
        essay_ids=[node.essay_id for node in nodes],
        history=[],
        size=budget,
        scores={},
        ses={},
        seed=tunables.pair_generation_seed,
        batch_id=batch_id,
        wave=1,
        small_net=is_small_net(len(nodes), tunables),
        anchor_grades={node.essay_id: node.known_grade for node in nodes if node.known_grade is not None},
        balance_positions=tunables.enable_comparison_position_balancing,
    )
    return plan_whole_budget(
        tunables.pair_design,
        request,
        least=tunables.comparisons_per_stability_check_iteration,
        passes=tunables.max_resampling_passes_for_small_net,
    )


def _stubbed(
    batch_id: str,
    pairs: Sequence[PlannedPair],
    nodes: dict[str, _Node],
    told: JudgeInstructions,
    draws: random.Random,
    now: datetime,
) -> pl.DataFrame:
    rows = []
    for number, pair in enumerate(pairs, start=1):
        first, second = nodes[pair.essay_a], nodes[pair.essay_b]
        first_wins = draws.random() < 0.5 * (1.0 + math.tanh((first.quality - second.quality) / 2.0))
        winner, loser = (first, second) if first_wins else (second, first)
        rows.append(
            {
                "batch_id": batch_id,
                "wave": 1,
                "comparison_id": f"w00001-c{number:05d}",
                "essay_a": pair.essay_a,
                "essay_b": pair.essay_b,
                "winner": (Winner.A if first_wins else Winner.B).value,
                "winner_id": winner.essay_id,
                "loser_id": loser.essay_id,
                "confidence": draws.randint(1, 5),
                "justification": STUB_JUSTIFICATION,
                "justification_over_cap": False,
                "status": ComparisonStatus.JUDGED.value,
                "provider": STUB,
                "model": STUB,
                # of the prompt that a judge would have been given
                "prompt_sha256": build_prompt(told, first.document.text, second.document.text).sha256,
                "tokens_in": 0,
                "tokens_out": 0,
                "cost_usd": 0.0,
                "submitted_at": now,
                "completed_at": now,
                "attempts": 0,
                "pair_mode": pair.pair_mode.value,
            }
        )
    return frames.COMPARISONS.frame(rows)


def _essays(batch_id: str, nodes: Sequence[_Node]) -> pl.DataFrame:
    return frames.ESSAYS.frame(
        [
            {
                "batch_id": batch_id,
                "essay_id": node.essay_id,
                "is_anchor": node.known_grade is not None,
                "known_grade": node.known_grade,
                "text_sha256": node.document.text_sha256,
                "word_count": node.document.word_count,
                "injection_signs": None if node.known_grade else ",".join(injection_signs(node.document.text)),
            }
            for node in nodes
        ]
    )


def _batches(batch_id: str, tunables: BatchTunables) -> pl.DataFrame:
    """Only what an artefact reads of it: nothing was called, nothing paid."""
    row = {"batch_id": batch_id, "orphan_results": 0, "cost_usd": 0.0, "max_cost_usd": tunables.max_cost_usd}
    return frames.BATCHES.frame([row])
