"""The lake: asset outputs as Parquet, one file per asset and batch, in a folder or at any fsspec URL.

A reader never sees half a file: locally a file is written beside, synced and renamed; on an object store it is one PUT.
"""

import io
from pathlib import Path
from typing import Any

import polars as pl
from dagster import ConfigurableIOManagerFactory, InitResourceContext, InputContext, OutputContext, UPathIOManager
from upath import UPath

from cj_pipeline.core.models import check_batch_id
from cj_pipeline.settings import load_settings
from cj_pipeline.whole_files import write_whole


class ParquetLake(UPathIOManager):
    """Stores polars frames as `<base>/<asset>/<batch>.parquet`."""

    extension = ".parquet"

    def make_safe_partition_path(self, base_path: UPath, partition: str) -> UPath:
        """The path of a batch's file; an id that may not name a batch is refused."""
        return base_path / check_batch_id(partition)

    def dump_to_path(self, context: OutputContext, obj: pl.DataFrame, path: UPath) -> None:
        """Write the frame whole, or not at all."""
        if isinstance(path, Path):
            write_parquet_atomically(obj, Path(path))
            return
        buffer = io.BytesIO()
        obj.write_parquet(buffer)
        path.fs.pipe_file(path.path, buffer.getvalue())

    def load_from_path(self, context: InputContext, path: UPath) -> pl.DataFrame:
        """Read the frame."""
        return pl.read_parquet(io.BytesIO(path.read_bytes()))

    def get_metadata(self, context: OutputContext, obj: pl.DataFrame) -> dict[str, Any]:
        """The number of rows, which the UI plots."""
        return {"dagster/row_count": obj.height}


def write_parquet_atomically(frame: pl.DataFrame, path: Path) -> None:
    """Replace a local Parquet file whole."""
    write_whole(path, frame.write_parquet)


class LakeIOManager(ConfigurableIOManagerFactory[ParquetLake]):
    """The lake at `CJ_LAKE_URL`, read when a run starts. `base_url` wins over the environment (for tests)."""

    base_url: str | None = None

    def create_io_manager(self, context: InitResourceContext) -> ParquetLake:
        """The lake of this run."""
        return ParquetLake(base_path=UPath(self.base_url or load_settings().effective_lake_url))
