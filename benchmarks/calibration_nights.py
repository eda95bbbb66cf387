"""Thirty nights of calibration with a drift planted in them: when is it found, and how often is there a false alarm?

    python benchmarks/calibration_nights.py [--seed 1] [--nights 30] [--drift 1.5] [--on 20] [--anchor k06]
        the whole pipeline: a real ledger, the schedule's own submission with the time injected, the simulated judge,
        the history; prints the verdicts and writes the picture (--folder)
    python benchmarks/calibration_nights.py --replications 100 [--drift 1.5 0] [--night-sd 0.2] [--seed 1]
        many such histories without ledger: the same pairing, fit, bank and charts on answers drawn from the same law;
        prints the detection delay and the false alarms with their Monte Carlo error

The drift is planted in what the simulated judge goes by: from night `--on` on, the anchor's quality in that night's
batch is moved by so many logits. No production code knows of it.
"""

import argparse
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from cj_pipeline.core.anchor_bank import NightScores, night_scores
from cj_pipeline.core.control_chart import ChartRules, anchor_charts
from cj_pipeline.core.designs import WaveRequest, plan_next_wave
from cj_pipeline.core.models import Comparison, ComparisonStatus, PairDesign, Winner
from cj_pipeline.core.scoring import compute_bt_scores_and_se
from cj_pipeline.eng5.calibration_files import write_history
from cj_pipeline.eng5.calibration_history import (
    CalibrationHistory,
    Measure,
    NightRow,
    calibration_history,
    chart_of,
    night_tau_b,
)
from cj_pipeline.eng5.nightly import submit_night
from cj_pipeline.judges.protocol import SimulatedTruth
from cj_pipeline.judges.simulated import load_profiles
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import write_transaction
from cj_pipeline.settings import CJSettings
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.intake import AnchorSubmission, AssignmentRequest
from cj_pipeline.workflow.loop import advance_batch
from cj_pipeline.workflow.registration import register_assignment

SCALE = "eng5_np_legacy_9_step"
GRADES = ("F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A")
ANCHORS = {f"k{i + 1:02d}": GRADES[i * 9 // 12] for i in range(12)}
FIRST_NIGHT = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
JUDGE = "eng5-anchor"


def assignment(assignment_id: str = "letters") -> AssignmentRequest:
    return AssignmentRequest(
        assignment_id=assignment_id,
        title="A letter",
        language="en",
        grade_scale=SCALE,
        grade_scale_definition=None,
        instructions="Judge the letter as a whole.",
        student_prompt="Write a letter to a friend.",
        judge_rubric="Content before language.",
        system_prompt=None,
        anchors=tuple(
            AnchorSubmission(ref, grade, f"The letter called {ref}, written by hand.", f"{ref}.txt")
            for ref, grade in ANCHORS.items()
        ),
    )


def play_night(ledger: Ledger, settings: CJSettings, now: datetime, *, shifted: dict[str, float]) -> str:
    """Submit and judge one night; `shifted` anchors are read so many logits otherwise."""
    batch_id = submit_night(ledger, settings, now).batch_id
    discrimination = load_profiles()[settings.calibration_judge].discrimination
    with write_transaction(ledger.engine) as connection:
        for ref, logits in shifted.items():
            essay = t.batch_essays.c.essay_id == anchor_node_id(batch_id, ref)
            connection.execute(
                sa.update(t.batch_essays)
                .where(essay)
                .values(quality=t.batch_essays.c.quality + logits / discrimination)
            )
    advance_batch(ledger, batch_id, settings)
    return batch_id


def play_nights(
    ledger: Ledger, settings: CJSettings, *, nights: int, on: int, anchor: str, drift: float, first: datetime
) -> CalibrationHistory:
    """So many nights, one a day, with a drift from night `on` (counted from 1) on; then the history."""
    register_assignment(ledger, assignment(settings.calibration_assignment))
    for number in range(nights):
        shifted = {anchor: drift} if drift and number + 1 >= on else {}
        play_night(ledger, settings, first + timedelta(days=number), shifted=shifted)
    return calibration_history(ledger, settings)


def one_history(arguments: argparse.Namespace) -> None:
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="cj-nights-"))
    settings = CJSettings(_env_file=None, data_dir=folder, calibration_assignment="letters", calibration_judge=JUDGE)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}")
    started = time.perf_counter()
    # the date seeds a night's pairing and draws: another seed, other dates
    history = play_nights(
        ledger,
        settings,
        nights=arguments.nights,
        on=arguments.on,
        anchor=arguments.anchor,
        drift=arguments.drift[0],
        first=FIRST_NIGHT + timedelta(days=365 * (arguments.seed - 1)),
    )
    print(f"{arguments.nights} nights of {settings.calibration_max_comparisons} judgments in "
          f"{time.perf_counter() - started:.0f} s; {arguments.anchor} is read {arguments.drift[0]:+g} logits otherwise "
          f"from night {arguments.on} on")  # fmt: skip
    numbers = {row.batch_id: number + 1 for number, row in enumerate(history.rows)}
    for row, measure, name, point in history.alarms():
        print(f"  night {numbers[row.batch_id]:2d}: {measure} {name}: {point.verdict}, {point.value:+.2f} "
              f"(z {point.z:+.1f}, EWMA {point.ewma:+.1f})")  # fmt: skip
    for measure in Measure:
        print(f"  {history.verdict(measure).text}")
    for path in write_history(history, settings.calibration_dir):
        print(f"written: {path}")
    ledger.close()


# --- many histories ------------------------------------------------------------------------------------------------


class Cap:
    bt_standard_error_max = 2.0


def drawn_night(
    number: int, qualities: dict[str, float], rng: np.random.Generator, *, budget: int, wave: int
) -> tuple[NightScores, NightRow]:
    """Judge one night as the pipeline does, answers drawn from the simulated judge's law."""
    profile = load_profiles()[JUDGE]
    ids = sorted(qualities)
    seen: list[Comparison] = []
    scored = None
    while len(seen) < budget:
        request = WaveRequest(
            essay_ids=ids,
            history=seen,
            size=min(wave, budget - len(seen)),
            scores={} if scored is None else scored.scores,
            ses={} if scored is None else scored.ses_uncapped,
            seed=int(rng.integers(2**31)),
            batch_id=f"n{number:03d}",
            wave=len(seen) // wave + 1,
            anchor_grades=ANCHORS,
            fit=None if scored is None else scored.fit,
        )
        for pair in plan_next_wave(PairDesign.ADAPTIVE, request):
            truth = SimulatedTruth(quality_a=qualities[pair.essay_a], quality_b=qualities[pair.essay_b])
            first = rng.random() < profile.probability_a(truth)
            seen.append(
                Comparison(
                    comparison_id=f"c{len(seen):05d}",
                    wave=request.wave,
                    essay_a=pair.essay_a,
                    essay_b=pair.essay_b,
                    pair_mode=pair.pair_mode,
                    status=ComparisonStatus.JUDGED,
                    winner=Winner.A if first else Winner.B,
                    confidence=3,
                )
            )
        scored = compute_bt_scores_and_se(seen, ids, Cap(), anchor_ids=ids)
    assert scored is not None
    scores = night_scores(f"n{number:03d}", {ref: place for place, ref in enumerate(scored.essay_ids)}, scored.fit)
    tau_b, tau_b_se = night_tau_b(scores, {ref: GRADES.index(grade) for ref, grade in ANCHORS.items()})
    row = NightRow(
        batch_id=scores.night,
        date=FIRST_NIGHT.date() + timedelta(days=number),
        judgments=len(seen),
        tau_b=tau_b,
        tau_b_se=tau_b_se,
        order_effect=scored.fit.order_effect,
        order_effect_se=scored.fit.order_effect_se or 0.0,
        cost_usd=None,
        cost_per_judgment=None,
        cost_log_se=0.0,
        latency_seconds=None,
        latency_log_se=0.0,
    )
    return scores, row


def alarms_of(arguments: argparse.Namespace, drift: float, rng: np.random.Generator) -> dict[str, list[int]]:
    """The nights (from 1) on which each chart of one history of nights is out of control."""
    nights, rows = [], []
    profile = load_profiles()[JUDGE]
    for number in range(arguments.nights):
        qualities = {ref: float(GRADES.index(grade)) for ref, grade in ANCHORS.items()}
        if number + 1 >= arguments.on:
            qualities[arguments.anchor] += drift / profile.discrimination
        for ref in qualities:
            qualities[ref] += arguments.night_sd / profile.discrimination * rng.standard_normal()
        scores, row = drawn_night(number, qualities, rng, budget=arguments.budget, wave=30)
        nights.append(scores)
        rows.append(row)
    charts = dict(anchor_charts(nights)) | {
        measure.value: chart_of(rows, measure, ChartRules()) for measure in (Measure.TAU_B, Measure.POSITION)
    }
    return {
        name: [number + 1 for number, point in enumerate(points) if point.verdict.is_alarm]
        for name, points in charts.items()
    }


def many_histories(arguments: argparse.Namespace) -> None:
    for drift in arguments.drift:
        rng = np.random.default_rng(arguments.seed)
        started = time.perf_counter()
        found = [alarms_of(arguments, drift, rng) for _ in range(arguments.replications)]
        print(
            f"drift {drift:+g} logits of {arguments.anchor} from night {arguments.on} on, {arguments.nights} nights of "
            f"{arguments.budget} judgments, night-to-night sd {arguments.night_sd:g}, {arguments.replications} "
            f"replications, seed {arguments.seed} ({time.perf_counter() - started:.0f} s)"
        )
        if drift:
            report_delay(arguments, found)
        report_false_alarms(arguments, found, drift)


def report_delay(arguments: argparse.Namespace, found: list[dict[str, list[int]]]) -> None:
    first = [next((n for n in one[arguments.anchor] if n >= arguments.on), None) for one in found]
    nights = np.array([np.inf if n is None else n - arguments.on + 1 for n in first])
    # the same after resampling the replications: Monte Carlo error of the median
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(nights, nights.size)) for _ in range(1000)]
    low, middle, high = (np.quantile(nights, q, method="inverted_cdf") for q in (0.1, 0.5, 0.9))
    span = arguments.nights - arguments.on + 1
    print(
        f"  the anchor is in alarm on its night {middle:g} (median; 10-90 %: {low:g} to {high:g}; 95 % of the median: "
        f"{np.quantile(medians, 0.025):g} to {np.quantile(medians, 0.975):g}); within {span} nights in "
        f"{np.isfinite(nights).mean():.2f} of the histories"
    )


def report_false_alarms(arguments: argparse.Namespace, found: list[dict[str, list[int]]], drift: float) -> None:
    """Alarms where nothing was planted: on every chart before the drift, without drift on every night."""
    upto = arguments.on - 1 if drift else arguments.nights
    kinds = {"anchors": list(ANCHORS), "tau_b": ["tau_b"], "position_bias": ["position_bias"]}
    kinds["any of these"] = [name for names in kinds.values() for name in names]
    for kind, names in kinds.items():
        counts = np.array([len({n for name in names for n in one[name] if n <= upto}) for one in found])
        error = counts.std(ddof=1) / counts.size**0.5 if counts.size > 1 else np.nan
        print(
            f"  false alarms, {kind}: {counts.mean():.2f} nights of {upto} (standard error {error:.2f}); at least one "
            f"in {(counts > 0).mean():.2f} of the histories"
        )
    if drift:
        others = [name for name in ANCHORS if name != arguments.anchor]
        counts = np.array([len({n for name in others for n in one[name] if n >= arguments.on}) for one in found])
        print(f"  another anchor in alarm after the drift began: {counts.mean():.2f} nights a history")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--on", type=int, default=20, help="first night of the drift, counted from 1")
    parser.add_argument("--anchor", default="k06", choices=sorted(ANCHORS))
    parser.add_argument("--drift", type=float, nargs="+", default=[1.5], help="logits")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replications", type=int, default=0)
    parser.add_argument("--budget", type=int, default=150, help="judgments a night, in replications")
    parser.add_argument("--night-sd", type=float, default=0.2, help="logits by which a night moves an anchor")
    parser.add_argument("--folder", type=Path, help="where ledger and files go; a new one by default")
    arguments = parser.parse_args()
    if arguments.replications:
        many_histories(arguments)
    else:
        one_history(arguments)


if __name__ == "__main__":
    main()
