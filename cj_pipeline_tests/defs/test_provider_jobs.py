"""Provider batch jobs as Dagster sees them: who asks after a job that is out, what is launched, and what a run shows.

The provider is a server on loopback that the official SDKs talk to; what was asked of it is counted there.
"""

import re
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
import yaml
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    SensorResult,
    SkipReason,
    build_sensor_context,
)

from cj_pipeline.cli import main
from cj_pipeline.core.models import BatchStatus
from cj_pipeline.defs.sensors import batch_monitor_sensor, continue_batch_sensor, provider_batch_sensor
from cj_pipeline.ledger import Lease
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.records import JobState
from cj_pipeline.settings import BatchOverrides, load_settings
from cj_pipeline.workflow.loop import Outcome, advance_batch
from cj_pipeline.workflow.registration import register_assignment, submit_batch
from cj_pipeline_tests.builders import rows, update_batch
from cj_pipeline_tests.conftest import provider_environment
from cj_pipeline_tests.defs.stage import ROOT, Stage, free_port
from cj_pipeline_tests.providers.server import ProviderServer
from cj_pipeline_tests.workflow import scenes

BATCH = "b"
CLAUDE, GPT = "anthropic/claude-haiku-4-5", "openai/gpt-5.1"
KEY = "sk-the-right-and-secret-key"
BUDGET = 28
JOB: dict[str, Any] = {
    "max_comparisons": BUDGET,
    "llm_batching_mode": "provider_batch_api",
    "batch_api_mode": "opportunistic",
    "min_comparisons_for_stability_check": 100_000,
}
UPSTREAM = {"pair_waves"}
DOWNSTREAM = {
    "llm_judgments",
    "bt_scores",
    "bt_se_summary",
    "bt_quality_flags",
    "batch_state",
    "grade_projections",
    "comparison_graph",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProviderServer]:
    """A provider whose jobs stay out until `jobs.hold` is taken back."""
    with ProviderServer(seed=1, api_key=KEY) as server:
        for name, value in provider_environment(server).items():
            monkeypatch.setenv(name, value)
        server.jobs.hold = True
        yield server


@pytest.fixture
def stage(tmp_path: Path, server: ProviderServer, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    (stage.data_dir / "inputs" / "prices.yaml").write_text(_two_prices(), encoding="utf-8")
    stage.register_demo()  # a ledger, quickly
    with stage.ledger() as ledger:
        register_assignment(ledger, scenes.assignment_request(anchors=4))
    return stage


@cache
def _two_prices() -> str:
    """The shipped prices of the two models, which are read faster than all of them."""
    shipped = yaml.safe_load((ROOT / "assets_data" / "inputs" / "prices.yaml").read_text(encoding="utf-8"))
    used = [price for price in shipped["prices"] if f"{price['provider']}/{price['model']}" in (CLAUDE, GPT)]
    return yaml.safe_dump({"prices": used})


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def submit(stage: Stage, batch_id: str = BATCH, *, judge: str = CLAUDE, **overrides: Any) -> None:
    """Four students and four anchors, all 28 pairs of them to be judged by one job."""
    request = scenes.batch_request(
        batch_id, judge=judge, overrides=BatchOverrides(**{**JOB, **overrides}), students=scenes.students(4)
    )
    with stage.ledger() as ledger:
        submit_batch(ledger, load_settings(data_dir=stage.data_dir), request)


def send_job(stage: Stage, batch_id: str = BATCH, *, judge: str = CLAUDE, **overrides: Any) -> str:
    """Submit a batch and advance it until its job is out; the provider's id of the job."""
    submit(stage, batch_id, judge=judge, **overrides)
    with stage.ledger() as ledger:
        done = advance_batch(ledger, batch_id, load_settings(data_dir=stage.data_dir))
        assert done.outcome is Outcome.WAITING
        (job,) = ledger.jobs_out(batch_id)
    assert job.provider_job_id is not None
    return job.provider_job_id


def everything(stage: Stage) -> dict[str, list[tuple[Any, ...]]]:
    with stage.ledger() as ledger:
        return rows(ledger)


def polls(server: ProviderServer, job: str) -> int:
    """How often the provider was asked after a job."""
    return sum(call.method == "GET" and call.path.endswith(f"/{job}") for call in server.calls)


def poll(stage: Stage, instance: DagsterInstance, cursor: str | None = None) -> SensorResult:
    """One tick of the polling sensor."""
    context = build_sensor_context(instance=instance, cursor=cursor, resources={"cj": stage.cj})
    result = provider_batch_sensor(context)
    assert isinstance(result, SensorResult)
    return result


def reason(result: SensorResult) -> str:
    assert not result.run_requests
    assert result.skip_reason is not None
    return result.skip_reason.skip_message or ""


def launched(result: SensorResult) -> list[str | None]:
    return [request.run_key for request in result.run_requests or []]


def continued(stage: Stage, instance: DagsterInstance) -> list[str | None]:
    """The keys of what one tick of the continuing sensor launches."""
    result = continue_batch_sensor(build_sensor_context(instance=instance, resources={"cj": stage.cj}))
    return [] if isinstance(result, SkipReason) else launched(result)


# --- polling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", [CLAUDE, GPT])
def test_a_job_that_is_out_is_asked_after_once_and_nothing_is_launched_or_written(
    stage: Stage, instance: DagsterInstance, server: ProviderServer, judge: str
) -> None:
    job = send_job(stage, judge=judge)
    before, asked = everything(stage), polls(server, job)

    result = poll(stage, instance)

    assert job in reason(result)
    assert polls(server, job) == asked + 1
    assert everything(stage) == before
    assert server.answered == 0


def test_a_job_is_not_asked_after_again_before_its_time(
    stage: Stage, instance: DagsterInstance, server: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CJ_BATCH_API_POLL_SECONDS", "1")
    job = send_job(stage)
    first = poll(stage, instance)
    asked, since = polls(server, job), time.monotonic()
    second = poll(stage, instance, first.cursor)
    third = poll(stage, instance, second.cursor)
    assert time.monotonic() - since < 1.0, "too slow a machine for this test"
    assert (launched(second), launched(third)) == ([], [])
    assert polls(server, job) == asked

    time.sleep(1.05)
    fourth = poll(stage, instance, third.cursor)
    assert polls(server, job) == asked + 1
    poll(stage, instance, fourth.cursor)
    assert polls(server, job) == asked + 1


def test_the_cursor_forgets_jobs_that_are_out_no_more(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    send_job(stage)
    cursor = poll(stage, instance).cursor
    assert cursor not in (None, "{}")
    server.jobs.hold = False
    with stage.ledger() as ledger:
        advance_batch(ledger, BATCH, load_settings(data_dir=stage.data_dir))
    assert poll(stage, instance, cursor).cursor == "{}"


@pytest.mark.parametrize("judge", [CLAUDE, GPT])
def test_when_the_job_is_over_one_run_is_requested_and_no_other_while_that_one_is_under_way(
    stage: Stage, instance: DagsterInstance, server: ProviderServer, judge: str
) -> None:
    job = send_job(stage, judge=judge)
    with stage.ledger() as ledger:
        update_batch(ledger, BATCH, launch=6)
    server.jobs.hold = False

    result = poll(stage, instance)

    (request,) = result.run_requests or []
    assert request.run_key == "b:7"
    assert request.partition_key == BATCH
    assert request.tags["cj/launch"] == "7"
    assert request.tags["cj/correlation_id"] == stage.batch(BATCH).correlation_id
    assert stage.batch(BATCH).launch == 7
    with stage.ledger() as ledger:
        assert ledger.state(BATCH).judged == 0, "the results are the run's to take in"

    asked = polls(server, job)
    run = stage.leave_run(
        instance, "continue_batch_job", DagsterRunStatus.QUEUED, tags={"dagster/partition": BATCH, **request.tags}
    )
    # without a cursor it is always time to ask
    assert launched(poll(stage, instance)) == []
    assert continued(stage, instance) == []
    assert polls(server, job) == asked

    # that run dies before it took anything in: the job is asked after again, and the next number is next
    instance.report_run_failed(run)
    assert launched(poll(stage, instance)) == ["b:8"]
    assert polls(server, job) == asked + 1


def test_a_ledger_restored_from_a_backup_does_not_use_up_the_keys_of_runs_again(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    send_job(stage)
    stage.leave_run(
        instance,
        "continue_batch_job",
        DagsterRunStatus.SUCCESS,
        tags={"dagster/partition": BATCH, "cj/launch": "12"},
    )
    server.jobs.hold = False
    assert launched(poll(stage, instance)) == ["b:13"]


def test_the_continuing_sensor_leaves_a_batch_alone_while_its_job_is_out(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    job = send_job(stage)
    assert "b" in {batch.batch_id for batch in _open(stage)}
    before, asked = everything(stage), polls(server, job)
    assert continued(stage, instance) == []
    server.jobs.hold = False
    assert continued(stage, instance) == [], "it does not know that the job is over: asking is another sensor's work"
    assert everything(stage) == before
    assert polls(server, job) == asked


def _open(stage: Stage) -> list[Any]:
    with stage.ledger() as ledger:
        return ledger.open_batches()


# --- batches that are nobody's to poll ---------------------------------------------------------------------------


def test_a_held_batch_is_not_polled_until_it_is_resumed(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    job = send_job(stage)
    server.jobs.hold = False
    asked = polls(server, job)
    with stage.ledger() as ledger:
        ledger.hold(BATCH, "lunch")
    assert reason(poll(stage, instance)) == "no provider batch job needs a look"
    assert polls(server, job) == asked
    with stage.ledger() as ledger:
        ledger.resume(BATCH)
    assert launched(poll(stage, instance)) == ["b:1"]


def test_a_batch_with_a_live_lease_is_not_polled_until_it_is_free(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    job = send_job(stage)
    server.jobs.hold = False
    asked = polls(server, job)
    with stage.ledger() as ledger, Lease.acquire(ledger, BATCH, owner="somebody", seconds=30):
        assert launched(poll(stage, instance)) == []
        assert polls(server, job) == asked
    assert launched(poll(stage, instance)) == ["b:1"]


def test_a_final_batch_is_not_polled_though_its_job_was_never_taken_in(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    job = send_job(stage)
    with stage.ledger() as ledger, Lease.acquire(ledger, BATCH, owner="somebody", seconds=30) as lease:
        lease.finalise(BatchStatus.CANCELLED, "cancelled")
    asked = polls(server, job)
    assert launched(poll(stage, instance)) == []
    assert polls(server, job) == asked


def test_batches_that_travel_as_calls_are_not_polled(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    submit(stage, llm_batching_mode="serial_bundle")
    assert reason(poll(stage, instance)) == "no provider batch job needs a look"
    assert server.calls == []
    assert continued(stage, instance) == ["b:1"]


# --- a provider that cannot be asked -----------------------------------------------------------------------------


def assert_nothing_is_told(text: str) -> None:
    assert scenes.tell_secrets(text) == []
    assert "sk-" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("judge", "key", "told"),
    [
        (CLAUDE, "sk-a-wrong-and-secret-key", "does not accept the key"),
        (GPT, "", "set OPENAI_API_KEY in the environment"),
        pytest.param(GPT, "sk-a-wrong-and-secret-key", "does not accept the key", marks=pytest.mark.slow),
        pytest.param(CLAUDE, "", "set ANTHROPIC_API_KEY in the environment", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_key_is_a_reason_to_skip_and_mended_it_goes_on(
    stage: Stage,
    instance: DagsterInstance,
    server: ProviderServer,
    monkeypatch: pytest.MonkeyPatch,
    judge: str,
    key: str,
    told: str,
) -> None:
    job = send_job(stage, judge=judge)
    server.jobs.hold = False
    variable = "ANTHROPIC_API_KEY" if judge == CLAUDE else "OPENAI_API_KEY"
    monkeypatch.setenv(variable, key)
    before = everything(stage)

    said = reason(poll(stage, instance))

    assert BATCH in said
    assert job in said
    assert told in said
    assert_nothing_is_told(said)
    assert everything(stage) == before
    monkeypatch.setenv(variable, KEY)
    assert launched(poll(stage, instance)) == ["b:1"]


def test_a_server_that_is_down_is_a_reason_to_skip(
    stage: Stage, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = send_job(stage)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{free_port()}")
    before = everything(stage)
    said = reason(poll(stage, instance))
    assert job in said
    assert "no connection to the provider" in said
    assert_nothing_is_told(said)
    assert everything(stage) == before


@pytest.mark.parametrize(
    "fault",
    [
        "permission",
        "not_json_body",
        *(
            pytest.param(slow, marks=pytest.mark.slow)  # the SDK tries again, with pauses
            for slow in ("server_error", "bad_gateway", "drop", "drop_mid_body", "rate_limited", "overloaded")
        ),
    ],
)
@pytest.mark.parametrize("judge", [CLAUDE, pytest.param(GPT, marks=pytest.mark.slow)])
def test_whatever_goes_wrong_with_the_asking_is_a_reason_to_skip(
    stage: Stage, instance: DagsterInstance, server: ProviderServer, judge: str, fault: str
) -> None:
    send_job(stage, judge=judge)
    before = everything(stage)
    server.jobs.faults.random(rate=1.0, kinds=[fault])
    said = reason(poll(stage, instance))
    assert said.startswith(f"{BATCH}: ")
    assert_nothing_is_told(said)
    assert everything(stage) == before


def test_a_provider_that_cannot_be_asked_does_not_keep_the_jobs_of_another_waiting(
    stage: Stage, instance: DagsterInstance, server: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_job(stage, "a", judge=CLAUDE)
    send_job(stage, "c", judge=GPT)
    server.jobs.hold = False
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-a-wrong-and-secret-key")
    assert launched(poll(stage, instance)) == ["c:1"]


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_with_a_job_out_shows_the_plan_skips_the_rest_and_succeeds(
    stage: Stage, instance: DagsterInstance, server: ProviderServer
) -> None:
    submit(stage)
    for _ in range(2):
        waiting = stage.run(instance, "continue_batch_job", BATCH)

        assert waiting.success
        assert _materialised(waiting) == UPSTREAM
        (event,) = waiting.get_asset_materialization_events()
        told = {name: value.value for name, value in event.materialization.metadata.items()}
        assert (told["submitted"], told["judged"], told["pending"]) == (BUDGET, 0, BUDGET)
        with stage.ledger() as ledger:
            (job,) = ledger.jobs_out(BATCH)
        assert str(job.provider_job_id) in told["waiting_for"]
        assert told["waiting_until"] == str(stage.batch(BATCH).not_before)
        skipped = {event.step_key for event in waiting.all_events if event.event_type_value == "STEP_SKIPPED"}
        assert DOWNSTREAM - {"llm_judgments"} <= skipped
        assert stage.frame("pair_waves", BATCH).height == BUDGET
        assert sorted(folder.name for folder in stage.lake.iterdir()) == ["pair_waves"]
        batch = stage.batch(BATCH)
        assert (batch.status, batch.published_at, batch.lease_owner) == (BatchStatus.JUDGING, None, None)
    assert server.answered == 0
    assert len(_created(server)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("judge", [CLAUDE, GPT])
def test_the_run_after_the_job_is_over_materialises_everything_and_publishes(
    stage: Stage, instance: DagsterInstance, server: ProviderServer, judge: str
) -> None:
    submit(stage, judge=judge)
    assert _materialised(stage.run(instance, "assess_batch_job", BATCH)) == UPSTREAM | {"essays", "anchors"}
    server.jobs.hold = False
    assert launched(poll(stage, instance)) == ["b:1"]

    done = stage.run(instance, "continue_batch_job", BATCH)

    assert done.success
    assert _materialised(done) == UPSTREAM | DOWNSTREAM
    batch = stage.batch(BATCH)
    assert batch.status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert (batch.published_as_of, batch.published_at is not None) == (BUDGET, True)
    assert stage.frame("llm_judgments", BATCH).height == BUDGET == server.answered
    assert set(server.billed.values()) == {1}
    assert len(_created(server)) == 1
    assert launched(poll(stage, instance)) == []
    assert continued(stage, instance) == []


def _materialised(result: Any) -> set[str]:
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def _created(server: ProviderServer) -> list[str]:
    """The requests that created a job."""
    made = re.compile(r"/v1/(messages/)?batches$")
    return [call.path for call in server.calls if call.method == "POST" and made.search(call.path)]


# --- the monitor -------------------------------------------------------------------------------------------------


def watch(stage: Stage) -> str:
    with DagsterInstance.ephemeral() as instance:
        result = batch_monitor_sensor(build_sensor_context(instance=instance, resources={"cj": stage.cj}))
    assert isinstance(result, SkipReason)
    return result.skip_message or ""


def test_the_monitor_leaves_a_batch_alone_while_its_job_may_still_be_answered(stage: Stage) -> None:
    send_job(stage, batch_timeout_hours=1e-9)
    with stage.ledger() as ledger:
        assert ledger.claim_launch(BATCH, job_over=True) == 1
    time.sleep(0.01)
    before = everything(stage)
    assert watch(stage) == "no batch has been silent past its timeout"
    assert everything(stage) == before

    # the provider's own time for the job has passed: only the job had kept the monitor off
    with stage.ledger() as ledger, ledger.engine.begin() as connection:
        connection.execute(sa.update(t.provider_jobs).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert BATCH in watch(stage)
    assert stage.batch(BATCH).status is BatchStatus.FAILED


# --- cancelling --------------------------------------------------------------------------------------------------


def cj(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run `cj` in this process; exit code, output, errors."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["cj", *arguments])
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
        structlog.reset_defaults()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize("judge", [CLAUDE, GPT])
def test_cancelling_a_batch_cancels_its_job_at_the_provider_and_keeps_what_was_judged(
    stage: Stage,
    instance: DagsterInstance,
    server: ProviderServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    judge: str,
) -> None:
    server.jobs.finish_before_cancel = 9
    job = send_job(stage, judge=judge)

    code, out, err = cj("cancel", BATCH, "--wait", "20", capsys=capsys, monkeypatch=monkeypatch)

    assert code == 0, err
    assert "is cancelled" in out
    assert any(call.method == "POST" and call.path.endswith(f"/{job}/cancel") for call in server.calls)
    assert server.answered == 9
    with stage.ledger() as ledger:
        state = ledger.state(BATCH)
        assert (state.judged, state.pending) == (9, 0)
        (closed,) = ledger.provider_jobs(BATCH)
        assert closed.status is JobState.CANCELLED
        outcomes = [(attempt.outcome, attempt.error_type) for attempt in ledger.attempts(BATCH)]
        paid = [attempt.cost_usd for attempt in ledger.attempts(BATCH) if attempt.outcome == "judged"]
        assert ledger.cost_usd(BATCH) == pytest.approx(sum(cost or 0.0 for cost in paid))
    assert sorted(outcomes, key=str) == sorted([("judged", None)] * 9 + [("unsent", "cancelled")] * 19, key=str)
    batch = stage.batch(BATCH)
    assert (batch.status, batch.lease_owner) == (BatchStatus.CANCELLED, None)
    assert_nothing_is_told(out + err)

    asked = len(server.calls)
    assert launched(poll(stage, instance)) == []
    assert len(server.calls) == asked
    assert len(_created(server)) == 1


def test_a_cancellation_without_the_provider_says_so_and_counts_what_may_be_paid(
    stage: Stage,
    server: ProviderServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_job(stage)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-a-wrong-and-secret-key")
    code, out, err = cj("cancel", BATCH, "--wait", "1", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, err
    assert "could not be asked to cancel" in out
    assert_nothing_is_told(out + err)
    with stage.ledger() as ledger:
        attempts = ledger.attempts(BATCH)
        assert {attempt.outcome for attempt in attempts} == {"lost"}
        assert ledger.cost_usd(BATCH) == pytest.approx(sum(attempt.upper_bound_usd or 0.0 for attempt in attempts))
        assert (ledger.cost_usd(BATCH) or 0.0) > 0.0
        assert ledger.provider_jobs(BATCH)[0].status is JobState.ABANDONED
    assert stage.batch(BATCH).status is BatchStatus.CANCELLED


def test_a_cancelled_batch_that_is_reopened_has_the_rest_judged_by_a_new_job_and_nothing_twice(
    stage: Stage,
    server: ProviderServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.jobs.finish_before_cancel = 9
    send_job(stage)
    assert cj("cancel", BATCH, capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    server.jobs.hold = False
    assert cj("reopen", BATCH, "--reason", "by mistake", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    with stage.ledger() as ledger:
        done = advance_batch(ledger, BATCH, load_settings(data_dir=stage.data_dir))
        state = ledger.state(BATCH)
    assert done.outcome is Outcome.FINAL
    assert done.status is BatchStatus.COMPLETE_MAX_COMPARISONS
    assert (state.judged, state.submitted) == (BUDGET, BUDGET)
    assert server.answered == BUDGET
    assert set(server.billed.values()) == {1}
