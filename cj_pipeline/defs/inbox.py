"""The inbox: a batch folder dropped there is claimed by rename, read in a run, and moved to accepted/ or rejected/.

`inbox/NAME/` (dropped) → `inbox/claimed/NAME@MOMENT/` → `inbox/accepted/NAME/` or `inbox/rejected/NAME/` + `error.txt`.
The moment makes each claim one of its kind, however often a name is dropped. What a batch folder must look like is
`workflow.intake`'s business.
"""

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
from cj_pipeline.workflow.intake import read_batch
from cj_pipeline.workflow.registration import submit_batch

CLAIMED: Final = "claimed"
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
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
        claims.append(_move(folder, inbox / CLAIMED, f"{folder.name}@{_moment()}").name)
    return claims


def open_claims(settings: CJSettings) -> list[str]:
    """The claimed folders that no run has finished with, by name."""
    claimed = settings.inbox_dir / CLAIMED
    return sorted(folder.name for folder in claimed.iterdir() if folder.is_dir()) if claimed.is_dir() else []


def ingest_claimed(settings: CJSettings, ledger: Ledger, instance: DagsterInstance, claim: str) -> Ingestion:
    """Read and submit a claimed folder, and move it to where it belongs.

    Raises:
        InputError: there is no such claim.
    """
    folder = settings.inbox_dir / CLAIMED / claim
    if Path(claim).name != claim or not folder.is_dir():
        raise InputError(f"no claimed folder {claim[:80]!r} in {settings.inbox_dir / CLAIMED}")
    try:
        submission = submit_batch(ledger, settings, read_batch(folder))
    except CJError as error:
        return reject_claim(settings, claim, str(error))
    add_partitions(instance, [submission.batch_id])
    _move(folder, settings.inbox_dir / ACCEPTED, _dropped_name(claim))
    known = "" if submission.created else " (it was there already, with the same content)"
    return Ingestion(
        accepted=True,
        batch_id=submission.batch_id,
        message=f"batch {submission.batch_id} submitted: {submission.students} students, {submission.anchors} anchors, "
        f"budget {submission.total_budget}{known}",
    )


def reject_claim(settings: CJSettings, claim: str, reason: str) -> Ingestion:
    """Move a claimed folder to rejected/, with the reason beside its files."""
    folder = _move(settings.inbox_dir / CLAIMED / claim, settings.inbox_dir / REJECTED, _dropped_name(claim))
    (folder / "error.txt").write_text(f"{reason}\n", encoding="utf-8")
    return Ingestion(
        accepted=False, batch_id=None, message=f"{claim} was rejected, see {folder / 'error.txt'}: {reason}"
    )


def _newest_change(folder: Path) -> float:
    return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))


def _dropped_name(claim: str) -> str:
    return claim.rsplit("@", 1)[0]


def _moment() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"


def _move(folder: Path, to: Path, name: str) -> Path:
    """Move a folder into another; a name that is taken gets the moment as a suffix, so nothing is overwritten."""
    to.mkdir(parents=True, exist_ok=True)
    target = to / name
    while target.exists():
        target = to / f"{name}.{_moment()}"
    return folder.rename(target)
