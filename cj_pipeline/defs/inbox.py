"""The inbox: a batch folder dropped there is claimed by rename, read in a run, and moved to accepted/ or rejected/.

`inbox/NAME/` (dropped) → `inbox/claimed/CLAIM/NAME/` → `inbox/accepted/NAME/` or `inbox/rejected/NAME/` + `error.txt`.
A claim is called after the folder and the moment, so it is one of its kind however often a name is dropped, and can be
shown and logged whatever the folder is called. The folder keeps its name, which may be the batch's id. What a batch
folder must look like is `workflow.intake`'s business.
"""

import contextlib
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dagster import DagsterInstance

from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.defs.partitions import add_partitions
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import CJSettings
from cj_pipeline.workflow.registration import read_and_submit

CLAIMED: Final = "claimed"
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
ERROR_FILE: Final = "error.txt"
_RESERVED: Final = {CLAIMED, ACCEPTED, REJECTED}


@dataclass(frozen=True)
class Ingestion:
    """What became of a claimed folder."""

    accepted: bool
    batch_id: str | None
    message: str


def claim_settled_folders(settings: CJSettings, *, now: float | None = None) -> list[str]:
    """Claim the folders that have been unchanged for the settle time; the names of the new claims.

    A folder counts from its newest file, so that a copy in progress is left alone.
    """
    inbox = settings.inbox_dir
    if not inbox.is_dir():
        return []
    moment = time.time() if now is None else now
    claims = []
    for folder in sorted(inbox.iterdir()):
        if folder.name in _RESERVED or folder.name.startswith(".") or not folder.is_dir() or folder.is_symlink():
            continue
        if not (folder / "batch.yaml").is_file() or moment - _newest_change(folder) < settings.inbox_settle_seconds:
            continue
        claims.append(_claim(folder, inbox / CLAIMED))
    return claims


def open_claims(settings: CJSettings) -> list[str]:
    """The claims that no run has finished with, by name."""
    claimed = settings.inbox_dir / CLAIMED
    if not claimed.is_dir():
        return []
    return sorted(claim.name for claim in claimed.iterdir() if claim.is_dir() and _folders(claim))


def ingest_claimed(settings: CJSettings, ledger: Ledger, instance: DagsterInstance, claim: str) -> Ingestion:
    """Read and submit a claimed folder, and move it to where it belongs.

    Raises:
        InputError: there is no such claim.
    """
    folder = _claimed_folder(settings, claim)
    # the reason of an earlier rejection is no essay
    (folder / ERROR_FILE).unlink(missing_ok=True)
    try:
        submission = read_and_submit(ledger, settings, folder)
    except CJError as error:
        return reject_claim(settings, claim, str(error))
    add_partitions(instance, [submission.batch_id])
    _move(folder, settings.inbox_dir / ACCEPTED)
    known = "" if submission.created else " (it was there already, with the same content)"
    return Ingestion(
        accepted=True,
        batch_id=submission.batch_id,
        message=f"batch {submission.batch_id} submitted: {submission.students} students, {submission.anchors} anchors, "
        f"budget {submission.total_budget}{known}",
    )


def reject_claim(settings: CJSettings, claim: str, reason: str) -> Ingestion:
    """Move a claimed folder to rejected/, with the reason beside its files.

    Raises:
        InputError: there is no such claim.
    """
    folder = _move(_claimed_folder(settings, claim), settings.inbox_dir / REJECTED)
    (folder / ERROR_FILE).write_text(f"{reason}\n", encoding="utf-8")
    return Ingestion(
        accepted=False, batch_id=None, message=f"{claim} was rejected, see {ERROR_FILE} in {folder.name!a}: {reason}"
    )


def _newest_change(folder: Path) -> float:
    newest = folder.lstat().st_mtime
    for path in folder.rglob("*"):
        # a copy in progress renames its files
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.lstat().st_mtime)
    return newest


def _claim(folder: Path, claimed: Path) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name)[:60]
    claim = f"{readable}@{_moment()}"
    (claimed / claim).mkdir(parents=True)
    folder.rename(claimed / claim / folder.name)
    return claim


def _claimed_folder(settings: CJSettings, claim: str) -> Path:
    if claim not in open_claims(settings):
        raise InputError(f"no claimed folder {claim[:80]!r} in {settings.inbox_dir / CLAIMED}")
    return _folders(settings.inbox_dir / CLAIMED / claim)[0]


def _folders(claim: Path) -> list[Path]:
    return [path for path in claim.iterdir() if path.is_dir()]


def _moment() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


def _move(folder: Path, to: Path) -> Path:
    """Move a folder out of its claim; a name that is taken gets the moment as a suffix, so nothing is overwritten."""
    to.mkdir(parents=True, exist_ok=True)
    target = to / folder.name
    while target.exists():
        # cut, because file systems take 255 bytes
        target = to / f"{folder.name[:50]}.{_moment()}"
    moved = folder.rename(target)
    with contextlib.suppress(OSError):  # an empty claim is none
        folder.parent.rmdir()
    return moved
