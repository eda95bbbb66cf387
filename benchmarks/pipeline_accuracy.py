"""Judgments that the pipeline needs for the same accuracy: as it first was, and as it is.

As it was: pairs by `coverage`, an end by the stop rule `stability`. As it is: the default design and the stop rule
`precision`. Both play the same simulated exams wave by wave, with the pipeline's own planning, fit, grades and
decisions (`core/simulation.py`); the fit and the grades are today's in both. Printed: where each would have ended, how
accurate its grades then were, and how many judgments the second needs for the RPS (ranked probability score, the sum
over grades, mean over students) that the first has at the end of its budget, with 95 % limits (bootstrap over exams).

Run: python benchmarks/pipeline_accuracy.py [--replications 60] [--budget 600] [--students 24] [--anchors 12]
     [--step 1.25] [--order-effect 0] [--lapses 0] [--seed 1]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.core.simulation import Exam, PlayedExam, budget_table, simulate_exams, stopped_at
from cj_pipeline.settings import CJSettings, effective_tunables, parse_overrides

BOOTSTRAPS = 1000
WAS = {"pair_design": "coverage", "stop_rule": "stability"}
IS = {"stop_rule": "precision"}


def main() -> None:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=60)
    parser.add_argument("--budget", type=int, default=600)
    parser.add_argument("--students", type=int, default=24)
    parser.add_argument("--anchors", type=int, default=12)
    parser.add_argument("--step", type=float, default=1.25)
    parser.add_argument("--order-effect", type=float, default=0.0)
    parser.add_argument("--lapses", type=float, default=0.0)
    parser.add_argument("--scale", default="eng5_np_legacy_9_step")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    exam = Exam(
        students=options.students,
        anchors=options.anchors,
        step=options.step,
        order_effect=options.order_effect,
        lapses=options.lapses,
    )
    print(f"{exam!r}, budget {options.budget}, {options.replications} exams, seed {options.seed}")
    played = {
        name: simulate_exams(
            exam,
            effective_tunables(CJSettings(), parse_overrides(overrides, where="benchmark")),
            get_grade_scale(options.scale),
            budget=options.budget,
            replications=options.replications,
            seed=options.seed,
        )
        for name, overrides in (("as it was", WAS), ("as it is", IS))
    }
    for name, exams in played.items():
        low, middle, high = stopped_at(exams)
        row = budget_table([one.as_stopped for one in exams], [options.budget])[0]
        said = ", ".join(f"{key} {mean:.3f} ± {half:.3f}" for key, (mean, half) in row.measures.items())
        print(f"{name}: ends after {middle:.0f} judgments (median; 10-90 %: {low:.0f} to {high:.0f}) with {said}")
    was, now = (curves(exams) for exams in played.values())
    judgments = np.array([wave.judgments for wave in played["as it was"][0].waves])
    target = float(was[:, -1].mean())
    chance = np.random.default_rng([options.seed, 99])
    draws = chance.integers(0, len(was), (BOOTSTRAPS, len(was)))
    needed = first_reaching(now.mean(axis=0), judgments, target)
    spread = [first_reaching(now[d].mean(axis=0), judgments, float(was[d, -1].mean())) for d in draws]
    low, high = np.quantile(spread, [0.025, 0.975], method="inverted_cdf")
    print(
        f"RPS {target:.3f}, which it had after {judgments[-1]} judgments as it was, takes {needed:.0f} as it is "
        f"(95 %: {low:.0f} to {high:.0f})"
    )


def curves(exams: Sequence[PlayedExam]) -> np.ndarray:
    """(exams, waves) RPS of each exam at each wave's end."""
    return np.array([[wave.rps for wave in exam.waves] for exam in exams], dtype=np.float64)


def first_reaching(curve: np.ndarray, judgments: np.ndarray, target: float) -> float:
    """Judgments at which a mean curve first falls to the target, in a straight line between waves."""
    below = np.flatnonzero(curve <= target)
    if not below.size:
        return float("inf")
    k = int(below[0])
    if k == 0:
        return float(judgments[0])
    share = (curve[k - 1] - target) / (curve[k - 1] - curve[k])
    return float(judgments[k - 1] + share * (judgments[k] - judgments[k - 1]))


if __name__ == "__main__":
    main()
