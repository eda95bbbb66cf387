"""An anchor-align matrix: every judge of its file with every prompt, a batch each, checked and costed as a whole.

Here: the cells and their batch ids, everything that stands against them, what they would cost, and their submission.
Not here: the file (`matrix_file`), the request of one cell (`anchor_align`), running it (`defs`, `cli`), and what comes
of it (`leaderboard`).

A cell's batch id is `eng5-matrix-NAME-JUDGE-PROMPTS` out of the labels, so that the same file submitted again means the
same batches: those that are over stay as they are, the others go on.

The ceiling is a wall because every cell that costs money gets a share of it as its own `max_cost_usd`, which the wave
loop holds, and the shares add up to the ceiling. A cell keeps its share when the file is submitted again; one that is
over counts with what it cost, and leaves the rest to the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from enum import StrEnum
from math import floor
from typing import Any, Final

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import check_batch_id
from cj_pipeline.eng5.anchor_align import align_request
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.artefact_building import require_own_folder
from cj_pipeline.eng5.handlers import submit_run
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.eng5.matrix_file import MatrixFile, MatrixJudge, MatrixPrompts
from cj_pipeline.eng5.plan import ExpectedCost, expected_cost
from cj_pipeline.eng5.prompt_variants import PromptVariant, VariantKind, select_variant
from cj_pipeline.judges.catalogue import judge_problems, judge_warnings, provider_and_model
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import CJSettings, effective_tunables, parse_overrides, resolve_budget
from cj_pipeline.workflow.documents import text_sha256
from cj_pipeline.workflow.intake import BatchRequest
from cj_pipeline.workflow.judging import judge_setup
from cj_pipeline.workflow.problems import noted
from cj_pipeline.workflow.registration import Submission, request_problems

PREFIX: Final = "eng5-matrix"
_MICRODOLLARS: Final = 1_000_000
# decided when a cell is first submitted; a later submission takes them from the ledger
_DECIDED_ONCE: Final = ("max_cost_usd", "pair_generation_seed")


class CellState(StrEnum):
    """Where a cell stands."""

    NEW = "new"
    OPEN = "open"  # submitted, not yet over
    OVER = "over"  # final and published: it is not run again


@dataclass(frozen=True)
class Cell:
    """One batch of a matrix.

    Attributes:
        judge, prompts, repeat: its place; repeats count from 1.
        request: the batch.
        state: where it stands.
        cost: None if its judge is simulated or has no known price.
        wall_usd: its share of the ceiling; None without one, or if it costs nothing.
    """

    judge: MatrixJudge
    prompts: MatrixPrompts
    repeat: int
    request: BatchRequest = field(repr=False)
    state: CellState = CellState.NEW
    cost: ExpectedCost | None = None
    wall_usd: float | None = None

    @property
    def batch_id(self) -> str:
        """Of its batch."""
        return self.request.batch_id

    @property
    def simulated(self) -> bool:
        """Whether no real judge is asked."""
        return provider_and_model(self.judge.judge) is None


@dataclass(frozen=True)
class Matrix:
    """A matrix whose every cell is sound.

    Attributes:
        name: from its file.
        cells: judge by judge, then prompts, then repeats.
        budget: comparisons of each cell.
        ceiling_usd: what all cells together may cost; None without one.
        spent_usd: what cells that are over have cost, as far as known.
        warnings: what a person should know before submitting.
        inventory: whose anchors are judged.
    """

    name: str
    cells: tuple[Cell, ...]
    budget: int
    ceiling_usd: float | None
    spent_usd: float
    warnings: tuple[str, ...]
    inventory: Inventory

    @property
    def to_run(self) -> tuple[Cell, ...]:
        """The cells that are not over."""
        return tuple(cell for cell in self.cells if cell.state is not CellState.OVER)

    @property
    def expected_usd(self) -> float | None:
        """What the new cells are expected to cost with their whole budgets; None if a price is unknown."""
        return _total([cell.cost.at_budget if cell.cost else None for cell in _paid(self.cells)])

    @property
    def never_more_than_usd(self) -> float | None:
        """What the new cells could cost at the very most, without regard to the ceiling; None if unknown."""
        return _total([cell.cost.never_more_than if cell.cost else None for cell in _paid(self.cells)])


def cell_id(matrix: str, judge: str, prompts: str, repeat: int = 1) -> str:
    """The batch id of a cell; the first repeat has no number, so that adding repeats leaves it as it is.

    Raises:
        InputError: the labels are too long together.
    """
    batch_id = f"{PREFIX}-{matrix}-{judge}-{prompts}" + (f"-r{repeat}" if repeat > 1 else "")
    if len(batch_id) > 64:
        raise InputError(
            f"cell {batch_id}: its batch id has {len(batch_id)} characters, and 64 are allowed: shorten the labels"
        )
    return check_batch_id(batch_id)


def plan_matrix(
    settings: CJSettings,
    ledger: Ledger | None,
    inventory: Inventory,
    scale: GradeScale,
    file: MatrixFile,
    *,
    today: date,
) -> Matrix:
    """Make the cells of a matrix, and check and cost them. Nothing is stored.

    Args:
        settings: of the process.
        ledger: to know which cells exist; None: none does.
        inventory: whose anchors are judged.
        scale: of the expert grades.
        file: the matrix.
        today: decides which prices hold.

    Raises:
        RequestError: everything that stands against any cell, at once.
    """
    problems: list[str] = []
    variants = _variants(settings, file, problems)
    warnings = _check_judges(settings, file, today, problems)
    with noted(problems):
        resolve_budget(settings, parse_overrides({"max_comparisons": file.max_comparisons}, where="max_comparisons"))
    if not problems:
        cells = _cells(settings, inventory, scale, file, variants, problems)
    if problems:
        raise RequestError(f"matrix {file.matrix}", problems)
    cells = [_costed(settings, inventory, cell, file.max_comparisons, today) for cell in cells]
    known = _known(ledger, [cell.batch_id for cell in cells])
    cells = [_recalled(ledger, known, cell, problems) for cell in cells]
    spent = _spent(ledger, known)
    cells = _walled(settings, file, cells, spent, known, problems, warnings)
    if ledger is not None:
        for cell in cells:
            problems += [p for p in request_problems(ledger, settings, cell.request) if p not in problems]
    if problems:
        raise RequestError(f"matrix {file.matrix}", problems)
    return Matrix(
        name=file.matrix,
        cells=tuple(cells),
        budget=file.max_comparisons,
        ceiling_usd=file.max_cost_usd,
        spent_usd=sum(spent.values()),
        warnings=tuple(dict.fromkeys(warnings)),
        inventory=inventory,
    )


def submit_matrix(ledger: Ledger, settings: CJSettings, matrix: Matrix) -> list[Submission]:
    """Submit every cell that is not over, with its artefact; those submitted before stay as they are.

    Raises:
        RequestError, InputError: see `submit_run`. After `plan_matrix` on the same ledger only if somebody else
            submitted a batch of the same id meanwhile; the cells before it are then submitted.
    """
    mode: RunMode = RunMode.ANCHOR_ALIGN_TEST
    runs = [submit_run(ledger, settings, mode, cell.request, matrix.inventory) for cell in matrix.to_run]
    return [run.submission for run in runs if run.submission is not None]


# --- what the file names -----------------------------------------------------------------------------------------

_Pair = tuple[PromptVariant | None, PromptVariant | None]


def _variants(settings: CJSettings, file: MatrixFile, problems: list[str]) -> dict[str, _Pair]:
    """Label → system and rubric variant, for the prompts whose variants all exist."""
    found: dict[str, _Pair] = {}
    for prompts in file.prompts:
        before = len(problems)
        system = _variant(settings, "system", prompts.system, prompts.label, problems)
        rubric = _variant(settings, "rubric", prompts.rubric, prompts.label, problems)
        if len(problems) == before:
            found[prompts.label] = (system, rubric)
    first: dict[tuple[str | None, ...], str] = {}
    for label, pair in found.items():
        texts = tuple(None if variant is None else variant.sha256 for variant in pair)
        twin = first.setdefault(texts, label)
        if twin != label:
            problems.append(
                f"prompts {twin} and {label}: have the same texts, so their cells would be the same: leave one out"
            )
    return found


def _variant(
    settings: CJSettings, kind: VariantKind, choice: str | None, label: str, problems: list[str]
) -> PromptVariant | None:
    if choice is None:
        return None
    try:
        return select_variant(settings.prompt_variants_dir, kind, choice)
    except InputError as error:
        problems.append(f"prompts {label}: {error}")
        return None


def _check_judges(settings: CJSettings, file: MatrixFile, today: date, problems: list[str]) -> list[str]:
    """Notes what stands against each judge; returns what should be known of them."""
    warnings: list[str] = []
    for judge in file.judges:
        stated = _judge_overrides(judge) | ({} if file.max_cost_usd is None else {"max_cost_usd": file.max_cost_usd})
        setup = judge_setup(settings, effective_tunables(settings, parse_overrides(stated, where=judge.label)))
        problems += [f"judge {judge.label}: {one}" for one in judge_problems(judge.judge, setup, today=today)]
        warnings += judge_warnings(judge.judge, setup, today=today)
    paid = [judge.label for judge in file.judges if judge.judge.startswith(("anthropic/", "openai/"))]
    if paid and file.max_cost_usd is None:
        problems.append(
            f"max_cost_usd: is missing, and judges cost money ({', '.join(paid)}): state how many US dollars all cells "
            "together may cost"
        )
    return warnings


def _judge_overrides(judge: MatrixJudge) -> dict[str, Any]:
    stated = {"reasoning_effort": judge.reasoning_effort, "output_verbosity": judge.output_verbosity}
    return {name: value for name, value in stated.items() if value is not None}


def _cells(
    settings: CJSettings,
    inventory: Inventory,
    scale: GradeScale,
    file: MatrixFile,
    variants: Mapping[str, _Pair],
    problems: list[str],
) -> list[Cell]:
    cells: list[Cell] = []
    ids: dict[str, str] = {}
    for judge in file.judges:
        for prompts in file.prompts:
            for repeat in range(1, file.repeats + 1):
                place = f"{judge.label} × {prompts.label}"
                with noted(problems):
                    batch_id = cell_id(file.matrix, judge.label, prompts.label, repeat)
                    require_own_folder(settings.outputs_dir, batch_id, RunMode.ANCHOR_ALIGN_TEST)
                    if batch_id in ids:
                        problems.append(
                            f"cells {ids[batch_id]} and {place}: would both be batch {batch_id}: rename a label"
                        )
                        continue
                    ids[batch_id] = place
                    system, rubric = variants[prompts.label]
                    overrides = _judge_overrides(judge) | {"max_comparisons": file.max_comparisons}
                    if repeat > 1:
                        # with the same seed a simulated judge would answer the same pair alike
                        overrides["pair_generation_seed"] = settings.pair_generation_seed + repeat - 1
                    request = align_request(
                        inventory,
                        scale,
                        batch_id=batch_id,
                        judge=judge.judge,
                        system=system,
                        rubric=rubric,
                        overrides=overrides,
                    )
                    cells.append(Cell(judge, prompts, repeat, request))
    return cells


# --- what it costs -----------------------------------------------------------------------------------------------


def _costed(settings: CJSettings, inventory: Inventory, cell: Cell, budget: int, today: date) -> Cell:
    cost = expected_cost(
        settings,
        [anchor.document.text for anchor in inventory.anchors],
        effective_tunables(settings, cell.request.overrides),
        cell.judge.judge,
        budget,
        stop_after=None,
        today=today,
    )
    return replace(cell, cost=cost)


def _walled(
    settings: CJSettings,
    file: MatrixFile,
    cells: Sequence[Cell],
    spent: Mapping[str, float],
    known: Mapping[str, BatchRecord],
    problems: list[str],
    warnings: list[str],
) -> list[Cell]:
    """The cells, each new one that costs money with its share of what the ceiling leaves."""
    new = _paid(cells)
    if file.max_cost_usd is None or not new:
        return list(cells)
    reserved = sum(_reserved(cell, known) for cell in cells if cell.state is CellState.OPEN)
    left = file.max_cost_usd - sum(spent.values()) - reserved
    expected = sum(cell.cost.at_budget for cell in new if cell.cost)
    # what a cell must be allowed so that the calls in flight, at their upper bounds, never stop it before its budget
    needs = {cell.batch_id: _need(settings, cell, file.max_comparisons) for cell in new}
    if left < expected:
        problems.append(
            f"max_cost_usd {file.max_cost_usd:g}: {len(new)} new cells are expected to cost {expected:.2f}, and "
            f"{max(left, 0.0):.2f} is left for them: raise it to {file.max_cost_usd + expected - left:.2f} or more, or "
            "lower max_comparisons"
        )
        return list(cells)
    wanted = sum(needs.values())
    if left < wanted:
        warnings.append(
            f"max_cost_usd {file.max_cost_usd:g} may stop cells before their {file.max_comparisons} comparisons, "
            f"because calls in flight count at their upper bounds; {file.max_cost_usd + wanted - left:.2f} would not"
        )
    shares = {batch_id: floor(left * need / wanted * _MICRODOLLARS) / _MICRODOLLARS for batch_id, need in needs.items()}
    return [_with_wall(cell, shares[cell.batch_id]) if cell.batch_id in shares else cell for cell in cells]


def _need(settings: CJSettings, cell: Cell, budget: int) -> float:
    if cell.cost is None:
        return 0.0
    in_flight = min(effective_tunables(settings, cell.request.overrides).judge_concurrency, budget)
    return cell.cost.at_budget + in_flight * (cell.cost.per_call_at_most or 0.0)


def _with_wall(cell: Cell, wall: float) -> Cell:
    overrides = cell.request.overrides.model_copy(update={"max_cost_usd": wall})
    return replace(cell, wall_usd=wall, request=replace(cell.request, overrides=overrides))


def _reserved(cell: Cell, known: Mapping[str, BatchRecord]) -> float:
    """What an open cell may still come to: its wall, or where it has none its upper bound."""
    wall = known[cell.batch_id].settings.get("max_cost_usd")
    if wall is not None:
        return float(wall)
    return (cell.cost.never_more_than or 0.0) if cell.cost else 0.0


def _spent(ledger: Ledger | None, known: Mapping[str, BatchRecord]) -> dict[str, float]:
    """Batch id → what a cell that is over has cost; its wall where that is unknown."""
    if ledger is None:
        return {}
    over = [batch for batch in known.values() if cell_state(batch) is CellState.OVER]
    costs = {batch.batch_id: ledger.cost_usd(batch.batch_id) for batch in over}
    walls = {batch.batch_id: float(batch.settings.get("max_cost_usd") or 0.0) for batch in over}
    return {batch_id: walls[batch_id] if cost is None else cost for batch_id, cost in costs.items()}


def _paid(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.state is CellState.NEW and not cell.simulated]


def _total(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


# --- what exists already -----------------------------------------------------------------------------------------


def _known(ledger: Ledger | None, batch_ids: Sequence[str]) -> dict[str, BatchRecord]:
    if ledger is None:
        return {}
    wanted = set(batch_ids)
    return {batch.batch_id: batch for batch in ledger.batches() if batch.batch_id in wanted}


def cell_state(batch: BatchRecord) -> CellState:
    """Where the cell of a submitted batch stands."""
    return CellState.OVER if batch.status.is_final and batch.published_at is not None else CellState.OPEN


def _recalled(ledger: Ledger | None, known: Mapping[str, BatchRecord], cell: Cell, problems: list[str]) -> Cell:
    """The cell as it was submitted, if it was; noted if the file means another batch by now."""
    batch = known.get(cell.batch_id)
    if batch is None or ledger is None:
        return cell
    decided = {name: batch.overrides.get(name) for name in _DECIDED_ONCE}
    request = replace(cell.request, overrides=cell.request.overrides.model_copy(update=decided))
    changed = _differences(ledger, batch, request)
    if changed:
        problems.append(
            f"cell {cell.batch_id}: was submitted with other {' and '.join(changed)}, and a submitted batch never "
            "changes: undo the change, or give the matrix another name"
        )
    return replace(cell, request=request, state=cell_state(batch), wall_usd=batch.overrides.get("max_cost_usd"))


def _differences(ledger: Ledger, batch: BatchRecord, request: BatchRequest) -> list[str]:
    stated = request.overrides.model_dump(exclude_none=True)
    prompts = ("system_prompt", "judge_rubric", "student_prompt")
    of_prompts = {f"{name}{suffix}" for name in prompts for suffix in ("", "_name")}

    def part(overrides: Mapping[str, Any], *, prompt: bool) -> dict[str, Any]:
        return {name: value for name, value in overrides.items() if (name in of_prompts) is prompt}

    essays = {(essay.essay_id, essay.text_sha256, essay.known_grade) for essay in ledger.essays(batch.batch_id)}
    asked = {(essay.essay_id, text_sha256(essay.text), essay.known_grade) for essay in request.students}
    found = {
        "judge": batch.judge_profile != request.judge,
        "prompts": part(batch.overrides, prompt=True) != part(stated, prompt=True),
        "settings": part(batch.overrides, prompt=False) != part(stated, prompt=False),
        "anchors": batch.kind is not request.kind or essays != asked,
    }
    return [what for what, differs in found.items() if differs]
