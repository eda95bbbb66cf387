"""Running a batch in this process, on the instance that the UI shows, with a progress bar on a terminal."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cj_pipeline.cli.context import dagster_instance, errors, open_ledger, say
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.ledger import BatchBusyError, Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.workflow.results import last_failure


class JobFailedError(CJError):
    """The job ran and failed."""


class RunInterruptedError(CJError):
    """The run was asked to stop, and stopped cleanly. Exit code 130, as a shell has it for an interrupt."""

    exit_code = 130


class CompletionTimeoutError(CJError):
    """The time to wait for a batch was over before it was final. What is recorded stays, and the batch goes on."""


_LONGEST_LOOK_SECONDS = 30.0
"""Between two looks at a batch that was asked to wait."""


def await_batch(batch_id: str, *, timeout: float, verbose: bool, hints: bool = True) -> None:
    """Advance the batch in this process until it is final, or wait while another process does.

    When the time is over nothing more is sent, answers in flight are collected, and the lease is released; the batch
    is left open for the daemon or for `cj run`.

    Raises:
        CompletionTimeoutError: `timeout` seconds were over.
        JobFailedError: the run failed, the batch ended without a scale, or it is on hold.
        UnknownBatchError, RunInterruptedError: see `run_batch`.
    """
    _raise_if_held(_read_batch(batch_id))
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            run_batch(batch_id, wait=left, verbose=verbose, timeout=left, hints=hints)
        except BatchBusyError:
            break
        except JobFailedError:
            # a daemon may have taken the batch up at the same moment: then its run is the one to wait for
            if not _read_batch(batch_id).lease_live:
                raise
        batch = _read_batch(batch_id)
        if batch.status.is_final:
            return
        _raise_if_held(batch)
        if batch.not_before is not None:
            pause = min((batch.not_before - datetime.now(UTC)).total_seconds(), _LONGEST_LOOK_SECONDS)
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
    raise CompletionTimeoutError(
        f"batch {batch_id} was not final after {timeout:g} s: everything recorded is kept, and it goes on with the "
        f"daemon (make ui) or `cj run {batch_id}`. Allow more with --completion-timeout"
    )


def _raise_if_held(batch: BatchRecord) -> None:
    if batch.hold_reason is not None:
        raise JobFailedError(
            f"batch {batch.batch_id} is on hold ({batch.hold_reason}): `cj resume {batch.batch_id}` gives it back to "
            f"the daemon, `cj run {batch.batch_id}` goes on here"
        )


def run_batch(batch_id: str, *, wait: float, verbose: bool, timeout: float | None = None, hints: bool = True) -> None:
    """Advance the batch by executing its job in this process.

    Args:
        batch_id: the batch.
        wait: seconds to wait for another process to finish with it.
        verbose: whether to show Dagster's own log.
        timeout: seconds after which nothing more is sent; what is in flight is collected.
        hints: whether to say which metrics to look at afterwards.

    Raises:
        UnknownBatchError, BatchBusyError: no such batch; another process is at work on it.
        JobFailedError: the run failed, or the batch ended without a scale.
        RunInterruptedError: it was asked to stop.
    """
    with open_ledger(quiet=not verbose) as (_settings, ledger), dagster_instance() as instance:
        batch = ledger.batch(batch_id)
        _wait_for_lease(ledger, batch, wait)
        if batch.status.is_final and batch.published_at is not None:
            say(f"batch {batch_id} is done: {batch.status.value} ({batch.stop_reason}); see `cj show {batch_id}`")
            _raise_if_failed(ledger, batch)
            return
        from cj_pipeline.definitions import defs
        from cj_pipeline.defs.jobs import job_for
        from cj_pipeline.defs.partitions import add_partitions

        add_partitions(instance, [batch_id])
        job = defs.resolve_job_def(job_for(instance, batch_id))
        with _progress(ledger, batch_id), _deadline(ledger, batch_id, timeout):
            result = job.execute_in_process(
                instance=instance,
                partition_key=batch_id,
                run_config=console_config(verbose),
                raise_on_error=False,
            )
        if _was_interrupted(result):
            raise RunInterruptedError(
                f"interrupted: everything recorded is kept; `cj run {batch_id}` goes on from there"
            )
        batch = ledger.batch(batch_id)
        _raise_if_failed(ledger, batch)
        if not result.success:
            raise JobFailedError(f"batch {batch_id}: run {result.run_id} failed: {_first_failure(result)}")
        if batch.status.is_final:
            say(f"batch {batch_id}: {batch.status.value} ({batch.stop_reason})")
            if hints:
                _say_hints(ledger, batch_id)
        elif batch.hold_reason is not None:
            say(f"batch {batch_id} is on hold: {batch.hold_reason}")
        elif batch.not_before is not None:
            reason = batch.processing_metadata.get("waiting_for") or "it was asked to wait"
            say(
                f"batch {batch_id} waits until {batch.not_before:%Y-%m-%d %H:%M} UTC at the latest, because {reason}: "
                f"the daemon goes on by itself, or look again with `cj run {batch_id}`"
            )
        else:
            say(f"batch {batch_id} goes on: `cj run {batch_id}` again, or leave it to the daemon")


def console_config(verbose: bool) -> dict[str, Any]:
    """Run config by which Dagster's own log is shown, or nothing of it."""
    return {"loggers": {"console": {"config": {"log_level": "INFO" if verbose else "CRITICAL"}}}}


def _read_batch(batch_id: str) -> BatchRecord:
    with open_ledger(quiet=True) as (_settings, ledger):
        return ledger.batch(batch_id)


@contextmanager
def _deadline(ledger: Ledger, batch_id: str, seconds: float | None) -> Iterator[None]:
    """After so many seconds hold the batch, which stops its run cleanly; off hold again when the run is over."""
    if seconds is None:
        yield
        return
    over, held = threading.Event(), threading.Event()

    def hold() -> None:
        if over.wait(seconds):
            return
        # again and again: a run that only now comes to its judging takes its batch off hold first
        while not over.is_set():
            # it may have ended at this very moment
            with suppress(InputError):
                if ledger.batch(batch_id).hold_reason is None:
                    held.set()
                    ledger.hold(batch_id, f"no more time in this process, after {seconds:.0f} s")
            over.wait(0.5)

    thread = threading.Thread(target=hold, name=f"deadline-{batch_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if held.is_set():
            ledger.resume(batch_id, "released by the process whose time was over")


def _raise_if_failed(ledger: Ledger, batch: BatchRecord) -> None:
    if batch.status.is_final and not batch.status.has_grades:
        why = last_failure(ledger, batch.batch_id)
        raise JobFailedError(
            f"batch {batch.batch_id} ended as {batch.status.value} ({batch.stop_reason})"
            f"{f'; the last call said: {why}' if why else ''}: `cj show {batch.batch_id}` "
            f"says more, `cj reopen {batch.batch_id} --reason ...` returns a failed or cancelled batch to work"
        )


def _say_hints(ledger: Ledger, batch_id: str) -> None:
    from cj_pipeline.metrics import hints

    found = hints(ledger, batch_id)
    if found:
        say("LLM batching diagnostics (Prometheus query hints; `cj metrics serve`):")
        for purpose, query in found:
            say(f"  {purpose}: {query}")


def _was_interrupted(result: Any) -> bool:
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return any(failure.error and failure.error.cls_name == "DagsterExecutionInterruptedError" for failure in failures)


def _first_failure(result: Any) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            described = failure.user_failure_data.description if failure.user_failure_data else None
            return described or (failure.error.message.strip() if failure.error else "a step failed")
    checks = result.get_asset_check_evaluations()
    missed = [f"{check.asset_key.to_user_string()}:{check.check_name}" for check in checks if not check.passed]
    return f"checks failed: {', '.join(missed)}" if missed else "see the run in the UI"


def _wait_for_lease(ledger: Ledger, batch: BatchRecord, wait: float) -> None:
    deadline = time.monotonic() + wait
    while batch.lease_live:
        if time.monotonic() >= deadline:
            raise BatchBusyError(
                f"batch {batch.batch_id} is being written by {batch.lease_owner}: wait for it (--wait SECONDS), or "
                f"stop it with `cj hold {batch.batch_id}`"
            )
        time.sleep(0.5)
        batch = ledger.batch(batch.batch_id)


@contextmanager
def _progress(ledger: Ledger, batch_id: str) -> Iterator[None]:
    """Follow the batch by reading the ledger beside the run; a bar on a terminal, a line per wave elsewhere."""
    done = threading.Event()
    watch = _watch_bar if errors.is_terminal else _watch_lines
    thread = threading.Thread(target=watch, args=(ledger, batch_id, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def _watch_bar(ledger: Ledger, batch_id: str, done: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("comparisons of the budget"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(f"judging {batch_id}", total=None)
        while not done.wait(0.3):
            state = ledger.state(batch_id)
            final = ledger.batch(batch_id).status.is_final
            progress.update(
                task,
                completed=state.callbacks,
                total=state.total_budget,
                description=f"publishing {batch_id}" if final else f"judging {batch_id}",
            )


def _watch_lines(ledger: Ledger, batch_id: str, done: threading.Event) -> None:
    told = len([wave for wave in ledger.waves(batch_id) if wave.ended_at is not None])
    finished = False
    while not finished:
        finished = done.wait(0.5)
        ended = [wave for wave in ledger.waves(batch_id) if wave.ended_at is not None]
        for wave in ended[told:]:
            change = "" if wave.max_score_change is None else f", largest change {wave.max_score_change:.3f}"
            errors.print(
                f"wave {wave.wave} ({wave.pair_mode.value}): {wave.callbacks} comparisons{change}: {wave.decision} "
                f"({wave.reason})",
                markup=False,
            )
        told = len(ended)
