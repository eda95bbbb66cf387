"""How honest the reported reliability and intervals are, on simulated batches whose truth is known.

Three tables. *Reliability*: the posterior expected r² (flat prior on the width) beside the true squared correlation of
scores and truth, and beside the coefficients of the literature, for pure noise (sd 0) and for real differences. Pairs:
"random" by random matching and "nearest" by nearest neighbours in the scores so far (no pair twice), each in rounds
where every essay is judged once; the pipeline's own designs by their names, in waves of half the essays.
*Coverage*: how often 95 % intervals of centred scores hold the truth: posterior draws, the published `score_low` and
`score_high` (expectation propagation), and for comparison score ± 1.96 SE of maximum likelihood (where finite; the
share of batches is given) and of the fitted prior's mode.
Beside it, for posterior means ("mean") and the fit's scores ("mode"): the slope of estimates on centred truth, RMSE;
exp E[log σ] of the fit and of the draws; and seconds that the draws and the fit took.
*Told apart*, on batches of the coverage table: the share of pairs of essays whose order is called certain, and the
share of batches in which one of these orders is wrong (where no essay differs, every order is), by `told_apart`, and by
bounds that hold all differences of scores at once (`columns_told_apart`).

"Wide" split-half scores the halves under a prior of 5 logits, which stands in for maximum likelihood (seldom finite in
halves). Behind each mean, ± its Monte Carlo standard error over replications; in brackets over how many, where a figure
does not always exist. Seeds are a function of --seed, the cell and the replication.

Run: OPENBLAS_NUM_THREADS=1 python benchmarks/reliability.py [--replications 8] [--essays 24] [--seed 1]
     [--designs random nearest coverage balanced adaptive] [--truth FILE.csv]
About 8 minutes on one core at the defaults; 400 replications for final figures.
"""

import argparse
import csv
import sys
import time
import zlib
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from cj_pipeline.core.bradley_terry import fit_bradley_terry  # noqa: E402
from cj_pipeline.core.designs import WaveRequest, plan_next_wave  # noqa: E402
from cj_pipeline.core.errors import SeparationError  # noqa: E402
from cj_pipeline.core.judgment_table import JudgmentTable, judgment_table  # noqa: E402
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairDesign, Winner  # noqa: E402
from cj_pipeline.core.posterior import draw_posterior  # noqa: E402
from cj_pipeline.core.reliability import (  # noqa: E402
    columns_told_apart,
    expected_r_squared,
    score_intervals,
    separation,
    shrunken_reliability,
    split_half,
    told_apart,
)

ROUNDS = ("random", "nearest")
DESIGNS = (*ROUNDS, "coverage", "balanced", "adaptive")
# close to maximum likelihood, but finite
PAIRING_WIDTH = 5.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=8)
    parser.add_argument("--essays", type=int, default=24, help="coverage and told apart")
    parser.add_argument("--reliability-essays", type=int, nargs="+", default=[36, 100])
    parser.add_argument("--rounds", type=int, default=10, help="of the reliability table")
    parser.add_argument("--reliability-sds", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--sds", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument(
        "--judgments", type=int, nargs="+", default=[4, 10, 20], help="per essay, coverage and told apart"
    )
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--designs", choices=DESIGNS, nargs="+", default=ROUNDS)
    parser.add_argument(
        "--truth", type=Path, help="coverage and told apart: take true scores from this file's column theta_true"
    )
    parser.add_argument("--only", choices=("reliability", "coverage", "apart"))
    options = parser.parse_args()
    began = time.perf_counter()
    print(f"{options.replications} replications, seed {options.seed}, {options.draws} draws; ± is one standard error")
    for name, table in (("reliability", reliability_table), ("coverage", coverage_table), ("apart", apart_table)):
        if options.only in (None, name):
            table(options)
    print(f"\n{time.perf_counter() - began:.0f} s")


def reliability_table(options: argparse.Namespace) -> None:
    """Print expected r² beside the truth and the older coefficients."""
    columns = (
        "true r²",
        "posterior r²",
        "10 % quantile",
        "var/(var+PSV)",
        "split-half",
        "wide split-half",
        "1-MSE/var (ML)",
    )
    print(f"\nReliability, {options.rounds} rounds\n{'essays  sd   pairs  ':22}" + "".join(f"{c:>17}" for c in columns))
    for n in options.reliability_essays:
        for sd in options.reliability_sds:
            for design in options.designs:
                rows = []
                for replication in range(options.replications):
                    truth, table, seed = simulate(options.seed, n, sd, design, options.rounds, replication)
                    rows.append(reliability_row(truth, table, seed, options.draws))
                cells = "".join(f"{mean_and_error([row[k] for row in rows]):>17}" for k in range(len(columns)))
                print(f"{n:6d} {sd:4.1f}  {design:8}{cells}", flush=True)


def reliability_row(truth: np.ndarray, table: JudgmentTable, seed: int, draws: int) -> list[float]:
    """The figures of one simulated batch, NaN where one does not exist."""
    fit = fit_bradley_terry(table.winners, table.losers, table.n_items)
    drawn = draw_posterior(table, seed=seed, n_draws=draws, width_prior="flat")
    expected = expected_r_squared(drawn)
    true = np.corrcoef(truth, drawn.means)[0, 1] ** 2 if truth.std() else np.nan
    halves = split_half(table, seed=seed, splits=5, prior_sd=fit.prior_sd)
    wide = split_half(table, seed=seed, splits=5, prior_sd=PAIRING_WIDTH)
    try:
        ml = fit_bradley_terry(table.winners, table.losers, table.n_items, prior_sd=None)
        separated = separation(ml.scores, ml.standard_errors()).reliability
    except SeparationError:
        separated = np.nan
    return [
        true,
        expected.mean,
        expected.low,
        shrunken_reliability(fit.scores, fit.standard_errors()),
        halves.reliability,
        wide.reliability,
        separated,
    ]


def coverage_table(options: argparse.Namespace) -> None:
    """Print the coverage of 95 % intervals."""
    columns = (
        "posterior",
        "score_low/_high",
        "mode ± 1.96 SE",
        "ML ± 1.96 SE",
        "ML finite",
        "mean width",
        "slope, mean",
        "slope, mode",
        "RMSE, mean",
        "RMSE, mode",
        "prior sd, fit",
        "prior sd, draws",
        "s, draws",
        "s, fit",
    )
    n, sds, given = worlds(options)
    print(
        f"\nCoverage of 95 % intervals, {n} essays\n{'  sd  per essay  pairs  ':26}"
        + "".join(f"{c:>17}" for c in columns)
    )
    for sd in sds:
        for rounds in options.judgments:
            for design in options.designs:
                rows = []
                for replication in range(options.replications):
                    truth, table, seed = simulate(options.seed, n, sd, design, rounds, replication, given)
                    rows.append(coverage_row(truth, table, seed, options.draws))
                cells = "".join(f"{mean_and_error([row[k] for row in rows]):>17}" for k in range(len(columns)))
                print(f"{sd:4.1f} {rounds:10d}  {design:9}{cells}", flush=True)


def worlds(options: argparse.Namespace) -> tuple[int, list[float], np.ndarray | None]:
    """Essays, the true scores' standard deviations, and the true scores where they are given."""
    if options.truth is None:
        return options.essays, options.sds, None
    given = theta_true(options.truth)
    return given.size, [float(given.std())], given


def apart_table(options: argparse.Namespace) -> None:
    """Print how many pairs are told apart, and how often wrongly."""
    columns = ("orders: of pairs", "wrong batches", "bounds: of pairs", "wrong batches")
    n, sds, given = worlds(options)
    print(f"\nTold apart, {n} essays\n{'pairs      sd  judgments':26}" + "".join(f"{c:>18}" for c in columns))
    for design in options.designs:
        for sd in sds:
            for judgments in options.judgments:
                rows = []
                for replication in range(options.replications):
                    truth, table, seed = simulate(options.seed, n, sd, design, judgments, replication, given)
                    drawn = draw_posterior(table, seed=seed, n_draws=options.draws)
                    marks = (told_apart(drawn), columns_told_apart(drawn.scores))
                    rows.append([figure for apart in marks for figure in called(apart, drawn.means, truth)])
                cells = "".join(f"{mean_and_error([row[k] for row in rows]):>18}" for k in range(len(columns)))
                print(f"{design:8} {sd:4.1f} {judgments:10d}  {cells}", flush=True)


def called(apart: np.ndarray, means: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The share of pairs told apart, and 1 if one of them is not in the order of the means."""
    first, second = np.triu_indices(truth.size, 1)
    marked = apart[first, second]
    wrong = (truth[first] - truth[second]) * (means[first] - means[second]) <= 0.0
    return float(marked.mean()), float((marked & wrong).any())


def theta_true(path: Path) -> np.ndarray:
    """The column theta_true of a CSV file, logits."""
    with path.open(newline="", encoding="utf-8") as file:
        return np.array([float(row["theta_true"]) for row in csv.DictReader(file)])


def coverage_row(truth: np.ndarray, table: JudgmentTable, seed: int, draws: int) -> list[float]:
    """Shares of essays whose interval holds the centred truth, and how far estimates are from it."""
    centred = truth - truth.mean()
    began = time.perf_counter()
    drawn = draw_posterior(table, seed=seed, n_draws=draws)
    took = time.perf_counter() - began
    intervals = score_intervals(drawn)
    held = np.mean((intervals[:, 0] <= centred) & (centred <= intervals[:, 1]))
    began = time.perf_counter()
    mode = fit_bradley_terry(table.winners, table.losers, table.n_items)
    fitted = time.perf_counter() - began
    by_mode = np.mean(np.abs(mode.scores - centred) <= 1.96 * mode.standard_errors())
    try:
        ml = fit_bradley_terry(table.winners, table.losers, table.n_items, prior_sd=None)
        by_ml, finite = np.mean(np.abs(ml.scores - centred) <= 1.96 * ml.standard_errors()), 1.0
    except SeparationError:
        by_ml, finite = np.nan, 0.0
    published = mode.score_intervals()
    by_fit = np.mean((published[:, 0] <= centred) & (centred <= published[:, 1]))
    return [
        held,
        by_fit,
        by_mode,
        by_ml,
        finite,
        float((intervals[:, 1] - intervals[:, 0]).mean()),
        *(float(estimate @ centred / (centred @ centred)) for estimate in (drawn.means, mode.scores)),
        *(float(np.sqrt(np.mean((estimate - centred) ** 2))) for estimate in (drawn.means, mode.scores)),
        mode.prior_sd or np.nan,
        float(np.exp(np.log(drawn.widths).mean())),
        took,
        fitted,
    ]


def simulate(
    seed: int, n: int, sd: float, design: str, rounds: int, replication: int, given: np.ndarray | None = None
) -> tuple[np.ndarray, JudgmentTable, int]:
    """True scores (drawn if not given), the judgments of a perfect judge, and a seed for what is computed from them."""
    cell = zlib.crc32(f"{n} {sd} {design} {rounds}".encode())
    rng = np.random.default_rng([seed, cell, replication])
    truth = sd * rng.standard_normal(n) if given is None else given
    if design not in ROUNDS:
        table = in_waves(truth, PairDesign(design), n * rounds // 2, rng)
        return truth, table, int(rng.integers(2**31))
    winners: list[int] = []
    losers: list[int] = []
    seen: set[tuple[int, int]] = set()
    for _ in range(rounds):
        if design == "nearest" and winners:
            scores = fit_bradley_terry(winners, losers, n, prior_sd=PAIRING_WIDTH).scores
            order = np.lexsort((rng.random(n), -scores))
        else:
            order = rng.permutation(n)
        for i, j in matching([int(item) for item in order], seen):
            seen.add((min(i, j), max(i, j)))
            i_wins = rng.random() < 1.0 / (1.0 + np.exp(truth[j] - truth[i]))
            winners.append(i if i_wins else j)
            losers.append(j if i_wins else i)
    return truth, judgment_table(np.array(winners), np.array(losers), n), int(rng.integers(2**31))


def in_waves(truth: np.ndarray, design: PairDesign, judgments: int, rng: np.random.Generator) -> JudgmentTable:
    """The judgments of a perfect judge on pairs that a design of the pipeline chose, wave by wave."""
    n = truth.size
    ids = [f"e{i:05d}" for i in range(n)]
    seed = int(rng.integers(2**31))
    history: list[Comparison] = []
    scores, ses, fit = {}, {}, None
    while len(history) < judgments:
        if history:
            winners, losers = (np.array([int(one[1:]) for one in side]) for side in sides(history))
            fit = fit_bradley_terry(winners, losers, n)
            scores, ses = (dict(zip(ids, row.tolist(), strict=True)) for row in (fit.scores, fit.standard_errors()))
        wave = len(history) // max(n // 2, 1) + 1
        size = min(max(n // 2, 1), judgments - len(history))
        request = WaveRequest(ids, history, size, scores, ses, seed, "b", wave, fit=fit)
        for pair in plan_next_wave(design, request):
            a, b = int(pair.essay_a[1:]), int(pair.essay_b[1:])
            a_wins = rng.random() < 1.0 / (1.0 + np.exp(truth[b] - truth[a]))
            history.append(
                Comparison(
                    comparison_id=f"{len(history):07d}",
                    wave=wave,
                    essay_a=pair.essay_a,
                    essay_b=pair.essay_b,
                    pair_mode=pair.pair_mode,
                    status=ComparisonStatus.JUDGED,
                    winner=Winner.A if a_wins else Winner.B,
                )
            )
    return judgment_table(*(np.array([int(one[1:]) for one in side]) for side in sides(history)), n)


def sides(history: list[Comparison]) -> tuple[list[str], list[str]]:
    """The winners and the losers."""
    return [str(one.winner_id) for one in history], [str(one.loser_id) for one in history]


def matching(order: list[int], seen: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pair each item with the next one in the order that it has not met; with the next one if it has met all."""
    pairs = []
    while len(order) > 1:
        item = order.pop(0)
        partner = next((k for k, j in enumerate(order) if (min(item, j), max(item, j)) not in seen), 0)
        pairs.append((item, order.pop(partner)))
    return pairs


def mean_and_error(values: list[float]) -> str:
    """Mean ± standard error of what exists, and of how many if some does not."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not known.size:
        return "–"
    error = known.std(ddof=1) / known.size**0.5 if known.size > 1 else float("nan")
    missing = "" if known.size == len(values) else f" ({known.size})"
    return f"{known.mean():.2f} ± {error:.2f}{missing}" if known.mean() < 10 else f"{known.mean():.1f} ± {error:.1f}"


if __name__ == "__main__":
    main()
