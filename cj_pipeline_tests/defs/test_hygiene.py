"""What must not get out: whole batches with every fault mixed in, then a search of everything they left behind.

Looked for are the essays (each sentence, and each five words in a row), the justifications, which here quote the
essays, and the keys. Only the ledger and the published graph may hold texts and justifications; keys are nowhere.
"""

import json
import logging
import os
import re
import sqlite3
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
import sqlalchemy as sa
import structlog
from dagster import AssetMaterialization, DagsterInstance, ExecuteInProcessResult, serialize_value

from cj_pipeline.core.models import BatchStatus
from cj_pipeline.ledger import tables as t
from cj_pipeline.logs import get_logger
from cj_pipeline.settings import BatchOverrides, load_settings
from cj_pipeline.workflow.intake import AnchorSubmission, EssaySubmission
from cj_pipeline.workflow.registration import register_assignment, submit_batch
from cj_pipeline_tests.conftest import provider_environment
from cj_pipeline_tests.defs.stage import Stage
from cj_pipeline_tests.providers.essays import by_strength, find_essays
from cj_pipeline_tests.providers.server import ProviderServer
from cj_pipeline_tests.workflow import scenes

KEY = "sk-very-secret-key-1234"
WRONG_KEY = "sk-wrong-and-no-less-secret-98765"
BUDGET = 40
WINDOW = 5
CREATURES = ("axolotl", "pangolin", "okapi", "narwhal", "tapir", "capybara", "dugong", "kakapo", "tarsier", "quoll")
TOWNS = ("Älvdalen", "Kiruna", "Örkelljunga", "Ystad", "Mora", "Visby", "Åmål", "Falun", "Sala", "Trosa")
MISHAPS = (
    *("invalid_json", "refusal", "context_too_long", "drop", "wrong_winner", "extra_field", "drop_mid_body"),
    *("not_json_body", "content_filter", "bad_request", "truncated", "missing_field", "confidence_string"),
    *("rate_limited_retry_after", "server_error", "empty_answer", "long_justification"),
)
COMMON = {
    "max_comparisons": BUDGET,
    "min_comparisons_for_stability_check": 100_000,
    "min_success_rate_threshold": 0.2,
    "breaker_failures": 1000,
    "comparisons_per_stability_check_iteration": 20,
}
SERIAL = {"llm_batching_mode": "serial_bundle"}
JOB = {"llm_batching_mode": "provider_batch_api", "batch_api_mode": "opportunistic"}


def essay_text(number: int) -> str:
    """Four sentences over two lines that nothing else would say, with letters that encodings change."""
    creature, town = CREATURES[number], TOWNS[number]
    return (
        f"My aunt keeps a melancholy {creature} in her bathtub near {town}. "
        f'"Nobody believes the {creature}," she whispers, "until the lamps go out in {town}."\n'
        f"Last winter the {creature} swallowed eleven brass buttons and a railway ticket to {town}.\n\n"
        f"Since then every {creature} I meet smells faintly of marmalade, snöslask and regret."
    )


def justification(prompt: str) -> str:
    """What a judge might say that quotes what it read."""
    text_a, text_b = find_essays(prompt) or ("", "")
    quoted = text_a.split("\n")[0], text_b.split("\n")[-1]
    return f"Unlike the meandering second piece, A opens splendidly with {quoted[0]!r}, whereas B ends with {quoted[1]}"


def quoting_judge(prompt: str, model: str) -> dict[str, Any]:
    return {**by_strength(prompt, model), "justification": justification(prompt)}


# --- the search --------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    """The words of a text, whatever it was wrapped in: JSON and repr escapes undone, case and marks ignored."""
    unescaped = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    unescaped = re.sub(r"\\+x([0-9a-fA-F]{2})", lambda found: chr(int(found[1], 16)), unescaped)
    return re.findall(r"\w+", re.sub(r"\\+[nrt]", " ", unescaped).lower())


def _windows(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1)}


@dataclass(frozen=True)
class Secrets:
    """What is looked for: windows of words, and strings as they stand."""

    windows: set[tuple[str, ...]]
    strings: tuple[str, ...] = ()

    def found_in(self, haystack: str) -> list[str]:
        """The secrets that occur in a text."""
        first = {window[0] for window in self.windows}
        words = _words(haystack)
        told = {
            " ".join(window)
            for i, word in enumerate(words)
            if word in first and (window := tuple(words[i : i + WINDOW])) in self.windows
        }
        return sorted(told) + [string for string in self.strings if string in haystack]


ESSAYS = tuple(essay_text(number) for number in range(10))
# the judge's own words, without those that stand for the essays it quotes
OWN_WORDS = ("Unlike the meandering second piece, A opens splendidly with",)
TEXTS = Secrets(set().union(*map(_windows, (*ESSAYS, *OWN_WORDS))))
# a key is recognised by any longer part of it, too
KEYS = Secrets(set(), (KEY, WRONG_KEY, KEY[3:18], WRONG_KEY[3:20], KEY[-8:], WRONG_KEY[-8:]))
ALL = Secrets(TEXTS.windows, KEYS.strings)


def decoded(blob: bytes) -> str:
    with suppress(zlib.error):
        blob = zlib.decompress(blob)
    return blob.decode("utf-8", errors="replace")


def sqlite_cells(database: Path) -> Iterator[str]:
    """Every cell of every table, unpacked where it was packed."""
    with closing(sqlite3.connect(database)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield from (decoded(cell) if isinstance(cell, bytes) else str(cell) for cell in row)


def parquet_cells(path: Path) -> str:
    frame = pl.read_parquet(path)
    return "\n".join(str(value) for row in frame.iter_rows() for value in row) + "\n" + "\n".join(frame.columns)


def files_under(folder: Path) -> Iterator[tuple[str, str]]:
    """Every file's raw content, and what it holds where it is a database or a table."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        yield str(path), raw.decode("utf-8", errors="replace") + "\n" + decoded(raw)
        if raw.startswith(b"SQLite format 3"):
            yield f"{path} (cells)", "\n".join(sqlite_cells(path))
        if path.suffix == ".parquet":
            yield f"{path} (cells)", parquet_cells(path)


def dagster_events(instance: DagsterInstance) -> dict[str, str]:
    """Every entry of the event log of every run, by kind of event, as Dagster serialises it and as it prints."""
    found: dict[str, list[str]] = {}
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id):
            kind = entry.dagster_event.event_type_value if entry.dagster_event else "log line"
            printed = f"{serialize_value(entry)}\n{entry!r}\n{entry.user_message}\n{entry.message}"
            found.setdefault(f"event {kind}", []).append(printed)
    return {kind: "\n".join(entries) for kind, entries in found.items()}


def dagster_runs(instance: DagsterInstance) -> str:
    """Run config, tags and everything else of each run."""
    runs = instance.get_runs()
    return "\n".join(f"{serialize_value(run)}\n{json.dumps(run.run_config)}\n{run.tags}" for run in runs)


def errors_of(result: ExecuteInProcessResult) -> str:
    """What failed steps say, with the errors behind the errors."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return "\n".join(f"{one.error.to_string() if one.error else ''}\n{one.user_failure_data!r}" for one in failures)


def leaks(places: dict[str, str], secrets: Secrets = ALL) -> dict[str, list[str]]:
    """Place → the secrets found there, where there are any."""
    return {place: found for place, text in places.items() if (found := secrets.found_in(text))}


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """Write to a file whatever this process says: both outputs, and the loggers of what speaks HTTP at DEBUG."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Dagster gives file descriptors a meaning of its own while a step runs, others look up sys.stdout: both are caught
    kept_fds, kept_streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    root = logging.getLogger()
    level = root.level
    with path.open("a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        talkative = [logging.getLogger(name) for name in ("anthropic", "openai", "httpx", "httpx2", "httpcore")]
        levels = [logger.level for logger in talkative]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            root.addHandler(handler)
            root.setLevel(logging.INFO)
            for logger in talkative:
                logger.setLevel(logging.DEBUG)
            yield
        finally:
            for logger, before in zip(talkative, levels, strict=True):
                logger.setLevel(before)
            root.setLevel(level)
            root.removeHandler(handler)
            sys.stdout, sys.stderr = kept_streams
            for descriptor, kept in zip((1, 2), kept_fds, strict=True):
                os.dup2(kept, descriptor)
                os.close(kept)


# --- what is played ----------------------------------------------------------------------------------------------


@dataclass
class Played:
    """Batches that were run, and where everything they left behind is."""

    stage: Stage
    server: ProviderServer
    said: Path
    instance: DagsterInstance
    results: dict[str, list[ExecuteInProcessResult]] = field(default_factory=dict)

    def places(self) -> dict[str, str]:
        """Everything that may hold neither a text nor a key."""
        found = {"said": self.said.read_text(encoding="utf-8", errors="replace"), "runs": dagster_runs(self.instance)}
        found |= dagster_events(self.instance)
        for batch_id, results in self.results.items():
            found[f"errors of {batch_id}"] = "\n".join(errors_of(result) for result in results)
        outputs = self.stage.data_dir / "outputs"
        may_hold_texts = {path for name in ("ledger", "comparison_graph") for path in outputs.glob(f"*{name}*")}
        found |= {
            place: text
            for place, text in files_under(self.stage.home)
            if not any(place.startswith(str(path)) for path in may_hold_texts)
        }
        with self.stage.ledger() as ledger, ledger.engine.connect() as connection:
            for table in (t.attempts, t.batch_events, t.orphan_results, t.provider_jobs, t.waves, t.batches):
                rows = connection.execute(sa.select(table)).all()
                found[f"ledger.{table.name}"] = "\n".join(str(tuple(row)) for row in rows)
        return found


def submit(stage: Stage, batch_id: str, judge: str, **overrides: Any) -> None:
    """Six of the essays by students, four as anchors."""
    students = tuple(EssaySubmission(f"s{i}", ESSAYS[i], None, f"s{i}.txt") for i in range(6))
    request = scenes.batch_request(
        batch_id, judge=judge, students=students, overrides=BatchOverrides(**{**COMMON, **overrides})
    )
    with stage.ledger() as ledger:
        submit_batch(ledger, load_settings(data_dir=stage.data_dir), request)


def run_to_the_end(played: Played, batch_id: str, job: str) -> None:
    """As the sensors would: run after run, until the batch is final."""
    played.instance.add_dynamic_partitions("cj_batch", [batch_id])
    for _ in range(1 if batch_id == "one-wave" else 8):
        done = played.stage.job(job).execute_in_process(
            instance=played.instance,
            partition_key=batch_id,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "DEBUG"}}}},
        )
        played.results.setdefault(batch_id, []).append(done)
        if played.stage.batch(batch_id).status.is_final:
            return
    assert batch_id == "one-wave", f"{batch_id} never ended"


# one wave, published and not final, spares the seconds that loading Great Expectations takes
ONE_WAVE = (("one-wave", "anthropic/claude-haiku-4-5", SERIAL, "continue_batch_job"),)
ALL_WAYS = (
    ("serial", "anthropic/claude-haiku-4-5", SERIAL, "assess_batch_job"),
    ("job-refused", "openai/gpt-5.1", JOB, "continue_batch_job"),
    ("job", "openai/gpt-5.1", JOB, "assess_batch_job"),
    ("claude-job", "anthropic/claude-haiku-4-5", JOB, "continue_batch_job"),
    ("gpt-serial", "openai/gpt-5.1", SERIAL, "continue_batch_job"),
    ("serial-refused", "openai/gpt-5.1", SERIAL, "continue_batch_job"),
    ("claude-refused", "anthropic/claude-haiku-4-5", SERIAL, "continue_batch_job"),
)


def play(played: Played, ways: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that travel in all ways, with every mishap; those called refused with a wrong key."""
    for batch_id, judge, mode, job in ways:
        key = WRONG_KEY if batch_id.endswith("refused") else KEY
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        submit(played.stage, batch_id, judge, **mode)
        played.server.faults.script([None, *MISHAPS])
        # a job is out for a look or two
        played.server.jobs.hold = 1
        run_to_the_end(played, batch_id, job)
        played.server.faults.clear()


@pytest.fixture(
    scope="module", params=[ONE_WAVE, pytest.param(ALL_WAYS, marks=pytest.mark.slow)], ids=["one wave", "all"]
)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with pytest.MonkeyPatch.context() as monkeypatch, ProviderServer(seed=5, api_key=KEY) as server:
        server.decide = quoting_judge
        server.retry_after_seconds = 0.05
        stage = Stage.alone(tmp_path_factory.mktemp("project"), monkeypatch)
        for name, value in provider_environment(server).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("CJ_LOG_FORMAT", "json")
        monkeypatch.setenv("CJ_BATCH_API_POLL_SECONDS", "1")
        if request.param is ONE_WAVE:
            monkeypatch.setenv("CJ_WAVES_PER_RUN", "1")
        structlog.reset_defaults()
        stage.register_demo()
        anchors = tuple(
            AnchorSubmission(f"k{i}", grade, ESSAYS[i], f"k{i}.txt")
            for i, grade in zip(range(6, 10), ("F+", "E+", "C+", "A"), strict=True)
        )
        with stage.ledger() as ledger:
            register_assignment(ledger, replace(scenes.assignment_request(anchors=4), anchors=anchors))
        with stage.instance() as instance:
            played = Played(stage, server, stage.home.parent / "said.log", instance)
            with listening(played.said):
                play(played, request.param, monkeypatch)
            yield played
        structlog.reset_defaults()


# --- the batches did what is to be searched ----------------------------------------------------------------------


def test_the_batches_met_every_mishap_and_ended(played: Played) -> None:
    met = {call.fault for call in played.server.model_calls}
    assert set(MISHAPS) <= met
    for batch_id, results in played.results.items():
        batch = played.stage.batch(batch_id)
        if batch_id.endswith("refused"):
            assert (batch.status, batch.stop_reason) == (BatchStatus.FAILED, "provider_rejected")
            assert not results[-1].success
        else:
            one_wave = batch_id == "one-wave"
            assert batch.status is (BatchStatus.JUDGING if one_wave else BatchStatus.COMPLETE_MAX_COMPARISONS)
            assert batch.published_as_of is not None
            assert results[-1].success


def test_the_search_finds_every_essay_where_it_belongs(played: Played) -> None:
    with played.stage.ledger() as ledger, ledger.engine.connect() as connection:
        texts = "\n".join(connection.execute(sa.select(t.texts.c.text)).scalars())
        reasons = "\n".join(
            connection.execute(
                sa.select(t.comparisons.c.justification).where(t.comparisons.c.justification.is_not(None))
            ).scalars()
        )
    sent = "\n".join(json.dumps(call.body) for call in played.server.model_calls)
    for text in ESSAYS:
        assert {" ".join(window) for window in _windows(text)} <= set(TEXTS.found_in(texts))
        assert {" ".join(window) for window in _windows(text)} <= set(TEXTS.found_in(sent))
    assert TEXTS.found_in(reasons), "the judge quotes the essays, and the ledger keeps what it says"
    assert KEYS.found_in(texts + reasons + sent) == []


# --- what must not be anywhere -----------------------------------------------------------------------------------


def test_no_text_no_justification_and_no_key_is_anywhere_it_must_not_be(played: Played) -> None:
    places = played.places()
    kinds = {place.removeprefix("event ") for place in places if place.startswith("event ")}
    assert {"ASSET_MATERIALIZATION", "ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION"} <= kinds
    for place in ("said", "runs", "ledger.attempts"):
        assert places[place].strip(), f"nothing to search in {place}"
    for batch_id in (name for name in played.results if name.endswith("refused")):
        assert places[f"errors of {batch_id}"].strip()
        assert "STEP_FAILURE" in kinds
    for ending in (".parquet (cells)", ".db", ".db (cells)"):
        assert any(place.endswith(ending) for place in places), f"no file ends with {ending}"
    assert '"event": "comparison failed"' in places["said"], "structlog's lines are JSON and were heard"
    assert "context_too_long" in places["ledger.attempts"]
    assert leaks(places) == {}


def test_no_key_is_in_the_ledger_or_the_graph_either(played: Played) -> None:
    outputs = played.stage.data_dir / "outputs"
    assert KEYS.found_in("\n".join(sqlite_cells(outputs / "ledger.sqlite"))) == []
    assert KEYS.found_in("\n".join(text for _place, text in files_under(outputs))) == []


def test_the_graph_holds_justifications_and_no_essay_beyond_what_they_quote(played: Played) -> None:
    with closing(
        duckdb.connect(played.stage.data_dir / "outputs" / "comparison_graph.duckdb", read_only=True)
    ) as graph:
        tables = [name for (name,) in graph.sql("SELECT table_name FROM duckdb_tables()").fetchall()]
        cells = {}
        for table in tables:
            columns = [column for column, *_ in graph.sql(f'DESCRIBE "{table}"').fetchall()]
            for column in columns:
                values = graph.sql(f'SELECT CAST("{column}" AS VARCHAR) FROM "{table}"').fetchall()
                cells[f"{table}.{column}"] = "\n".join(str(value) for (value,) in values)
    assert set(leaks(cells)) == {"comparisons.justification"}


# --- the search can fail -----------------------------------------------------------------------------------------

SENTENCE = ESSAYS[3].split("\n")[1]


def test_a_sentence_in_a_log_line_would_be_found(tmp_path: Path) -> None:
    said = tmp_path / "said.log"
    with listening(said):
        structlog.reset_defaults()
        from cj_pipeline.logs import configure_logging

        configure_logging("json")
        get_logger(batch_id="b").info("call failed", detail=f"it began {' '.join(SENTENCE.split()[2:9])}")
        logging.getLogger("openai").debug("Request options: %r", {"text": SENTENCE, "key": KEY})
        print(ESSAYS[1])
        os.write(2, ESSAYS[2].encode())
        structlog.reset_defaults()
    found = ALL.found_in(said.read_text(encoding="utf-8"))
    assert " ".join(_words(SENTENCE)[2:7]) in found
    for text in (SENTENCE, ESSAYS[1], ESSAYS[2]):
        assert {" ".join(window) for window in _windows(text)} <= set(found)
    assert KEY in found


def test_a_sentence_in_metadata_would_be_found_in_events_and_in_the_storage(tmp_path: Path) -> None:
    from dagster import asset, materialize

    @asset
    def leaky() -> None:
        """Nothing."""

    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n", encoding="utf-8")
    with DagsterInstance.from_config(str(home)) as instance:
        instance.report_runless_asset_event(AssetMaterialization("a", metadata={"why": f"because {SENTENCE}"}))
        materialize([leaky], instance=instance, tags={"note": "five little words: " + " ".join(SENTENCE.split()[:6])})
        assert leaks({"runs": dagster_runs(instance)})
    places = leaks(dict(files_under(home)))
    assert any(place.endswith(".db (cells)") for place in places)
    assert any(place.endswith(".db") for place in places)


def test_a_sentence_in_a_failure_or_a_table_would_be_found(tmp_path: Path) -> None:
    from dagster import job, op

    @op
    def fails() -> None:
        raise ValueError(f"could not read {ESSAYS[4]} with {WRONG_KEY}")

    @job
    def failing() -> None:
        fails()

    with DagsterInstance.ephemeral() as instance:
        result = failing.execute_in_process(instance=instance, raise_on_error=False)
        assert WRONG_KEY in ALL.found_in(errors_of(result))
        found = leaks(dagster_events(instance))
    assert {" ".join(window) for window in _windows(ESSAYS[4])} <= set(found["event STEP_FAILURE"])
    pl.DataFrame({"x": ["nothing", f"{SENTENCE}"]}).write_parquet(tmp_path / "t.parquet", compression="zstd")
    assert f"{tmp_path / 't.parquet'} (cells)" in leaks(dict(files_under(tmp_path)))
