"""How often a leaderboard calls a row behind the leader although all rows are the same judge, and finds one that is.

Simulated judges of the twelve ENG5 anchors: true scores slope·g + ε, ε ~ N(0, departure²), g the standardised expert
grade; every pair judged once, reading order drawn, an advantage of 0.4 logits for the essay read first. All rows share
the true scores of one judge ("equal"); or the last row is a judge with slope 0.5 and departure 1 among them ("one
worse"). Three ways to say "behind", each at 95 %:

together   `core.leaderboard`: all differences of the leaderboard within their bounds at once
pairwise   the leader's τ-b is above the row's with a probability of at least .95
set        the row is not in the smallest set of rows that holds the best with a probability of at least .95

Told for each, ± Monte Carlo standard error: leaderboards of equal rows that call any row behind (an error; aimed at: at
most .05), and leaderboards that call the worse row behind (power).

Run: OPENBLAS_NUM_THREADS=1 python benchmarks/leaderboard.py [--replications 24] [--rows 6] [--seed 5]
About 5 minutes on an idle core at the defaults.
"""

import argparse
import sys
import time
from math import sqrt
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cj_pipeline.core.alignment_posterior import draw_alignment, kendall_tau  # noqa: E402
from cj_pipeline.core.judgment_table import judgment_table  # noqa: E402
from cj_pipeline.core.leaderboard import standings  # noqa: E402

GRADES = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8])
STANDARD = (GRADES - GRADES.mean()) / GRADES.std()
FIRST, SECOND = np.triu_indices(GRADES.size, k=1)
JUDGES = ((3.0, 0.5), (3.0, 1.5), (1.5, 1.0))
WORSE = (0.5, 1.0)
ADVANTAGE = 0.4
WAYS = ("together", "pairwise", "set")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=24)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    began = time.perf_counter()
    rng = np.random.default_rng(options.seed)
    print(f"{options.replications} leaderboards of {options.rows} rows each, 66 judgments a row, seed {options.seed}")
    print(f"{'slope departure':16}{'true τ-b':>9}{'':>4}" + "".join(f"{way:>18}" for way in WAYS))
    for slope, departure in JUDGES:
        taus = []
        wrong: dict[str, list[bool]] = {way: [] for way in WAYS}
        found: dict[str, list[bool]] = {way: [] for way in WAYS}
        for _ in range(options.replications):
            truth = slope * STANDARD + departure * rng.standard_normal(GRADES.size)
            taus.append(kendall_tau(GRADES, truth).tau_b)
            equal = [drawn(truth, options.draws, rng) for _ in range(options.rows)]
            bad = WORSE[0] * STANDARD + WORSE[1] * rng.standard_normal(GRADES.size)
            worse = [*equal[:-1], drawn(bad, options.draws, rng)]
            for way, called in behind(np.stack(equal, axis=1)).items():
                wrong[way].append(bool(called.any()))
            for way, called in behind(np.stack(worse, axis=1)).items():
                found[way].append(bool(called[-1]))
        label = f"{slope:g}  {departure:g}"
        print(f"{label:16}{np.mean(taus):9.2f}{'=':>4}" + "".join(f"{share(wrong[way]):>18}" for way in WAYS))
        print(f"{'one worse':16}{'':9}{'<':>4}" + "".join(f"{share(found[way]):>18}" for way in WAYS), flush=True)
    print(f"({time.perf_counter() - began:.0f} s)")


def drawn(truth: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of τ-b from the judgments of one row."""
    swapped = rng.random(FIRST.size) < 0.5
    a, b = np.where(swapped, SECOND, FIRST), np.where(swapped, FIRST, SECOND)
    won = rng.random(FIRST.size) < 1.0 / (1.0 + np.exp(truth[b] - truth[a] - ADVANTAGE))
    table = judgment_table(np.where(won, a, b), np.where(won, b, a), GRADES.size, won)
    return draw_alignment(table, GRADES, seed=int(rng.integers(2**31)), n_draws=n_draws, burn_in=100).tau_b


def behind(taus: np.ndarray) -> dict[str, np.ndarray]:
    """Which rows each way calls behind."""
    stands = standings(taus)
    leader = next(k for k, standing in enumerate(stands) if standing.leads)
    best = np.array([standing.p_best for standing in stands])
    order = np.argsort(-best)
    kept = order[: int(np.searchsorted(np.cumsum(best[order]), 0.95 - 1e-12)) + 1]
    return {
        "together": np.array([not standing.may_be_best for standing in stands]),
        "pairwise": (taus[:, [leader]] > taus).mean(axis=0) >= 0.95,
        "set": ~np.isin(np.arange(taus.shape[1]), kept),
    }


def share(cases: list[bool]) -> str:
    """A share with its Monte Carlo standard error."""
    p = sum(cases) / len(cases)
    return f"{p:.2f} ± {sqrt(p * (1 - p) / len(cases)):.2f}"


if __name__ == "__main__":
    main()
