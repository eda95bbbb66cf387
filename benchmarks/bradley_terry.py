"""The Bradley-Terry engine beside choix, evalica and scikit-learn: seconds, memory and error on the same judgments.

Each fit runs in a process of its own, which is given the judgments as arrays of winners and losers. Its time is the
best of several runs where they are short (the first one warms it up), conversion to what the program takes included;
its memory is what the peak grew by over imports and input. The error is the largest difference of a centred score from
a reference: Newton's method with extended-precision gradients and scipy's conjugate gradients, written here.

Every program is asked for maximum likelihood to its tightest useful tolerance (see `FITS`). A peer that takes longer
than --limit is stopped, and skipped at the larger sizes.

Run: pip install -e '.[bench]'; OPENBLAS_NUM_THREADS=1 python benchmarks/bradley_terry.py [--limit 60] [--sizes 0 1 2]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import cg

SIZES = [
    (24, 150),
    (200, 5_000),
    (2_000, 50_000),
    (10_000, 500_000),
    (10_000, 5_000_000),
    (100_000, 1_000_000),
    (10_000, 100_000),
]
OURS, OURS_WITH_ERRORS = "cj_pipeline", "cj_pipeline + SEs"
RIGHT = 1e-6
DENSE, DENSE_LIMIT = {"evalica", "choix ilsr_pairwise"}, 20_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a peer is stopped")
    parser.add_argument("--sizes", type=int, nargs="*", default=range(len(SIZES)), help="which rows of SIZES")
    parser.add_argument("--without", nargs="*", default=[], help="programs to leave out")
    parser.add_argument("--fit", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        measure(options.fit[0], Path(options.fit[1]))
        return
    if options.prepare:
        prepare(int(options.prepare[0]), int(options.prepare[1]), Path(options.prepare[2]))
        return
    slow: set[str] = set()
    with_errors: dict[tuple[int, int], float] = {}
    for number in options.sizes:
        n_items, n_judgments = SIZES[number]
        print(f"\n{n_items:,} items, {n_judgments:,} judgments", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            # in a process of its own: a child's peak memory begins at its parent's
            command = [sys.executable, __file__, "--prepare", str(n_items), str(n_judgments), folder]
            subprocess.run(command, check=True)
            truth = np.load(Path(folder) / "truth.npy")
            names = [name for name in FITS if name not in options.without]
            results = {name: one(name, Path(folder), truth, slow, options.limit) for name in names}
        report(results)
        if results.get(OURS_WITH_ERRORS):
            with_errors[SIZES[number]] = results[OURS_WITH_ERRORS]["seconds"]
    small, large = (10_000, 100_000), (100_000, 1_000_000)
    if small in with_errors and large in with_errors:
        ratio = with_errors[large] / with_errors[small]
        print(f"\nscores and SEs: 100,000/1,000,000 takes {ratio:.1f} times as long as 10,000/100,000")


def prepare(n_items: int, n_judgments: int, folder: Path) -> None:
    """Write the judgments and the reference scores."""
    winners, losers = judgments(n_items, n_judgments)
    np.savez(folder / "input.npz", winners=winners, losers=losers, n_items=n_items)
    np.save(folder / "truth.npy", reference(winners, losers, n_items))


def judgments(n_items: int, n_judgments: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs judged by the model at sd 1, after one round in which item i beats item i + 1: a finite estimate."""
    rng = np.random.default_rng(n_items + n_judgments)
    quality = rng.normal(0, 1, n_items)
    first = rng.integers(0, n_items, n_judgments)
    second = (first + rng.integers(1, n_items, n_judgments)) % n_items
    first[:n_items], second[:n_items] = np.arange(n_items), (np.arange(n_items) + 1) % n_items
    won = rng.random(n_judgments) < 1 / (1 + np.exp(quality[second] - quality[first]))
    won[:n_items] = True
    order = rng.permutation(n_judgments)
    return np.where(won, first, second)[order], np.where(won, second, first)[order]


def reference(winners: np.ndarray, losers: np.ndarray, n_items: int) -> np.ndarray:
    """Scores to some 1e-13: gradients in extended precision, steps by conjugate gradients to 1e-6 of themselves."""
    codes, counts = np.unique(winners * n_items + losers, return_counts=True)
    winner, loser, counts = codes // n_items, codes % n_items, counts.astype(np.longdouble)
    scores = np.zeros(n_items, dtype=np.longdouble)
    for _ in range(50):
        lose = 1 / (1 + np.exp(scores[winner] - scores[loser]))
        surplus, weight = counts * lose, (counts * lose * (1 - lose)).astype(float)
        gradient = np.zeros(n_items, dtype=np.longdouble)
        np.add.at(gradient, winner, surplus)
        np.add.at(gradient, loser, -surplus)
        graph = csr_array((weight, (winner, loser)), shape=(n_items, n_items))
        graph = graph + graph.T
        degree = graph.sum(axis=1)
        right = gradient.astype(float) - float(gradient.mean())
        step, _ = cg(diags_array(degree) - graph, right, rtol=1e-8, maxiter=5000, M=diags_array(1 / degree))
        scores += step - step.mean()
        if np.abs(step).max() < 1e-12:
            break
    return (scores - scores.mean()).astype(float)


def one(name: str, folder: Path, truth: np.ndarray, slow: set[str], limit: float) -> dict[str, float] | None:
    """Seconds, MB and error of one program, or None if it is too slow or not installed."""
    if name in DENSE and truth.size > DENSE_LIMIT:
        print(f"  {name:22} skipped: makes an n x n matrix, {8e-9 * truth.size**2:.0f} GB", flush=True)
        return None
    if name in slow:
        print(f"  {name:22} skipped: over {limit:.0f} s at a smaller size", flush=True)
        return None
    command = [sys.executable, __file__, "--fit", name, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit + 10)
    except subprocess.TimeoutExpired:
        slow.add(name)
        print(f"  {name:22} skipped: over {limit:.0f} s", flush=True)
        return None
    if done.returncode:
        print(f"  {name:22} failed: {done.stderr.strip().splitlines()[-1][:150]}", flush=True)
        return None
    result = json.loads(done.stdout.splitlines()[-1])
    if result["seconds"] > limit:
        slow.add(name)
    result["error"] = float(np.abs(np.load(folder / "scores.npy") - truth).max())
    return result


def report(results: dict[str, dict[str, float] | None]) -> None:
    """Print the rows of one size."""
    ours = results[OURS]["seconds"] if results.get(OURS) else float("nan")
    for name, result in results.items():
        if result:
            ratio = "" if name.startswith(OURS) else f"   {result['seconds'] / ours:6.1f} × our time for scores"
            right = "" if result["error"] <= RIGHT else "   (not right to 1e-6)"
            print(
                f"  {name:22} {result['seconds']:9.5f} s {result['megabytes']:6.0f} MB   error {result['error']:.0e}"
                f"{ratio}{right}",
                flush=True,
            )
    evalica = results.get("evalica")
    if evalica and results.get(OURS_WITH_ERRORS):
        share = results[OURS_WITH_ERRORS]["seconds"] / evalica["seconds"]
        print(f"  our scores and SEs take {share:.3f} of evalica's time for scores")


def measure(name: str, folder: Path) -> None:
    """In a process of its own: run one program, save its scores, print seconds and megabytes."""
    warnings.simplefilter("ignore")
    data = np.load(folder / "input.npz")
    winners, losers, n_items = data["winners"], data["losers"], int(data["n_items"])
    fit = FITS[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took: list[float] = []
    while len(took) < 2 or (len(took) < 50 and sum(took) < 1.0):
        start = time.perf_counter()
        scores = fit(winners, losers, n_items)
        took.append(time.perf_counter() - start)
        if sum(took) > 10.0:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(folder / "scores.npy", scores - scores.mean())
    print(json.dumps({"seconds": min(took), "megabytes": (peak - before) / 1024}))


# -- the programs: each imports what it needs and returns a function of (winners, losers, n_items) -----------------


def ours():
    from cj_pipeline.core.bradley_terry import fit_bradley_terry

    return lambda winners, losers, n_items: fit_bradley_terry(winners, losers, n_items, prior_sd=None).scores


def ours_with_errors():
    from cj_pipeline.core.bradley_terry import fit_bradley_terry

    def fit(winners, losers, n_items):
        result = fit_bradley_terry(winners, losers, n_items, prior_sd=None)
        result.standard_errors()
        return result.scores

    return fit


def evalica_fit():
    import evalica

    def fit(winners, losers, n_items):
        won = [evalica.Winner.X] * len(winners)
        result = evalica.bradley_terry(winners.tolist(), losers.tolist(), won, tolerance=1e-8, limit=100_000)
        strengths = result.scores
        return np.log(np.asarray(strengths.reindex(range(n_items)), dtype=float))

    return fit


def choix_fit():
    import choix

    def fit(winners, losers, n_items):
        pairs = list(zip(winners.tolist(), losers.tolist(), strict=True))
        return choix.ilsr_pairwise(n_items, pairs, alpha=0.0, max_iter=1000, tol=1e-10)

    return fit


def sklearn_fit():
    from sklearn.linear_model import LogisticRegression

    def fit(winners, losers, n_items):
        m = len(winners)
        first, second = np.minimum(winners, losers), np.maximum(winners, losers)
        rows = np.concatenate([np.arange(m), np.arange(m)])
        signs = np.concatenate([np.ones(m), -np.ones(m)])
        design = csr_array((signs, (rows, np.concatenate([first, second]))), shape=(m, n_items))
        model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=10_000)
        return model.fit(design, winners == first).coef_[0]

    return fit


FITS = {
    OURS: ours,
    OURS_WITH_ERRORS: ours_with_errors,
    "evalica": evalica_fit,
    "choix ilsr_pairwise": choix_fit,
    "scikit-learn logistic": sklearn_fit,
}


if __name__ == "__main__":
    main()
