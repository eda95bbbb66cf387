"""From a request that was read to a record in the ledger: assignments registered, batches submitted.

What files look like is `workflow.intake`'s business; here a request meets what is already registered.
"""

import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cj_pipeline.core.anchor_bank import AnchorBank
from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.grade_scale import GradeScale, get_grade_scale, parse_grade_scale
from cj_pipeline.core.models import BatchApiMode, BatchingMode, BatchKind, EssayRole, PairDesign
from cj_pipeline.judges.catalogue import judge_problems, judge_warnings, needs_quality, open_judge
from cj_pipeline.judges.injection import injection_signs
from cj_pipeline.judges.simulated import grade_quality
from cj_pipeline.ledger import Ledger, UnknownAssignmentError
from cj_pipeline.ledger.records import (
    AnchorRecord,
    AssignmentRecord,
    BatchRecord,
    NewAnchor,
    NewAssignment,
    NewBatch,
    NewEssay,
    Registration,
)
from cj_pipeline.settings import BatchTunables, CJSettings, effective_tunables, resolve_budget
from cj_pipeline.workflow.calibration import anchor_bank, assignment_configuration, calibration_nights
from cj_pipeline.workflow.documents import text_sha256, word_count
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.intake import AssignmentRequest, BatchRequest, read_batch
from cj_pipeline.workflow.judging import judge_setup
from cj_pipeline.workflow.problems import noted

DEFAULT_JUDGE = "cj-generic"
_WITHOUT_BANK: Final = PairDesign.ADAPTIVE


@dataclass(frozen=True)
class Submission:
    """What submitting a batch did."""

    batch_id: str
    created: bool
    students: int
    anchors: int
    total_budget: int
    judge: str
    simulated: bool
    warnings: tuple[str, ...] = ()


def code_version() -> str:
    """The installed version of this program."""
    try:
        return version("cj-pipeline")
    except PackageNotFoundError:
        return "unknown"


def register_assignment(ledger: Ledger, request: AssignmentRequest, *, replace: bool = False) -> Registration:
    """Register an assignment with its anchors; see `Ledger.register_assignment` for what may go wrong."""
    return ledger.register_assignment(_new_assignment(request), replace=replace)


def assignment_differences(ledger: Ledger, request: AssignmentRequest) -> list[str] | None:
    """What of the registered assignment differs from the request; None: not registered."""
    return ledger.assignment_differences(_new_assignment(request))


def _new_assignment(request: AssignmentRequest) -> NewAssignment:
    return NewAssignment(
        assignment_id=request.assignment_id,
        title=request.title,
        language=request.language,
        grade_scale=request.grade_scale,
        grade_scale_definition=request.grade_scale_definition,
        instructions=request.instructions,
        system_prompt=request.system_prompt,
        student_prompt=request.student_prompt,
        judge_rubric=request.judge_rubric,
        anchors=tuple(
            NewAnchor(
                anchor_ref=anchor.anchor_ref,
                grade=anchor.grade,
                text_sha256=text_sha256(anchor.text),
                text=anchor.text,
                word_count=word_count(anchor.text),
            )
            for anchor in request.anchors
        ),
    )


def assignment_scale(assignment: AssignmentRecord) -> GradeScale:
    """The grade scale of an assignment, built in or its own.

    Raises:
        GradeScaleError: the scale is unknown or badly formed.
    """
    if assignment.grade_scale_definition is not None:
        return parse_grade_scale(assignment.grade_scale_definition, f"assignment {assignment.assignment_id}")
    return get_grade_scale(assignment.grade_scale)


def scale_of(ledger: Ledger, batch: BatchRecord) -> GradeScale | None:
    """The grade scale of a batch's assignment, as of the revision it was submitted with; None without assignment."""
    if batch.assignment_id is None:
        return None
    return assignment_scale(ledger.assignment(batch.assignment_id, batch.assignment_revision))


def read_and_submit(ledger: Ledger, settings: CJSettings, source: Path, **stated: Any) -> Submission:
    """Read a batch from files and submit it; the problems of its files and of its request are listed together.

    Args:
        source: the folder or table.
        stated: what wins over the folder's batch.yaml, as `intake.read_batch` takes it.

    Raises:
        RequestError, InputError: see `read_batch` and `submit_batch`; nothing was stored.
    """
    request = read_batch(source, further_problems=lambda found: request_problems(ledger, settings, found), **stated)
    return submit_batch(ledger, settings, request)


def require_sound(settings: CJSettings, request: BatchRequest) -> None:
    """Go on only if nothing stands against a request that can be told without the ledger.

    For whoever stores something else first, as `cj eng5 execute` does an assignment.

    Raises:
        RequestError: every problem of judge, options, budget and simulated qualities at once; nothing was stored.
    """
    problems = _own_problems(settings, request)
    if problems:
        raise RequestError(f"batch {request.batch_id}", problems)


def request_problems(ledger: Ledger, settings: CJSettings, request: BatchRequest) -> list[str]:
    """What stands against a request, given what is registered: unknown assignment or judge, missing quality, an
    essay that is an anchor's text, a budget above the cap, a design without the anchor bank it needs.
    """
    return _examined(ledger, settings, request)[0]


def _examined(ledger: Ledger, settings: CJSettings, request: BatchRequest) -> tuple[list[str], AnchorBank | None]:
    """What stands against a request, and the anchor bank it is to take along, for which every night is fitted."""
    problems: list[str] = []
    bank = None
    assignment = _assignment(ledger, request, problems)
    anchors = ledger.anchors(assignment) if assignment is not None else []
    judge_name = request.judge or DEFAULT_JUDGE
    tunables = _tunables(settings, request)
    if not judge_problems(judge_name, judge_setup(settings, tunables)):
        with noted(problems):
            bank = _bank(ledger, request, assignment, judge_name, tunables, settings)
    return problems + _own_problems(settings, request) + _twin_problems(request, anchors), bank


def _own_problems(settings: CJSettings, request: BatchRequest) -> list[str]:
    """What stands against a request whatever is registered."""
    judge_name = request.judge or DEFAULT_JUDGE
    tunables = _tunables(settings, request)
    problems = judge_problems(judge_name, judge_setup(settings, tunables)) + _batching_problems(tunables)
    try:
        wants_quality = needs_quality(judge_name)
    except InputError:
        wants_quality = False
    with noted(problems):
        resolve_budget(settings, request.overrides)
    return problems + (_quality_problems(request) if wants_quality else [])


def _batching_problems(tunables: BatchTunables) -> list[str]:
    if (
        tunables.llm_batching_mode is BatchingMode.PROVIDER_BATCH_API
        and tunables.batch_api_mode is BatchApiMode.DISABLED
    ):
        return [
            "llm_batching_mode is provider_batch_api but batch_api_mode is disabled: set batch_api_mode to nightly or "
            "opportunistic, or choose another llm_batching_mode"
        ]
    return []


def _tunables(settings: CJSettings, request: BatchRequest) -> BatchTunables:
    """The settings of a batch. Where the environment's design needs a bank, and the batch is of a kind that has none,
    it is judged by the default design.
    """
    tunables = effective_tunables(settings, request.overrides)
    if _falls_back(tunables, request):
        return tunables.model_copy(update={"pair_design": _WITHOUT_BANK})
    return tunables


def _falls_back(tunables: BatchTunables, request: BatchRequest) -> bool:
    return (
        tunables.pair_design.needs_bank
        and request.overrides.pair_design is None
        and request.kind is not BatchKind.ASSESSMENT
    )


def _bank(
    ledger: Ledger,
    request: BatchRequest,
    assignment: AssignmentRecord | None,
    judge: str,
    tunables: BatchTunables,
    settings: CJSettings,
) -> AnchorBank | None:
    """The bank that a batch is to be judged and scored with; None where its design needs none.

    Raises:
        InputError: the design needs one, and there is none.
    """
    if not tunables.pair_design.needs_bank:
        return None
    remedy = f"or set pair_design (CJ_PAIR_DESIGN) to {_WITHOUT_BANK}"
    if request.kind is not BatchKind.ASSESSMENT:
        raise InputError(
            f"pair_design is {tunables.pair_design}, and a batch of kind {request.kind.value} is judged without an "
            f"anchor bank: leave it out, {remedy}"
        )
    if assignment is None:
        return None  # told of already
    identity = open_judge(judge, judge_setup(settings, tunables)).identity
    configuration = assignment_configuration(
        assignment, tunables, profile=judge, provider=identity.provider, model=identity.model
    )
    try:
        return anchor_bank(
            calibration_nights(ledger, assignment.assignment_id, configuration, since=settings.calibration_from)
        )
    except InputError as error:
        raise InputError(f"pair_design is {tunables.pair_design}: {error}, {remedy}") from None


def submit_batch(ledger: Ledger, settings: CJSettings, request: BatchRequest) -> Submission:
    """Check a batch against what is registered and store it with the snapshot of its essays.

    Raises:
        RequestError: every problem of the request at once; nothing was stored.
        InputError: the batch id exists with other content.
    """
    problems, bank = _examined(ledger, settings, request)
    if problems:
        raise RequestError(f"batch {request.batch_id}", problems)
    assignment = None if request.assignment_id is None else ledger.assignment(request.assignment_id)
    anchors = [] if assignment is None else ledger.anchors(assignment)
    judge_name = request.judge or DEFAULT_JUDGE
    budget = resolve_budget(settings, request.overrides)
    tunables = _tunables(settings, request)
    setup = judge_setup(settings, tunables)
    identity = open_judge(judge_name, setup).identity
    new = NewBatch(
        batch_id=request.batch_id,
        kind=request.kind,
        assignment_id=None if assignment is None else assignment.assignment_id,
        assignment_revision=None if assignment is None else assignment.revision,
        judge_profile=judge_name,
        provider=identity.provider,
        model=identity.model,
        simulated=identity.simulated,
        overrides=request.overrides.model_dump(exclude_none=True),
        settings=tunables.model_dump(),
        total_budget=budget,
        code_version=code_version(),
        correlation_id=str(uuid.uuid4()),
        essays=(*_student_essays(request), *_anchor_essays(request.batch_id, assignment, anchors)),
        anchor_bank=None if bank is None else bank.model_dump(mode="json"),
    )
    created = ledger.submit_batch(new)
    # told from the ledger: a batch submitted before keeps its anchors, whatever was registered since
    stored = ledger.batch(request.batch_id)
    anchor_count = sum(essay.is_anchor for essay in ledger.essays(request.batch_id))
    return Submission(
        batch_id=request.batch_id,
        created=created,
        students=len(request.students),
        anchors=anchor_count,
        total_budget=stored.total_budget or budget,
        judge=judge_name,
        simulated=stored.simulated,
        warnings=(*judge_warnings(judge_name, setup), *_injection_warnings(ledger.injection_signs(request.batch_id))),
    )


def _injection_warnings(signs: dict[str, tuple[str, ...] | None]) -> list[str]:
    found = {essay_id: names for essay_id, names in sorted(signs.items()) if names}
    if not found:
        return []
    shown = "; ".join(f"{essay_id} ({', '.join(names)})" for essay_id, names in list(found.items())[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return [
        f"{len(found)} essays look as if they address the judge: {shown}{more}. They are judged like all others, "
        "inside their fence; have a look at them"
    ]


def _assignment(ledger: Ledger, request: BatchRequest, problems: list[str]) -> AssignmentRecord | None:
    if request.kind is BatchKind.ANCHOR_ALIGN:
        if request.assignment_id is not None:
            problems.append("a batch of kind anchor_align has no assignment: its essays are judged as students")
        return None
    if request.assignment_id is None:
        problems.append(
            "no assignment is named: use --assignment ID or `assignment:` in batch.yaml "
            "(`cj assignments list` shows the registered ones)"
        )
        return None
    try:
        assignment = ledger.assignment(request.assignment_id)
        assignment_scale(assignment)
    except UnknownAssignmentError as error:
        problems.append(str(error))
        return None
    if request.kind is BatchKind.CALIBRATION and request.students:
        problems.append("a batch of kind calibration holds the assignment's anchors only: take the essays out")
    return assignment


def _twin_problems(request: BatchRequest, anchors: list[AnchorRecord]) -> list[str]:
    anchor_texts = {anchor.text_sha256: anchor.anchor_ref for anchor in anchors}
    twins = [(essay, anchor_texts.get(text_sha256(essay.text))) for essay in request.students]
    return [
        f"essay {essay.essay_id} ({essay.source_name}) has the text of anchor {twin}: leave it out, anchors come with "
        "the assignment"
        for essay, twin in twins
        if twin is not None
    ]


def _quality_problems(request: BatchRequest) -> list[str]:
    without = [essay.essay_id for essay in request.students if essay.quality is None]
    if not without:
        return []
    shown = ", ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
    return [
        f"the judge is simulated and goes by a known quality, which is missing for {shown}: add a `quality` column "
        "(quality.csv in a folder), in grade steps from 0 for the lowest grade, or choose a real judge"
    ]


def _student_essays(request: BatchRequest) -> list[NewEssay]:
    return [
        NewEssay(
            essay_id=essay.essay_id,
            role=EssayRole.STUDENT,
            text_sha256=text_sha256(essay.text),
            known_grade=essay.known_grade,
            quality=essay.quality,
            injection_signs=injection_signs(essay.text),
            text=essay.text,
            word_count=word_count(essay.text),
        )
        for essay in request.students
    ]


def _anchor_essays(batch_id: str, assignment: AssignmentRecord | None, anchors: list[AnchorRecord]) -> list[NewEssay]:
    if assignment is None:
        return []
    grades = assignment_scale(assignment).grades
    return [
        NewEssay(
            essay_id=anchor_node_id(batch_id, anchor.anchor_ref),
            role=EssayRole.ANCHOR,
            text_sha256=anchor.text_sha256,
            known_grade=anchor.grade,
            quality=grade_quality(grades, anchor.grade),
        )
        for anchor in anchors
    ]
