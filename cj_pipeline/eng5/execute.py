"""Mode `execute`: the students judged and graded against the assignment's anchors.

Here: the assignment that an assets folder makes, the batch's request, and what is looked at before either is stored.
Not here: how a batch is submitted (`workflow.registration`) and run (`cli`, `defs`), and its artefact.

The ledger's anchors count, not the folder's: the folder registers them the first time, and must agree with them ever
after. Only students are submitted; anchors come with the assignment.
"""

from collections.abc import Mapping
from typing import Any, Final

from cj_pipeline.core.errors import RequestError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.models import BatchKind
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.eng5.prompt_variants import PromptVariant, variant_overrides
from cj_pipeline.settings import BatchOverrides, CJSettings, effective_tunables, parse_overrides
from cj_pipeline.workflow.intake import AnchorSubmission, AssignmentRequest, BatchRequest, EssaySubmission
from cj_pipeline.workflow.preflight import (
    Finding,
    look_at_assignment,
    look_at_disk,
    look_at_judge,
    look_at_ledger,
)

DEFAULT_ASSIGNMENT: Final = "eng5-np-2016"
_TITLE: Final = "ENG5, national test of English 5: role models 2016"


def folder_assignment(inventory: Inventory, scale: GradeScale, assignment_id: str) -> AssignmentRequest:
    """The assignment that an assets folder makes: its task, judge prompt and anchors.

    Raises:
        RequestError: an anchor whose grade is no step of the scale, and so carries no boundary.
    """
    problems = [
        f"{anchor.document.path}: grade {anchor.grade} lies below the scale's lowest step, {scale.grades[0]}, and ties "
        "no boundary: take this anchor out of the folder and its grade table"
        for anchor in inventory.anchors
        if anchor.grade not in scale.grades
    ]
    if problems:
        raise RequestError(f"anchors of assignment {assignment_id}", problems)
    return AssignmentRequest(
        assignment_id=assignment_id,
        title=_TITLE,
        language="English",
        grade_scale=scale.name,
        grade_scale_definition=None,
        instructions="",
        student_prompt=inventory.instructions.text,
        judge_rubric=inventory.prompt.text,
        system_prompt=None,
        anchors=tuple(
            sorted(
                (
                    AnchorSubmission(
                        anchor_ref=anchor.anchor_id,
                        grade=anchor.grade,
                        text=anchor.document.text,
                        source_name=anchor.document.path,
                    )
                    for anchor in inventory.anchors
                ),
                key=lambda anchor: anchor.anchor_ref,
            )
        ),
    )


def execute_request(
    inventory: Inventory,
    *,
    batch_id: str,
    assignment_id: str,
    judge: str,
    system: PromptVariant | None,
    rubric: PromptVariant | None,
    overrides: Mapping[str, Any],
) -> BatchRequest:
    """The batch that judges an inventory's students.

    Args:
        inventory: whose students are judged, all of them.
        batch_id: of the batch.
        assignment_id: whose anchors, task and rubric count.
        judge: a simulated profile, or PROVIDER/MODEL.
        system: who the judge is to be; the program's default if None.
        rubric: what makes one essay better; the assignment's if None.
        overrides: further settings the batch brings along, by field; None counts as not given.

    Raises:
        InputError: an override that may not be so.
    """
    stated = {name: value for name, value in overrides.items() if value is not None}
    return BatchRequest(
        batch_id=batch_id,
        assignment_id=assignment_id,
        kind=BatchKind.ASSESSMENT,
        judge=judge,
        overrides=parse_overrides(stated | variant_overrides(system, rubric), where="options"),
        students=tuple(
            sorted(
                (
                    EssaySubmission(
                        essay_id=student.essay_id,
                        text=student.document.text,
                        quality=student.quality,
                        source_name=student.document.path,
                    )
                    for student in inventory.students
                ),
                key=lambda essay: essay.essay_id,
            )
        ),
    )


def look_before_executing(
    settings: CJSettings,
    assignment: AssignmentRequest,
    judge: str,
    overrides: BatchOverrides,
    *,
    may_replace: bool = False,
) -> list[Finding]:
    """Ledger, disk, assignment with anchors, and judge, as they are. Nothing is created, stored, judged or paid.

    Args:
        settings: of the process.
        assignment: as its files have it.
        judge: who would judge.
        overrides: what the batch would bring along.
        may_replace: whether a registered assignment may differ, because a revision would be added.
    """
    return [
        look_at_ledger(settings),
        look_at_disk(settings),
        *look_at_assignment(settings, assignment, may_replace=may_replace),
        *look_at_judge(settings, effective_tunables(settings, overrides), judge),
    ]
