"""Mode `plan`: what an assessment of the ENG5 students would be, before anything is stored or paid.

Here: the checks that need no ledger, the budget, and what judging would bring and cost. Not here: reading the assets
(`inventory`), the simulation (`core.simulation`), printing (`cli`). Nothing is written.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from cj_pipeline.core.errors import RequestError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import BatchingMode
from cj_pipeline.core.simulation import BudgetRow, Exam, budget_table, even_budgets, simulate_exams, stopped_at
from cj_pipeline.eng5.batches import manifest_checksum
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.judges.catalogue import (
    judge_problems,
    judge_warnings,
    needs_quality,
    open_judge,
    provider_and_model,
)
from cj_pipeline.judges.pricing import cost_usd
from cj_pipeline.judges.prompts import build_prompt
from cj_pipeline.settings import BatchTunables, CJSettings, effective_tunables, parse_overrides, resolve_budget
from cj_pipeline.workflow.judging import judge_instructions, judge_setup
from cj_pipeline.workflow.problems import noted

ROWS: Final = 4
"""Numbers of judgments at which the expected accuracy is told."""

SEED: Final = 1
"""Of the simulated exams, so that the same plan says the same."""


@dataclass(frozen=True)
class ExpectedAccuracy:
    """What simulated exams of this size came to; see `core.simulation`.

    Attributes:
        exam: what was drawn.
        replications: how many exams.
        rows: at `ROWS` numbers of judgments up to the budget.
        stopped: judgments until the stop rule or the budget ends an exam: 10 % quantile, median, 90 % quantile.
        reasons: why exams ended → how many.
        at_stop: the measures at that point.
    """

    exam: Exam
    replications: int
    rows: tuple[BudgetRow, ...]
    stopped: tuple[float, float, float]
    reasons: dict[str, int]
    at_stop: BudgetRow


@dataclass(frozen=True)
class ExpectedCost:
    """What a named judge would cost, US dollars.

    Attributes:
        per_judgment: for two essays of median length, nothing cached and without reasoning beyond a short answer.
        per_call_at_most: for the two longest essays and an answer as long as the model may give; None if unknown.
        at_stop: for the median number of judgments of the simulated exams; None if none were simulated.
        at_budget: for the whole budget.
        never_more_than: for the whole budget, every comparison called as often as allowed, each call of the two
            longest essays and as long as the model may answer.
    """

    per_judgment: float
    per_call_at_most: float | None
    at_stop: float | None
    at_budget: float
    never_more_than: float | None


@dataclass(frozen=True)
class Plan:
    """What an assessment would be.

    Attributes:
        inventory: the material, checked.
        judge: who would judge.
        simulated: whether that judge only pretends.
        budget: comparisons that may be judged.
        worst_case_calls: the budget times the attempts that a comparison may take.
        warnings: what a person should know.
        accuracy: None if not asked for, or with fewer than two students.
        cost: None if the judge is simulated or has no known price.
    """

    inventory: Inventory
    judge: str
    simulated: bool
    budget: int
    worst_case_calls: int
    stop_rule: str
    warnings: tuple[str, ...]
    accuracy: ExpectedAccuracy | None
    cost: ExpectedCost | None


def make_plan(
    settings: CJSettings,
    inventory: Inventory,
    scale: GradeScale,
    *,
    judge: str,
    overrides: Mapping[str, Any],
    replications: int,
    today: date,
    progress: Callable[[int], None] = lambda _done: None,
) -> Plan:
    """Plan the assessment of an inventory's students against its anchors.

    Args:
        settings: of the process; a batch submitted now would get them.
        inventory: the material.
        scale: of the expert grades.
        judge: a simulated profile, or PROVIDER/MODEL.
        overrides: settings that the batch would bring along, by field.
        replications: simulated exams; 0 leaves the expected accuracy out.
        today: decides which prices hold.
        progress: told after each simulated exam how many are played.

    Raises:
        RequestError: everything that stands against it, at once.
    """
    brought = parse_overrides(
        {
            "student_prompt": inventory.instructions.text,
            "judge_rubric": inventory.prompt.text,
            **{name: value for name, value in overrides.items() if value is not None},
        },
        where="options",
    )
    tunables = effective_tunables(settings, brought)
    setup = judge_setup(settings, tunables)
    problems = judge_problems(judge, setup, today=today)
    simulated = not problems and needs_quality(judge)
    budget = 0
    with noted(problems):
        budget = resolve_budget(settings, brought)
    without = [student.essay_id for student in inventory.students if student.quality is None]
    if simulated and without:
        problems.append(
            f"student_essays/quality.csv: the judge {judge} is simulated and goes by a known quality, which is missing "
            f"for {', '.join(without[:5])}{' and more' if len(without) > 5 else ''}: add rows essay_id,quality (grade "
            "steps from 0 for the lowest grade), or name a real judge"
        )
    if problems:
        raise RequestError("ENG5 plan", problems)
    accuracy = _expected_accuracy(inventory, scale, tunables, budget, replications, progress)
    documents = [anchor.document for anchor in inventory.anchors] + [one.document for one in inventory.students]
    return Plan(
        inventory=inventory,
        judge=judge,
        simulated=simulated,
        budget=budget,
        worst_case_calls=budget * tunables.max_judgment_attempts,
        stop_rule=tunables.stop_rule.value,
        warnings=(*judge_warnings(judge, setup, today=today), *_student_warnings(inventory)),
        accuracy=accuracy,
        cost=expected_cost(
            settings,
            [document.text for document in documents],
            tunables,
            judge,
            budget,
            stop_after=None if accuracy is None else accuracy.stopped[1],
            today=today,
        ),
    )


def _student_warnings(inventory: Inventory) -> list[str]:
    if len(inventory.students) >= 2:
        return []
    return ["student_essays: a batch needs two students at least; with fewer it ends without grades"]


def _expected_accuracy(
    inventory: Inventory,
    scale: GradeScale,
    tunables: BatchTunables,
    budget: int,
    replications: int,
    progress: Callable[[int], None],
) -> ExpectedAccuracy | None:
    if replications == 0 or len(inventory.students) < 2:
        return None
    exam = Exam(students=len(inventory.students), anchors=len(inventory.anchors))
    played = simulate_exams(
        exam, tunables, scale, budget=budget, replications=replications, seed=SEED, progress=progress
    )
    return ExpectedAccuracy(
        exam=exam,
        replications=replications,
        rows=tuple(budget_table(played, even_budgets(budget, ROWS))),
        stopped=stopped_at(played),
        reasons=dict(Counter(one.reason for one in played).most_common()),
        at_stop=budget_table([one.as_stopped for one in played], [budget])[0],
    )


def expected_cost(
    settings: CJSettings,
    texts: Sequence[str],
    tunables: BatchTunables,
    judge: str,
    budget: int,
    *,
    stop_after: float | None,
    today: date,
) -> ExpectedCost | None:
    """What a judge would cost for a batch of these essays; None if it is simulated or has no known price.

    Args:
        settings: of the process: where prices are.
        texts: of the essays, at least two.
        tunables: of the batch: what the judge reads and how it answers.
        judge: a simulated profile, or PROVIDER/MODEL.
        budget: comparisons.
        stop_after: judgments after which the stop rule is expected to end the batch, if known.
        today: decides which prices hold.
    """
    from cj_pipeline.judges.transport import expected_usage

    named = provider_and_model(judge)
    setup = judge_setup(settings, tunables)
    price = setup.prices.price_of(*named, today) if named is not None and setup.prices is not None else None
    if price is None:
        return None
    by_length = sorted(texts, key=len)
    typical = by_length[len(by_length) // 2]
    instructions = judge_instructions(None, tunables)
    in_job = tunables.llm_batching_mode is BatchingMode.PROVIDER_BATCH_API
    each = cost_usd(price, expected_usage(build_prompt(instructions, typical, typical)), batch=in_job) or 0.0
    longest = build_prompt(instructions, by_length[-1], by_length[-2])
    most = open_judge(judge, setup).upper_bound_usd(longest, in_job=in_job)
    return ExpectedCost(
        per_judgment=each,
        per_call_at_most=most,
        at_stop=None if stop_after is None else each * stop_after,
        at_budget=each * budget,
        never_more_than=None if most is None else most * budget * tunables.max_judgment_attempts,
    )


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as machines read it. Documents are told by path, size and checksum, never by text."""
    inventory, checksums = plan.inventory, plan.inventory.checksums
    return {
        "assets": str(inventory.root),
        "grade_scale": inventory.grade_scale,
        "manifest": checksums,
        "manifest_length": len(checksums),
        "checksum": manifest_checksum(checksums),
        "anchors": [
            {
                "anchor_id": one.anchor_id,
                "grade": one.grade,
                "path": one.document.path,
                "words": one.document.word_count,
            }
            for one in inventory.anchors
        ],
        "students": [
            {"essay_id": one.essay_id, "path": one.document.path, "words": one.document.word_count}
            for one in inventory.students
        ],
        "judge": plan.judge,
        "simulated": plan.simulated,
        "budget": plan.budget,
        "worst_case_calls": plan.worst_case_calls,
        "stop_rule": plan.stop_rule,
        "expected_accuracy": None if plan.accuracy is None else _accuracy_json(plan.accuracy),
        "expected_cost_usd": None if plan.cost is None else vars(plan.cost),
        "warnings": list(plan.warnings),
    }


def _accuracy_json(accuracy: ExpectedAccuracy) -> dict[str, Any]:
    def row(one: BudgetRow) -> dict[str, Any]:
        # one exam alone has no margin
        margins = {
            name: (mean, margin if accuracy.replications > 1 else None) for name, (mean, margin) in one.measures.items()
        }
        return {name: {"mean": mean, "margin95": margin} for name, (mean, margin) in margins.items()}

    low, middle, high = accuracy.stopped
    return {
        "exam": accuracy.exam.model_dump(),
        "replications": accuracy.replications,
        "seed": SEED,
        "rows": [{"judgments": one.judgments} | row(one) for one in accuracy.rows],
        "stopped": {"judgments": {"p10": low, "median": middle, "p90": high}, "reasons": accuracy.reasons}
        | row(accuracy.at_stop),
    }
