"""The one partitions definition: a batch is a partition, and a partition is a batch."""

from dagster import DagsterInstance, DynamicPartitionsDefinition

from cj_pipeline.core.models import check_batch_id

CJ_BATCH = DynamicPartitionsDefinition(name="cj_batch")


def add_partitions(instance: DagsterInstance, batch_ids: list[str]) -> list[str]:
    """Add the batches that are not partitions yet, in one call; the ids that were added.

    Raises:
        InputError: an id that may not name a batch.
    """
    known = set(instance.get_dynamic_partitions("cj_batch"))
    missing = [check_batch_id(batch_id) for batch_id in batch_ids if batch_id not in known]
    if missing:
        instance.add_dynamic_partitions("cj_batch", missing)
    return missing
