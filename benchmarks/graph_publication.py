"""How long does publishing a batch take as the graph grows?

Prints, for graphs that already hold some batches, the seconds one more publication spends on the batch's rows
(grows with the batch) and on the copy of the file (grows with the file, so it is stated as MB/s). Beside them stands
`cp` + `sync` of the same file, the least that a whole-file replacement can cost on this disk.

    python benchmarks/graph_publication.py [--batches 1 10 100] [--large 10000] [--repeat 5]
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from cj_pipeline.analysis.graph import Publication, publish_batch
from cj_pipeline.workflow.frames import GRAPH_TABLES, PROBABILITIES, Table
from cj_pipeline.workflow.frames import UTC as UTC_TYPE

STEPS = 9  # grades on the scale
ANCHORS = 12
JUSTIFICATION = "Essay A develops its argument further and controls sentence structure better than essay B does. "


def batch_tables(batch_id: str, essays: int, comparisons: int, turn: int) -> dict[str, pl.DataFrame]:
    """Tables of the right sizes and types; what they say means nothing."""
    heights = {
        "batches": 1,
        "essays": essays,
        "comparisons": comparisons,
        "attempts": comparisons,
        "bt_scores": essays,
        "waves": max(1, comparisons // 10),
        "bt_se_summaries": 3,
        "quality_flags": 1,
        "grade_projections": essays,
        "grade_boundaries": STEPS - 1,
        "anchor_report": ANCHORS,
    }
    return {table.name: random_frame(table, batch_id, heights[table.name], comparisons, turn) for table in GRAPH_TABLES}


def random_frame(table: Table, batch_id: str, height: int, as_of: int, turn: int) -> pl.DataFrame:
    numbers = [(i * 7919 + turn * 104_729) % 9_973 for i in range(height)]
    values: dict[str, list[Any]] = {}
    for column in table.columns:
        if column.name == "batch_id":
            values[column.name] = [batch_id] * height
        elif column.name == "as_of":
            values[column.name] = [as_of] * height
        elif column.name == "justification":
            values[column.name] = [JUSTIFICATION + str(n) for n in numbers]
        elif column.dtype == pl.String:
            values[column.name] = [f"{column.name}-{i:06d}" for i in range(height)]
        elif column.dtype == pl.Int64:
            values[column.name] = list(range(height))
        elif column.dtype == pl.Float64:
            values[column.name] = [n / 9_973 for n in numbers]
        elif column.dtype == pl.Boolean:
            values[column.name] = [n % 3 == 0 for n in numbers]
        elif column.dtype == UTC_TYPE:
            values[column.name] = [datetime.fromtimestamp(1_750_000_000 + n / 7, UTC) for n in numbers]
        elif column.dtype == PROBABILITIES:
            values[column.name] = [
                [{"grade": str(grade), "probability": (n + grade) / 10_000} for grade in range(STEPS)] for n in numbers
            ]
    return pl.DataFrame(values, schema=table.schema)


def measure(path: Path, essays: int, comparisons: int, repeat: int) -> list[Publication]:
    done = []
    for turn in range(repeat):
        tables = batch_tables("measured", essays, comparisons, turn)
        done.append(publish_batch(path, "measured", tables, as_of=comparisons))
    return done


def plain_copy_seconds(path: Path, repeat: int) -> float:
    times = []
    target = path.parent / "plain-copy"
    for _ in range(repeat):
        started = time.perf_counter()
        subprocess.run(["cp", path, target], check=True)
        subprocess.run(["sync", target], check=True)
        times.append(time.perf_counter() - started)
    target.unlink()
    return statistics.median(times)


def report(label: str, path: Path, essays: int, comparisons: int, repeat: int) -> None:
    done = measure(path, essays, comparisons, repeat)
    rows = statistics.median(publication.rows_seconds for publication in done)
    copy = statistics.median(publication.copy_seconds for publication in done)
    megabytes = done[-1].public_bytes / 1e6
    plain = plain_copy_seconds(path, repeat)
    figures = f"{rows:>10.3f}{copy:>10.3f}{megabytes:>9.1f}{megabytes / copy:>8.0f}{plain:>12.3f}"
    print(f"{label:<38}{done[-1].rows:>8}{figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 100], help="batches in the graph")
    parser.add_argument("--essays", type=int, default=36, help="essays per batch, anchors included")
    parser.add_argument("--comparisons", type=int, default=150, help="comparisons per batch")
    parser.add_argument("--large", type=int, default=10_000, help="comparisons of the one large batch; 0 for none")
    parser.add_argument("--repeat", type=int, default=5, help="publications per line; the median is printed")
    options = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="graph-publication-"))
    path = folder / "comparison_graph.duckdb"
    heads = f"{'rows s':>10}{'copy s':>10}{'MB':>9}{'MB/s':>8}{'cp+sync s':>12}"
    print(f"{'graph holds; then one batch published':<38}{'rows':>8}{heads}")
    try:
        there = 0
        for count in sorted(options.batches):
            while there < count - 1:
                tables = batch_tables(f"batch-{there}", options.essays, options.comparisons, there)
                publish_batch(path, f"batch-{there}", tables, as_of=options.comparisons)
                there += 1
            label = f"{count} x {options.comparisons} comparisons"
            report(label, path, options.essays, options.comparisons, options.repeat)
        if options.large:
            label = f"the same, one of them with {options.large}"
            report(label, path, options.essays, options.large, options.repeat)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
