"""Infit and outfit beside those of another program, RaschPy's simple logistic model.

A Rasch model is a Bradley–Terry model of persons who meet items only: P(person solves item) = logistic(ability −
difficulty). So judgments of essays from two halves of a batch are a table that a Rasch program can read, and an essay's
mean squares are a person's or an item's. Both programs are given the scores of the same fit; printed are the largest
differences of mean squares over the essays. RaschPy leaves out persons who solved everything or nothing, so essays of
the rows that won or lost all their judgments are left out before the fit, and so are those of the columns that are then
without any.

Run: python benchmarks/mean_squares.py [--essays 80] [--judgments 12] [--sd 1.5] [--seed 1]
Needs the extra packages: pip install '.[bench]'.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cj_pipeline.core.bradley_terry import fit_bradley_terry
from cj_pipeline.core.judgment_fit import mean_squares
from cj_pipeline.core.judgment_table import judgment_table, logistic

FloatArray = np.ndarray


def main() -> None:
    """Draw one batch, and print how far the two programs are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--essays", type=int, default=80, help="half of them in the rows, half in the columns")
    parser.add_argument("--judgments", type=int, default=12, help="per essay in the rows, each against another one")
    parser.add_argument("--sd", type=float, default=1.5, help="of the true scores, logits")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    half = options.essays // 2
    if not 2 <= options.judgments <= half:
        parser.error(f"--judgments must be from 2 to {half}, half of the essays")
    responses = drawn(half, options.judgments, options.sd, np.random.default_rng(options.seed))
    n_rows, n_columns = responses.shape
    row, column = np.nonzero(~np.isnan(responses))
    won = responses[row, column] == 1.0
    table = judgment_table(np.where(won, row, n_rows + column), np.where(won, n_rows + column, row), n_rows + n_columns)
    fit = fit_bradley_terry(table.winners, table.losers, table.n_items)
    sums = table.pairs
    ours = mean_squares(sums, logistic(fit.scores[sums.first] - fit.scores[sums.second]))
    theirs = of_raschpy(responses, fit.scores[:n_rows], fit.scores[n_rows:])
    print(f"{n_rows} and {n_columns} essays, {len(table)} judgments, sd {options.sd:g}, seed {options.seed}")
    for name, mine, other in zip(("infit", "outfit"), ours, theirs, strict=True):
        print(f"{name:7s} {mine.min():.3f} to {mine.max():.3f}; largest difference {np.abs(mine - other).max():.1e}")


def drawn(half: int, judgments: int, sd: float, rng: np.random.Generator) -> FloatArray:
    """(rows, columns) 1 where the row's essay won, 0 where the column's, NaN where they did not meet."""
    truth = rng.normal(0.0, sd, (2, half))
    met = rng.permuted(np.tile(np.arange(half) < judgments, (half, 1)), axis=1)
    wins = rng.random((half, half)) < logistic(truth[0][:, None] - truth[1][None, :])
    responses = np.where(met, wins.astype(np.float64), np.nan)
    share = np.nanmean(responses, axis=1)
    responses = responses[(share > 0.0) & (share < 1.0)]
    return responses[:, ~np.isnan(responses).all(axis=0)]


def of_raschpy(responses: FloatArray, rows: FloatArray, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Infit and outfit of the rows' essays and then of the columns', at the given scores."""
    try:
        import pandas as pd
        import raschpy
    except ImportError as error:
        sys.exit(f"{error}: pip install '.[bench]'")
    persons, items = [f"p{i}" for i in range(len(rows))], [f"i{j}" for j in range(len(columns))]
    model = raschpy.SLM(pd.DataFrame(responses, index=persons, columns=items))
    model.persons, model.items = pd.Series(rows, index=persons), pd.Series(columns, index=items)
    model.fit_statistics(se=False, test_stats=False)
    return (
        np.concatenate([model.person_infit_ms[persons], model.item_infit_ms[items]]),
        np.concatenate([model.person_outfit_ms[persons], model.item_outfit_ms[items]]),
    )


if __name__ == "__main__":
    main()
