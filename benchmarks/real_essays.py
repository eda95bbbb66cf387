"""A large batch of real essays through the whole pipeline, held against a truth: `cj submit`, `cj run`, what is
published.

The essays come from a CSV file with the columns ID, text and theta_true (such as writing_samples_1000/samples.csv),
and are judged beside the demo's twelve anchors. The judge is simulated: its law is Bradley-Terry with theta_true as
the scores, in logits. Printed: seconds and peak memory of `cj run`; Kendall's tau-b and r of published scores and
truth; the slope of scores, and of the middles of their intervals, on the centred truth; how many truths lie within
score +- 1.96 SE, and within `score_low` to `score_high`. All over the essays, without the anchors.

Run: python benchmarks/real_essays.py SAMPLES.csv [--comparisons 10000] [--design adaptive] [--essays 1000]
"""

import argparse
import csv
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

PROJECT = Path(__file__).resolve().parent.parent
CJ = str(Path(sys.executable).parent / "cj")
BATCH = "real"
DEMO_ASSIGNMENT = PROJECT / "assets_data" / "inputs" / "demo" / "assignment"
ASSIGNMENT = "demo-eng5"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--comparisons", type=int, default=10_000)
    parser.add_argument("--design", default="adaptive")
    parser.add_argument("--essays", type=int, default=1_000)
    options = parser.parse_args()
    csv.field_size_limit(10**9)
    with options.samples.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = rows[:: max(len(rows) // options.essays, 1)][: options.essays]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = prepare(home, rows, options.comparisons)
        call(
            f"submit {home / 'batch'} --batch-id {BATCH} --assignment {ASSIGNMENT} --judge cj-generic "
            f"--max-comparisons {options.comparisons} --override pair_design={options.design}",
            environment,
        )
        began = time.perf_counter()
        call(f"run {BATCH}", environment)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        (scores,) = (home / "data" / "outputs" / "lake" / "bt_scores").rglob("*.parquet")
        report(pl.read_parquet(scores), {row["ID"]: float(row["theta_true"]) for row in rows})
    print(f"cj run: {seconds:.0f} s, at most {peak:.0f} MB")


def prepare(home: Path, rows: list[dict[str, str]], comparisons: int) -> dict[str, str]:
    """A project folder with a batch folder to submit; the environment to call `cj` in."""
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(PROJECT / name, home)
    (home / "batch").mkdir()
    lowest = min(float(row["theta_true"]) for row in rows)
    with (home / "batch" / "essays.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["essay_id", "text", "quality"])
        # the judge counts quality in its grade steps of one logit, from 0
        writer.writerows([row["ID"], row["text"], f"{float(row['theta_true']) - lowest:.9f}"] for row in rows)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CJ_")}
    environment["CJ_MAX_PAIRWISE_COMPARISONS"] = str(comparisons)
    environment |= {"DAGSTER_HOME": str(home), "CJ_DATA_DIR": str(home / "data"), "GX_ANALYTICS_ENABLED": "false"}
    call(f"assignments register {DEMO_ASSIGNMENT}", environment)
    return environment


def call(arguments: str, environment: dict[str, str]) -> None:
    done = subprocess.run([CJ, *shlex.split(arguments)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"cj {arguments}: {done.stdout[-2000:]} {done.stderr[-2000:]}")


def report(scores: pl.DataFrame, truth: dict[str, float]) -> None:
    """Print how near published scores come to the truth."""
    from scipy.stats import kendalltau

    scores = scores.filter(~pl.col("is_anchor"))
    true = np.array([truth[essay] for essay in scores["essay_id"]])
    true -= true.mean()
    score, se, low, high = (scores[name].to_numpy() for name in ("score", "se_uncapped", "score_low", "score_high"))
    low, high, score = low - score.mean(), high - score.mean(), score - score.mean()
    each = scores["comparisons"].mean()
    print(f"{len(true)} essays, {each:.1f} judgments each, sd of the truth {true.std():.2f} logits")
    print(f"tau-b {kendalltau(score, true).statistic:.3f}, r {np.corrcoef(score, true)[0, 1]:.3f}")
    for name, values in (("scores", score), ("middles of intervals", (low + high) / 2.0)):
        rmse = np.sqrt(np.mean((values - true) ** 2))
        print(f"{name}: slope on the truth {values @ true / (true @ true):.2f}, RMSE {rmse:.2f} logits")
    print(f"truth within score +- 1.96 SE: {np.mean(np.abs(score - true) <= 1.96 * se):.3f}")
    print(f"truth within score_low to score_high: {np.mean((low <= true) & (true <= high)):.3f}")


if __name__ == "__main__":
    main()
