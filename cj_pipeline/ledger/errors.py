"""What the ledger refuses, and why."""

from cj_pipeline.core.errors import CJError, InputError


class LedgerSchemaError(CJError):
    """The ledger's schema is not the one this program was built for."""


class UnknownBatchError(InputError):
    """No batch of that id."""


class UnknownAssignmentError(InputError):
    """No assignment of that id."""


class BatchBusyError(CJError):
    """Another process holds the lease of the batch."""


class LeaseLostError(CJError):
    """This process no longer holds the lease: it must send nothing more and write nothing more."""


class BudgetExceededError(CJError):
    """A plan would submit more comparisons than the batch's budget allows."""


class BatchHeldError(CJError):
    """The batch is on hold: no call may be made."""


class CostExceededError(CJError):
    """The next call could make the batch cost more than its `max_cost_usd`."""


class BatchEndedError(CJError):
    """The batch is final: nothing more is planned or decided for it unless it is reopened."""


class PendingComparisonsError(CJError):
    """A batch was to be finalised while comparisons still wait for an answer."""
