"""What learning the shape of the scores' prior is worth, on batches whose truth is normally spread, and not.

Simulated batches of a perfect judge, paired by the pipeline's own designs in waves of half the essays. From the same
judgments: how often the 95 % interval of a centred score holds the truth, and the RMSE of its middle, with the shape
learned (as published in `score_low` and `score_high`) and under the normal prior alone, its width fitted. Beside them
the mean width of the intervals, the posterior probability of the normal prior, and seconds of one fit at the end.

True scores: "normal"; "levels" (evenly many on levels a logit apart); "exponential"; "t3" (Student's t, 3 degrees of
freedom); "groups" (two, equally large, normal within). The number behind each is the standard deviation in logits, for
groups half of their distance; these are .5 wide.

Behind each mean, ± its Monte Carlo standard error over replications. Seeds are a function of --seed, the cell and the
replication.

Run: OPENBLAS_NUM_THREADS=1 python benchmarks/prior_shape.py [--essays 200] [--judgments 20] [--replications 4]
     [--designs adaptive balanced] [--truths normal:2 normal:4 levels:5.8 exponential:4 t3:4 groups:2.5]
About 15 minutes on one core at the defaults.
"""

import argparse
import time
import zlib

import numpy as np
from reliability import in_waves, mean_and_error

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.judgment_table import JudgmentTable
from cj_pipeline.core.models import PairDesign
from cj_pipeline.core.score_shape import ScoreShape

TRUTHS = ("normal:2", "normal:4", "levels:5.8", "exponential:4", "t3:4", "groups:2.5")
COLUMNS = (
    "covers, learned",
    "covers, normal",
    "RMSE, learned",
    "RMSE, normal",
    "width, learned",
    "width, normal",
    "P(normal)",
    "s, fit",
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--essays", type=int, default=200)
    parser.add_argument("--judgments", type=int, default=20, help="per essay")
    parser.add_argument("--replications", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--designs", nargs="+", default=["adaptive", "balanced"])
    parser.add_argument("--truths", nargs="+", default=TRUTHS)
    options = parser.parse_args()
    n, each = options.essays, options.judgments
    print(f"{n} essays, {each} judgments each, {options.replications} replications, seed {options.seed}")
    print(f"{'truth':16}{'pairs':10}" + "".join(f"{name:>17}" for name in COLUMNS))
    for name in options.truths:
        for design in options.designs:
            rows = []
            for replication in range(options.replications):
                rng = np.random.default_rng(
                    [options.seed, zlib.crc32(f"{name} {n} {design} {each}".encode()), replication]
                )
                truth = true_scores(name, n, rng)
                rows.append(row(truth, in_waves(truth, PairDesign(design), n * each // 2, rng)))
            cells = "".join(f"{mean_and_error([one[k] for one in rows]):>17}" for k in range(len(COLUMNS)))
            print(f"{name:16}{design:10}{cells}", flush=True)


def true_scores(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) logits, centred."""
    kind, scale = name.split(":")
    sd = float(scale)
    if kind == "normal":
        truth = sd * rng.standard_normal(n)
    elif kind == "levels":
        # k levels a logit apart have a standard deviation of √((k² - 1) / 12)
        levels = round((12.0 * sd**2 + 1.0) ** 0.5)
        truth = rng.permutation(np.arange(n) * levels // n).astype(float)
    elif kind == "exponential":
        truth = sd * rng.exponential(size=n)
    elif kind == "t3":
        truth = sd / 3.0**0.5 * rng.standard_t(3, n)
    elif kind == "groups":
        truth = np.where(rng.random(n) < 0.5, -sd, sd) + 0.5 * rng.standard_normal(n)
    else:
        raise SystemExit(f"--truths {name}: the kinds are normal, levels, exponential, t3 and groups")
    return truth - truth.mean()


def row(truth: np.ndarray, table: JudgmentTable) -> list[float]:
    """The figures of one batch."""
    began = time.perf_counter()
    fit = fit_bradley_terry(table.winners, table.losers, table.n_items)
    took = time.perf_counter() - began
    posterior = fit.posterior
    assert posterior is not None
    normal = np.array([not isinstance(prior, ScoreShape) for prior in posterior.priors])
    held, off, wide = [], [], []
    for chosen in (np.ones(len(normal), dtype=bool), normal):
        masses = posterior.masses[chosen] / posterior.masses[chosen].sum()
        means = masses @ posterior.means[chosen]
        sds = np.sqrt(masses @ (posterior.variances[chosen] + (posterior.means[chosen] - means) ** 2))
        held.append(float(np.mean(np.abs(means - truth) <= 1.96 * sds)))
        off.append(float(np.sqrt(np.mean((means - truth) ** 2))))
        wide.append(float(2.0 * 1.96 * sds.mean()))
    return [*held, *off, *wide, posterior.normal_share, took]


if __name__ == "__main__":
    main()
