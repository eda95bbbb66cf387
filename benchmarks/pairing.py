"""How many judgments each pairing design needs for the accuracy that `balanced` has with 20 judgments per essay.

Simulated exams, scored as the pipeline scores them (Bradley–Terry, prior width and order effect fitted), wave by wave;
designs that read scores and standard errors only are given those at the width of the last look at the accuracy, which
saves time. Every design judges the same exams, and the same pair judged for the k-th time gets the same answer in all
of them (paired replications, common random numbers). Without anchors the truth is N(0, sd²) and accuracy is the RMSE of
centred scores; with anchors, twelve of them lie on grade centres a step of 1.25 logits apart (give or take 0.3), a
student's true grade is that of the nearest centre, and accuracy is also the ranked probability score (RPS, the sum over
grades, not normalised) of the grade projections, both over students.

Beside the pipeline's designs:
- `calibrated` (with anchors only) has an anchor bank of `BANK_NIGHTS` nights, each with a standard error of
  `BANK_NIGHT_SE` per anchor and the judge's own night-to-night sd of `NIGHT_SD`, tonight included; it is scored with
  the bank. `balanced+bank` and `adaptive+bank` are scored with it, too, but do not pair by it; `calibrated-bank` pairs
  by it but is scored without.
- `hybrid-mst` is an information-gain design from the literature (Li, Mantiuk, Wang, Ling & Le Callet 2018,
  Hybrid-MST: a hybrid active sampling strategy for pairwise preference aggregation, NeurIPS 31): a wave is the spanning
  tree of greatest summed information gain, the mutual information of outcome and difference under the normal posterior
  of the scores, by Gauss-Hermite quadrature. Scores and posterior are those of this program's fit; a coin decides the
  reading order.

Printed per cell: the accuracy of `balanced` at 20 with its Monte Carlo standard error, and per design the judgments
needed for it as a share of those 20, with the upper 95 % limit (one-sided, bootstrap over replications), and the worst
ratio to `balanced` and `coverage` at any budget looked at (from 4 to 26 judgments per essay). Then, per design, the
share of essays whose 95 % interval (`score_low` to `score_high`) holds the truth after 4, 10 and 20 judgments each,
with its Monte Carlo standard error over exams.

Run: python benchmarks/pairing.py [--quick | --reps 200 [--large]] [--essays 24 100] [--sds 0.5 1 2 4]
     [--anchors none|with|both] [--designs ...] [--order-effect 0] [--lapses 0] [--repeat-agreement 0]
     [--slope 1]
     [--processes 1] [--seed 1]
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cj_pipeline.core.anchor_bank import NightScores, estimate_bank
from cj_pipeline.core.bradley_terry import BradleyTerryFit, fit_bradley_terry
from cj_pipeline.core.designs import COVARIANCE_UP_TO_ESSAYS, WaveRequest, plan_next_wave
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.core.grades import basis_of_grades, project_grades
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairDesign, PairMode, Winner
from cj_pipeline.core.score_prior import KnownItems

CHECKPOINTS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26)  # judgments per essay
REFERENCE = 20
COVERED_AT = (4, 10, 20)
STEP = 1.25
ANCHOR_SPREAD = 0.3
ANCHORS = 12
SCALE = GradeScale("ten", tuple("0123456789"))
CENTRES = STEP * (np.arange(10) - 4.5)
BOOTSTRAPS = 2000
BANK_NIGHTS = 8
BANK_NIGHT_SE = 0.25
NIGHT_SD = 0.2
HYBRID_MST = "hybrid-mst"
SCORED_WITH_BANK = ("calibrated", "balanced+bank", "adaptive+bank")
WITH_BANK = (*SCORED_WITH_BANK, "calibrated-bank")
DESIGN_NAMES = (*PairDesign, "balanced+bank", "adaptive+bank", "calibrated-bank", HYBRID_MST)


@dataclass(frozen=True)
class Cell:
    """A kind of exam and of judge."""

    students: int
    sd: float
    anchors: bool
    order_effect: float = 0.0
    lapses: float = 0.0
    repeat_agreement: float = 0.0
    slope: float = 1.0  # of tonight's differences on those of the bank's nights

    @property
    def essays(self) -> int:
        return self.students + (ANCHORS if self.anchors else 0)


@dataclass(frozen=True)
class Task:
    """One exam under one design."""

    cell: Cell
    design: str
    replication: int
    seed: int


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="12 replications at 24 essays (the default)")
    parser.add_argument(
        "--reps",
        "--replications",
        dest="replications",
        type=int,
        help="exams per cell, at 24 and 100 essays unless said otherwise",
    )
    parser.add_argument("--large", action="store_true", help="500 essays, too")
    parser.add_argument("--essays", type=int, nargs="+", help="students per exam")
    parser.add_argument("--sds", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--anchors", choices=["none", "with", "both"], default="both")
    parser.add_argument("--designs", nargs="+", choices=DESIGN_NAMES, default=list(DESIGN_NAMES))
    parser.add_argument("--order-effect", type=float, default=0.0, help="logits in favour of the essay read first")
    parser.add_argument("--lapses", type=float, default=0.0, help="share of judgments that a coin decides")
    parser.add_argument("--repeat-agreement", type=float, default=0.0, help="share of repeats that copy the first")
    parser.add_argument(
        "--slope", type=float, default=1.0, help="of tonight's differences on those of the bank's nights"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    replications = options.replications if options.replications and not options.quick else 12
    essays = options.essays or ([24, 100] if options.replications and not options.quick else [24])
    if options.large:
        essays = [*essays, 500]
    judge = (options.order_effect, options.lapses, options.repeat_agreement, options.slope)
    chosen = list(dict.fromkeys(["balanced", *map(str, options.designs)]))
    print(
        f"{replications} paired replications a cell, seed {options.seed}; order effect {judge[0]}, lapses {judge[1]}, "
        f"repeat agreement {judge[2]}. Share: judgments needed for the accuracy of balanced at {REFERENCE} per essay."
    )
    started = time.monotonic()
    for students in essays:
        for anchors in {"none": [False], "with": [True], "both": [False, True]}[options.anchors]:
            for sd in options.sds:
                cell = Cell(students, sd, anchors, *judge)
                designs = [design for design in chosen if anchors or design not in WITH_BANK]
                tasks = [Task(cell, design, r, options.seed) for design in designs for r in range(replications)]
                report(cell, designs, np.array(list(simulated(tasks, options.processes))), replications, options.seed)
    print(f"{time.monotonic() - started:.0f} s")


def simulated(tasks: list[Task], processes: int) -> Iterator[np.ndarray]:
    """(3, checkpoints) RMSE, RPS and coverage of every task, in order."""
    if processes == 1:
        yield from map(simulate, tasks)
        return
    with Pool(processes) as pool:
        yield from pool.imap(simulate, tasks, chunksize=2)


def report(cell: Cell, designs: list[str], errors: np.ndarray, replications: int, seed: int) -> None:
    """Print one cell; `errors` is (designs x replications, 3, checkpoints)."""
    curves = errors.reshape(len(designs), replications, 3, len(CHECKPOINTS))
    chance = np.random.default_rng([seed, 99])
    drawn = chance.integers(0, replications, (BOOTSTRAPS, replications))
    place = CHECKPOINTS.index(REFERENCE)
    for measure, name in enumerate(("RMSE", "RPS")[: 1 + cell.anchors]):
        values = curves[:, :, measure]
        reference = values[0, :, place]
        print(
            f"\nn={cell.students}{f' + {ANCHORS} anchors' if cell.anchors else ''}, sd {cell.sd:g}, {name}: "
            f"balanced at {REFERENCE}: {reference.mean():.4f} +- {reference.std(ddof=1) / math.sqrt(replications):.4f}"
        )
        for number, design in enumerate(designs):
            share = share_needed(values[number].mean(axis=0), float(reference.mean()))
            limits = [share_needed(values[number, rows].mean(axis=0), reference[rows].mean()) for rows in drawn]
            means = values.mean(axis=1)
            worst = (means[number] / means[0]).max()
            upper = float(np.quantile(limits, 0.95, method="higher"))
            line = f"  {design:15s} share {shown(share)} (upper {shown(upper)})"
            line += f"  worst of balanced {worst:.3f}"
            if "coverage" in designs:
                line += f", of coverage {(means[number] / means[designs.index('coverage')]).max():.3f}"
            error = (values[number, :, place] - reference).std(ddof=1) / math.sqrt(replications)
            line += f"  at {REFERENCE}: {means[number, place]:.4f} (difference +- {error:.4f})"
            print(line, flush=True)
    print("  held by their 95 % intervals after " + ", ".join(map(str, COVERED_AT)))
    for number, design in enumerate(designs):
        held = curves[number, :, 2][:, [CHECKPOINTS.index(at) for at in COVERED_AT]]
        spread = held.std(axis=0, ddof=1) / math.sqrt(replications)
        shares = ", ".join(f"{mean:.3f} +- {error:.3f}" for mean, error in zip(held.mean(axis=0), spread, strict=True))
        print(f"  {design:15s} {shares}", flush=True)


def shown(share: float) -> str:
    return f"{share:.2f}" if math.isfinite(share) else f">{CHECKPOINTS[-1] / REFERENCE:.2f}"


def share_needed(curve: np.ndarray, target: float) -> float:
    """Where the curve first reaches the target, as a share of the reference; linear in log error and log budget."""
    good = np.flatnonzero(curve <= target)
    if not good.size:
        return math.inf
    at = int(good[0])
    if at == 0:
        return CHECKPOINTS[0] / REFERENCE
    x, y = np.log(CHECKPOINTS[at - 1 : at + 1]), np.log(curve[at - 1 : at + 1])
    return math.exp(x[0] + (math.log(target) - y[0]) / (y[1] - y[0]) * (x[1] - x[0])) / REFERENCE


def simulate(task: Task) -> np.ndarray:
    """(3, checkpoints) RMSE, with anchors RPS, and coverage at each checkpoint."""
    cell = task.cell
    chance = np.random.default_rng([task.seed, task.replication, cell.students, round(cell.sd * 100), cell.anchors])
    n = cell.essays
    truth = chance.normal(0.0, cell.sd, n)
    grades = {}
    if cell.anchors:
        steps = np.round(np.linspace(0, 9, ANCHORS)).astype(int)
        truth[cell.students :] = CENTRES[steps] + chance.normal(0.0, ANCHOR_SPREAD, ANCHORS)
        grades = {name(cell.students + k): str(step) for k, step in enumerate(steps)}
    known = bank_of(cell, truth, chance) if task.design in WITH_BANK else None
    scoring = known if task.design in SCORED_WITH_BANK else None
    judge = Judge(cell, truth, np.random.default_rng([task.seed, task.replication, 7]))
    history: list[Comparison] = []
    fit: BradleyTerryFit | None = None
    errors = np.full((3, len(CHECKPOINTS)), np.nan)
    ids = [name(i) for i in range(n)]
    # designs that go by a covariance make their own fit of up to that many essays, and the random ones need none
    reads_scores = task.design == "coverage" or n > COVARIANCE_UP_TO_ESSAYS
    tree_chance = np.random.default_rng([task.seed, task.replication, 8])
    wave = 0
    for place, checkpoint in enumerate(CHECKPOINTS):
        end = checkpoint * n // 2
        while len(history) < end:
            wave += 1
            if task.design == HYBRID_MST:
                for a, b in spanning_tree(history, n, fit.prior_sd if fit else None, tree_chance)[: end - len(history)]:
                    history.append(judge.judged(len(history), wave, name(a), name(b)))
                continue
            if reads_scores and history:
                fit = fitted(history, n, fit.prior_sd if fit else None, scoring)
            request = WaveRequest(
                essay_ids=ids,
                history=history,
                size=min(max(10, n // 2), end - len(history)),
                scores={} if fit is None else dict(zip(ids, fit.scores.tolist(), strict=True)),
                ses=dict(zip(ids, fit.standard_errors().tolist(), strict=True)) if fit and reads_scores else {},
                seed=task.seed,
                batch_id=f"exam-{task.replication}",
                wave=wave,
                mode=PairMode.COVERAGE if len(history) < n * (n - 1) // 2 else PairMode.RESAMPLING,
                anchor_grades=grades,
                known=known,
            )
            for pair in plan_next_wave(PairDesign(task.design.removesuffix("+bank").removesuffix("-bank")), request):
                history.append(judge.judged(len(history), wave, pair.essay_a, pair.essay_b))
        fit = fitted(history, n, known=scoring)
        errors[:, place] = (*measured(cell, truth, fit, grades), covered(truth, fit))
    return errors


class Judge:
    """Answers comparisons from the truth; the k-th judgment of a pair has the same fate under every design."""

    def __init__(self, cell: Cell, truth: np.ndarray, chance: np.random.Generator) -> None:
        self._cell = cell
        self._truth = truth
        self._seed = int(chance.integers(2**62))
        self._first: dict[tuple[int, int], int] = {}
        self._times: dict[tuple[int, int], int] = {}

    def judged(self, number: int, wave: int, essay_a: str, essay_b: str) -> Comparison:
        a, b = int(essay_a[1:]), int(essay_b[1:])
        pair = (min(a, b), max(a, b))
        times = self._times[pair] = self._times.get(pair, 0) + 1
        draw, lapse, coin, copy = np.random.default_rng([self._seed, *pair, times]).random(4)
        effect = self._cell.order_effect if a == pair[0] else -self._cell.order_effect
        chance = 1.0 / (1.0 + math.exp(self._truth[pair[1]] - self._truth[pair[0]] - effect))
        if lapse < self._cell.lapses:
            chance = 0.5
            draw = coin
        winner = pair[0] if draw < chance else pair[1]
        if pair in self._first and copy < self._cell.repeat_agreement:
            winner = self._first[pair]
        self._first.setdefault(pair, winner)
        return Comparison(
            comparison_id=f"{number:07d}",
            wave=wave,
            essay_a=essay_a,
            essay_b=essay_b,
            pair_mode=PairMode.COVERAGE,
            status=ComparisonStatus.JUDGED,
            winner=Winner.A if winner == a else Winner.B,
        )


def name(i: int) -> str:
    return f"e{i:05d}"


def bank_of(cell: Cell, truth: np.ndarray, chance: np.random.Generator) -> KnownItems:
    """What some nights before this one make known of the anchors, whose scores tonight are the truth."""
    tonight = truth[cell.students :]
    usual = tonight - NIGHT_SD * chance.standard_normal(ANCHORS)
    anchors = tuple(f"k{k:02d}" for k in range(ANCHORS))
    centring = np.eye(ANCHORS) - 1.0 / ANCHORS
    nights = [
        NightScores(
            f"night-{t}",
            anchors,
            centring @ (usual / cell.slope + math.hypot(NIGHT_SD, BANK_NIGHT_SE) * chance.standard_normal(ANCHORS)),
            BANK_NIGHT_SE**2 * centring,
        )
        for t in range(BANK_NIGHTS)
    ]
    items = {anchor: cell.students + k for k, anchor in enumerate(anchors)}
    return estimate_bank(nights).known_items(items, cell.essays, batch="tonight")


def spanning_tree(
    history: list[Comparison], n: int, prior_sd: float | None, chance: np.random.Generator
) -> list[tuple[int, int]]:
    """Hybrid-MST: the pairs of the spanning tree of greatest information gain, each in a random order (A, B)."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    gain = np.ones((n, n))
    if history:
        fit = fitted(history, n, prior_sd)
        covariance = fit.covariance()
        spread = np.sqrt(np.diag(covariance)[:, None] + np.diag(covariance)[None, :] - 2.0 * covariance)
        gain = mutual_information(fit.scores[:, None] - fit.scores[None, :], spread)
    # ties, as in the first wave, fall by chance
    cost = 1.0 / (np.maximum(gain, 1e-12) * (1.0 + 1e-6 * chance.random((n, n))))
    first, second = minimum_spanning_tree(np.triu(cost, 1)).nonzero()
    order = chance.permutation(first.size)
    flip = chance.random(first.size) < 0.5
    a, b = np.where(flip, second, first)[order], np.where(flip, first, second)[order]
    return list(zip(a.tolist(), b.tolist(), strict=True))


def mutual_information(difference: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Of a judgment's outcome and a difference ~ N(difference, spread²), nats."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    logits = difference[..., None] + spread[..., None] * nodes
    win = 1.0 / (1.0 + np.exp(-logits))
    weights = weights / weights.sum()
    return entropy(win @ weights) - entropy(win) @ weights


def entropy(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 1e-12, 1.0 - 1e-12)
    return -share * np.log(share) - (1.0 - share) * np.log(1.0 - share)


def fitted(
    history: list[Comparison], n: int, prior_sd: float | None = None, known: KnownItems | None = None
) -> BradleyTerryFit:
    winners = np.array([int(c.winner_id[1:]) for c in history])
    losers = np.array([int(c.loser_id[1:]) for c in history])
    first = np.array([c.winner is Winner.A for c in history])
    width = "fitted" if prior_sd is None else prior_sd
    return fit_bradley_terry(winners, losers, n, prior_sd=width, winner_first=first, known=known)


def covered(truth: np.ndarray, fit: BradleyTerryFit) -> float:
    """Share of all essays whose published interval holds their true score, batch frame."""
    centred = truth - truth.mean()
    low, high = fit.score_intervals().T
    return float(np.mean((low <= centred) & (centred <= high)))


def measured(cell: Cell, truth: np.ndarray, fit: BradleyTerryFit, grades: dict[str, str]) -> tuple[float, float]:
    """RMSE of the students' centred scores, and mean RPS of their grades (not a number without anchors)."""
    miss = fit.scores[: cell.students] - truth[: cell.students]
    rmse = float(np.sqrt(np.mean((miss - miss.mean()) ** 2)))
    if not grades:
        return rmse, math.nan
    ids = [name(i) for i in range(cell.essays)]
    basis = basis_of_grades(fit)
    result = project_grades(
        SCALE,
        scores=dict(zip(ids, basis.scores.tolist(), strict=True)),
        ses=dict(zip(ids, fit.standard_errors().tolist(), strict=True)),
        components=dict(zip(ids, fit.components.tolist(), strict=True)),
        known_grades=grades,
        covariance=basis.covariance,
        prior_sd=basis.prior_sd,
        anchors_placed=basis.anchors_placed,
    )
    uniform = np.full(len(CENTRES), 1.0 / len(CENTRES))
    score = 0.0
    for i, projection in enumerate(result.projections[: cell.students]):
        shares = np.array(list(projection.probabilities.values())) if projection.available else uniform
        true = int(np.abs(CENTRES - truth[i]).argmin())
        score += float(((np.cumsum(shares) - (np.arange(len(CENTRES)) >= true)) ** 2).sum())
    return rmse, score / cell.students


if __name__ == "__main__":
    main()
