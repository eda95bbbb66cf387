"""A stage for the Dagster face: a project folder of its own, batches to play on it, and the processes started for it.

Every process that a stage starts carries the stage's mark in its environment, so that it can find, kill and count its
own processes and nobody else's.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import polars as pl
import pytest
from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Definitions,
    ExecuteInProcessResult,
    JobDefinition,
)
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from cj_pipeline.defs.io_managers import LakeIOManager
from cj_pipeline.defs.resources import CJResource
from cj_pipeline.judges.simulated import SimulatedJudge, load_profiles
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import CJSettings, load_settings
from cj_pipeline.workflow.intake import read_assignment, read_batch
from cj_pipeline.workflow.loop import advance_batch
from cj_pipeline.workflow.registration import register_assignment, submit_batch

ROOT: Final = Path(__file__).parents[2]
BIN: Final = Path(sys.executable).parent
DEMO: Final = ROOT / "assets_data" / "inputs" / "demo"
MARK: Final = "CJ_TESTS_STAGE"
QUIET: Final = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
Found = TypeVar("Found")


class Stage:
    """A project folder under `home` with dagster.yaml, workspace.yaml and a data folder; nothing runs yet.

    Args:
        home: an empty folder.
        settings: environment variables of the processes, e.g. `CJ_LEASE_SECONDS`.
    """

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.data_dir = home / "assets_data"
        self.lake = self.data_dir / "outputs" / "lake"
        self.inbox = self.data_dir / "inputs" / "inbox"
        self.inbox.mkdir(parents=True)
        self._mark = uuid.uuid4().hex
        self._settings = dict(settings or {})
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copyfile(ROOT / name, home / name)

    @classmethod
    def alone(cls, home: Path, monkeypatch: pytest.MonkeyPatch) -> "Stage":
        """A stage whose project is also this process's: nobody's own settings are in force."""
        for name in list(os.environ):
            if name.startswith(("CJ_", "DAGSTER_")) and name != "CJ_TESTS_NO_SKIPS":
                monkeypatch.delenv(name)
        stage = cls(home)
        monkeypatch.chdir(home)
        return stage

    @property
    def environment(self) -> dict[str, str]:
        """What a process started on this stage sees: this machine's environment without anybody's own settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("CJ_", "DAGSTER_"))}
        return inherited | {
            "DAGSTER_HOME": str(self.home),
            "CJ_DATA_DIR": str(self.data_dir),
            "OPENBLAS_NUM_THREADS": "1",
            "GX_ANALYTICS_ENABLED": "false",
            MARK: self._mark,
            **self._settings,
        }

    # --- in this process -----------------------------------------------------------------------------------------

    @property
    def cj(self) -> CJResource:
        return CJResource(data_dir=str(self.data_dir))

    @property
    def resources(self) -> dict[str, Any]:
        return {"cj": self.cj, "io_manager": LakeIOManager(base_url=str(self.lake))}

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with self.cj.ledger() as ledger:
            yield ledger

    def batch(self, batch_id: str) -> BatchRecord:
        with self.ledger() as ledger:
            return ledger.batch(batch_id)

    @contextmanager
    def instance(self) -> Iterator[DagsterInstance]:
        """The instance that the processes of this stage use too."""
        with DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def register_demo(self) -> None:
        """A ledger with the demo's assignment, unless there is a ledger already."""
        path = self.data_dir / "outputs" / "ledger.sqlite"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_ledger_with_the_demo_assignment())

    def submit_demo(
        self, batch_id: str = "demo", *, students: int = 12, settings: Mapping[str, Any] | None = None, **overrides: Any
    ) -> None:
        """Submit the first `students` essays of the demo batch under `batch_id`; its assignment is registered first."""
        self.register_demo()
        folder = demo_folder(self.home / "dropped" / batch_id, students=students)
        stated: CJSettings = load_settings(data_dir=self.data_dir, **(settings or {}))
        with self.ledger() as ledger:
            submit_batch(ledger, stated, read_batch(folder, batch_id=batch_id, overrides=overrides))

    def judge(self, batch_id: str, *, failing: bool = False, **settings: Any) -> None:
        """Advance a batch without Dagster; with `failing`, by a judge whose every answer is malformed."""
        profile = load_profiles()[self.batch(batch_id).judge_profile]
        malformed = SimulatedJudge(profile, seed=1, error_rates={"malformed_answer": 1.0})
        with self.ledger() as ledger:
            stated = load_settings(data_dir=self.data_dir, **settings)
            advance_batch(ledger, batch_id, stated, judge=malformed if failing else None)

    def run(self, instance: DagsterInstance, job: str, batch_id: str) -> ExecuteInProcessResult:
        """Execute a job in this process, on the real definitions with this stage's ledger and lake."""
        instance.add_dynamic_partitions("cj_batch", [batch_id])
        return self.job(job).execute_in_process(
            instance=instance, partition_key=batch_id, raise_on_error=False, run_config=QUIET
        )

    def leave_run(
        self, instance: DagsterInstance, job: str, status: DagsterRunStatus, *, tags: Mapping[str, str], **fields: Any
    ) -> DagsterRun:
        """A run in the instance's records in `status`, behind which there is no process."""
        return instance.create_run_for_job(
            self.job(job), status=status, tags=tags, remote_job_origin=_origin(job), **fields
        )

    def definitions(self) -> Definitions:
        from cj_pipeline.definitions import build_definitions

        return build_definitions(self.resources)

    def job(self, name: str) -> JobDefinition:
        return self.definitions().resolve_job_def(name)

    def frame(self, asset: str, batch_id: str) -> pl.DataFrame:
        """What the lake holds of an asset."""
        return pl.read_parquet(self.lake / asset / f"{batch_id}.parquet")

    # --- processes -----------------------------------------------------------------------------------------------

    def call(self, *command: str, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
        """Run a command of the installed program to its end."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command of the installed program in a session of its own; its output goes to a file in `home`."""
        with (self.home / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, command: str) -> str:
        """What a started command has written so far."""
        return (self.home / f"{command}.log").read_text(encoding="utf-8", errors="replace")

    def processes(self, command: str = "") -> dict[int, str]:
        """The living processes of this stage by pid, with their command lines, all or those containing `command`."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with suppress(OSError):
                if f"{MARK}={self._mark}".encode() in (folder / "environ").read_bytes():
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if command in line:
                        found[int(folder.name)] = line
        return found

    def kill(self, pids: list[int]) -> None:
        """SIGKILL to processes of this stage."""
        for pid in set(pids) & set(self.processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_everything(self) -> None:
        """Like a power cut: every process of this stage is gone, none had time to say anything."""
        while found := self.processes():
            self.kill(list(found))
            time.sleep(0.05)

    @contextmanager
    def ui(self) -> Iterator["Webserver"]:
        """`cj ui` on a free port, answering. Everything of this stage is ended afterwards."""
        port = free_port()
        server = Webserver(port, self.start("cj", "ui", "--port", str(port)))
        try:
            wait_until(server.answers, seconds=90, what=lambda: f"cj ui did not answer:\n{self.log('cj')[-3000:]}")
            yield server
        finally:
            self.kill_everything()
            server.process.wait()

    @contextmanager
    def webserver(self) -> Iterator["Webserver"]:
        """`dagster-webserver` alone on a free port, answering."""
        port = free_port()
        server = Webserver(port, self.start("dagster-webserver", "-h", "127.0.0.1", "-p", str(port)))
        try:
            wait_until(server.answers, seconds=90, what=lambda: self.log("dagster-webserver")[-3000:])
            yield server
        finally:
            self.kill_everything()
            server.process.wait()


class Webserver:
    """A running webserver: its address, its process, and questions in GraphQL."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    def answers(self) -> bool:
        with suppress(OSError):
            return bool(self.ask("{ version }")["version"])
        return False

    def ask(self, query: str, **variables: Any) -> Any:
        """The data of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read())
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


def _origin(job: str) -> RemoteJobOrigin:
    """Where the daemon finds a job, which a queued run must say."""
    target = LoadableTargetOrigin(module_name="cj_pipeline.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(loadable_target_origin=target, location_name="cj_pipeline")
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job)


@cache
def _ledger_with_the_demo_assignment() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        ledger = Ledger.open(f"sqlite:///{path}")
        register_assignment(ledger, read_assignment(DEMO / "assignment"))
        ledger.close()
        return path.read_bytes()


def demo_folder(folder: Path, *, students: int = 12, **batch_yaml: Any) -> Path:
    """A batch folder like the demo's, with its first `students` essays; fields of batch.yaml can be changed by name."""
    folder.mkdir(parents=True)
    for essay in sorted((DEMO / "batch").glob("*.txt"))[:students]:
        shutil.copyfile(essay, folder / essay.name)
    kept = (DEMO / "batch" / "quality.csv").read_text(encoding="utf-8").splitlines()[: students + 1]
    (folder / "quality.csv").write_text("\n".join(kept) + "\n", encoding="utf-8")
    fields = {"assignment": "demo-eng5", "judge": "cj-generic", **batch_yaml}
    # JSON is YAML
    (folder / "batch.yaml").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def wait_until(
    condition: Callable[[], Found], *, seconds: float, what: str | Callable[[], str], every: float = 0.25
) -> Found:
    """The first true value of `condition`; fails the test with `what` if none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {seconds:.0f} s: {told}")
        time.sleep(every)


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
