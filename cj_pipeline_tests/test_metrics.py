"""The Prometheus series against counts made one by one from the record, over HTTP and as a file."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
import typer
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from cj_pipeline.cli.metrics import metrics_app, metrics_server
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.core.models import BatchingMode, BatchStatus
from cj_pipeline.ledger import Ledger, UnknownBatchError
from cj_pipeline.ledger.records import JobState, NewJob, TokenCounts
from cj_pipeline.metrics import exposition, hints
from cj_pipeline.settings import BatchTunables
from cj_pipeline_tests.builders import (
    acquire,
    all_pairs,
    failed,
    judged,
    start,
    submit,
    wave_end,
    wave_plan,
)
from cj_pipeline_tests.ledger.test_measures import BUSY, busy_ledger, ids, just_now, make_busy, mode_of

FAMILIES = {
    "cj_llm_requests_total": "counter",
    "cj_llm_batches_started_total": "counter",
    "cj_comparisons_total": "counter",
    "cj_workflow_decisions_total": "counter",
    "cj_bt_se_inflated_batches_total": "counter",
    "cj_bt_sparse_coverage_batches_total": "counter",
    "cj_orphan_callbacks_total": "counter",
    "cj_stuck_batches_total": "counter",
    "llm_provider_requests_total": "counter",
    "llm_provider_api_errors_total": "counter",
    "llm_provider_tokens_total": "counter",
    "llm_provider_cost_dollars_total": "counter",
    "llm_provider_unpriced_requests_total": "counter",
    "llm_provider_serial_bundle_calls_total": "counter",
    "llm_provider_serial_bundle_items_per_call": "histogram",
    "llm_provider_queue_wait_time_seconds": "histogram",
    "llm_provider_queue_depth": "gauge",
    "llm_provider_comparison_callbacks_total": "counter",
    "llm_provider_queue_expiry_total": "counter",
    "llm_provider_response_duration_seconds": "histogram",
    "llm_provider_prompt_cache_tokens_total": "counter",
    "llm_provider_batch_api_jobs_total": "counter",
    "llm_provider_batch_api_items_per_job": "histogram",
    "llm_provider_batch_api_job_duration_seconds": "histogram",
}
QUEUE_MODE = {"per_request": "per_request", "serial_bundle": "serial_bundle", "provider_batch_api": "batch_api"}
STATUS = {"judged": "success", "error": "error", "lost": "lost"}

Series = dict[tuple[str, frozenset], float]


def parse(text: bytes) -> Series:
    """Every sample: (name, labels) to value."""
    found: Series = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} appears twice"
            found[key] = sample.value
    return found


def of(series: Series, name: str) -> dict[frozenset, float]:
    return {labels: value for (found, labels), value in series.items() if found == name}


def labels(**values: str) -> frozenset:
    return frozenset(values.items())


def calls_of(ledger: Ledger, batch_ids: list[str]):
    """(batching mode, attempt) of every call that was not left unsent."""
    for batch_id in batch_ids:
        mode = mode_of(ledger, batch_id)
        for attempt in ledger.attempts(batch_id):
            if attempt.outcome != "unsent":
                yield mode, attempt


def result_of(attempt) -> str:
    if attempt.outcome == "judged":
        return "success"
    return "expired" if attempt.outcome == "lost" or attempt.error_type == "expired" else "failure"


def histogram(values: dict[frozenset, list[float]], bounds: tuple[float, ...]) -> dict[tuple[str, frozenset], float]:
    """Cumulative buckets, count and sum, as they would be counted one by one; suffix and labels to value."""
    found = {}
    for key, observed in values.items():
        for bound in bounds:
            found["_bucket", key | {("le", str(float(bound)))}] = sum(value <= bound for value in observed)
        found["_bucket", key | {("le", "+Inf")}] = len(observed)
        found["_count", key] = len(observed)
        found["_sum", key] = pytest.approx(sum(observed), abs=1e-6)
    return found


def histogram_of(series: Series, name: str) -> dict[tuple[str, frozenset], float]:
    return {
        (suffix, key): value
        for suffix in ("_bucket", "_count", "_sum")
        for key, value in of(series, name + suffix).items()
    }


def collected(pairs) -> dict[frozenset, list[float]]:
    found: dict[frozenset, list[float]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def record(request, tmp_path_factory):
    """A busy ledger, only to be read."""
    with busy_ledger(request, tmp_path_factory) as ledger:
        yield ledger


# --- every series equals the record ----------------------------------------------------------------------------------


def test_calls_by_mode_are_those_made_and_those_of_a_job_that_is_out_do_not_count_yet(record):
    out = {job.job_key for batch_id in BUSY for job in record.jobs_out(batch_id)}
    calls = [(mode, a) for mode, a in calls_of(record, BUSY) if a.outcome is not None or a.bundle_id not in out]
    expected = Counter(labels(batching_mode=mode) for mode, _ in calls)
    assert any(a.outcome is None for _, a in calls)
    assert of(parse(exposition(record)), "cj_llm_requests_total") == expected
    assert len(expected) == 3


def test_waves_and_their_decisions_are_those_of_the_batches(record):
    series = parse(exposition(record))
    waves = [(mode_of(record, batch_id), wave) for batch_id in BUSY for wave in record.waves(batch_id)]
    assert of(series, "cj_llm_batches_started_total") == Counter(labels(batching_mode=mode) for mode, _ in waves)
    decisions = Counter(labels(decision=wave.decision) for _, wave in waves if wave.decision is not None)
    assert of(series, "cj_workflow_decisions_total") == decisions
    assert set(decisions) == {labels(decision="REQUEST_MORE_COMPARISONS"), labels(decision="FINALIZE_SCORING")}


def test_a_comparison_counts_for_every_status_it_has_reached(record):
    found = Counter(c.status for batch_id in BUSY for c in record.comparison_records(batch_id))
    expected = {labels(status=status): float(found[status]) for status in ("judged", "failed", "withdrawn")}
    expected[labels(status="planned")] = float(found.total())
    assert of(parse(exposition(record)), "cj_comparisons_total") == expected
    assert min(expected.values()) > 0


def test_batches_are_counted_by_flags_timeouts_and_orphans(record):
    series = parse(exposition(record))
    records = [record.batch(batch_id) for batch_id in BUSY]
    for name, flag in (
        ("cj_bt_se_inflated_batches_total", "bt_se_inflated"),
        ("cj_bt_sparse_coverage_batches_total", "comparison_coverage_sparse"),
    ):
        flagged = sum(
            bool(r.processing_metadata.get("bt_quality_flags", {}).get(flag)) for r in records if r.status.is_final
        )
        assert of(series, name) == {labels(): flagged}
        assert flagged > 0
    ends = [e["detail"] for batch_id in BUSY for e in record.events(batch_id) if e["event"] == "finalised"]
    assert of(series, "cj_stuck_batches_total") == {
        labels(outcome="recovered"): sum(detail.endswith(": timeout_recovered") for detail in ends),
        labels(outcome="failed"): sum(": timeout_" in d and not d.endswith("_recovered") for d in ends),
    }
    orphans = Counter(
        labels(source_service=row["source"]) for batch_id in BUSY for row in record.orphan_results(batch_id)
    )
    assert of(series, "cj_orphan_callbacks_total") == orphans


def test_calls_errors_tokens_and_costs_are_those_of_the_attempts(record):
    series = parse(exposition(record))
    ended = [a for _, a in calls_of(record, BUSY) if a.outcome is not None]
    assert of(series, "llm_provider_requests_total") == Counter(
        labels(provider=a.provider, model=a.model, status=STATUS[a.outcome]) for a in ended
    )
    errors = Counter(
        labels(provider=a.provider, error_type=a.error_type, http_status_code=str(a.http_status or ""))
        for a in ended
        if a.outcome == "error"
    )
    assert of(series, "llm_provider_api_errors_total") == errors
    assert labels(provider="anthropic", error_type="overloaded", http_status_code="529") in errors
    assert labels(provider="anthropic", error_type="timeout", http_status_code="") in errors
    tokens, cached, costs, unpriced = Counter(), Counter(), Counter(), Counter()
    for a in ended:
        model = {"provider": a.provider, "model": a.model}
        for kind in ("input", "cache_read", "cache_write", "output", "reasoning"):
            tokens[labels(**model, token_type=kind)] += getattr(a, f"tokens_{kind}") or 0
        cached[labels(**model, direction="read")] += a.tokens_cache_read or 0
        cached[labels(**model, direction="write")] += a.tokens_cache_write or 0
        costs[labels(**model)] += a.cost_usd or 0.0
        unpriced[labels(**model)] += a.cost_usd is None
    assert of(series, "llm_provider_tokens_total") == tokens
    assert of(series, "llm_provider_prompt_cache_tokens_total") == cached
    assert of(series, "llm_provider_cost_dollars_total") == pytest.approx(costs, rel=1e-9)
    assert of(series, "llm_provider_unpriced_requests_total") == unpriced
    assert unpriced.total() == 1


def test_durations_are_those_of_the_attempts_that_have_one(record):
    observed = collected(
        (labels(provider=a.provider, model=a.model), a.latency_seconds)
        for _, a in calls_of(record, BUSY)
        if a.latency_seconds is not None and a.outcome is not None
    )
    bounds = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
    found = histogram_of(parse(exposition(record)), "llm_provider_response_duration_seconds")
    assert found == histogram(observed, bounds)
    assert len(observed) >= 2


def test_the_queue_is_told_by_mode_and_result(record):
    series = parse(exposition(record))
    ended = [(mode, a) for mode, a in calls_of(record, BUSY) if a.outcome is not None]
    waits = collected(
        (
            labels(queue_processing_mode=QUEUE_MODE[mode], result=result_of(a)),
            (a.sent_at - a.queued_at).total_seconds(),
        )
        for mode, a in ended
    )
    bounds = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
    assert histogram_of(series, "llm_provider_queue_wait_time_seconds") == histogram(waits, bounds)
    assert {dict(key)["result"] for key in waits} == {"success", "failure", "expired"}
    expired = Counter(
        labels(
            provider=a.provider,
            queue_processing_mode=QUEUE_MODE[mode],
            expiry_reason="lease_lost" if a.outcome == "lost" else "provider_expired",
        )
        for mode, a in ended
        if result_of(a) == "expired"
    )
    assert of(series, "llm_provider_queue_expiry_total") == expired
    assert {dict(key)["expiry_reason"] for key in expired} == {"lease_lost", "provider_expired"}
    callbacks = Counter()
    for batch_id in BUSY:
        for c in record.comparison_records(batch_id):
            if c.status in ("judged", "failed"):
                never = c.status == "failed" and c.error_type in ("lost", "expired")
                result = "success" if c.status == "judged" else "expired" if never else "failure"
                mode = QUEUE_MODE[mode_of(record, batch_id)]
                callbacks[labels(queue_processing_mode=mode, result=result)] += 1
    assert of(series, "llm_provider_comparison_callbacks_total") == callbacks


def test_the_depth_of_the_queue_splits_by_whether_a_call_is_open(record):
    found = of(parse(exposition(record)), "llm_provider_queue_depth")
    pending = sum(record.state(batch_id).pending for batch_id in BUSY if not record.batch(batch_id).status.is_final)
    in_flight = sum(a.outcome is None for _, a in calls_of(record, BUSY))
    assert found == {
        labels(queue_type="total"): pending,
        labels(queue_type="in_flight"): in_flight,
        labels(queue_type="waiting"): pending - in_flight,
    }


def test_bundles_count_when_begun_and_have_a_size_when_their_wave_is_over(record):
    series = parse(exposition(record))
    bundles = collected(((b, a.bundle_id), a) for b in BUSY for a in record.attempts(b) if mode_of(record, b) == SERIAL)
    bundles = {key: found for key, found in bundles.items() if key[1] is not None}
    assert of(series, "llm_provider_serial_bundle_calls_total") == Counter(
        labels(provider=found[0].provider, model=found[0].model) for found in bundles.values()
    )
    sizes = collected(
        (labels(provider=found[0].provider, model=found[0].model), len({a.comparison_id for a in found}))
        for (batch_id, _), found in bundles.items()
        if not any(
            c.status == "planned" and c.comparison_id[:6] == found[0].comparison_id[:6]
            for c in record.comparison_records(batch_id)
        )
    )
    found = histogram_of(series, "llm_provider_serial_bundle_items_per_call")
    assert found == histogram(sizes, (1, 2, 4, 8, 16, 32, 64))
    assert list(sizes.values()) == [[4, 2]]


SERIAL = "serial_bundle"


def test_jobs_count_for_every_status_they_have_reached(record):
    series = parse(exposition(record))
    jobs = [job for batch_id in BUSY for job in record.provider_jobs(batch_id)]
    statuses = Counter[str]()
    for job in jobs:
        statuses.update({"submitting", job.status.value} | ({"submitted"} if job.submitted_at else set()))
    model = {"provider": "openai", "model": "gpt"}
    assert of(series, "llm_provider_batch_api_jobs_total") == {
        labels(**model, status=status): count for status, count in statuses.items()
    }
    assert statuses == {"submitting": 3, "submitted": 2, "failed": 1, "expired": 1}
    accepted = [job for job in jobs if job.submitted_at is not None]
    found = histogram_of(series, "llm_provider_batch_api_items_per_job")
    bounds = (1, 10, 50, 100, 500, 1000, 5000, 10000, 50000)
    assert found == histogram({labels(**model): [job.items for job in accepted]}, bounds)
    seconds = [((j.ended_at or j.closed_at) - j.submitted_at).total_seconds() for j in accepted if j.closed_at]
    found = histogram_of(series, "llm_provider_batch_api_job_duration_seconds")
    bounds = (60, 300, 900, 3600, 7200, 14400, 28800, 43200, 86400)
    assert found == histogram({labels(**model): seconds}, bounds)


def test_every_series_has_its_name_its_type_and_a_help_even_in_an_empty_ledger(ledger):
    text = exposition(ledger).decode()
    helps = [line.split(" ", 3)[2:] for line in text.splitlines() if line.startswith("# HELP")]
    types = dict(line.split(" ")[2:] for line in text.splitlines() if line.startswith("# TYPE"))
    assert types == FAMILIES
    assert {name for name, _ in helps} == set(FAMILIES)
    assert all(text.endswith(".") and len(text) > 20 for _, text in helps)
    series = parse(text.encode())
    assert set(series.values()) == {0.0}
    assert len(of(series, "cj_comparisons_total")) == 4


def test_no_label_holds_a_batch_an_essay_or_a_text(record):
    names = {name for _, found in parse(exposition(record)) for name, _ in found}
    assert names == {
        "batching_mode",
        "status",
        "decision",
        "source_service",
        "outcome",
        "provider",
        "model",
        "error_type",
        "http_status_code",
        "token_type",
        "queue_processing_mode",
        "result",
        "queue_type",
        "expiry_reason",
        "direction",
        "le",
    }


def test_a_restart_changes_no_series(open_ledger):
    first = open_ledger()
    make_busy(first)
    before = exposition(first)
    first.close()
    assert exposition(open_ledger()) == before


# --- counters only grow ----------------------------------------------------------------------------------------------


class Life:
    """Batches to which everything may happen, one thing at a time, at random."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.ledger = ledger
        self.random = random.Random(seed)
        self.leases = {}
        self.jobs = 0
        for mode in BatchingMode:
            settings = BatchTunables(llm_batching_mode=mode).model_dump()
            submit(ledger, mode.value, settings=settings, total_budget=200)
            self.leases[mode] = acquire(ledger, mode.value)

    def step(self) -> None:
        mode = self.random.choice(list(BatchingMode))
        lease, batch_id = self.leases[mode], mode.value
        if self.ledger.batch(batch_id).status.is_final:
            self.ledger.reopen(batch_id, "once more") if lease is None else lease.release()
            self.leases[mode] = acquire(self.ledger, batch_id) if lease is None else None
            return
        waves = self.ledger.waves(batch_id)
        planned = [c for c in self.ledger.comparison_records(batch_id) if c.status == "planned"]
        if not planned:
            if waves and waves[-1].ended_at is None:
                lease.end_wave(wave_end(waves[-1].wave))
            else:
                lease.plan_wave(wave_plan(len(waves) + 1, self.random.sample(all_pairs(4), 4)))
            return
        happenings = [self.judge] * 12 + [self.lose] * 2 + [self.stop, self.finalise, self.orphan]
        self.random.choice(happenings)(mode, lease, batch_id, planned)

    def judge(self, mode, lease, batch_id, planned) -> None:
        is_open = [a for a in self.ledger.attempts(batch_id) if a.outcome is None]
        if mode is BatchingMode.PROVIDER_BATCH_API:
            self.go_on_with_job(lease, batch_id, planned)
        elif is_open and self.random.random() < 0.6:
            attempt = self.random.choice(is_open)
            lease.record([self.end(attempt)])
        else:
            called = {a.comparison_id for a in is_open}
            free = [c for c in planned if c.comparison_id not in called]
            bundle = f"w{planned[0].wave}-b{self.random.randint(1, 2)}-e{lease.epoch}" if mode.value == SERIAL else None
            queued = just_now(self.random.expovariate(0.3))
            lease.record([start(c.comparison_id, bundle_id=bundle, queued_at=queued) for c in free[:1]])

    def end(self, attempt):
        c, chance = attempt.comparison_id, self.random.random()
        usage = {
            "cost_usd": self.random.choice([None, 0.1, 1 / 3]),
            "latency_seconds": self.random.expovariate(0.1),
            "tokens": TokenCounts(input=100, cache_read=self.random.randint(0, 90), cache_write=3, output=5),
        }
        if chance < 0.6:
            return judged(attempt.attempt_id, c, **usage)
        kind = self.random.choice(["overloaded", "timeout", "expired"])
        return failed(attempt.attempt_id, c, final=chance > 0.8, error_type=kind, **usage)

    def go_on_with_job(self, lease, batch_id, planned) -> None:
        out = self.ledger.jobs_out(batch_id)
        if not out:
            self.jobs += 1
            key = f"job-{self.jobs}"
            starts = tuple(start(c.comparison_id, bundle_id=key, queued_at=just_now()) for c in planned)
            lease.open_job(NewJob(key, planned[0].wave, "openai", "gpt", starts))
        elif out[0].status is JobState.SUBMITTING and self.random.random() < 0.7:
            lease.job_accepted(out[0].job_key, "batch_1", None)
        else:
            attempts = [a for a in self.ledger.attempts(batch_id) if a.bundle_id == out[0].job_key]
            refused = self.random.random() < 0.3
            ends = [
                failed(a.attempt_id, a.comparison_id, final=False, made=False) if refused else self.end(a)
                for a in attempts
                if a.outcome is None and self.random.random() < 0.8
            ]
            state = JobState.FAILED if refused else self.random.choice([JobState.COMPLETED, JobState.EXPIRED])
            ended_at = datetime.now(UTC) + timedelta(seconds=self.random.uniform(-10, 5000))
            lease.close_job(out[0].job_key, state, ends, ended_at=ended_at)

    def lose(self, mode, lease, batch_id, planned) -> None:
        lease.release()
        self.leases[mode] = acquire(self.ledger, batch_id)

    def stop(self, mode, lease, batch_id, planned) -> None:
        lease.stop_wave(planned[0].wave, provider_rejected=True)

    def finalise(self, mode, lease, batch_id, planned) -> None:
        status, reason = self.random.choice(
            [(BatchStatus.CANCELLED, "cancelled"), (BatchStatus.FAILED, "timeout_incomplete")]
        )
        lease.finalise(status, reason)

    def orphan(self, mode, lease, batch_id, planned) -> None:
        self.ledger.record_orphan(batch_id, planned[0].comparison_id, reason="late", source="lease_lost")


def test_no_counter_falls_whatever_happens_to_a_batch(ledger):
    life = Life(ledger, seed=11)
    series = parse(exposition(ledger))
    for _ in range(60):
        life.step()
        after = parse(exposition(ledger))
        fallen = {
            key: (value, after.get(key))
            for key, value in series.items()
            if key[0] != "llm_provider_queue_depth" and after.get(key, -1.0) < value
        }
        assert fallen == {}
        series = after
    # so that it was not too quiet a life
    names = {name for (name, _), value in series.items() if value > 0}
    absent = {
        name for name, kind in FAMILIES.items() if (f"{name}_count" if kind == "histogram" else name) not in names
    }
    assert absent <= {"cj_bt_se_inflated_batches_total", "cj_bt_sparse_coverage_batches_total"}


# --- over HTTP -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(url: str):
    """A server in a thread; the address of its series."""
    with metrics_server(url, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            server.shutdown()
            thread.join()


def get(address: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(address, timeout=20) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_a_scrape_shows_the_ledger_as_it_is_then(ledger, ledger_url):
    with serving(ledger_url) as address:
        assert get(address) == (200, "text/plain; version=0.0.4; charset=utf-8", exposition(ledger))
        make_busy(ledger)
        assert get(address)[2] == exposition(ledger)
        assert parse(get(address)[2])["cj_comparisons_total", labels(status="planned")] == 23


def test_scrapes_do_not_wait_for_one_who_says_nothing(ledger_url):
    with serving(ledger_url) as address, socket.create_connection(("127.0.0.1", int(address.split(":")[2][:-8]))):
        assert get(address)[0] == 200


def test_other_paths_are_told_where_the_series_are(ledger_url):
    with serving(ledger_url) as address:
        assert get(address.replace("/metrics", "/favicon.ico"))[::2] == (404, b"the series are at /metrics\n")


def test_a_ledger_that_cannot_be_read_is_503_until_it_can(ledger, ledger_url):
    def rename(old: str, new: str) -> None:
        with ledger.engine.begin() as connection:
            connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))

    with serving(ledger_url) as address:
        rename("waves", "elsewhere")
        code, _, reason = get(address)
        assert (code, reason[:27]) == (503, b"the ledger cannot be read (")
        assert len(reason) < 200
        rename("elsewhere", "waves")
        assert get(address)[0] == 200


def test_a_ledger_of_another_version_is_503_with_what_to_do(ledger, ledger_url):
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE cj_alembic_version SET version_num = '0002'"))
    with serving(ledger_url) as address:
        code, _, reason = get(address)
    assert code == 503
    assert b"cj ledger upgrade" in reason


def test_a_server_that_is_away_is_503_and_its_password_is_not_told():
    with serving("postgresql+psycopg2://cj:hidden-word@127.0.0.1:1/cj") as address:
        code, _, reason = get(address)
    assert (code, b"hidden-word" in reason) == (503, False)


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder without settings, with a ledger of its own."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("CJ_LEDGER_URL", f"sqlite:///{tmp_path / 'own.sqlite'}")
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'own.sqlite'}")
    submit(ledger)
    acquire(ledger).plan_wave(wave_plan())
    yield tmp_path, ledger
    ledger.close()


def command(*arguments):
    app = typer.Typer()
    app.add_typer(metrics_app, name="metrics")
    return CliRunner().invoke(app, ["metrics", *map(str, arguments)])


def test_dump_prints_the_series(home):
    _, ledger = home
    done = command("dump")
    assert done.exit_code == 0
    assert done.stdout.encode() == exposition(ledger)


def test_dump_replaces_a_file_whole_and_lets_everyone_read_it(home):
    folder, ledger = home
    path = folder / "cj.prom"
    path.write_text("old")
    path.chmod(0o600)
    assert command("dump", "--output", path).exit_code == 0
    assert path.read_bytes() == exposition(ledger)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in folder.iterdir() if "prom" in p.name] == ["cj.prom"]


def test_dump_leaves_the_file_as_it_was_if_the_ledger_cannot_be_read(home):
    folder, ledger = home
    path = folder / "cj.prom"
    path.write_text("old")
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE attempts"))
    assert isinstance(command("dump", "--output", path).exception, CJError)
    assert path.read_text() == "old"


def test_dump_names_a_file_that_cannot_be_written(home):
    error = command("dump", "--output", home[0] / "no" / "cj.prom").exception
    assert isinstance(error, InputError)
    assert "cj.prom: No such file or directory" in str(error)


def test_a_taken_port_is_an_error_that_says_what_to_do(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        error = command("serve", "--port", taken.getsockname()[1]).exception
    assert isinstance(error, InputError)
    assert str(error).endswith("is taken: choose another with --port")


def test_a_signal_ends_the_server(home):
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda sent: _serve_until(sent, exposition(home[1])), (signal.SIGTERM, signal.SIGINT)))


def _serve_until(sent, series):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from cj_pipeline.cli import main; main()"
    arguments = [sys.executable, "-c", code, "metrics", "serve", "--port", str(port)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ) as process:
        try:
            assert f"http://127.0.0.1:{port}/metrics".encode() in process.stdout.readline()
            assert get(f"http://127.0.0.1:{port}/metrics")[2] == series
            process.send_signal(sent)
            began = time.monotonic()
            assert process.wait(timeout=20) == 0
            assert time.monotonic() - began < 5
            assert process.stdout.read() == b""
        finally:
            process.kill()


# --- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_id", "mode", "queue_mode", "own"),
    [
        (
            "serial",
            "serial_bundle",
            "serial_bundle",
            ["llm_provider_serial_bundle_calls_total", "llm_provider_serial_bundle_items_per_call"],
        ),
        ("single", "per_request", "per_request", ["llm_provider_response_duration_seconds"]),
        (
            "job",
            "provider_batch_api",
            "batch_api",
            [
                "llm_provider_batch_api_jobs_total",
                "llm_provider_batch_api_items_per_job",
                "llm_provider_batch_api_job_duration_seconds",
                "llm_provider_comparison_callbacks_total",
            ],
        ),
        ("old", "serial_bundle", "serial_bundle", ["llm_provider_serial_bundle_calls_total"]),
    ],
)
def test_hints_ask_for_the_series_of_the_batchs_own_mode_and_model(record, batch_id, mode, queue_mode, own):
    found = hints(record, batch_id)
    text = "\n".join(query for _, query in found)
    for name in ["cj_llm_requests_total", "cj_llm_batches_started_total", "llm_provider_queue_expiry_total", *own]:
        assert name in text
    batch = record.batch(batch_id)
    assert f'batching_mode="{mode}"' in text
    assert f'queue_processing_mode="{queue_mode}"' in text
    assert f'provider="{batch.provider}",model="{batch.model}"' in text
    assert ("serial_bundle_calls" in text) == (mode == "serial_bundle")
    assert all(purpose and "\n" not in purpose + query for purpose, query in found)


def test_hints_use_only_series_and_labels_that_there_are(record):
    series = parse(exposition(record))
    known: dict[str, set[str]] = {}
    for name, found in series:
        known.setdefault(name, set()).update(dict(found))
    for batch_id in ("serial", "single", "job"):
        for _, query in hints(record, batch_id):
            assert query.count("(") == query.count(")")
            selectors = [part.rpartition("(")[2].rpartition(" ")[2] for part in query.split("{")[:-1]]
            inside = [part.split("}")[0] for part in query.split("{")[1:]]
            for name, matchers in zip(selectors, inside, strict=True):
                assert {matcher.split("=")[0] for matcher in matchers.split(",")} <= known[name]


def test_hints_quote_a_models_name(ledger):
    submit(ledger, model='a "large" \\ model')
    assert any(r'model="a \"large\" \\ model"' in query for _, query in hints(ledger, "b1"))


def test_hints_reach_back_to_when_the_batch_was_submitted(ledger):
    submit(ledger)
    with acquire(ledger) as lease:
        lease.plan_wave(wave_plan())
        attempts = lease.record([start(i) for i in ids(2)])
        lease.record([judged(a, i) for a, i in zip(attempts, ids(2), strict=True)])
        lease.end_wave(wave_end(status=BatchStatus.COMPLETE_STABLE))
    assert {"[1h]"} == {q[q.index("[") : q.index("]") + 1] for _, q in hints(ledger, "b1") if "[" in q}


def test_hints_of_an_unknown_batch_are_an_error(ledger):
    with pytest.raises(UnknownBatchError):
        hints(ledger, "nobody")
