"""Whether everything that judging needs is there, looked at before anything is spent.

Here: ledger, disk, judge and assignment, each as a `Finding` with its remedy. Nothing is created, stored, judged or
paid. Not here: the Dagster instance (`cli.doctor`, which has one), and whether files are sound (`intake`, `eng5`).
"""

import asyncio
import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cj_pipeline.core.errors import CJError
from cj_pipeline.judges.catalogue import judge_problems, judge_warnings, open_judge, provider_and_model
from cj_pipeline.judges.errors import ModelNotFoundError
from cj_pipeline.ledger import REVISION_REMEDY, Ledger
from cj_pipeline.ledger.engine import sqlite_file, without_password
from cj_pipeline.settings import BatchTunables, CJSettings
from cj_pipeline.workflow.intake import AssignmentRequest
from cj_pipeline.workflow.judging import judge_setup
from cj_pipeline.workflow.registration import assignment_differences

LEAST_FREE_BYTES: Final = 200 * 1024**2
"""Below it nothing is begun: a ledger that cannot be written loses judgments that were paid."""

COMFORTABLE_FREE_BYTES: Final = 2 * 1024**3


class State(StrEnum):
    """What a look found."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: its name, its state, and what was seen, with the remedy where there is something to mend."""

    what: str
    state: State
    text: str


class PreflightError(CJError):
    """Something that judging needs is not there. Nothing was stored or spent."""


def require_ready(findings: list[Finding]) -> None:
    """Go on only if nothing stands against it.

    Raises:
        PreflightError: with every problem found.
    """
    problems = [f"{finding.what}: {finding.text}" for finding in findings if finding.state is State.PROBLEM]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise PreflightError(f"not ready, and nothing was spent:{listed}")


def look_at_ledger(settings: CJSettings) -> Finding:
    """Whether the ledger can be reached, and its schema is this program's."""
    url = settings.effective_ledger_url
    try:
        file = sqlite_file(url)
        if file is not None and not file.exists():
            return _ledger_to_come(file)
        ledger = Ledger.open(url)
        try:
            counted = len(ledger.batches())
        finally:
            ledger.close()
    except CJError as error:
        return Finding("ledger", State.PROBLEM, str(error))
    return Finding("ledger", State.OK, f"{without_password(url)}: schema as it should be, {counted} batches")


def _ledger_to_come(file: Path) -> Finding:
    there = _nearest_existing(file.parent)
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding("ledger", State.OK, f"{file}: there is none yet; the first command that needs it makes it")
    return Finding(
        "ledger",
        State.PROBLEM,
        f"{file}: there is none yet, and none can be made, because {there} is no folder that can be written: correct "
        "CJ_LEDGER_URL or CJ_DATA_DIR",
    )


def look_at_disk(settings: CJSettings) -> Finding:
    """Whether outputs can be written, and how much room there is."""
    folder = settings.outputs_dir.resolve()
    there = _nearest_existing(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            "disk", State.PROBLEM, f"{there} cannot be written: make it writable, or choose another CJ_DATA_DIR"
        )
    free = shutil.disk_usage(there).free
    told = f"{folder}: {free / 1024**3:.1f} GiB free"
    if free < LEAST_FREE_BYTES:
        return Finding("disk", State.PROBLEM, f"{told}: make room before anything is judged")
    return Finding("disk", State.OK if free >= COMFORTABLE_FREE_BYTES else State.WARNING, told)


def look_at_judge(settings: CJSettings, tunables: BatchTunables, name: str) -> list[Finding]:
    """Whether the judge can be asked now: known name, sound options, a key that its provider takes. Costs nothing."""
    try:
        setup = judge_setup(settings, tunables)
        against = judge_problems(name, setup)
    except CJError as error:
        against = [str(error)]
    if against:
        return [Finding("judge", State.PROBLEM, problem) for problem in against]
    warnings = [Finding("judge", State.WARNING, warning) for warning in judge_warnings(name, setup)]
    if provider_and_model(name) is None:
        return [*warnings, Finding("judge", State.OK, f"{name} is SIMULATED: nobody is asked, nothing is paid")]

    async def look() -> None:
        judge = open_judge(name, setup)
        try:
            await judge.check_access()
        finally:
            await judge.aclose()

    try:
        asyncio.run(look())
    except ModelNotFoundError as error:
        if not name.startswith("compatible/"):
            return [*warnings, Finding("judge", State.PROBLEM, f"{name}: {error}")]
        return [
            *warnings,
            Finding("judge", State.WARNING, f"{name}: the server answers, but does not say whether it has this model"),
        ]
    except CJError as error:
        return [*warnings, Finding("judge", State.PROBLEM, f"{name}: {error}")]
    return [*warnings, Finding("judge", State.OK, f"{name}: reached; it takes the key and knows the model")]


def look_at_assignment(settings: CJSettings, wanted: AssignmentRequest, *, may_replace: bool = False) -> list[Finding]:
    """Whether an assignment is registered as its files have it: scale, texts, anchors with grades and checksums.

    Args:
        settings: where the ledger is.
        wanted: as the files have it.
        may_replace: whether a difference is no problem, because a revision would be added.
    """
    file = sqlite_file(settings.effective_ledger_url)
    absent = Finding(
        "assignment", State.OK, f"{wanted.assignment_id} is not registered yet: it will be, with its anchors"
    )
    if file is not None and not file.exists():
        return [absent]
    try:
        ledger = Ledger.open(settings.effective_ledger_url)
    except CJError:
        return []  # told of already, by the look at the ledger
    try:
        different = assignment_differences(ledger, wanted)
    finally:
        ledger.close()
    if different is None:
        return [absent]
    state, then = (State.WARNING, "a revision is added") if may_replace else (State.PROBLEM, REVISION_REMEDY)
    if different:
        return [Finding("assignment", state, f"{wanted.assignment_id}: {what}: {then}") for what in different]
    told = f"{wanted.assignment_id}: registered as its files have it, {len(wanted.anchors)} anchors"
    return [Finding("assignment", State.OK, told)]


def _nearest_existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())
