"""Backfills over batches: one asked for, and which batches wait for one.

A backfill is a record on the instance that the daemon takes up: it launches one run of `assess_batch_job` per batch.
Not here: why several batches belong together (`eng5.matrix`).
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from dagster import DagsterInstance, RunsFilter
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import BACKFILL_ID_TAG, PARTITION_NAME_TAG
from dagster._core.utils import make_new_backfill_id

from cj_pipeline.defs.jobs import assess_batch_job
from cj_pipeline.defs.partitions import add_partitions

LOCATION: Final = "cj_pipeline"
"""The code location's name in workspace.yaml and pyproject.toml, by which the daemon finds the job."""

_REPOSITORY: Final = "__repository__"  # what Dagster calls the one of a module with Definitions


def request_backfill(
    instance: DagsterInstance, batch_ids: Sequence[str], *, title: str, tags: Mapping[str, str]
) -> str:
    """Ask for a run of each batch, as one backfill; its id. A daemon takes it up, now or when there is one.

    Args:
        instance: where it is recorded.
        batch_ids: batches of the ledger, at least one; those that are no partitions yet are added.
        title: what the UI calls it.
        tags: of the backfill and of its runs.

    Raises:
        InputError: an id that may not name a batch.
    """
    add_partitions(instance, list(batch_ids))
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), _REPOSITORY)
    backfill = PartitionBackfill(
        backfill_id=make_new_backfill_id(),
        partition_set_origin=origin.get_partition_set_origin(f"{assess_batch_job.name}_partition_set"),
        status=BulkActionStatus.REQUESTED,
        partition_names=list(batch_ids),
        from_failure=False,
        reexecution_steps=None,
        tags=dict(tags),
        backfill_timestamp=datetime.now(UTC).timestamp(),
        title=title,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


def batches_awaiting_backfill(instance: DagsterInstance) -> set[str]:
    """The batches for which a backfill is under way that has not launched their run yet."""
    awaiting: set[str] = set()
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])):
        # a backfill of assets knows its partitions only through the code location
        if backfill.partition_names is None:
            continue
        runs = instance.get_runs(RunsFilter(tags={BACKFILL_ID_TAG: backfill.backfill_id}))
        awaiting |= set(backfill.partition_names) - {run.tags.get(PARTITION_NAME_TAG, "") for run in runs}
    return awaiting


def batches_underway(instance: DagsterInstance, batch_ids: Collection[str]) -> set[str]:
    """Those of the batches that have a run that is not finished, whoever launched it."""
    runs = instance.get_runs(RunsFilter(statuses=list(NOT_FINISHED_STATUSES)))
    return {run.tags.get(PARTITION_NAME_TAG, "") for run in runs} & set(batch_ids)


def backfill_failure(instance: DagsterInstance, backfill_id: str) -> str | None:
    """Why a backfill ended without having launched its runs; None if it did, or may yet."""
    backfill = instance.get_backfill(backfill_id)
    if backfill is None:
        return "it is gone from the instance"
    if backfill.status in (BulkActionStatus.CANCELED, BulkActionStatus.CANCELING):
        return "it was cancelled"
    if backfill.status in (BulkActionStatus.FAILED, BulkActionStatus.FAILING):
        said = backfill.error.message.strip().partition("\n")[0] if backfill.error else "no reason recorded"
        return f"it failed: {said}"
    return None
