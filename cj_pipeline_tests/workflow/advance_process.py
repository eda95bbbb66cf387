"""A process that advances a batch, for the crash drills: started, killed, stopped and continued by them.

Preloaded into a fork server, so that a new process costs milliseconds and moments of death fall into its work.
"""

import signal
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from cj_pipeline.core.errors import CJError
from cj_pipeline.ledger import Ledger
from cj_pipeline.workflow.loop import advance_batch
from cj_pipeline_tests.workflow.scenes import settings, simulated


def advance_in_process(
    told: Connection, url: str, *, mean_seconds: float, wait: float, setting: dict[str, Any]
) -> None:
    """Advance batch `b`, as `cj` does it; tell "at work", then how it ended: an outcome or the name of an error."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        ledger = Ledger.open(url)
        told.send("at work")
        judge = simulated(mean_seconds=mean_seconds)
        told.send(advance_batch(ledger, "b", settings(**setting), judge=judge, wait=wait).outcome.value)
    except (CJError, KeyboardInterrupt) as error:
        told.send(type(error).__name__)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
