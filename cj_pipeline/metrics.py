"""Prometheus series, each computed from the ledger when it is asked for, so that they equal the record.

Names, labels and meaning are here and in `docs/metrics.md`; the counting is `ledger.measures`. Nothing is counted in
this process: a restart, a second process and a restored ledger all show what the record shows. A counter with a
status counts what has *reached* it, so it never falls: a judged comparison counts as planned and as judged.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from cj_pipeline.core.models import AttemptOutcome, BatchingMode, ComparisonStatus
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.measures import LATENCY_BOUNDS, WAIT_BOUNDS, CallGroup, ComparisonGroup, Measures, measure
from cj_pipeline.ledger.records import JobState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What `exposition` returns, as HTTP names it."""

BUNDLE_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64)
JOB_ITEM_BOUNDS: Final = (1, 10, 50, 100, 500, 1000, 5000, 10000, 50000)
JOB_SECOND_BOUNDS: Final = (60, 300, 900, 3600, 7200, 14400, 28800, 43200, 86400)

_MICRO: Final = 1_000_000
_NANO: Final = 1_000_000_000
_QUEUE_MODES: Final = {
    BatchingMode.PER_REQUEST.value: "per_request",
    BatchingMode.SERIAL_BUNDLE.value: "serial_bundle",
    BatchingMode.PROVIDER_BATCH_API.value: "batch_api",
}
_STATUSES: Final = {
    AttemptOutcome.JUDGED: "success",
    AttemptOutcome.ERROR: "error",
    AttemptOutcome.LOST: "lost",
}
_NEVER_ANSWERED: Final = ("lost", "expired")

Labels = tuple[str, ...]


def exposition(ledger: Ledger) -> bytes:
    """All series in Prometheus' text format (`CONTENT_TYPE`).

    Raises:
        CJError: the ledger cannot be read.
    """
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger))
    return generate_latest(registry)


class LedgerCollector(Collector):
    """Reads the ledger anew, in one snapshot, each time its series are collected.

    Args:
        ledger: where everything is counted.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[Metric]:
        """Nothing: so registering the collector does not read the ledger."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family, with or without samples.

        Raises:
            CJError: the ledger cannot be read.
        """
        measures = measure(self._ledger)
        yield from _of_batches(measures)
        yield from _of_calls(measures)
        yield from _of_the_queue(measures)
        yield from _of_bundles(measures)
        yield from _of_jobs(measures)


# --- families ----------------------------------------------------------------------------------------------------


def _of_batches(measures: Measures) -> Iterator[Metric]:
    yield _counter(
        "cj_llm_requests_total",
        "Calls made to the judge, by the batching mode of their batch. A call inside a provider batch job counts "
        "once its result is known.",
        ("batching_mode",),
        (((c.batching_mode,), c.calls) for c in measures.calls if not c.in_open_job),
    )
    yield _counter(
        "cj_llm_batches_started_total",
        "Waves started, by the batching mode of their batch.",
        ("batching_mode",),
        (((w.batching_mode,), w.waves) for w in measures.waves),
    )
    yield _counter(
        "cj_comparisons_total",
        "Comparisons that have reached a status. Every one was planned; those without an outcome are planned minus "
        "the rest.",
        ("status",),
        _comparisons_by_status(measures),
        always=[(status.value,) for status in ComparisonStatus],
    )
    yield _counter(
        "cj_workflow_decisions_total",
        "Decisions at the end of waves. Ends outside of a wave's end (cancelled, too few essays, silent too long, "
        "a spent budget found at a reopening) are not among them.",
        ("decision",),
        (((w.decision,), w.waves) for w in measures.waves if w.decision is not None),
    )
    yield _counter(
        "cj_bt_se_inflated_batches_total",
        "Final batches whose bt_quality_flags say bt_se_inflated. Falls only when a person reopens one.",
        (),
        [((), measures.se_inflated)],
    )
    yield _counter(
        "cj_bt_sparse_coverage_batches_total",
        "Final batches whose bt_quality_flags say comparison_coverage_sparse. Falls only when a person reopens one.",
        (),
        [((), measures.sparse_coverage)],
    )
    yield _counter(
        "cj_orphan_callbacks_total",
        "Results that came too late, twice or for nothing known, and changed nothing, by where they came from.",
        ("source_service",),
        (((source,), count) for source, count in measures.orphans.items()),
    )
    yield _counter(
        "cj_stuck_batches_total",
        "Batches that the monitor ended because they were silent past their timeout.",
        ("outcome",),
        (
            (("recovered" if reason == "timeout_recovered" else "failed",), count)
            for reason, count in measures.timeouts.items()
        ),
        always=[("recovered",), ("failed",)],
    )


def _of_calls(measures: Measures) -> Iterator[Metric]:
    ended = [c for c in measures.calls if c.outcome is not None]
    of_model = ("provider", "model")
    yield _counter(
        "llm_provider_requests_total",
        "Calls that ended: success (a judgment), error, or lost (no answer was recorded). Calls that are still open "
        "are not among them.",
        (*of_model, "status"),
        (((c.provider, c.model, _STATUSES[c.outcome]), c.calls) for c in ended if c.outcome is not None),
    )
    yield _counter(
        "llm_provider_api_errors_total",
        "Calls that ended in an error; http_status_code is empty where there was none. Lost calls are not among them.",
        ("provider", "error_type", "http_status_code"),
        (
            ((c.provider, c.error_type or "", "" if c.http_status is None else str(c.http_status)), c.calls)
            for c in ended
            if c.outcome is AttemptOutcome.ERROR
        ),
    )
    yield _counter(
        "llm_provider_tokens_total",
        "Tokens the provider reported. Whether cached and reasoning tokens are part of input and output is the "
        "provider's way of counting.",
        (*of_model, "token_type"),
        (((c.provider, c.model, kind), tokens) for c in ended for kind, tokens in _tokens(c)),
    )
    yield _counter(
        "llm_provider_cost_dollars_total",
        "Known costs of calls in US dollars. A call that was lost, or may have been paid without an answer, counts "
        "at its upper bound.",
        of_model,
        (((c.provider, c.model), c.cost_nano_usd) for c in ended),
        unit=_NANO,
    )
    yield _counter(
        "llm_provider_unpriced_requests_total",
        "Ended calls whose cost is unknown, and therefore missing from llm_provider_cost_dollars_total.",
        of_model,
        (((c.provider, c.model), c.calls - c.priced) for c in ended),
    )
    yield _histogram(
        "llm_provider_response_duration_seconds",
        "How long calls took, retries each for itself; calls without a latency (lost, in provider batch jobs) are "
        "not among them.",
        of_model,
        LATENCY_BOUNDS,
        (((c.provider, c.model), c.latency_class, c.calls, c.latency_us) for c in ended if c.latency_class is not None),
        unit=_MICRO,
    )
    yield _counter(
        "llm_provider_prompt_cache_tokens_total",
        "Prompt tokens read from the provider's cache (cheap) and written to it.",
        (*of_model, "direction"),
        (
            ((c.provider, c.model, direction), tokens)
            for c in ended
            for direction, tokens in (("read", c.tokens_cache_read), ("write", c.tokens_cache_write))
        ),
    )


def _of_the_queue(measures: Measures) -> Iterator[Metric]:
    ended = [c for c in measures.calls if c.outcome is not None]
    yield _histogram(
        "llm_provider_queue_wait_time_seconds",
        "From queued to sent, each call that ended once: success, expired (lost, or not reached by a provider batch "
        "job in time), failure.",
        ("queue_processing_mode", "result"),
        WAIT_BOUNDS,
        (((_queue_mode(c), _call_result(c)), c.wait_class, c.calls, c.wait_us) for c in ended),
        unit=_MICRO,
    )
    depth = measures.depth
    gauge = GaugeMetricFamily(
        "llm_provider_queue_depth",
        "Comparisons of unfinished batches without an outcome: waiting (not sent, or to be sent again), in_flight (a "
        "call is open), and both together.",
        labels=("queue_type",),
    )
    for queue_type, value in (
        ("waiting", depth.waiting),
        ("in_flight", depth.in_flight),
        ("total", depth.waiting + depth.in_flight),
    ):
        gauge.add_metric((queue_type,), value)
    yield gauge
    yield _counter(
        "llm_provider_comparison_callbacks_total",
        "Comparisons that got their outcome: success (judged), expired (failed, the last call lost or expired), "
        "failure (failed otherwise).",
        ("queue_processing_mode", "result"),
        (
            ((_queue_mode(c), _comparison_result(c)), c.comparisons)
            for c in measures.comparisons
            if c.status in (ComparisonStatus.JUDGED, ComparisonStatus.FAILED)
        ),
    )
    yield _counter(
        "llm_provider_queue_expiry_total",
        "Calls that never got an answer: lease_lost (their process died or lost its lease), provider_expired (a "
        "provider batch job ran out of time).",
        ("provider", "queue_processing_mode", "expiry_reason"),
        (
            ((c.provider, _queue_mode(c), "lease_lost" if c.outcome is AttemptOutcome.LOST else "provider_expired"), n)
            for c in ended
            if (n := c.calls) and _call_result(c) == "expired"
        ),
    )


def _of_bundles(measures: Measures) -> Iterator[Metric]:
    yield _counter(
        "llm_provider_serial_bundle_calls_total",
        "Bundles begun in serial_bundle mode. Each comparison of a bundle is judged by a call of its own.",
        ("provider", "model"),
        (((b.provider, b.model), b.bundles) for b in measures.bundles),
    )
    yield _histogram(
        "llm_provider_serial_bundle_items_per_call",
        "Comparisons per bundle; retries do not count again. A bundle appears when every comparison of its wave has "
        "its outcome, because it may grow until then.",
        ("provider", "model"),
        BUNDLE_BOUNDS,
        (
            ((b.provider, b.model), _class_of(b.items, BUNDLE_BOUNDS), b.bundles, b.items * b.bundles)
            for b in measures.bundles
            if b.is_whole
        ),
    )


def _of_jobs(measures: Measures) -> Iterator[Metric]:
    of_model = ("provider", "model")
    yield _counter(
        "llm_provider_batch_api_jobs_total",
        "Provider batch jobs that have reached a status. Every one was submitting; those the provider accepted were "
        "submitted; each ends in one of the others.",
        (*of_model, "status"),
        (
            ((j.provider, j.model, state.value), 1)
            for j in measures.jobs
            for state in JobState
            if state is JobState.SUBMITTING or (state is JobState.SUBMITTED and j.accepted) or state is j.status
        ),
    )
    yield _histogram(
        "llm_provider_batch_api_items_per_job",
        "Calls per provider batch job that the provider accepted.",
        of_model,
        JOB_ITEM_BOUNDS,
        (((j.provider, j.model), _class_of(j.items, JOB_ITEM_BOUNDS), 1, j.items) for j in measures.jobs if j.accepted),
    )
    yield _histogram(
        "llm_provider_batch_api_job_duration_seconds",
        "From the acceptance of a provider batch job to its end as the provider states it (or to when it was closed "
        "here); closed jobs only.",
        of_model,
        JOB_SECOND_BOUNDS,
        (
            ((j.provider, j.model), _class_of(j.duration_us / _MICRO, JOB_SECOND_BOUNDS), 1, j.duration_us)
            for j in measures.jobs
            if j.duration_us is not None
        ),
        unit=_MICRO,
    )


# --- building blocks ---------------------------------------------------------------------------------------------


def _comparisons_by_status(measures: Measures) -> Iterator[tuple[Labels, int]]:
    for c in measures.comparisons:
        yield (ComparisonStatus.PLANNED.value,), c.comparisons
        if c.status is not ComparisonStatus.PLANNED:
            yield (c.status.value,), c.comparisons


def _tokens(c: CallGroup) -> Iterator[tuple[str, int]]:
    for kind in ("input", "cache_read", "cache_write", "output", "reasoning"):
        yield kind, getattr(c, f"tokens_{kind}")


def _queue_mode(group: CallGroup | ComparisonGroup) -> str:
    return _QUEUE_MODES.get(group.batching_mode, group.batching_mode)


def _call_result(c: CallGroup) -> str:
    if c.outcome is AttemptOutcome.JUDGED:
        return "success"
    return "expired" if c.outcome is AttemptOutcome.LOST or c.error_type == "expired" else "failure"


def _comparison_result(c: ComparisonGroup) -> str:
    if c.status is ComparisonStatus.JUDGED:
        return "success"
    return "expired" if c.error_type in _NEVER_ANSWERED else "failure"


def _class_of(value: float, bounds: tuple[int, ...]) -> int:
    return next((index for index, bound in enumerate(bounds) if value <= bound), len(bounds))


def _counter(
    name: str,
    text: str,
    labels: Labels,
    counts: Iterable[tuple[Labels, int]],
    *,
    always: Iterable[Labels] = (),
    unit: int = 1,
) -> Metric:
    """A counter: whole counts added up per label values, then divided by `unit`; `always` appear even at 0."""
    totals = dict.fromkeys(always, 0)
    for values, count in counts:
        totals[values] = totals.get(values, 0) + count
    family = CounterMetricFamily(name, text, labels=labels)
    for values, total in sorted(totals.items()):
        family.add_metric(values, total / unit if unit != 1 else total)
    return family


def _histogram(
    name: str,
    text: str,
    labels: Labels,
    bounds: tuple[float, ...],
    counts: Iterable[tuple[Labels, int, int, int]],
    *,
    unit: int = 1,
) -> Metric:
    """A histogram from (label values, class, how many, their sum): cumulative counts, and the sum over `unit`."""
    classes: dict[Labels, list[int]] = {}
    sums: dict[Labels, int] = {}
    for values, index, count, total in counts:
        classes.setdefault(values, [0] * (len(bounds) + 1))[index] += count
        sums[values] = sums.get(values, 0) + total
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, found in sorted(classes.items()):
        below, buckets = 0, []
        for bound, count in zip((*bounds, float("inf")), found, strict=True):
            below += count
            buckets.append((floatToGoString(bound), below))
        family.add_metric(values, buckets, sums[values] / unit if unit != 1 else sums[values])
    return family


# --- hints -------------------------------------------------------------------------------------------------------


def hints(ledger: Ledger, batch_id: str) -> list[tuple[str, str]]:
    """What to ask Prometheus about a batch: (purpose, PromQL) for its batching mode, provider and model.

    The series know no batch: the queries show everything of that mode, or of that provider and model, in the hours
    since the batch was submitted.

    Raises:
        UnknownBatchError: no such batch.
    """
    batch = ledger.batch(batch_id)
    mode = BatchingMode(batch.settings.get("llm_batching_mode", BatchingMode.SERIAL_BUNDLE))
    ended = batch.completed_at or batch.created_at
    hours = 1 + int((ended - batch.created_at).total_seconds() // 3600)
    window = f"[{hours}h]"
    of_mode = f'batching_mode="{mode.value}"'
    of_queue = f'queue_processing_mode="{_QUEUE_MODES[mode.value]}"'
    of_provider = f'provider="{_escaped(batch.provider)}"'
    of_model = f'{of_provider},model="{_escaped(batch.model)}"'
    common = [
        ("calls made in this mode", f"increase(cj_llm_requests_total{{{of_mode}}}{window})"),
        ("waves started in this mode", f"increase(cj_llm_batches_started_total{{{of_mode}}}{window})"),
        (
            "95 % waited less, in seconds, by result",
            "histogram_quantile(0.95, sum by (le, result) "
            f"(increase(llm_provider_queue_wait_time_seconds_bucket{{{of_queue}}}{window})))",
        ),
        (
            "calls that never got an answer",
            f"sum by (expiry_reason) (increase(llm_provider_queue_expiry_total{{{of_provider},{of_queue}}}{window}))",
        ),
        (
            "errors, by type and HTTP status",
            f"sum by (error_type, http_status_code) (increase(llm_provider_api_errors_total{{{of_provider}}}{window}))",
        ),
        ("US dollars", f"increase(llm_provider_cost_dollars_total{{{of_model}}}{window})"),
    ]
    return common + _HINTS_OF_MODE[mode](of_model, of_queue, window)


def _serial_bundle_hints(of_model: str, _of_queue: str, window: str) -> list[tuple[str, str]]:
    items = "llm_provider_serial_bundle_items_per_call"
    return [
        ("bundles begun", f"increase(llm_provider_serial_bundle_calls_total{{{of_model}}}{window})"),
        (
            "comparisons per bundle, on average",
            f"increase({items}_sum{{{of_model}}}{window}) / increase({items}_count{{{of_model}}}{window})",
        ),
        _cache_hint(of_model, window),
    ]


def _per_request_hints(of_model: str, _of_queue: str, window: str) -> list[tuple[str, str]]:
    return [_duration_hint(of_model, window), _cache_hint(of_model, window)]


def _provider_batch_hints(of_model: str, of_queue: str, window: str) -> list[tuple[str, str]]:
    return [
        ("provider batch jobs, by status reached", f"llm_provider_batch_api_jobs_total{{{of_model}}}"),
        (
            "calls per job, on average",
            f"llm_provider_batch_api_items_per_job_sum{{{of_model}}} / "
            f"llm_provider_batch_api_items_per_job_count{{{of_model}}}",
        ),
        (
            "seconds per job, on average",
            f"llm_provider_batch_api_job_duration_seconds_sum{{{of_model}}} / "
            f"llm_provider_batch_api_job_duration_seconds_count{{{of_model}}}",
        ),
        (
            "comparisons that got their outcome, by result",
            f"increase(llm_provider_comparison_callbacks_total{{{of_queue}}}{window})",
        ),
    ]


def _duration_hint(of_model: str, window: str) -> tuple[str, str]:
    return (
        "95 % of calls took less, in seconds",
        "histogram_quantile(0.95, sum by (le) "
        f"(increase(llm_provider_response_duration_seconds_bucket{{{of_model}}}{window})))",
    )


def _cache_hint(of_model: str, window: str) -> tuple[str, str]:
    return (
        "prompt tokens read from and written to the provider's cache",
        f"increase(llm_provider_prompt_cache_tokens_total{{{of_model}}}{window})",
    )


_HINTS_OF_MODE: Final[dict[BatchingMode, Callable[[str, str, str], list[tuple[str, str]]]]] = {
    BatchingMode.PER_REQUEST: _per_request_hints,
    BatchingMode.SERIAL_BUNDLE: _serial_bundle_hints,
    BatchingMode.PROVIDER_BATCH_API: _provider_batch_hints,
}


def _escaped(value: Any) -> str:
    """A label value as PromQL quotes it."""
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
