"""The transactional record of assignments, batches, comparisons, attempts and waves.

The only room that speaks SQL to the ledger. `engine` opens and migrates it, `ledger` registers and reads, `lease`
holds every write that needs the right to a batch. What the numbers mean is decided elsewhere.
"""

from cj_pipeline.ledger.errors import (
    BatchBusyError,
    BatchEndedError,
    BatchHeldError,
    BudgetExceededError,
    CostExceededError,
    LeaseLostError,
    LedgerSchemaError,
    UnknownAssignmentError,
    UnknownBatchError,
)
from cj_pipeline.ledger.lease import Lease
from cj_pipeline.ledger.ledger import REVISION_REMEDY, Ledger

__all__ = [
    "REVISION_REMEDY",
    "BatchBusyError",
    "BatchEndedError",
    "BatchHeldError",
    "BudgetExceededError",
    "CostExceededError",
    "Lease",
    "LeaseLostError",
    "Ledger",
    "LedgerSchemaError",
    "UnknownAssignmentError",
    "UnknownBatchError",
]
