"""How good grades are: simulated exams whose true grades are known, graded by the pipeline's model and by simpler ones.

An exam has students and twelve anchors; every essay has the same number of judgments, pairs are drawn at random in
rounds, and scores are fitted as the pipeline fits them (prior width and order effect fitted). Graded by

  model     `core.grades.project_scored`
  uniform   the same with all grades equally common beforehand
  diagonal  the same model, but scores taken as independent with their sum-to-zero standard errors
  mode      the same model, but scores and covariance those of the posterior's mode instead of its moments
  hard      isotonic regression of the anchors' scores on grade, boundaries halfway, every score assigned to one grade
  soft      the same boundaries, a normal distribution around the score with its standard error
  earlier   `project_grades` of another version of `core/grades.py`, given with --against

Worlds: in `prior`, steps, spread and grades are drawn as the model assumes (steps gamma with mean 1.25 logits and cv
1/2; log(spread/step) ~ N(log .5, .5²); all grades equally common). Each of the others changes one thing.

Printed per world: mean RPS (ranked probability score, sum over boundaries, unnormalised) and its ratios, model to each
other, with 95 % limits over exams; expected calibration error (ECE) of the most probable grade and of P(grade >= k) in
ten bins of equal mass; how often the printed grade (median) is right; and what the model says of false passes, false
fails (at the pass boundary) and grades that the exact score would change, beside the truth.

Run: python benchmarks/grades.py [--exams 400] [--worlds prior wide ...] [--students 24] [--judgments 12] [--seed 1]
     [--against FILE]
"""

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cj_pipeline.core.grade_model import cuts
from cj_pipeline.core.grade_scale import BUILTIN_SCALES
from cj_pipeline.core.grades import project_grades, project_scored
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairMode, Winner
from cj_pipeline.core.scoring import BTScoringResult, compute_bt_scores_and_se

SCALE = BUILTIN_SCALES["eng5_np_legacy_9_step"]
LABELS = len(SCALE.labels)
ANCHORS = 12
STEP = 1.25
BINS = 10
SETTINGS = SimpleNamespace(bt_standard_error_max=2.0)


@dataclass(frozen=True)
class World:
    """A kind of exam.

    Attributes:
        step: mean distance of neighbouring centres, logits.
        shape: of the gamma distribution of steps; 0: they alternate between .4 and 1.6 of the mean.
        spread: within-grade standard deviation as a share of the mean step; None: drawn from the model's prior.
        missing: labels that no anchor has; the anchors are spread over the others.
        shares: how common each label is among students, up to a factor.
    """

    step: float = STEP
    shape: float = 4.0
    spread: float | None = 0.5
    missing: tuple[int, ...] = (0,)
    shares: tuple[float, ...] = (1.0,) * LABELS


SKEWED = tuple(0.5 ** abs(label - 7) for label in range(LABELS))
WORLDS: Mapping[str, World] = {
    "prior": World(spread=None),
    "wide": World(spread=0.9),
    "short": World(step=0.6),
    "long": World(step=2.2),
    "uneven": World(shape=0.0),
    "missing": World(missing=(0, 2, 4, 5, 7)),
    "skewed": World(shares=SKEWED),
}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exams", type=int, default=400, help="per world, at least 2")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--students", type=int, default=24)
    parser.add_argument("--judgments", type=int, default=12, help="per essay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another version of core/grades.py")
    options = parser.parse_args()
    graders: dict[str, Callable[[BTScoringResult, dict[str, str]], np.ndarray]] = {
        "diagonal": by_diagonal,
        "mode": by_mode,
        "hard": by_boundaries,
        "soft": lambda scored, known: by_boundaries(scored, known, soft=True),
    }
    if options.against:
        earlier = load(options.against)
        graders["earlier"] = lambda scored, known: rows_of(earlier(SCALE, **plain(scored, known)), "probabilities")
    print(
        f"{options.exams} exams a world of {options.students} students and {ANCHORS} anchors, {options.judgments} "
        f"judgments per essay, seed {options.seed}"
    )
    for name in options.worlds:
        started = time.monotonic()
        found: dict[str, list[np.ndarray]] = {}
        truth, printed, told, spent = [], [], [], 0.0
        for exam in range(options.exams):
            chance = np.random.default_rng([options.seed, list(WORLDS).index(name), exam])
            scored, known, grades, exact = played(WORLDS[name], options.students, options.judgments, chance)
            began = time.perf_counter()
            result = project_scored(SCALE, scored, known)
            spent += time.perf_counter() - began
            truth.append(grades)
            students = [p for p in result.projections if not p.is_anchor]
            printed.append([SCALE.labels.index(p.grade) if p.grade else -9 for p in students])
            told.append(compared(result, grades, exact, np.array(printed[-1])))
            found.setdefault("model", []).append(rows_of(result, "probabilities"))
            found.setdefault("uniform", []).append(rows_of(result, "probabilities_uniform"))
            for grader, grade in graders.items():
                found.setdefault(grader, []).append(grade(scored, known))
        report(name, {k: np.array(v) for k, v in found.items()}, np.array(truth), np.array(printed))
        report_rates(np.array(told))
        print(
            f"  {spent / options.exams * 1000:.0f} ms an exam for the model; {time.monotonic() - started:.0f} s in all"
        )


def played(
    world: World, students: int, rounds: int, chance: np.random.Generator
) -> tuple[BTScoringResult, dict[str, str], np.ndarray, np.ndarray]:
    """A scored exam, its anchors' grades, and the students' true grades and the grades their true scores would print.

    Students are in ascending order of ids.
    """
    if world.shape:
        steps = chance.gamma(world.shape, world.step / world.shape, LABELS - 1)
    else:
        steps = world.step * np.where((np.arange(LABELS - 1) + chance.integers(2)) % 2, 0.4, 1.6)
    centres = np.concatenate([[0.0], np.cumsum(steps)])
    share = math.exp(chance.normal(math.log(0.5), 0.5)) if world.spread is None else world.spread
    shares = np.array(world.shares) / sum(world.shares)
    graded = np.setdiff1d(np.arange(LABELS), world.missing)
    grades = np.concatenate(
        [np.resize(graded, graded.size * (ANCHORS // graded.size)), chance.choice(graded, ANCHORS % graded.size)]
    )
    grades = np.concatenate([grades, chance.choice(LABELS, students, p=shares)])
    theta = centres[grades] + chance.normal(0.0, share * world.step, grades.size)
    ids = [f"k{i:03d}" for i in range(ANCHORS)] + [f"s{i:03d}" for i in range(students)]
    history = []
    for number in range(rounds):
        order = chance.permutation(len(ids))
        half = len(ids) // 2
        for a, b in zip(order[:half], order[half : 2 * half], strict=True):
            first = chance.random() < 1.0 / (1.0 + math.exp(theta[b] - theta[a]))
            history.append(
                Comparison(
                    comparison_id=f"c{len(history):06d}",
                    wave=number + 1,
                    essay_a=ids[a],
                    essay_b=ids[b],
                    pair_mode=PairMode.COVERAGE,
                    status=ComparisonStatus.JUDGED,
                    winner=Winner.A if first else Winner.B,
                )
            )
    known = {essay: SCALE.labels[grade] for essay, grade in zip(ids[:ANCHORS], grades, strict=False)}
    exact = np.searchsorted(cuts(centres, np.array(share * world.step), shares), theta[ANCHORS:])
    return compute_bt_scores_and_se(history, ids, SETTINGS, anchor_ids=known), known, grades[ANCHORS:], exact


def compared(result: Any, grades: np.ndarray, exact: np.ndarray, printed: np.ndarray) -> list[float]:
    """Said and true share of students of whom this holds: false pass, false fail, another grade at the exact score."""
    if not result.boundaries:
        return [math.nan] * 6
    at = next(boundary for boundary in result.boundaries if boundary.is_pass)
    lowest = SCALE.labels.index(SCALE.lowest_pass)
    changes = [p.would_change for p in result.projections if not p.is_anchor]
    return [
        at.false_pass,
        float(((printed >= lowest) & (grades < lowest)).mean()),
        at.false_fail,
        float(((printed < lowest) & (grades >= lowest)).mean()),
        float(np.mean(changes)),
        float((printed != exact).mean()),
    ]


def report_rates(told: np.ndarray) -> None:
    """Print what `compared` found in every exam, (exams, 6)."""
    for place, what in enumerate(("false pass", "false fail", "would change")):
        said, true = told[:, 2 * place], told[:, 2 * place + 1]
        margin = 1.96 * np.nanstd(said - true, ddof=1) / math.sqrt(len(told))
        print(f"  {what}: said {np.nanmean(said):.3f}, true {np.nanmean(true):.3f} (difference +- {margin:.3f})")


def plain(scored: BTScoringResult, known: dict[str, str]) -> dict[str, Any]:
    return {
        "scores": scored.scores,
        "ses": scored.ses_uncapped,
        "components": scored.components,
        "known_grades": known,
    }


def by_diagonal(scored: BTScoringResult, known: dict[str, str]) -> np.ndarray:
    return rows_of(project_grades(SCALE, **plain(scored, known)), "probabilities")


def by_mode(scored: BTScoringResult, known: dict[str, str]) -> np.ndarray:
    fit = scored.fit
    at_width = fit.covariance_at_width()
    result = project_grades(SCALE, **plain(scored, known), covariance=at_width, prior_sd=fit.prior_sd)
    return rows_of(result, "probabilities")


def rows_of(result: Any, field: str) -> np.ndarray:
    """(students, K) probabilities; equal ones where no grade could be given."""
    students = [p for p in result.projections if not p.is_anchor]
    return np.array(
        [list(getattr(p, field).values()) if p.available else [1.0 / LABELS] * LABELS for p in students], dtype=float
    )


def by_boundaries(scored: BTScoringResult, known: dict[str, str], *, soft: bool = False) -> np.ndarray:
    """(students, K) shares by midpoints between isotonic means of the anchors' scores."""
    from scipy.optimize import isotonic_regression
    from scipy.stats import norm

    grades = np.array([SCALE.index(grade) for grade in known.values()])
    scores = np.array([scored.scores[anchor] for anchor in known])
    observed, member, counts = np.unique(grades, return_inverse=True, return_counts=True)
    means = isotonic_regression(np.bincount(member, weights=scores) / counts, weights=counts).x
    gap = max((means[-1] - means[0]) / (observed[-1] - observed[0]), 1e-9)
    every = np.arange(LABELS)
    centres = np.interp(every, observed, means) + gap * (every - np.clip(every, observed[0], observed[-1]))
    boundaries = (centres[1:] + centres[:-1]) / 2.0
    students = [essay for essay in scored.essay_ids if essay not in known]
    x = np.array([scored.scores[essay] for essay in students])[:, None]
    se = np.array([scored.ses_uncapped[essay] for essay in students])[:, None]
    above = norm.cdf((x - boundaries) / se) if soft else (x > boundaries).astype(float)
    ends = np.ones((x.size, 1))
    return -np.diff(np.hstack([ends, above, 0.0 * ends]), axis=1)


def load(path: Path) -> Callable[..., Any]:
    """`project_grades` of another version of the module."""
    spec = importlib.util.spec_from_file_location("earlier_grades", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.project_grades  # type: ignore[no-any-return]


def report(name: str, found: dict[str, np.ndarray], truth: np.ndarray, printed: np.ndarray) -> None:
    """Print one world; `found` is (exams, students, K) per grader, `truth` and `printed` (exams, students)."""
    reached = truth[..., None] > np.arange(LABELS - 1)
    rps = {
        grader: ((1.0 - np.cumsum(p, axis=2)[..., :-1] - reached) ** 2).sum(axis=2).mean(axis=1)
        for grader, p in found.items()
    }
    own = rps["model"]
    print(f"\n{name}: RPS {own.mean():.4f} +- {1.96 * own.std(ddof=1) / math.sqrt(own.size):.4f}", end="")
    for grader in found:
        if grader != "model":
            ratio, margin = ratio_of(rps["model"], rps[grader])
            print(f"; / {grader} {ratio:.3f} +- {margin:.3f}", end="")
    print()
    for grader in [g for g in ("model", "uniform", "diagonal", "mode", "earlier") if g in found]:
        p = found[grader]
        top = ece(p.max(axis=2), p.argmax(axis=2) == truth)
        over = ece(1.0 - np.cumsum(p, axis=2)[..., :-1], reached)
        right = (p.argmax(axis=2) == truth).mean()
        print(
            f"  {grader:9s} ECE top {top:.3f}, P(grade >= k) {over:.3f}; most probable grade: probability "
            f"{p.max(axis=2).mean():.3f}, right {right:.3f}"
        )
    off = np.abs(printed - truth)
    print(f"  printed grade right {(off == 0).mean():.3f}, within one {(off <= 1).mean():.3f}", flush=True)


def ratio_of(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Ratio of means over exams and the half width of its 95 % limits (linearised)."""
    ratio = one.mean() / other.mean()
    return float(ratio), float(1.96 * (one - ratio * other).std(ddof=1) / math.sqrt(one.size) / other.mean())


def ece(said: np.ndarray, happened: np.ndarray) -> float:
    """Mean over ten bins of equal mass of |mean probability - frequency|."""
    order = np.argsort(said, axis=None, kind="stable")
    parts = np.array_split(order, BINS)
    p, y = said.ravel(), happened.ravel()
    return float(np.mean([abs(p[part].mean() - y[part].mean()) for part in parts]))


if __name__ == "__main__":
    main()
