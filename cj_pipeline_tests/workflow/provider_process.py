"""Processes that advance a batch with its own judge, for the drills against a provider: started, killed, interrupted.

    python -m cj_pipeline_tests.workflow.provider_process ADDRESS

is a fork server that has the providers' SDKs loaded (seconds, for every process that loads them by itself): for each
line of JSON on its standard input (the arguments of `advance_and_tell`) it forks a process that connects to ADDRESS.
The dead are not reaped while it lives, so that the id of a process never comes to mean another one.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
from multiprocessing.connection import Client
from types import FrameType
from typing import Any

from cj_pipeline.core.errors import CJError
from cj_pipeline.ledger import Ledger
from cj_pipeline.workflow.loop import advance_batch
from cj_pipeline_tests.workflow.scenes import settings

IMPORTED_ON_FIRST_USE = (
    *("psycopg2", "scipy.linalg", "scipy.sparse.csgraph", "sqlalchemy.dialects.postgresql.psycopg2"),
    *("anthropic.resources.messages", "openai.resources.responses", "openai.resources.batches"),
    *("openai.resources.files", "openai.resources.chat"),
    *("cj_pipeline.judges.anthropic", "cj_pipeline.judges.openai"),
)


def advance_and_tell(
    address: str, *, url: str, environment: dict[str, str], wait: float, setting: dict[str, Any]
) -> None:
    """Advance batch `b` as `cj` does it; tell one's id, then how it ended: an outcome or the name of an error."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    os.environ.update(environment)
    with Client(address, "AF_UNIX") as told:
        try:
            ledger = Ledger.open(url)
            told.send(os.getpid())
            told.send(advance_batch(ledger, "b", settings(**setting), wait=wait).outcome.value)
        except (CJError, KeyboardInterrupt) as error:
            told.send(type(error).__name__)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Fork a process for each line, until there are no more."""
    for name in IMPORTED_ON_FIRST_USE:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then end this process
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                advance_and_tell(sys.argv[1], **json.loads(line))
            except BaseException:  # noqa: BLE001 - the last words of a process that a test waits for
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stderr.flush()
                os._exit(0)


if __name__ == "__main__":
    main()
