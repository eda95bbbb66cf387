"""What every command needs: settings, the ledger, the Dagster instance, and one way to print."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cj_pipeline.core.errors import InputError
from cj_pipeline.ledger import Ledger
from cj_pipeline.logs import configure_logging
from cj_pipeline.settings import CJSettings, load_settings, project_home

if TYPE_CHECKING:
    from dagster import DagsterInstance

# a pipe has no width: tables get room there, a terminal keeps its own
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str = "") -> None:
    """A plain line on standard output."""
    console.print(text, markup=False)


def print_json(value: Any) -> None:
    """JSON for machines, on standard output."""
    sys.stdout.write(json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON; a number that is not finite, which JSON does not have, is null."""
    return json.dumps(_finite(value), indent=2, default=str, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


@contextmanager
def open_ledger(*, quiet: bool = False) -> Iterator[tuple[CJSettings, Ledger]]:
    """Settings and ledger of this command; `quiet` keeps log events below warnings off the terminal."""
    import logging

    settings = load_settings()
    configure_logging(settings.log_format, level=logging.WARNING if quiet else logging.INFO)
    ledger = Ledger.open(settings.effective_ledger_url)
    try:
        yield settings, ledger
    finally:
        ledger.close()


def ensure_dagster_home() -> Path:
    """Set `DAGSTER_HOME` where it is unset: the folder with dagster.yaml, here or above.

    Raises:
        InputError: there is none, or `DAGSTER_HOME` is no folder that Dagster would take.
    """
    home = project_home()
    stated = os.environ.get("DAGSTER_HOME")
    if stated and not (Path(stated).is_absolute() and Path(stated).is_dir()):
        raise InputError(
            f"DAGSTER_HOME {stated}: is not the full path of a folder: export DAGSTER_HOME=/path/to/the/project"
        )
    if "DAGSTER_HOME" in os.environ or (home / "dagster.yaml").is_file():
        os.environ["DAGSTER_HOME"] = str(home)
        return home
    raise InputError(
        "no dagster.yaml here or above, and DAGSTER_HOME is not set: run from the project's folder, or export "
        "DAGSTER_HOME=/path/to/it"
    )


@contextmanager
def dagster_instance() -> "Iterator[DagsterInstance]":
    """The Dagster instance that the UI shows."""
    ensure_dagster_home()
    from dagster import DagsterInstance

    with DagsterInstance.get() as instance:
        yield instance


def executable(name: str) -> str:
    """The path of a command installed beside this Python."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def end_process(process: "subprocess.Popen[bytes]", *, seconds: float = 20.0) -> None:
    """Ask a process we started to end, and end it if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
