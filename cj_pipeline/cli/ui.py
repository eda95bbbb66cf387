"""The webserver and the daemon under one command: both on loopback, either started again if it dies."""

import subprocess
import sys
import time
from pathlib import Path

from cj_pipeline.cli.context import end_process, ensure_dagster_home, errors, executable, say
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.ledger import Ledger
from cj_pipeline.settings import load_settings

RESTART_PAUSE_SECONDS = 2.0


def serve(home: Path, *, port: int, read_only: bool) -> None:
    """Serve until interrupted.

    Raises:
        InputError: there is no workspace.yaml, or the port is taken.
        LedgerSchemaError: the ledger's schema is not this program's.
    """
    workspace = home / "workspace.yaml"
    if not workspace.is_file():
        raise InputError(f"no workspace.yaml in {home}: run from the project's folder")
    _refuse_taken_port(port)
    ensure_dagster_home()
    settings = load_settings()
    Ledger.open(settings.effective_ledger_url).close()
    settings.inbox_dir.mkdir(parents=True, exist_ok=True)
    webserver = [executable("dagster-webserver"), "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace)]
    commands = {
        "webserver": [*webserver, "--read-only"] if read_only else webserver,
        "daemon": [executable("dagster-daemon"), "run", "-w", str(workspace)],
    }
    processes = {name: subprocess.Popen(command, cwd=home) for name, command in commands.items()}
    say(f"UI: http://127.0.0.1:{port}   inbox: {settings.inbox_dir}   Ctrl-C ends both")
    try:
        while True:
            time.sleep(RESTART_PAUSE_SECONDS)
            for name, process in processes.items():
                if process.poll() is not None:
                    errors.print(f"the {name} ended with {process.returncode}; starting it again", markup=False)
                    processes[name] = subprocess.Popen(commands[name], cwd=home)
    finally:
        for process in processes.values():
            end_process(process)
        sys.stdout.flush()


def _refuse_taken_port(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(f"port {port} is taken: choose another with --port") from None
        except OverflowError:
            raise CJError(f"{port} is not a port") from None
