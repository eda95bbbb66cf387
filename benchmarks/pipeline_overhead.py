"""What the pipeline costs around the judge: `cj run` with a judge that answers at once.

Prints seconds in total and per wave for a batch of 24 students and 12 anchors, and the import time of the definitions.
Run: python benchmarks/pipeline_overhead.py [--students 24] [--comparisons 150] [--repeats 3]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PROJECT = Path(__file__).resolve().parent.parent
CJ = str(Path(sys.executable).parent / "cj")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=24)
    parser.add_argument("--comparisons", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = prepare(home, options.students)
        imports = [seconds([sys.executable, "-c", "import cj_pipeline.definitions"], environment) for _ in range(3)]
        print(f"import cj_pipeline.definitions: {median(imports):.1f} s (median of 3 processes)")
        for repeat in range(options.repeats):
            run_once(home, environment, f"overhead-{repeat}", options.comparisons)


def prepare(home: Path, students: int) -> dict[str, str]:
    """A project folder with the demo's assignment registered and a batch folder to submit."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(PROJECT / name, home)
    batch = home / "batch"
    batch.mkdir()
    rows = ["essay_id,quality"]
    for number in range(students):
        (batch / f"p{number:03d}.txt").write_text(f"Essay number {number}. " + "A sentence of six plain words. " * 30)
        rows.append(f"p{number:03d},{8 * number / max(1, students - 1):.2f}")
    (batch / "quality.csv").write_text("\n".join(rows) + "\n")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "CJ_DATA_DIR": str(home / "data"),
        "GX_ANALYTICS_ENABLED": "false",
    }
    assignment = PROJECT / "assets_data" / "inputs" / "demo" / "assignment"
    subprocess.run([CJ, "assignments", "register", str(assignment)], env=environment, check=True, capture_output=True)
    return environment


def run_once(home: Path, environment: dict[str, str], batch_id: str, comparisons: int) -> None:
    """Submit and run one batch; print what it took."""
    submit = [CJ, "submit", str(home / "batch"), "--assignment", "demo-eng5", "--batch-id", batch_id]
    subprocess.run(
        [*submit, "--max-comparisons", str(comparisons)], env=environment, check=True, capture_output=True, cwd=home
    )
    total = seconds([CJ, "run", batch_id], environment, cwd=home)
    from cj_pipeline.ledger import Ledger

    ledger = Ledger.open(f"sqlite:///{home / 'data' / 'outputs' / 'ledger.sqlite'}")
    waves = ledger.waves(batch_id)
    judging = (max(w.ended_at for w in waves if w.ended_at) - waves[0].started_at).total_seconds()
    size = comparisons / len(waves)
    print(
        f"cj run {batch_id}: {total:.1f} s in total; {len(waves)} waves of about {size:.0f} comparisons in "
        f"{judging:.2f} s, {judging / len(waves):.3f} s per wave, {1000 * judging / comparisons:.1f} ms per comparison"
    )


def seconds(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=cwd)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
