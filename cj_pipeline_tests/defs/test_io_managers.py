"""The lake: whole files or none, in a folder and at a URL, and never a file outside of it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from dagster import (
    AssetsDefinition,
    DagsterInstance,
    Definitions,
    DynamicPartitionsDefinition,
    ExecuteInProcessResult,
    asset,
    build_init_resource_context,
)

from cj_pipeline.core.errors import InputError
from cj_pipeline.defs.io_managers import LakeIOManager, write_parquet_atomically
from cj_pipeline.defs.resources import CJResource
from cj_pipeline.workflow import frames
from cj_pipeline_tests.defs.stage import QUIET, Stage

SCORES = frames.GRADE_PROJECTIONS.frame(
    [
        {
            "batch_id": "b1",
            "essay_id": "s1",
            "is_anchor": False,
            "available": True,
            "grade": "C+",
            "confidence": 0.75,
            "probabilities": [{"grade": "C+", "probability": 0.75}, {"grade": "B", "probability": 0.25}],
            "simulated": True,
        }
    ]
)
BAD_KEYS = ["../x", "a'b", "x" * 65, "b\n", "/etc/x", "a/b", ".", ".hidden", "å"]


class Unwritable(pl.DataFrame):
    """A frame whose writing breaks off half way, like a full disk or a killed process."""

    def write_parquet(self, file: Any, **_options: Any) -> None:  # type: ignore[override]
        file.write(b"PAR1 and then")
        file.flush()
        raise OSError("No space left on device")


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


def materialise(
    instance: DagsterInstance, base_url: str, frame: pl.DataFrame, partition: str = "b1"
) -> tuple[ExecuteInProcessResult, list[pl.DataFrame]]:
    """Write a frame as the asset `upstream` and read it in the asset `downstream`; what was read."""
    partitions = DynamicPartitionsDefinition(name="some_batches")
    instance.add_dynamic_partitions("some_batches", [partition])
    read: list[pl.DataFrame] = []

    @asset(partitions_def=partitions)
    def upstream() -> pl.DataFrame:
        return frame

    def read_it(upstream: pl.DataFrame) -> None:
        read.append(upstream)

    downstream: AssetsDefinition = asset(name="downstream", partitions_def=partitions)(read_it)
    defs = Definitions([upstream, downstream], resources={"io_manager": LakeIOManager(base_url=base_url)})
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, partition_key=partition, raise_on_error=False, run_config=QUIET
    )
    return result, read


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_frame_comes_back_from_a_folder_as_it_was_with_its_types(tmp_path: Path, instance: DagsterInstance) -> None:
    lake = tmp_path / "lake"
    result, (read,) = materialise(instance, str(lake), SCORES)
    assert result.success
    assert read.equals(SCORES)
    assert read.schema == SCORES.schema
    assert files(lake) == ["upstream/b1.parquet"]
    assert pl.read_parquet(lake / "upstream" / "b1.parquet").equals(SCORES)


def test_a_frame_comes_back_from_a_url(instance: DagsterInstance) -> None:
    url = "memory://lake-of-a-test"
    result, (read,) = materialise(instance, url, SCORES)
    assert result.success
    assert read.equals(SCORES)
    assert fsspec.filesystem("memory").find("/lake-of-a-test") == ["/lake-of-a-test/upstream/b1.parquet"]


def test_an_empty_frame_keeps_its_types(tmp_path: Path, instance: DagsterInstance) -> None:
    empty = frames.JUDGMENTS.frame([])
    _, (read,) = materialise(instance, str(tmp_path), empty)
    assert read.schema == empty.schema
    assert read.is_empty()


def test_the_number_of_rows_is_told(tmp_path: Path, instance: DagsterInstance) -> None:
    frame = pl.concat([SCORES] * 3)
    result, _ = materialise(instance, str(tmp_path), frame)
    (event,) = [
        event for event in result.get_asset_materialization_events() if event.asset_key.to_user_string() == "upstream"
    ]
    assert event.materialization.metadata["dagster/row_count"].value == 3


@pytest.mark.parametrize(
    ("url", "key"), [*(("folder", key) for key in BAD_KEYS), ("memory", "../x"), ("memory", "a/b")]
)
def test_a_partition_that_may_not_name_a_batch_is_refused_and_nothing_is_written(
    tmp_path: Path, instance: DagsterInstance, key: str, url: str
) -> None:
    base = str(tmp_path / "deep" / "lake") if url == "folder" else "memory://guarded/lake"
    memory = fsspec.filesystem("memory")
    before = set(memory.find("/"))
    result, read = materialise(instance, base, SCORES, partition=key)
    assert not result.success
    assert read == []
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "batch id" in failure.error.to_string()
    assert files(tmp_path) == []
    assert set(memory.find("/")) == before


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_partition_that_may_not_name_a_batch_is_not_read_either(tmp_path: Path, key: str) -> None:
    from upath import UPath

    lake = LakeIOManager(base_url=str(tmp_path)).create_io_manager(build_init_resource_context())
    with pytest.raises(InputError, match="batch id"):
        lake.make_safe_partition_path(UPath(tmp_path), key)


def test_a_reader_never_sees_half_a_file_while_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "b1.parquet"
    rows = 200_000
    versions = [pl.DataFrame({"version": [version] * rows, "n": range(rows)}) for version in (0, 1)]
    write_parquet_atomically(versions[0], path)
    stop = threading.Event()
    seen: list[tuple[int, int, int]] = []
    broken: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                frame = pl.read_parquet(path, memory_map=False)
            except (OSError, pl.exceptions.PolarsError) as error:
                broken.append(error)
                return
            seen.append((frame.height, frame["version"].n_unique(), frame["version"][0]))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(60):
            write_parquet_atomically(versions[number % 2], path)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert broken == []
    assert {(height, kinds) for height, kinds, _ in seen} == {(rows, 1)}
    assert {version for *_, version in seen} == {0, 1}, "the reader saw both, so it read while it was written"


def test_writing_that_breaks_off_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "b1.parquet"
    write_parquet_atomically(SCORES, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_parquet_atomically(Unwritable(SCORES), path)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["b1.parquet"]


def test_a_first_write_that_breaks_off_leaves_nothing(tmp_path: Path, instance: DagsterInstance) -> None:
    result, _ = materialise(instance, str(tmp_path), Unwritable(SCORES))
    assert not result.success
    assert files(tmp_path) == []


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_parquet_atomically(SCORES, tmp_path / "b1.parquet")
    assert (tmp_path / "b1.parquet").stat().st_mode & 0o777 == 0o644


def test_the_lake_is_where_the_environment_says_when_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    declared = LakeIOManager()
    context = build_init_resource_context()
    assert str(declared.create_io_manager(context)._base_path) == str(stage.lake)
    monkeypatch.setenv("CJ_LAKE_URL", "memory://elsewhere")
    assert str(declared.create_io_manager(context)._base_path).rstrip("/") == "memory://elsewhere"
    assert str(LakeIOManager(base_url=str(tmp_path)).create_io_manager(context)._base_path) == str(tmp_path)


def test_the_resource_reads_the_environment_when_asked_and_its_own_fields_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage.alone(tmp_path / "home", monkeypatch)
    declared = CJResource()
    assert declared.settings().data_dir == stage.data_dir
    monkeypatch.setenv("CJ_DATA_DIR", str(tmp_path / "elsewhere"))
    assert declared.settings().data_dir == tmp_path / "elsewhere"
    assert stage.cj.settings().data_dir == stage.data_dir
    monkeypatch.setenv("CJ_LEASE_SECONDS", "never")
    with pytest.raises(InputError, match="CJ_LEASE_SECONDS"):
        declared.settings()
