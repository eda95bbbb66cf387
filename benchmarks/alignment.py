"""How often the 95 % interval of τ-b holds the τ-b of the true scores, on simulated judges of the ENG5 anchors.

A judge's true score of an anchor is slope·g + ε, ε ~ N(0, departure²), g its expert grade (F+ twice, E-, …, C+, B
twice, A twice) numbered and standardised. Every pair is judged --judgments times, reading order drawn, with an
advantage of 0.4 logits for the essay read first. Three intervals:

model      draws of `core.alignment_posterior`, which knows the grades
plain      draws of `core.posterior`, which does not
bootstrap  percentiles over refits (prior sd 5 logits) to judgments resampled with replacement

Behind each: coverage ± its Monte Carlo standard error, and mean width. Last, whether "probability inverted" of pairs of
neighbouring grades can be taken at its word: over all judges, the mean probability and the share truly inverted.

Run: OPENBLAS_NUM_THREADS=1 python benchmarks/alignment.py [--replications 40] [--judgments 1] [--seed 1]
About 4 minutes on an idle core at the defaults.
"""

import argparse
import sys
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cj_pipeline.core.alignment_posterior import AlignmentDraws, draw_alignment, kendall_tau  # noqa: E402
from cj_pipeline.core.bradley_terry import fit_bradley_terry  # noqa: E402
from cj_pipeline.core.judgment_table import JudgmentTable, judgment_table  # noqa: E402
from cj_pipeline.core.posterior import draw_posterior  # noqa: E402

GRADES = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8])
STANDARD = (GRADES - GRADES.mean()) / GRADES.std()
NEIGHBOURS = [(i, j) for i, j in combinations(range(12), 2) if GRADES[j] - GRADES[i] == 1]
JUDGES = ((0.5, 0.5), (1.5, 1.0), (3.0, 0.1), (3.0, 0.5), (3.0, 1.5))
ADVANTAGE = 0.4
RESAMPLES = 100
EDGES = (0.0, 0.05, 0.2, 0.5, 0.8, 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=40)
    parser.add_argument("--judgments", type=int, default=1, help="of every pair")
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.perf_counter()
    names = ("model", "plain", "bootstrap")
    print(f"{options.replications} judges a row, {options.judgments} judgments a pair, seed {options.seed}")
    print(f"{'slope departure':16}{'true τ-b':>9}" + "".join(f"{name:>22}" for name in names))
    stated: list[float] = []
    inverted: list[bool] = []
    for row, (slope, departure) in enumerate(JUDGES):
        hits: dict[str, list[bool]] = {name: [] for name in names}
        widths: dict[str, list[float]] = {name: [] for name in names}
        taus = []
        for replication in range(options.replications):
            rng = np.random.default_rng([options.seed, row, replication])
            truth = slope * STANDARD + departure * rng.standard_normal(GRADES.size)
            tau = kendall_tau(GRADES, truth).tau_b
            table = judge(truth, options.judgments, rng)
            taus.append(tau)
            model = draw_alignment(table, GRADES, seed=replication, n_draws=options.draws, burn_in=100, thin=1)
            for name, (low, high) in zip(names, intervals(table, model, replication, rng), strict=True):
                hits[name].append(low - 1e-9 <= tau <= high + 1e-9)
                widths[name].append(high - low)
            stated += [float((model.scores[:, i] > model.scores[:, j]).mean()) for i, j in NEIGHBOURS]
            inverted += [bool(truth[i] > truth[j]) for i, j in NEIGHBOURS]
        cells = "".join(f"{covered(hits[name]):>14}, {np.mean(widths[name]):5.2f} " for name in names)
        print(f"{slope:5.1f} {departure:9.1f} {np.mean(taus):9.2f}{cells}", flush=True)
    print_calibration(np.array(stated), np.array(inverted))
    print(f"\n{time.perf_counter() - began:.0f} s")


def judge(truth: np.ndarray, judgments: int, rng: np.random.Generator) -> JudgmentTable:
    """Every pair, judged by the model."""
    rows = []
    for pair in [*combinations(range(truth.size), 2)] * judgments:
        a, b = rng.permutation(pair)
        a_wins = rng.random() < 1.0 / (1.0 + np.exp(truth[b] - truth[a] - ADVANTAGE))
        rows.append((a, b, True) if a_wins else (b, a, False))
    winners, losers, first = zip(*rows, strict=True)
    return judgment_table(winners, losers, truth.size, np.array(first))


def intervals(
    table: JudgmentTable, model: AlignmentDraws, seed: int, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """The three intervals of τ-b."""
    draws = draw_posterior(table, seed=seed, n_draws=len(model.tau_b), burn_in=100, thin=1, order_effect=True)
    plain = AlignmentDraws(GRADES, draws.scores, draws.widths, draws.widths)
    refits = []
    for _ in range(RESAMPLES):
        sample = table.rows(rng.integers(0, len(table), len(table)))
        fit = fit_bradley_terry(sample.winners, sample.losers, table.n_items, prior_sd=5.0)
        refits.append(kendall_tau(GRADES, fit.scores).tau_b)
    low, high = np.quantile(refits, [0.025, 0.975])
    return [model.tau_b_interval(), plain.tau_b_interval(), (float(low), float(high))]


def covered(hits: list[bool]) -> str:
    """Coverage with its standard error."""
    share = float(np.mean(hits))
    return f"{share:.2f} ± {np.sqrt(share * (1 - share) / len(hits)):.2f}"


def print_calibration(stated: np.ndarray, inverted: np.ndarray) -> None:
    """Stated probability of inversion beside the share truly inverted."""
    print(f"\n{'probability inverted':22}{'pairs':>7}{'mean':>8}{'truly inverted':>18}")
    for k, (low, high) in enumerate(pairwise(EDGES)):
        inside = (stated >= low) & ((stated < high) | (k == len(EDGES) - 2))
        if inside.any():
            shown = covered(inverted[inside].tolist())
            print(f"{low:.2f} to {high:.2f}{'':10}{inside.sum():7d}{stated[inside].mean():8.2f}{shown:>18}")


if __name__ == "__main__":
    main()
