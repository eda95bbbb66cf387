"""What has happened so far, counted from the ledger's rows: sums and distributions over all batches at one moment.

Counts only grow, whatever order the database adds in: money and seconds are summed as whole numbers, and nothing is
counted before it is certain (a bundle's size, a call inside a job that the provider may still refuse). What the
numbers are called outside of here is decided in `metrics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from cj_pipeline.core.errors import CJError
from cj_pipeline.core.models import AttemptOutcome, BatchingMode, BatchStatus, ComparisonStatus
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import read_transaction
from cj_pipeline.ledger.ledger import Ledger
from cj_pipeline.ledger.records import JobState

WAIT_BOUNDS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Seconds: upper bounds (inclusive) of the classes that waiting times are counted in; the last class has none."""

LATENCY_BOUNDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds: upper bounds (inclusive) of the classes that latencies are counted in; the last class has none."""

_MICRO: Final = 1_000_000
_NANO: Final = 1_000_000_000
_DEFAULT_MODE: Final = BatchingMode.SERIAL_BUNDLE
_FINAL: Final = tuple(status.value for status in BatchStatus if status.is_final)


@dataclass(frozen=True)
class CallGroup:
    """Calls that are alike, unsent ones left out.

    Attributes:
        batching_mode: of their batch.
        provider: who was asked.
        model: which model.
        outcome: None while the answer is awaited.
        error_type: of an error, or of a lost call.
        http_status: where there was one.
        in_open_job: they belong to a provider batch job that is out, and may yet turn out as never sent.
        wait_class: index into `WAIT_BOUNDS` of the time between queued and sent; its length for longer ones.
        latency_class: the same for `LATENCY_BOUNDS`; None without a latency.
        calls: how many.
        wait_us: their time between queued and sent, added up, in microseconds.
        latency_us: their latencies, added up, in microseconds.
        tokens_input, tokens_cache_read, tokens_cache_write, tokens_output, tokens_reasoning: added up.
        cost_nano_usd: known costs added up, in billionths of a dollar; of lost calls their upper bounds.
        priced: how many of them have a known cost.
    """

    batching_mode: str
    provider: str
    model: str
    outcome: AttemptOutcome | None
    error_type: str | None
    http_status: int | None
    in_open_job: bool
    wait_class: int
    latency_class: int | None
    calls: int
    wait_us: int
    latency_us: int
    tokens_input: int
    tokens_cache_read: int
    tokens_cache_write: int
    tokens_output: int
    tokens_reasoning: int
    cost_nano_usd: int
    priced: int


@dataclass(frozen=True)
class ComparisonGroup:
    """Comparisons of batches of one mode that stand alike."""

    batching_mode: str
    status: ComparisonStatus
    error_type: str | None
    comparisons: int


@dataclass(frozen=True)
class WaveGroup:
    """Waves of batches of one mode with the same decision; None before their end."""

    batching_mode: str
    decision: str | None
    waves: int


@dataclass(frozen=True)
class BundleGroup:
    """Bundles of as many comparisons (retries do not count again) in batches judged in serial bundles.

    `is_whole` is false while comparisons of the bundle's wave still wait for an outcome: it may grow until then.
    """

    provider: str
    model: str
    items: int
    is_whole: bool
    bundles: int


@dataclass(frozen=True)
class JobMeasure:
    """A provider batch job; `duration_us` (microseconds) from acceptance to end, None unless it had both."""

    provider: str
    model: str
    status: JobState
    items: int
    accepted: bool
    duration_us: int | None


@dataclass(frozen=True)
class QueueDepth:
    """Comparisons of unfinished batches without an outcome: not sent (or to be sent again), and with a call open."""

    waiting: int
    in_flight: int


@dataclass(frozen=True)
class Measures:
    """Everything counted at one moment.

    Attributes:
        calls, comparisons, waves, bundles, jobs, depth: see their classes.
        orphans: source to how many results came from there that changed nothing.
        timeouts: the reason of ends by the monitor, `timeout_...`, to how often.
        se_inflated: final batches whose flags say `bt_se_inflated`.
        sparse_coverage: final batches whose flags say `comparison_coverage_sparse`.
    """

    calls: tuple[CallGroup, ...]
    comparisons: tuple[ComparisonGroup, ...]
    waves: tuple[WaveGroup, ...]
    bundles: tuple[BundleGroup, ...]
    jobs: tuple[JobMeasure, ...]
    depth: QueueDepth
    orphans: dict[str, int]
    timeouts: dict[str, int]
    se_inflated: int
    sparse_coverage: int


def measure(ledger: Ledger) -> Measures:
    """Count everything, from one snapshot.

    Raises:
        CJError: the ledger cannot be read.
    """
    try:
        with read_transaction(ledger.engine) as connection:
            return Measures(
                calls=_calls(connection),
                comparisons=_comparisons(connection),
                waves=_waves(connection),
                bundles=_bundles(connection),
                jobs=_jobs(connection),
                depth=_depth(connection),
                orphans=_orphans(connection),
                timeouts=_timeouts(connection),
                se_inflated=_flagged(connection, "bt_se_inflated"),
                sparse_coverage=_flagged(connection, "comparison_coverage_sparse"),
            )
    except DBAPIError as error:
        raise CJError(
            f"the ledger cannot be read ({type(error.orig).__name__}): check CJ_LEDGER_URL and that its database is "
            "running"
        ) from None


# --- building blocks ---------------------------------------------------------------------------------------------


def _modes() -> sa.CTE:
    """Batch id → batching mode, worked out once per batch: settings are long, and attempts are many."""
    mode = t.batches.c.settings["llm_batching_mode"].as_string()
    query = sa.select(t.batches.c.batch_id, sa.func.coalesce(mode, _DEFAULT_MODE.value).label("mode"))
    return query.cte("modes").prefix_with("MATERIALIZED")


def _whole(value: sa.ColumnElement[float], unit: int) -> sa.ColumnElement[int]:
    """A number in whole parts of a unit, so that sums of it do not depend on their order."""
    return sa.cast(sa.func.round(value * unit), sa.BigInteger)


def _microseconds(
    connection: Connection, start: sa.ColumnElement[datetime], end: sa.ColumnElement[datetime]
) -> sa.ColumnElement[int]:
    """The time from one moment to another, exactly; 0 where a clock was set back between them."""
    if connection.dialect.name == "postgresql":
        elapsed = sa.cast(sa.func.round(sa.func.extract("epoch", end - start) * _MICRO), sa.BigInteger)
        return sa.func.greatest(0, elapsed)
    return sa.func.max(0, _sqlite_microseconds(end) - _sqlite_microseconds(start))


def _sqlite_microseconds(moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[int]:
    # stored as text with six digits after the point; SQLite's own arithmetic on moments stops at milliseconds
    text = sa.type_coerce(moment, sa.String)
    seconds = sa.cast(sa.func.strftime("%s", text), sa.BigInteger)
    return seconds * _MICRO + sa.cast(sa.func.substr(text, 21), sa.BigInteger)


def _class(microseconds: sa.ColumnElement[int], bounds: Sequence[float]) -> sa.ColumnElement[int]:
    """Which class a time falls into: the index of the first bound (in seconds) that is not below it."""
    classes = [(microseconds <= round(bound * _MICRO), index) for index, bound in enumerate(bounds)]
    return sa.case(*classes, else_=len(bounds))


# --- what is counted ---------------------------------------------------------------------------------------------


def _calls(connection: Connection) -> tuple[CallGroup, ...]:
    a, modes = t.attempts.c, _modes()
    open_jobs = sa.select(t.provider_jobs.c.job_key).where(
        t.provider_jobs.c.status.in_([state.value for state in JobState if state.is_out])
    )
    wait = _microseconds(connection, a.queued_at, a.sent_at)
    single = (
        sa.select(
            modes.c.mode,
            a.provider,
            a.model,
            a.outcome,
            a.error_type,
            a.http_status,
            sa.case((sa.and_(a.outcome.is_(None), a.bundle_id.in_(open_jobs)), 1), else_=0).label("in_open_job"),
            wait.label("wait"),
            _whole(a.latency_seconds, _MICRO).label("latency"),
            *(a[name] for name in _TOKENS),
            _whole(a.cost_usd, _NANO).label("cost"),
        )
        .join(modes, modes.c.batch_id == a.batch_id)
        .where(a.outcome.is_distinct_from(AttemptOutcome.UNSENT.value))
        .cte("calls")
        .prefix_with("MATERIALIZED")
    )
    s = single.c
    keys = [
        s.mode,
        s.provider,
        s.model,
        s.outcome,
        s.error_type,
        s.http_status,
        s.in_open_job,
        _class(s.wait, WAIT_BOUNDS).label("wait_class"),
        sa.case((s.latency.is_not(None), _class(s.latency, LATENCY_BOUNDS))).label("latency_class"),
    ]
    totals = [
        sa.func.count().label("calls"),
        *(sa.func.sum(s[name]).label(name) for name in ("wait", "latency", *_TOKENS, "cost")),
        sa.func.count(s.cost).label("priced"),
    ]
    found = connection.execute(sa.select(*keys, *totals).group_by(*keys))
    return tuple(
        CallGroup(
            batching_mode=row.mode,
            provider=row.provider,
            model=row.model,
            outcome=None if row.outcome is None else AttemptOutcome(row.outcome),
            error_type=row.error_type,
            http_status=row.http_status,
            in_open_job=bool(row.in_open_job),
            wait_class=row.wait_class,
            latency_class=row.latency_class,
            calls=row.calls,
            wait_us=int(row.wait or 0),
            latency_us=int(row.latency or 0),
            tokens_input=int(row.tokens_input or 0),
            tokens_cache_read=int(row.tokens_cache_read or 0),
            tokens_cache_write=int(row.tokens_cache_write or 0),
            tokens_output=int(row.tokens_output or 0),
            tokens_reasoning=int(row.tokens_reasoning or 0),
            cost_nano_usd=int(row.cost or 0),
            priced=row.priced,
        )
        for row in found
    )


_TOKENS: Final = ("tokens_input", "tokens_cache_read", "tokens_cache_write", "tokens_output", "tokens_reasoning")


def _comparisons(connection: Connection) -> tuple[ComparisonGroup, ...]:
    c, modes = t.comparisons.c, _modes()
    keys = (modes.c.mode, c.status, c.error_type)
    query = sa.select(*keys, sa.func.count()).join(modes, modes.c.batch_id == c.batch_id).group_by(*keys)
    return tuple(
        ComparisonGroup(mode, ComparisonStatus(status), error_type, count)
        for mode, status, error_type, count in connection.execute(query)
    )


def _waves(connection: Connection) -> tuple[WaveGroup, ...]:
    w, modes = t.waves.c, _modes()
    keys = (modes.c.mode, w.decision)
    query = sa.select(*keys, sa.func.count()).join(modes, modes.c.batch_id == w.batch_id).group_by(*keys)
    return tuple(WaveGroup(*row) for row in connection.execute(query))


def _bundles(connection: Connection) -> tuple[BundleGroup, ...]:
    a, c, modes = t.attempts.c, t.comparisons.c, _modes()
    bundle = (
        sa.select(
            a.batch_id,
            a.provider,
            a.model,
            sa.func.count(a.comparison_id.distinct()).label("items"),
            sa.func.min(a.comparison_id).label("comparison_id"),
        )
        .join(modes, modes.c.batch_id == a.batch_id)
        .where(
            modes.c.mode == BatchingMode.SERIAL_BUNDLE.value,
            a.bundle_id.is_not(None),
            a.outcome.is_distinct_from(AttemptOutcome.UNSENT.value),
        )
        .group_by(a.batch_id, a.bundle_id, a.provider, a.model)
        .subquery()
    )
    at_work = sa.select(c.batch_id, c.wave).where(c.status == ComparisonStatus.PLANNED.value).distinct().subquery()
    is_whole = sa.case((at_work.c.wave.is_(None), 1), else_=0).label("is_whole")
    keys = (bundle.c.provider, bundle.c.model, bundle.c["items"], is_whole)
    query = (
        sa.select(*keys, sa.func.count())
        .select_from(bundle)
        .join(t.comparisons, sa.and_(c.batch_id == bundle.c.batch_id, c.comparison_id == bundle.c.comparison_id))
        .outerjoin(at_work, sa.and_(at_work.c.batch_id == c.batch_id, at_work.c.wave == c.wave))
        .group_by(*keys)
    )
    return tuple(
        BundleGroup(provider, model, items, bool(whole), count)
        for provider, model, items, whole, count in connection.execute(query)
    )


def _jobs(connection: Connection) -> tuple[JobMeasure, ...]:
    j = t.provider_jobs.c
    query = sa.select(j.provider, j.model, j.status, j["items"], j.submitted_at, j.ended_at, j.closed_at)
    return tuple(
        JobMeasure(
            provider=provider,
            model=model,
            status=JobState(status),
            items=items,
            accepted=submitted_at is not None,
            # the provider's clock is not ours
            duration_us=None
            if submitted_at is None or closed_at is None
            else max(0, ((ended_at or closed_at) - submitted_at) // timedelta(microseconds=1)),
        )
        for provider, model, status, items, submitted_at, ended_at, closed_at in connection.execute(query)
    )


def _depth(connection: Connection) -> QueueDepth:
    a, c = t.attempts.c, t.comparisons.c
    called = (
        sa.select(sa.literal(1))
        .where(a.batch_id == c.batch_id, a.comparison_id == c.comparison_id, a.outcome.is_(None))
        .exists()
    )
    query = (
        sa.select(sa.func.count(), sa.func.count(sa.case((called, 1))))
        .select_from(t.comparisons)
        .join(t.batches, t.batches.c.batch_id == c.batch_id)
        .where(c.status == ComparisonStatus.PLANNED.value, t.batches.c.status.not_in(_FINAL))
    )
    pending, in_flight = connection.execute(query).one()
    return QueueDepth(waiting=pending - in_flight, in_flight=in_flight)


def _orphans(connection: Connection) -> dict[str, int]:
    source = t.orphan_results.c.source
    found = connection.execute(sa.select(source, sa.func.count().label("results")).group_by(source))
    return {row.source: row.results for row in found}


def _timeouts(connection: Connection) -> dict[str, int]:
    """Counted from what happened, not from where batches stand: a reopened batch was stuck all the same."""
    e = t.batch_events.c
    query = (
        sa.select(e.detail, sa.func.count())
        .where(e.event == "finalised", e.detail.contains(": timeout_", autoescape=True))
        .group_by(e.detail)
    )
    found: dict[str, int] = {}
    for detail, count in connection.execute(query):
        reason = detail.rpartition(": ")[2]
        found[reason] = found.get(reason, 0) + count
    return found


def _flagged(connection: Connection, flag: str) -> int:
    b = t.batches.c
    says_so = b.processing_metadata[("bt_quality_flags", flag)].as_boolean()
    query = sa.select(sa.func.count()).select_from(t.batches).where(b.status.in_(_FINAL), says_so.is_(sa.true()))
    return int(connection.execute(query).scalar_one())
