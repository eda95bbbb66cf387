"""The inbox: what is claimed and when, where a folder ends, and that nothing in it is lost, overwritten or stuck."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    RunRequest,
    RunsFilter,
    SkipReason,
    build_sensor_context,
)

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import BatchStatus
from cj_pipeline.defs.inbox import Ingestion, claim_settled_folders, ingest_claimed, open_claims
from cj_pipeline.defs.sensors import new_batch_sensor
from cj_pipeline.settings import CJSettings
from cj_pipeline_tests.defs.stage import QUIET, Stage, demo_folder

SETTLE = 10.0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    stage.register_demo()
    return stage


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def settings(stage: Stage) -> CJSettings:
    return stage.cj.settings()


def drop(stage: Stage, name: str, *, seconds_ago: float = SETTLE + 1, students: int = 3, **batch_yaml: object) -> Path:
    """Drop a demo batch into the inbox as if that had happened some time ago."""
    folder = demo_folder(stage.inbox / name, students=students, **batch_yaml)
    age(folder, seconds_ago)
    return folder


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then), follow_symlinks=False)


def ingest(stage: Stage, settings: CJSettings, instance: DagsterInstance, claim: str) -> Ingestion:
    with stage.ledger() as ledger:
        return ingest_claimed(settings, ledger, instance, claim)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def batches(stage: Stage) -> list[str]:
    with stage.ledger() as ledger:
        return [batch.batch_id for batch in ledger.batches()]


def tick(stage: Stage, instance: DagsterInstance) -> tuple[list[RunRequest], list[str]]:
    """One tick of the sensor: what it launches, and what it says it skipped."""
    context = build_sensor_context(instance=instance, resources={"cj": stage.cj})
    told = list(new_batch_sensor(context))
    return (
        [one for one in told if isinstance(one, RunRequest)],
        [one.skip_message or "" for one in told if isinstance(one, SkipReason)],
    )


def launch(stage: Stage, instance: DagsterInstance, request: RunRequest, status: DagsterRunStatus) -> None:
    """Leave a run behind in `status`, as the daemon makes it of a request."""
    stage.leave_run(instance, "ingest_batch_job", status, tags=request.tags, run_config=request.run_config)


# --- claiming ----------------------------------------------------------------------------------------------------


def test_a_folder_is_claimed_once_it_has_not_changed_for_the_settle_time(stage: Stage, settings: CJSettings) -> None:
    folder = drop(stage, "class-9b", seconds_ago=SETTLE - 2)
    assert claim_settled_folders(settings) == []
    assert folder.is_dir()

    (claim,) = claim_settled_folders(settings, now=time.time() + 3)
    assert not folder.exists()
    assert open_claims(settings) == [claim]
    assert names(stage.inbox / "claimed" / claim) == ["class-9b"]
    assert claim_settled_folders(settings, now=time.time() + 3) == []


def test_the_newest_file_counts_so_that_a_copy_in_progress_is_left_alone(stage: Stage, settings: CJSettings) -> None:
    folder = drop(stage, "copying", seconds_ago=3600)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "scan.png").write_bytes(b"half a pict")
    os.utime(folder, (0, 0))
    os.utime(folder / "pictures", (0, 0))
    assert claim_settled_folders(settings) == []


def test_folders_without_batch_yaml_hidden_ones_links_and_files_are_left_alone(
    stage: Stage, settings: CJSettings, tmp_path: Path
) -> None:
    (drop(stage, "unready") / "batch.yaml").unlink()
    age(stage.inbox / "unready", 3600)
    drop(stage, ".hidden")
    elsewhere = demo_folder(tmp_path / "elsewhere", students=3)
    age(elsewhere, 3600)
    (stage.inbox / "link").symlink_to(elsewhere)
    (stage.inbox / "note.txt").write_text("hello")
    drop(stage, "rejected")
    before = names(stage.inbox)
    assert claim_settled_folders(settings, now=time.time() + 3600) == []
    assert names(stage.inbox) == before


def test_without_an_inbox_there_is_nothing_to_claim(stage: Stage, settings: CJSettings) -> None:
    stage.inbox.rmdir()
    assert claim_settled_folders(settings) == []
    assert open_claims(settings) == []


@pytest.mark.parametrize(
    "name",
    ["x" * 255, "Klass 9B höstterminen", os.fsdecode("Klass å".encode("latin-1")), "a'b;--", "two\nlines", "ö" * 127],
    ids=["long", "spaces", "not UTF-8", "quotes", "newline", "long in bytes"],
)
def test_a_folder_of_any_name_is_taken_in_and_does_not_stop_the_next(
    stage: Stage, settings: CJSettings, instance: DagsterInstance, name: str
) -> None:
    drop(stage, name, batch_id="odd")
    drop(stage, "zz", batch_id="next")
    requests, _ = tick(stage, instance)
    assert len(requests) == 2
    job = stage.job("ingest_batch_job")
    for request in requests:
        done = job.execute_in_process(
            instance=instance, run_config={**request.run_config, **QUIET}, tags=request.tags, raise_on_error=False
        )
        assert done.success
    assert batches(stage) == ["odd", "next"]
    assert names(stage.inbox / "accepted") == sorted([name, "zz"])


@pytest.mark.parametrize(
    "name", ["x" * 255, os.fsdecode("Klass å".encode("latin-1")), "two\nlines"], ids=["long", "not UTF-8", "newline"]
)
def test_a_bad_folder_of_any_name_is_rejected(
    stage: Stage, instance: DagsterInstance, settings: CJSettings, name: str
) -> None:
    for _ in range(2):
        drop(stage, name, assignment="nowhere", batch_id="odd")
        ((request,), _) = tick(stage, instance)
        done = stage.job("ingest_batch_job").execute_in_process(
            instance=instance, run_config={**request.run_config, **QUIET}, tags=request.tags, raise_on_error=False
        )
        assert done.success
    assert open_claims(settings) == []
    assert len(names(stage.inbox / "rejected")) == 2
    assert name in names(stage.inbox / "rejected")


# --- ingesting ---------------------------------------------------------------------------------------------------


def test_a_good_folder_is_submitted_and_moved_to_accepted(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    drop(stage, "autumn", batch_id="b1", max_comparisons=30)
    (claim,) = claim_settled_folders(settings)
    result = ingest(stage, settings, instance, claim)

    assert (result.accepted, result.batch_id) == (True, "b1")
    batch = stage.batch("b1")
    assert (batch.status, batch.total_budget) == (BatchStatus.SUBMITTED, 30)
    with stage.ledger() as ledger:
        assert sum(not essay.is_anchor for essay in ledger.essays("b1")) == 3
    assert instance.get_dynamic_partitions("cj_batch") == ["b1"]
    assert names(stage.inbox / "accepted") == ["autumn"]
    assert names(stage.inbox / "accepted" / "autumn") == ["batch.yaml", "quality.csv", "s01.txt", "s02.txt", "s03.txt"]
    assert names(stage.inbox / "claimed") == []
    assert open_claims(settings) == []


def test_the_name_of_the_dropped_folder_is_the_batch_id_where_batch_yaml_gives_none(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    drop(stage, "autumn-9b")
    (claim,) = claim_settled_folders(settings)
    assert ingest(stage, settings, instance, claim).batch_id == "autumn-9b"


def test_a_bad_folder_ends_in_rejected_beside_every_problem_and_the_next_is_taken_in(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    bad = drop(stage, "a-bad", assignment="nowhere", judge="solomon", max_comparisons=5000)
    (bad / "s02.txt").write_text("   \n")
    (bad / "s03.txt").write_bytes(b"\xff\xfe\xff")
    age(bad, 60)
    drop(stage, "b-good")
    first, second = claim_settled_folders(settings)

    rejected = ingest(stage, settings, instance, first)
    accepted = ingest(stage, settings, instance, second)

    assert not rejected.accepted
    assert accepted.accepted
    assert batches(stage) == ["b-good"]
    error = (stage.inbox / "rejected" / "a-bad" / "error.txt").read_text(encoding="utf-8")
    assert "s02.txt" in error
    assert "s03.txt" in error
    assert (stage.inbox / "rejected" / "a-bad" / "s01.txt").is_file()


def test_problems_with_what_is_registered_are_listed_together(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    drop(stage, "bad", assignment="nowhere", judge="solomon", max_comparisons=5000)
    (claim,) = claim_settled_folders(settings)
    ingest(stage, settings, instance, claim)
    error = (stage.inbox / "rejected" / "bad" / "error.txt").read_text(encoding="utf-8")
    for word in ("nowhere", "solomon", "5000"):
        assert word in error


def test_a_mended_folder_is_dropped_again_and_its_old_error_is_no_essay(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    drop(stage, "autumn", assignment="nowhere")
    (claim,) = claim_settled_folders(settings)
    ingest(stage, settings, instance, claim)
    back = (stage.inbox / "rejected" / "autumn").rename(stage.inbox / "autumn")
    assert (back / "error.txt").is_file()
    (back / "batch.yaml").write_text("assignment: demo-eng5\n")
    age(back, 60)

    (again,) = claim_settled_folders(settings)
    assert again != claim
    assert ingest(stage, settings, instance, again).accepted
    with stage.ledger() as ledger:
        assert [e.essay_id for e in ledger.essays("autumn") if not e.is_anchor] == ["s01", "s02", "s03"]


def test_the_same_content_again_is_accepted_and_changes_nothing_and_other_content_is_rejected(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    for students in (3, 3, 4):
        drop(stage, "autumn", students=students)
        (claim,) = claim_settled_folders(settings)
        ingest(stage, settings, instance, claim)
    assert batches(stage) == ["autumn"]
    assert len(names(stage.inbox / "accepted")) == 2
    assert names(stage.inbox / "rejected") == ["autumn"]
    with stage.ledger() as ledger:
        assert sum(not essay.is_anchor for essay in ledger.essays("autumn")) == 3


def test_folders_of_the_same_name_never_overwrite_each_other(
    stage: Stage, settings: CJSettings, instance: DagsterInstance
) -> None:
    for number in range(3):
        (drop(stage, "autumn", assignment="nowhere") / "number").write_text(str(number))
        age(stage.inbox / "autumn", 60)
        claim_settled_folders(settings)
    claims = open_claims(settings)
    assert len(set(claims)) == 3
    for claim in claims:
        ingest(stage, settings, instance, claim)
    kept = {(folder / "number").read_text() for folder in (stage.inbox / "rejected").iterdir()}
    assert kept == {"0", "1", "2"}


@pytest.mark.parametrize("claim", ["..", ".", "", "../rejected", "nobody", "a/b", "/etc", "autumn@1/autumn"])
def test_a_claim_that_is_not_a_claimed_folder_is_refused_and_nothing_moves(
    stage: Stage, settings: CJSettings, instance: DagsterInstance, claim: str
) -> None:
    (stage.inbox / "claimed" / "autumn@1" / "autumn").mkdir(parents=True)
    (stage.inbox / "claimed" / "empty").mkdir()
    before = sorted(stage.home.rglob("*"))
    with pytest.raises(InputError, match="no claimed folder"):
        ingest(stage, settings, instance, claim)
    assert sorted(stage.home.rglob("*")) == before


def test_no_essay_is_quoted_in_an_error(stage: Stage, settings: CJSettings, instance: DagsterInstance) -> None:
    folder = drop(stage, "twins", students=2)
    secret = "The quick brown secret jumps over the lazy examiner, twice."
    for name in ("s01.txt", "s02.txt"):
        (folder / name).write_text(secret)
    age(folder, 60)
    (claim,) = claim_settled_folders(settings)
    result = ingest(stage, settings, instance, claim)
    error = (stage.inbox / "rejected" / "twins" / "error.txt").read_text(encoding="utf-8")
    assert "s01" in error
    for told in (error, result.message):
        assert "secret" not in told


# --- the sensor --------------------------------------------------------------------------------------------------


def test_the_sensor_launches_one_run_for_each_claim_and_none_while_it_is_underway(
    stage: Stage, instance: DagsterInstance
) -> None:
    assert tick(stage, instance)[0] == []
    drop(stage, "a")
    drop(stage, "b")
    requests, _ = tick(stage, instance)
    assert len(requests) == 2
    assert len({request.run_key for request in requests}) == 2
    launch(stage, instance, requests[0], DagsterRunStatus.QUEUED)
    launch(stage, instance, requests[1], DagsterRunStatus.STARTED)
    assert tick(stage, instance)[0] == []


def test_a_claim_whose_runs_died_is_launched_three_times_and_then_rejected(
    stage: Stage, instance: DagsterInstance, settings: CJSettings
) -> None:
    drop(stage, "a-cursed")
    keys = []
    for _ in range(3):
        ((request,), _) = tick(stage, instance)
        keys.append(request.run_key)
        launch(stage, instance, request, DagsterRunStatus.FAILURE)
    assert len(set(keys)) == 3

    drop(stage, "b-next")
    ((other,), _) = tick(stage, instance)
    assert "b-next" in (other.run_key or "")
    assert open_claims(settings) == [other.tags["cj/claim"]]
    error = (stage.inbox / "rejected" / "a-cursed" / "error.txt").read_text(encoding="utf-8")
    (last, *_others) = instance.get_runs(RunsFilter(tags={"cj/claim": keys[0].split(":")[1]}))
    assert "3 runs" in error
    assert last.run_id in error


def test_a_name_dropped_again_is_launched_though_its_first_claim_used_up_its_keys(
    stage: Stage, instance: DagsterInstance, settings: CJSettings
) -> None:
    used = set()
    for _ in range(4):
        drop(stage, "autumn")
        ((request,), _) = tick(stage, instance)
        assert request.run_key not in used
        used.add(request.run_key)
        launch(stage, instance, request, DagsterRunStatus.SUCCESS)
        ingest(stage, settings, instance, request.tags["cj/claim"])


def test_while_the_ledger_cannot_be_used_folders_wait_instead_of_being_rejected(
    stage: Stage, instance: DagsterInstance, settings: CJSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(stage, "patient")
    monkeypatch.setenv("CJ_LEDGER_URL", "mysql://nowhere/ledger")
    requests, skipped = tick(stage, instance)
    assert requests == []
    assert "mysql" in skipped[0] or "PostgreSQL" in skipped[0]
    monkeypatch.delenv("CJ_LEDGER_URL")
    assert len(tick(stage, instance)[0]) == 1


def test_the_run_says_what_became_of_the_folder(stage: Stage, instance: DagsterInstance) -> None:
    drop(stage, "good")
    drop(stage, "other", assignment="nowhere")
    told = {}
    for request in tick(stage, instance)[0]:
        result = stage.job("ingest_batch_job").execute_in_process(
            instance=instance, run_config={**request.run_config, **QUIET}, tags=request.tags
        )
        (output,) = [event.step_output_data for event in result.all_events if event.is_successful_output]
        told[output.metadata["batch_id"].value] = output.metadata
    assert told["good"]["accepted"].value is True
    assert told[""]["accepted"].value is False
    assert "nowhere" in told[""]["message"].value


def test_a_file_that_vanishes_while_it_is_looked_at_does_not_stop_the_inbox(stage: Stage, settings: CJSettings) -> None:
    import threading

    folder = drop(stage, "busy")
    drop(stage, "zz", seconds_ago=60)
    started, stop = threading.Event(), threading.Event()

    def copy() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with suppress(OSError):
                (folder / f"{number % 50}.part").write_bytes(b"x")
                (folder / f"{number % 50}.part").rename(folder / f"{number % 7}.txt")
                started.set()

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        assert started.wait(30)
        claims = [claim for _ in range(150) for claim in claim_settled_folders(settings)]
    finally:
        stop.set()
        thread.join()
    assert [claim.split("@")[0] for claim in claims] == ["zz"]
