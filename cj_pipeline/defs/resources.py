"""What assets, checks, sensors and ops need from the outside: settings and the ledger, opened when asked for.

No key and no text passes through run config: the environment is read in the process that runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster import ConfigurableResource, Failure

from cj_pipeline.core.errors import CJError
from cj_pipeline.core.models import check_batch_id
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.logs import ensure_logging
from cj_pipeline.settings import CJSettings, load_settings


class CJResource(ConfigurableResource[Any]):
    """Settings and ledger of this process. `data_dir` and `ledger_url` win over the environment (for tests)."""

    data_dir: str | None = None
    ledger_url: str | None = None

    def settings(self) -> CJSettings:
        """The settings, read from the environment now.

        Raises:
            InputError: a variable that does not validate.
        """
        stated = {"data_dir": self.data_dir, "ledger_url": self.ledger_url}
        settings = load_settings(**{name: value for name, value in stated.items() if value is not None})
        ensure_logging(settings.log_format)
        return settings

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, closed afterwards.

        Raises:
            LedgerSchemaError: the schema is not this program's.
        """
        ledger = Ledger.open(self.settings().effective_ledger_url)
        try:
            yield ledger
        finally:
            ledger.close()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an error of this program into a Dagster failure that says the same and is not retried."""
    try:
        yield
    except CJError as error:
        raise Failure(description=str(error), allow_retries=False) from error


def batch_of_partition(ledger: Ledger, partition_key: str) -> BatchRecord:
    """The batch that a partition key names.

    Raises:
        InputError: the key may not name a batch (Dagster would accept `../x`).
        UnknownBatchError: the ledger has no such batch.
    """
    return ledger.batch(check_batch_id(partition_key))
