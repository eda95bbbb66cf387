"""ENG5 batches on a ledger, from an assets folder to judged: for the tests of the artefact."""

from pathlib import Path
from typing import Any

from cj_pipeline.core.grade_scale import GradeScale, get_grade_scale
from cj_pipeline.core.models import BatchKind
from cj_pipeline.eng5.inventory import Inventory, read_inventory
from cj_pipeline.judges.protocol import Judge
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import BatchOverrides
from cj_pipeline.workflow.intake import AnchorSubmission, AssignmentRequest, BatchRequest, EssaySubmission
from cj_pipeline.workflow.registration import register_assignment, submit_batch
from cj_pipeline_tests.eng5.folders import SCALE, assets_in
from cj_pipeline_tests.workflow.scenes import advance, settings

ANCHOR_GRADES = ("F+", "E-", "D+", "C-", "B", "A")
ESSAY_WORDS = "The text of"
"""What every essay of these folders, and nothing else, says."""


def scale() -> GradeScale:
    return get_grade_scale(SCALE)


def inventory_in(folder: Path, *, students: int = 6) -> Inventory:
    return read_inventory(assets_in(folder, ANCHOR_GRADES, students), scale())


def submit_assessment(ledger: Ledger, inventory: Inventory, batch_id: str, **overrides: Any) -> None:
    """Anchors registered, students submitted, as `execute` does it."""
    register_assignment(
        ledger,
        AssignmentRequest(
            assignment_id="eng5",
            title="English 5",
            language="en",
            grade_scale=SCALE,
            grade_scale_definition=None,
            instructions="Judge the whole.",
            student_prompt=inventory.instructions.text,
            judge_rubric=inventory.prompt.text,
            system_prompt=None,
            anchors=tuple(
                AnchorSubmission(anchor.anchor_id, anchor.grade, anchor.document.text, anchor.document.path)
                for anchor in inventory.anchors
            ),
        ),
    )
    students = tuple(
        EssaySubmission(student.essay_id, student.document.text, number * 1.5, student.document.path)
        for number, student in enumerate(inventory.students)
    )
    _submit(ledger, batch_id, BatchKind.ASSESSMENT, "eng5", students, overrides)


def submit_alignment(ledger: Ledger, inventory: Inventory, batch_id: str, **overrides: Any) -> None:
    """Anchors submitted as students, as `anchor-align-test` does it."""
    essays = tuple(
        EssaySubmission(anchor.anchor_id, anchor.document.text, float(number), anchor.document.path)
        for number, anchor in enumerate(inventory.anchors)
    )
    _submit(ledger, batch_id, BatchKind.ANCHOR_ALIGN, None, essays, overrides)


def _submit(
    ledger: Ledger,
    batch_id: str,
    kind: BatchKind,
    assignment_id: str | None,
    essays: tuple[EssaySubmission, ...],
    overrides: dict[str, Any],
) -> None:
    stated = BatchOverrides(**{"max_comparisons": 40, "score_stability_threshold": 0.0, **overrides})
    submit_batch(ledger, settings(), BatchRequest(batch_id, assignment_id, kind, None, stated, essays))


def assessed(ledger: Ledger, inventory: Inventory, batch_id: str, *, judge: Judge | None = None, **over: Any) -> None:
    submit_assessment(ledger, inventory, batch_id, **over)
    advance(ledger, batch_id, judge=judge)


def aligned(ledger: Ledger, inventory: Inventory, batch_id: str, **overrides: Any) -> None:
    submit_alignment(ledger, inventory, batch_id, **overrides)
    advance(ledger, batch_id)
