"""`cj eng5 calibrate` and `cj eng5 calibration-history`: a night by hand, and what all nights say."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from cj_pipeline.cli.context import console, dagster_instance, open_ledger, print_json, say
from cj_pipeline.core.words import counted

HISTORY_SHOWN = 30


def add_calibration_commands(app: typer.Typer) -> None:
    """Register the commands of this module."""
    app.command()(calibrate)
    app.command("calibration-history")(calibration_history)


def calibrate(
    batch_id: Annotated[
        str | None,
        typer.Option(help="Id of the batch. [default: eng5-calibration-YYYYMMDD, as at night]", show_default=False),
    ] = None,
    await_completion: Annotated[
        bool, typer.Option("--await-completion/--no-await", help="Judge in this process, or only submit.")
    ] = True,
    completion_timeout: Annotated[
        float, typer.Option(help="Seconds after which this process stops; the batch goes on without it.", min=1)
    ] = 1800.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's own log.")] = False,
) -> None:
    """Calibrate now, as the nightly schedule does: judge the anchors, within a night's budget and the month's ceiling.

    What is judged, by whom and for how much, CJ_CALIBRATION_... say (`cj settings`). Tonight's batch exists once: the
    schedule will not make another.
    """
    from cj_pipeline.cli.run import await_batch
    from cj_pipeline.core.errors import InputError
    from cj_pipeline.defs.partitions import add_partitions
    from cj_pipeline.eng5.batches import stated_batch_id
    from cj_pipeline.eng5.nightly import look_at_nights_judge, submit_night
    from cj_pipeline.workflow.calibration import night_id
    from cj_pipeline.workflow.preflight import require_ready

    now = datetime.now(UTC)
    stated = stated_batch_id(batch_id, default=night_id(now.date()))
    with open_ledger() as (settings, ledger), dagster_instance() as instance:
        if await_completion:
            require_ready(look_at_nights_judge(settings))
        night = submit_night(ledger, settings, now, batch_id=stated)
        done = night.submission
        if done is None:
            raise InputError(night.skipped or "the night was skipped")
        add_partitions(instance, [night.batch_id])
    say(
        f"batch {night.batch_id} {'submitted' if done.created else 'was submitted before'}: {done.anchors} anchors of "
        f"{settings.calibration_assignment}, budget {done.total_budget} comparisons, judge {done.judge}"
        f"{' (SIMULATED)' if done.simulated else ''}"
    )
    for warning in done.warnings:
        say(f"note: {warning}")
    if not await_completion:
        say(f"it is judged where a daemon is alive, or by `cj run {night.batch_id}`; then: cj eng5 calibration-history")
        return
    await_batch(night.batch_id, timeout=completion_timeout, verbose=verbose)
    _rebuild_assets(verbose)
    calibration_history()


def _rebuild_assets(verbose: bool) -> None:
    """Rebuild bank and history as the daemon's sensor would, so that the UI has them and their checks at once."""
    from cj_pipeline.cli.run import console_config
    from cj_pipeline.definitions import defs

    with dagster_instance() as instance:
        result = defs.resolve_job_def("calibration_history_job").execute_in_process(
            instance=instance, run_config=console_config(verbose), raise_on_error=False
        )
    if not result.success:
        say(f"note: run {result.run_id} of calibration_history_job failed; the UI says why")


def calibration_history(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """What every night measured and what is out of control; writes bank and history again, from the ledger."""
    from cj_pipeline.cli.render import plain_table
    from cj_pipeline.eng5.calibration_files import nights_frame, stored_bank, write_bank, write_history
    from cj_pipeline.eng5.calibration_history import Measure, check_night
    from cj_pipeline.eng5.calibration_history import calibration_history as made_history

    with open_ledger(quiet=True) as (settings, ledger):
        history = made_history(ledger, settings)
        due = check_night(ledger, settings, datetime.now(UTC))
    written = write_history(history, settings.calibration_dir)
    if history.rows:
        written += write_bank(stored_bank(history.nights), history.nights, settings.calibration_dir)
    verdicts = [history.verdict(measure) for measure in Measure]
    if as_json:
        print_json(
            {
                "assignment_id": history.assignment_id,
                "judge": history.configuration.profile,
                "simulated": history.simulated,
                "last_night_is_there": due.there,
                "last_night": due.text,
                "verdicts": [
                    {"measure": one.measure.value, "in_control": one.in_control, "text": one.text} for one in verdicts
                ],
                "nights": nights_frame(history).to_dicts(),
                "written": [str(path) for path in written],
            }
        )
        return
    rows = [
        {name: value for name, value in row.items() if name not in ("order_effect_se", "tau_b_se", "cost_per_judgment")}
        for row in nights_frame(history).tail(HISTORY_SHOWN).to_dicts()
    ]
    if rows:
        console.print(plain_table(rows))
    say(f"{counted(len(history.rows), 'night')} of {history.assignment_id} by {history.configuration.profile}"
        f"{' (SIMULATED)' if history.simulated else ''}; {due.text}")  # fmt: skip
    for verdict in verdicts:
        say(f"  {'no alarm' if verdict.in_control else 'ALARM   '} {verdict.measure}: {verdict.text}")
    for path in written:
        say(f"written: {path}")
