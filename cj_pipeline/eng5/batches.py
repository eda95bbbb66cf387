"""What the modes of the ENG5 programme share: their names, batch ids, grade scale, and the log of what was validated.

Not here: what a mode does (`plan`, `anchor_align`), and how a batch is run (`cli`, `defs`).
"""

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Final

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import GradeScale, get_grade_scale
from cj_pipeline.core.models import check_batch_id
from cj_pipeline.eng5.artefact import RunMode
from cj_pipeline.eng5.inventory import Inventory
from cj_pipeline.logs import get_logger

SCALE_NAME: Final = "eng5_np_legacy_9_step"
DEFAULT_JUDGE: Final = "eng5-anchor"
"""Simulated: a real judge costs money and is named by whoever pays."""


class LookMode(StrEnum):
    """The mode that only looks: it judges nothing and writes no artefact. All others are a `RunMode`."""

    PLAN = "plan"


Mode = LookMode | RunMode


def eng5_scale() -> GradeScale:
    """The scale of the expert grades."""
    return get_grade_scale(SCALE_NAME)


def eng5_batch_id(stated: str | None, mode: Mode, now: datetime) -> str:
    """The batch id as stated, or `eng5-MODE-TIME` with the UTC time to the second.

    Raises:
        InputError: it is empty, or may not name a batch.
    """
    return stated_batch_id(stated, default=f"eng5-{mode}-{now:%Y%m%d-%H%M%S}")


def stated_batch_id(stated: str | None, *, default: str) -> str:
    """The batch id as stated, or the default.

    Raises:
        InputError: it is empty, ends as if something were missing, or may not name a batch.
    """
    if stated is None:
        return default
    if not stated.strip() or stated.endswith("-"):
        said = "is empty" if not stated.strip() else "ends with a hyphen"
        raise InputError(
            f"--batch-id {said}, perhaps because a shell variable in it was not set: state an id, or leave the option "
            f"out for one like {default}"
        )
    return check_batch_id(stated)


def manifest_checksum(checksums: dict[str, str]) -> str:
    """SHA-256 over the lines `SHA256  PATH` of a manifest, in the order of paths: that of `sha256sum`'s own output."""
    lines = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(checksums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def log_validation_state(
    inventory: Inventory, mode: Mode, *, batch_id: str, correlation_id: str, partial_data: bool | None = None
) -> None:
    """Log `runner_validation_state`: which files a run stands on.

    Args:
        inventory: the files.
        mode, batch_id, correlation_id: of the run.
        partial_data: as its artefact says; None without an artefact.
    """
    checksums = inventory.checksums
    log = get_logger(batch_id=batch_id, correlation_id=correlation_id, runner_mode=mode.value)
    status = {} if partial_data is None else {"partial_data": partial_data}
    log.info("runner_validation_state", manifest_length=len(checksums), checksum=manifest_checksum(checksums), **status)
