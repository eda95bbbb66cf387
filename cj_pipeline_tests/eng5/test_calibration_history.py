"""What a night measured, when it is out of control, in which words, and what is told of a night that is not there."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from math import exp, log

import numpy as np
import pytest
from scipy import stats

from cj_pipeline.core.anchor_bank import NightScores
from cj_pipeline.core.control_chart import ChartRules, Verdict, anchor_charts
from cj_pipeline.eng5.calibration_files import (
    StoredBank,
    bank_frame,
    charts_frame,
    history_markdown,
    nights_frame,
    read_bank,
    stored_bank,
    write_bank,
    write_history,
)
from cj_pipeline.eng5.calibration_history import (
    CalibrationHistory,
    Measure,
    NightRow,
    calibration_history,
    chart_of,
    check_night,
    last_night_due,
    night_tau_b,
)
from cj_pipeline.eng5.nightly import submit_night
from cj_pipeline.judges.models import JudgeOptions
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import write_transaction
from cj_pipeline.workflow.calibration import JudgeConfiguration, NightLeftOut, Nights
from cj_pipeline.workflow.registration import anchor_node_id, register_assignment
from cj_pipeline_tests.builders import update_batch
from cj_pipeline_tests.workflow.scenes import Through, advance, assignment_request, settings

FIRST = date(2026, 3, 1)
MORNING = datetime(2026, 3, 20, 10, 0, tzinfo=UTC)
CONFIGURATION = JudgeConfiguration(
    profile="anthropic/m", provider="anthropic", model="m", options=JudgeOptions(), instructions_sha256="0" * 64
)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"])


def configured(**changes):
    return settings(
        **{"calibration_assignment": "letters", "calibration_judge": "cj-generic", "calibration_max_comparisons": 30}
        | changes
    )


def row(number, **figures):
    fields = {
        "judgments": 150,
        "tau_b": 0.93,
        "tau_b_se": 0.03,
        "order_effect": 0.4,
        "order_effect_se": 0.2,
        "cost_usd": 0.3,
        "cost_per_judgment": 0.002,
        "cost_log_se": 0.01,
        "latency_seconds": 1.5,
        "latency_log_se": 0.03,
    }
    night = FIRST + timedelta(days=number)
    return NightRow(batch_id=f"eng5-calibration-{night:%Y%m%d}", date=night, **{**fields, **figures})


def rows_of(measure, values):
    return [row(number, **{measure: value}) for number, value in enumerate(values)]


def history_of(rows, scores=(), left_out=()):
    rules = ChartRules()
    return CalibrationHistory(
        assignment_id="letters",
        configuration=CONFIGURATION,
        rules=rules,
        rows=tuple(rows),
        charts={measure: chart_of(rows, measure, rules) for measure in Measure if measure is not Measure.ANCHORS},
        anchors=anchor_charts(list(scores), rules=rules),
        nights=Nights("letters", CONFIGURATION, (), tuple(left_out)),
        simulated=False,
    )


def made_scores(count, *, shifted_from=None):
    rng = np.random.default_rng(7)
    centring = np.eye(4) - 0.25
    made = []
    for number in range(count):
        truth = np.array([-2.0, -1.0, 1.0, 2.0 + (4.0 if shifted_from is not None and number >= shifted_from else 0.0)])
        seen = centring @ (truth + 0.3 * rng.standard_normal(4))
        made.append(NightScores(row(number).batch_id, ("k1", "k2", "k3", "k4"), seen, 0.09 * centring))
    return made


# --- figures -------------------------------------------------------------------------------------------------------


def test_tau_b_of_a_night_is_scipys_and_its_se_the_spread_over_draws():
    grades = {"a": 0, "b": 1, "c": 1, "d": 2, "e": 3}
    scores = np.array([-1.5, 0.2, -0.4, 0.9, 0.8])
    covariance = np.diag([0.2, 0.3, 0.2, 0.4, 0.1]) + 0.05
    found, se = night_tau_b(NightScores("n", tuple(grades), scores, covariance), grades)
    numbers = list(grades.values())
    assert found == pytest.approx(stats.kendalltau(numbers, scores).statistic)
    draws = np.random.default_rng(3).multivariate_normal(scores, covariance, size=1500)
    spread = np.std([stats.kendalltau(numbers, one).statistic for one in draws])
    assert se == pytest.approx(spread, rel=0.2)


def test_anchors_of_one_grade_have_no_tau_b():
    scores = NightScores("n", ("a", "b", "c"), np.array([-1.0, 0.0, 1.0]), np.eye(3))
    assert night_tau_b(scores, {"a": 2, "b": 2, "c": 2}) == (None, 0.0)


class Priced(Through):
    """Every answer costs and takes more than the one before."""

    async def judge(self, request):
        number = len(self.requests) + 1
        answer = await super().judge(request)
        return replace(answer, cost_usd=0.001 * number, latency_seconds=0.5 + 0.01 * number)


@on_sqlite
def test_the_figures_of_a_night_are_those_of_its_calls(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    batch_id = submit_night(ledger, configured(), MORNING).batch_id
    advance(ledger, batch_id, judge=Priced())
    update_batch(ledger, batch_id, simulated=False)
    (night,) = calibration_history(ledger, configured()).rows
    assert (night.batch_id, night.date, night.judgments) == (batch_id, date(2026, 3, 20), 30)
    assert night.cost_usd == pytest.approx(0.001 * sum(range(1, 31)))
    assert night.cost_per_judgment == pytest.approx(night.cost_usd / 30)
    costs = 0.001 * np.arange(1, 31)
    assert night.cost_log_se == pytest.approx(stats.sem(costs) / costs.mean())
    latencies = 0.5 + 0.01 * np.arange(1, 31)
    assert night.latency_seconds == pytest.approx(stats.gmean(latencies))
    assert night.latency_log_se == pytest.approx(stats.sem(np.log(latencies)))


@on_sqlite
def test_a_simulated_judge_has_no_latency(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    advance(ledger, submit_night(ledger, configured(), MORNING).batch_id)
    history = calibration_history(ledger, configured())
    assert history.rows[0].latency_seconds is None
    assert history.verdict(Measure.LATENCY).text == "night 2026-03-20: there is nothing to chart"


# --- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "name", "usual", "bad", "good"),
    [
        (Measure.TAU_B, "tau_b", [0.93, 0.92, 0.94, 0.93, 0.91, 0.93, 0.94], 0.5, 1.0),
        (Measure.COST, "cost_per_judgment", [0.0020, 0.0021, 0.0019, 0.0020, 0.0022, 0.0020, 0.0021], 0.006, 0.0005),
        (Measure.LATENCY, "latency_seconds", [1.5, 1.4, 1.6, 1.5, 1.55, 1.45, 1.5], 6.0, 0.3),
    ],
)
def test_only_the_bad_side_of_agreement_cost_and_latency_is_out_of_control(measure, name, usual, bad, good):
    assert not history_of(rows_of(name, [*usual, bad])).verdict(measure).in_control
    assert history_of(rows_of(name, [*usual, good])).verdict(measure).in_control


def test_both_sides_of_the_position_bias_are_out_of_control():
    usual = [0.4, 0.3, 0.5, 0.4, 0.45, 0.35, 0.4]
    for value in (2.5, -1.7):
        said = history_of(rows_of("order_effect", [*usual, value])).verdict(Measure.POSITION)
        assert not said.in_control
        assert "Advantage of the essay read first" in said.text


def test_costs_are_charted_as_factors_and_shown_in_dollars():
    values = [0.0020, 0.0021, 0.0019, 0.0020, 0.0022, 0.0020]
    point = chart_of(rows_of("cost_per_judgment", [*values, 0.002]), Measure.COST, ChartRules())[-1]
    assert point.centre == pytest.approx(exp(np.mean(np.log(values))))
    reach = log(point.high / point.centre)
    # the known SE and the least difference of interest are below the spread between nights or near it
    spread = max(np.var(np.log(values), ddof=1), 0.05**2)
    share = 2 * stats.norm.sf(3)
    assert reach == pytest.approx(-stats.t.ppf(share / 2, 5) * np.sqrt(spread * 7 / 6), rel=1e-6)
    assert (point.value, point.low) == (pytest.approx(0.002), None)


def test_an_unknown_cost_is_not_charted_and_no_alarm():
    said = history_of(rows_of("cost_per_judgment", [None] * 8)).verdict(Measure.COST)
    assert said.in_control
    assert "nothing to chart" in said.text


def test_a_drifted_anchor_is_named_with_its_distance():
    history = history_of([row(number) for number in range(9)], made_scores(9, shifted_from=8))
    said = history.verdict(Measure.ANCHORS)
    assert not said.in_control
    assert said.text.startswith("night 2026-03-09: anchor k4 is ")
    assert [(night.date, name) for night, measure, name, _ in history.alarms() if measure is Measure.ANCHORS] == [
        (date(2026, 3, 9), "k4")
    ]


def test_without_nights_every_verdict_says_so():
    assert {history_of([]).verdict(measure).text for measure in Measure} == {"no night yet"}


# --- is the night there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hour", "due"), [(8, date(2026, 3, 19)), (9, date(2026, 3, 20)), (23, date(2026, 3, 20)), (0, date(2026, 3, 19))]
)
def test_a_night_is_due_at_nine_in_the_morning_utc(hour, due):
    assert last_night_due(datetime(2026, 3, 20, hour, 59, tzinfo=UTC)) == due


@pytest.fixture
def letters(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    return ledger


def night(ledger, day, **changes):
    batch_id = submit_night(ledger, configured(), MORNING.replace(day=day, hour=3)).batch_id
    if changes:
        update_batch(ledger, batch_id, **changes)


DONE = {"status": "COMPLETE_MAX_COMPARISONS", "stop_reason": "budget_spent"}


@on_sqlite
def test_a_night_that_finished_is_there_and_before_the_first_nothing_is_due(letters):
    found = check_night(letters, configured(), MORNING)
    assert found.there
    assert "has not been calibrated yet" in found.text
    night(letters, 20, **DONE)
    assert check_night(letters, configured(), MORNING).there
    assert not check_night(letters, configured(), MORNING + timedelta(days=1)).there


@on_sqlite
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"status": "FAILED", "stop_reason": "provider_rejected"}, r"ended as FAILED \(provider_rejected\)"),
        ({}, "has not begun"),
        ({"status": "JUDGING", "hold_reason": "no money"}, "is not finished, on hold: no money"),
    ],
)
def test_a_failed_night_is_told_with_what_became_of_it(letters, changes, told):
    night(letters, 19, **DONE)
    night(letters, 20, **changes)
    found = check_night(letters, configured(), MORNING)
    assert not found.there
    assert "night 2026-03-20 failed: batch eng5-calibration-20260320" in found.text
    assert "the last night that finished: 2026-03-19" in found.text
    assert re.search(told, found.text)


@on_sqlite
def test_a_missed_night_is_told_with_the_probable_reason(letters):
    night(letters, 19, **DONE)
    found = check_night(letters, configured(), MORNING)
    assert "night 2026-03-20 was missed: there is no batch eng5-calibration-20260320" in found.text
    assert "is the schedule eng5_nightly_calibration on" in found.text
    broke = configured(calibration_judge="anthropic/claude-haiku-4-5", calibration_month_usd=0.5)
    assert "CJ_CALIBRATION_MONTH_USD" in check_night(letters, broke, MORNING).text


# --- nights with a drift -------------------------------------------------------------------------------------------


@pytest.mark.slow
@on_sqlite
def test_an_anchor_that_is_read_otherwise_from_one_night_on_is_found_through_the_whole_pipeline(ledger):
    register_assignment(ledger, assignment_request(anchors=6))
    stated = configured(calibration_max_comparisons=60)
    drifting_from = date(2026, 3, 10)
    for number in range(14):
        moment = datetime(2026, 3, 1, 3, 0, tzinfo=UTC) + timedelta(days=number)
        batch_id = submit_night(ledger, stated, moment).batch_id
        if moment.date() >= drifting_from:
            # what the simulated judge goes by; a logit a step, and the drift is four
            with write_transaction(ledger.engine) as connection:
                essay = t.batch_essays.c.essay_id == anchor_node_id(batch_id, "k03")
                connection.execute(t.batch_essays.update().where(essay).values(quality=t.batch_essays.c.quality + 4.0))
        advance(ledger, batch_id)
    history = calibration_history(ledger, stated)
    alarms = [(night.date, name) for night, measure, name, _ in history.alarms() if measure is Measure.ANCHORS]
    assert [name for _, name in alarms] == ["k03"] * len(alarms)
    assert drifting_from <= alarms[0][0] <= drifting_from + timedelta(days=3)
    assert not history.verdict(Measure.ANCHORS).in_control


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_tables_tell_of_every_night_and_every_point():
    left_out = [NightLeftOut("eng5-calibration-20260302x", date(2026, 3, 2), "it is not finished: JUDGING")]
    history = history_of([row(number) for number in range(7)], made_scores(7), left_out)
    nights = nights_frame(history)
    assert nights["night"].is_sorted()
    assert nights.filter(~nights["used"])["reason"].to_list() == ["it is not finished: JUDGING"]
    charts = charts_frame(history)
    assert charts.height == 7 * (4 + 4)
    verdicts = charts.filter(charts["night"] == "2026-03-07")["verdict"].unique().to_list()
    assert verdicts == [Verdict.IN_CONTROL.value]


def test_the_page_leads_with_what_is_out_of_control():
    history = history_of([row(number) for number in range(9)], made_scores(9, shifted_from=8))
    page = history_markdown(history, picture="p.png")
    assert "**out of control** night 2026-03-09: anchor k4" in page
    assert "2026-03-09: k4 beyond limits" in page


@pytest.mark.slow
def test_the_same_history_gives_the_same_page_and_picture(tmp_path):
    history = history_of([row(number) for number in range(9)], made_scores(9, shifted_from=8))
    first = [path.read_bytes() for path in write_history(history, tmp_path / "a")[:2]]
    again = [path.read_bytes() for path in write_history(history, tmp_path / "b")[:2]]
    assert first == again
    assert first[1].startswith(b"\x89PNG")


@on_sqlite
def test_a_stored_bank_is_read_back_as_it_was(letters, tmp_path):
    advance(letters, submit_night(letters, configured(), MORNING).batch_id)
    nights = calibration_history(letters, configured()).nights
    stored = stored_bank(nights)
    path, tables = write_bank(stored, nights, tmp_path)
    assert isinstance(read_bank(path), StoredBank)
    assert read_bank(path) == stored
    assert tables.stat().st_mode & 0o777 == 0o444
    frame = bank_frame(stored, nights)
    assert frame["anchor_ref"].to_list() == [f"k{i:02d}" for i in range(1, 7)]
    assert frame["position"].sum() == pytest.approx(0.0, abs=1e-9)
