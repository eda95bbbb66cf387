import asyncio
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from cj_pipeline.core.errors import GradeScaleError, InputError
from cj_pipeline.core.models import Winner
from cj_pipeline.judges.catalogue import JudgeSetup, judge_names, needs_quality, open_judge
from cj_pipeline.judges.errors import Fate, JudgeError, ProviderRejectedError, RateLimitedError
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import JudgeRequest, SimulatedTruth
from cj_pipeline.judges.simulated import LatencyProfile, SimulatedJudge, grade_quality, load_profiles

PROFILES = load_profiles()
INSTRUCTIONS = JudgeInstructions(student_prompt="Write about a journey.", rubric="Content and language.")
LEGACY = ["F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A"]
TWELVE_ANCHORS = [*LEGACY, "E+", "D+", "C+"]


def request(text_a="one essay", text_b="another essay", *, truth=(1.0, 0.0), repeat=0, attempt=1):
    return JudgeRequest(
        comparison_id=f"c-{repeat}",
        prompt=build_prompt(INSTRUCTIONS, text_a, text_b),
        repeat=repeat,
        attempt=attempt,
        truth=None if truth is None else SimulatedTruth(*truth),
    )


def repeats(count, **fields):
    """One question asked `count` times: requests that differ in their repeat number only."""
    base = request(**fields)
    return [JudgeRequest(base.comparison_id, base.prompt, repeat, base.attempt, base.truth) for repeat in range(count)]


def outcomes(judge, requests):
    """Each request's answer or its `JudgeError`."""

    async def run():
        results = []
        for item in requests:
            try:
                results.append(await judge.judge(item))
            except JudgeError as error:
                results.append(error)
        return results

    return asyncio.run(run())


def gist(answer):
    return (answer.winner.value, answer.confidence)


def logistic(x):
    return 1 / (1 + math.exp(-x))


def test_the_same_request_gets_the_same_answer_in_any_order_and_from_another_instance():
    requests = repeats(200, truth=(0.3, 0.0))
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=7)
    first = [gist(answer) for answer in outcomes(judge, requests)]
    backwards = [gist(answer) for answer in outcomes(judge, requests[::-1])][::-1]
    fresh = [gist(answer) for answer in outcomes(SimulatedJudge(PROFILES["cj-generic"], seed=7), requests)]
    assert first == backwards == fresh


def test_concurrent_calls_get_the_answers_that_calls_in_turn_get():
    requests = repeats(100, truth=(0.3, 0.0))
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=7)

    async def at_once():
        return await asyncio.gather(*(judge.judge(item) for item in requests))

    assert [gist(a) for a in asyncio.run(at_once())] == [gist(a) for a in outcomes(judge, requests)]


def test_answers_do_not_depend_on_the_fence_marker_or_the_comparison_id():
    one = repeats(100, truth=(0.3, 0.0))
    other = [JudgeRequest("elsewhere", request().prompt, r.repeat, r.attempt, r.truth) for r in one]
    assert one[0].prompt.fence_marker != other[0].prompt.fence_marker
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=7)
    assert [gist(a) for a in outcomes(judge, one)] == [gist(a) for a in outcomes(judge, other)]


def test_seed_prompt_repeat_and_attempt_each_bring_a_draw_of_their_own():
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=7)
    toss_ups = {
        "base": (judge, repeats(400, truth=(0, 0))),
        "seed": (SimulatedJudge(PROFILES["cj-generic"], seed=8), repeats(400, truth=(0, 0))),
        "prompt": (judge, repeats(400, truth=(0, 0), text_a="a third essay")),
        "order": (judge, repeats(400, truth=(0, 0), text_a="another essay", text_b="one essay")),
        "attempt": (judge, repeats(400, truth=(0, 0), attempt=2)),
    }
    wins = {name: [a.winner is Winner.A for a in outcomes(*pair)] for name, pair in toss_ups.items()}
    for one, other in itertools.combinations(wins, 2):
        agreed = sum(a == b for a, b in zip(wins[one], wins[other], strict=True))
        assert stats.binomtest(agreed, 400, 0.5).pvalue > 1e-4, (one, other)
    assert 150 < sum(wins["base"]) < 250  # repeats differ among themselves


ELSEWHERE = """
import asyncio, json
from cj_pipeline.judges.errors import JudgeError
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.judges.protocol import JudgeRequest, SimulatedTruth
from cj_pipeline.judges.simulated import SimulatedJudge, load_profiles

judge = SimulatedJudge(load_profiles()["eng5-lower5"], seed=3, error_rates={"overloaded": 0.2, "refused": 0.1})
prompt = build_prompt(JudgeInstructions(rubric="Content."), "one essay", "another essay")

async def found(repeat):
    try:
        answer = await judge.judge(JudgeRequest("c", prompt, repeat, 1, SimulatedTruth(0.2, 0.0)))
        return [answer.winner.value, answer.confidence]
    except JudgeError as error:
        return error.error_type

print(json.dumps([asyncio.run(found(repeat)) for repeat in range(60)]))
"""


def test_another_process_with_another_hash_seed_draws_the_same_answers():
    printed = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", ELSEWHERE],
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                check=True,
            ).stdout
        )
        for hash_seed in ("1", "4242")
    ]
    judge = SimulatedJudge(PROFILES["eng5-lower5"], seed=3, error_rates={"overloaded": 0.2, "refused": 0.1})
    prompt = build_prompt(JudgeInstructions(rubric="Content."), "one essay", "another essay")
    requests = [JudgeRequest("c", prompt, repeat, 1, SimulatedTruth(0.2, 0.0)) for repeat in range(60)]
    here = [getattr(found, "error_type", None) or list(gist(found)) for found in outcomes(judge, requests)]
    assert printed == [here, here]
    assert {"overloaded", "refused"} < {item if isinstance(item, str) else item[0] for item in here}


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_wins_as_often_as_the_logistic_formula_says(name):
    profile = PROFILES[name]
    judge = SimulatedJudge(profile, seed=11)
    draws, chi_square, gaps = 3_000, 0.0, [-3.0, -1.0, -0.25, 0.0, 0.25, 1.0, 3.0]
    for gap in gaps:
        wins = sum(a.winner is Winner.A for a in outcomes(judge, repeats(draws, truth=(4 + gap, 4))))
        expected = logistic(profile.discrimination * gap + profile.position_bias)
        chi_square += (wins - draws * expected) ** 2 / (draws * expected * (1 - expected))
    assert stats.chi2.sf(chi_square, df=len(gaps)) > 0.01


def test_a_gap_beyond_the_range_of_exp_still_has_a_probability():
    profile = PROFILES["cj-generic"]
    assert profile.probability_a(SimulatedTruth(1e6, 0.0)) == 1.0
    assert profile.probability_a(SimulatedTruth(0.0, 1e6)) == 0.0


def test_eng5_anchor_lets_a_win_35_of_66_in_rounds_of_all_pairs_of_twelve_anchors():
    quality = [grade_quality(LEGACY, grade) for grade in TWELVE_ANCHORS]
    pairs = [
        pair
        for i, j in itertools.combinations(range(12), 2)
        for pair in ((i, j), (j, i))  # either order equally often, as position balancing has it
    ]
    assert len(pairs) == 2 * 66
    requests = [request(f"essay {i}", f"essay {j}", truth=(quality[i], quality[j])) for i, j in pairs]
    rounds = 120
    wins = sum(
        answer.winner is Winner.A
        for seed in range(rounds)
        for answer in outcomes(SimulatedJudge(PROFILES["eng5-anchor"], seed=seed), requests)
    )
    variance = sum(p * (1 - p) for p in (PROFILES["eng5-anchor"].probability_a(r.truth) for r in requests))
    standard_error = math.sqrt(variance * rounds) / (len(pairs) * rounds)
    share = wins / (len(pairs) * rounds)
    assert abs(share - 35 / 66) < 3 * standard_error
    assert abs(share - 1 / 2) > 5 * standard_error  # the rounds are enough to tell the bias from none


def test_eng5_lower5_finds_most_pairs_of_neighbouring_anchors_close():
    profile = PROFILES["eng5-lower5"]
    assert 0.5 < profile.probability_a(SimulatedTruth(0, 0)) < 0.6
    assert 0.35 < profile.probability_a(SimulatedTruth(0, 1)) < 0.65 < profile.probability_a(SimulatedTruth(1, 0)) < 0.7
    answers = outcomes(SimulatedJudge(profile, seed=5), repeats(300, truth=(1.0, 0.0)))
    assert np.median([a.confidence for a in answers]) <= 2


def test_confidence_runs_from_1_for_a_toss_up_to_5_for_a_sure_thing_and_grows_between():
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=2)
    found = {
        gap: [a.confidence for a in outcomes(judge, repeats(300, truth=(gap, 0.0)))] for gap in (0, 0.5, 1, 1.5, 2, 6)
    }
    means = [np.mean(values) for values in found.values()]
    assert means == sorted(means)
    assert set(found[0]) == {1}
    assert set(found[6]) == {5}
    assert {value for values in found.values() for value in values} == {1, 2, 3, 4, 5}
    assert any(len(set(values)) > 1 for values in found.values())  # there is noise


def test_confidence_is_the_same_whichever_essay_is_the_better_one():
    rule = PROFILES["cj-generic"].confidence
    for probability, u in itertools.product((0.5, 0.62, 0.71, 0.9, 1.0), (0.01, 0.5, 0.99)):
        assert rule.confidence(probability, u) == rule.confidence(1 - probability, u)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_latency_has_the_mean_and_95th_percentile_of_its_profile(name):
    latency = PROFILES[name].latency
    grid = (np.arange(100_000) + 0.5) / 100_000
    drawn = np.array([latency.quantile(u) for u in grid])
    assert drawn.mean() == pytest.approx(latency.mean_seconds, rel=1e-4)
    assert latency.quantile(0.95) == pytest.approx(latency.p95_seconds, rel=1e-12)
    assert stats.kstest(np.log(drawn), "norm", args=(np.log(drawn).mean(), np.log(drawn).std())).statistic < 1e-3


def test_a_judge_asked_for_latency_waits_what_it_reports_and_draws_it_from_the_profile(monkeypatch):
    waited = []
    real_sleep = asyncio.sleep

    async def note(seconds):
        waited.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    latency = PROFILES["eng5-anchor"].latency
    assert (latency.mean_seconds, latency.p95_seconds) == (1.6, 2.2)
    answers = outcomes(SimulatedJudge(PROFILES["eng5-anchor"], seed=4, latency=True), repeats(20_000))
    assert [a.latency_seconds for a in answers] == waited
    assert np.mean(waited) == pytest.approx(1.6, abs=4 * np.std(waited) / math.sqrt(len(waited)))
    assert np.mean(np.array(waited) > 2.2) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / len(waited)))


def test_a_judge_not_asked_for_latency_answers_at_once_and_with_the_same_winners():
    requests = repeats(50, truth=(0.2, 0.0))
    answers = outcomes(SimulatedJudge(PROFILES["eng5-anchor"], seed=4), requests)
    assert np.median([a.latency_seconds for a in answers]) < 0.05
    slow = PROFILES["eng5-anchor"].model_copy(
        update={"latency": LatencyProfile(mean_seconds=0.0001, p95_seconds=0.0002)}
    )
    waited = outcomes(SimulatedJudge(slow, seed=4, latency=True), requests)
    assert [gist(a) for a in waited] == [gist(a) for a in answers]


@pytest.mark.parametrize("latency", [{"mean_seconds": 1, "p95_seconds": 1}, {"mean_seconds": 1, "p95_seconds": 3.9}])
def test_a_latency_that_no_lognormal_has_is_refused(latency):
    with pytest.raises(ValueError, match=r"at most 3\.87 times"):
        LatencyProfile(**latency)


def test_errors_come_at_their_rates_and_with_their_types():
    rates = {"rate_limited": 0.15, "timeout": 0.1, "malformed_answer": 0.05, "refused": 0.02}
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=9, error_rates=rates)
    draws = 8_000
    counts = Counter(getattr(found, "error_type", "answer") for found in outcomes(judge, repeats(draws)))
    expected = {**rates, "answer": 1 - sum(rates.values())}
    assert set(counts) == set(expected)
    observed = [counts[name] for name in expected]
    assert stats.chisquare(observed, [draws * share for share in expected.values()]).pvalue > 0.01


def test_errors_strike_both_winners_alike_and_change_no_answer_that_is_given():
    requests = repeats(8_000, truth=(0.5, 0.0))
    calm = outcomes(SimulatedJudge(PROFILES["cj-generic"], seed=9), requests)
    stormy = outcomes(SimulatedJudge(PROFILES["cj-generic"], seed=9, error_rates={"overloaded": 0.3}), requests)
    table = np.zeros((2, 2))
    for answer, found in zip(calm, stormy, strict=True):
        failed = isinstance(found, JudgeError)
        table[int(answer.winner is Winner.A), int(failed)] += 1
        assert failed or gist(found) == gist(answer)
    assert table.min() > 100
    assert stats.chi2_contingency(table).pvalue > 0.01


def test_another_attempt_may_succeed_where_the_first_failed():
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=9, error_rates={"overloaded": 0.5})
    failed = [isinstance(f, JudgeError) for f in outcomes(judge, repeats(2_000))]
    failed_again = [isinstance(f, JudgeError) for f in outcomes(judge, repeats(2_000, attempt=2))]
    both = sum(a and b for a, b in zip(failed, failed_again, strict=True))
    assert stats.binomtest(both, sum(failed), 0.5).pvalue > 0.01


@pytest.mark.parametrize(
    ("error_type", "http_status", "output_tokens"),
    [
        ("rate_limited", 429, 0),
        ("overloaded", 529, 0),
        ("timeout", None, 0),
        ("malformed_answer", 200, 54),
        ("truncated_answer", 200, 54),
        ("refused", 200, 54),
        ("provider_rejected", 401, 0),
    ],
)
def test_a_simulated_error_looks_like_the_provider_s(error_type, http_status, output_tokens):
    judge = SimulatedJudge(PROFILES["eng5-anchor"], seed=1, error_rates={error_type: 1.0})
    [error] = outcomes(judge, [request()])
    assert error.error_type == error_type
    assert error.http_status == http_status
    assert error.usage.output == output_tokens
    assert error.cost_usd == 0.0
    assert "simulated" in str(error)


@pytest.mark.parametrize(
    "rates", [{"gremlins": 0.1}, {"timeout": -0.1}, {"timeout": 1.1}, {"timeout": 0.6, "refused": 0.6}]
)
def test_error_rates_that_cannot_be_are_refused(rates):
    with pytest.raises(InputError, match="cj-generic: error_rates"):
        SimulatedJudge(PROFILES["cj-generic"], seed=1, error_rates=rates)


def test_error_rates_given_to_one_judge_do_not_stay_in_the_profile():
    SimulatedJudge(PROFILES["cj-generic"], seed=1, error_rates={"timeout": 1.0})
    assert PROFILES["cj-generic"].error_rates == {}


@pytest.mark.parametrize("truth", [None, (math.nan, 1.0), (1.0, math.inf)])
def test_a_request_without_qualities_is_rejected_for_good(truth):
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=1, error_rates={"rate_limited": 1.0})
    [error] = outcomes(judge, [request(truth=truth)])
    assert isinstance(error, ProviderRejectedError)
    assert error.fate is Fate.REJECT
    assert "needs a quality for each essay" in str(error)


@pytest.mark.parametrize("latency", [True, False])
def test_cancellation_passes_through(latency):
    judge = SimulatedJudge(PROFILES["eng5-anchor"], seed=1, latency=latency)

    async def run():
        task = asyncio.create_task(judge.judge(request()))
        await asyncio.sleep(0)  # the judge starts and waits
        assert not task.done()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


def test_an_answer_costs_nothing_and_carries_the_profile_s_tokens():
    judge = SimulatedJudge(PROFILES["eng5-anchor"], seed=1)
    [answer] = outcomes(judge, [request()])
    assert (answer.usage.input, answer.usage.output) == (1445, 54)
    assert answer.cost_usd == 0.0
    assert answer.request_id is None
    assert judge.upper_bound_usd(request().prompt) == 0.0


def test_a_justification_says_it_is_simulated_and_quotes_no_essay():
    texts = ("the dragon ate my homework", "the parrot ate my lunch")
    judge = SimulatedJudge(PROFILES["cj-generic"], seed=1)
    justifications = {a.justification for a in outcomes(judge, repeats(20, text_a=texts[0], text_b=texts[1]))}
    [justification] = justifications
    assert "simulated" in justification.lower()
    assert not {"dragon", "homework", "parrot", "lunch"} & set(justification.lower().split())


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_catalogue_judge_introduces_itself_as_simulated(name):
    judge = open_judge(name, JudgeSetup(seed=1))
    identity = judge.identity
    assert (identity.profile, identity.provider, identity.model) == (name, "simulated", f"simulated/{name}")
    assert identity.simulated
    assert needs_quality(name)
    assert asyncio.run(judge.aclose()) is None


def test_the_catalogue_knows_the_three_profiles():
    assert judge_names() == ["cj-generic", "eng5-anchor", "eng5-lower5"]
    assert not any(profile.error_rates for profile in PROFILES.values())


def test_the_catalogue_opens_the_judge_with_the_seed_and_latency_asked_for():
    requests = repeats(200, truth=(0.1, 0.0))
    expected = outcomes(SimulatedJudge(PROFILES["cj-generic"], seed=31), requests)
    assert [gist(a) for a in outcomes(open_judge("cj-generic", JudgeSetup(seed=31)), requests)] == [
        gist(a) for a in expected
    ]

    async def first_answer():
        judge = open_judge("cj-generic", JudgeSetup(seed=31, latency=True))
        return await asyncio.wait_for(judge.judge(request()), timeout=0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(first_answer())


@pytest.mark.parametrize("use", [needs_quality, lambda name: open_judge(name, JudgeSetup(seed=1))])
def test_an_unknown_judge_is_refused_with_the_known_names(use):
    with pytest.raises(InputError, match=r"no judge is called 'gpt-9': .*\(cj-generic, eng5-anchor, eng5-lower5\)"):
        use("gpt-9")


def test_a_grade_s_quality_is_its_place_on_the_scale():
    assert [grade_quality(LEGACY, grade) for grade in ("F+", "E-", "A")] == [0.0, 1.0, 8.0]
    with pytest.raises(GradeScaleError, match="'G' is not on the scale"):
        grade_quality(LEGACY, "G")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("- a\n- b\n", "must map each profile's name"),
        ("mine: 3\n", "profile mine: must be a mapping"),
        ("mine: [\n", "cannot be read as YAML"),
        ("mine: {model: gpt-9}\n", "profile mine: .*model: "),
        ("mine: {discrimination: .inf}\n", "discrimination: "),
        ("mine: {colour: red}\n", "colour: "),
        ("mine: {confidence: {edges: [0.2, 0.2, 0.5, 0.9], noise: 0}}\n", "edges must ascend"),
    ],
)
def test_a_profile_file_that_cannot_be_used_is_refused_naming_file_and_field(tmp_path, content, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=complaint) as caught:
        load_profiles(path)
    assert str(path) in str(caught.value)


def test_a_profile_file_of_one_s_own_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "mine:\n  description: d\n  model: simulated/mine\n  discrimination: 2\n  position_bias: -0.5\n"
        "  latency: {mean_seconds: 1, p95_seconds: 2}\n  tokens: {input: 1, output: 2}\n"
        "  error_rates: {rate_limited: 1}\n  confidence: {edges: [0.2, 0.4, 0.6, 0.8], noise: 0}\n"
    )
    [profile] = load_profiles(path).values()
    assert profile.probability_a(SimulatedTruth(1.0, 0.0)) == pytest.approx(logistic(1.5))
    [error] = outcomes(SimulatedJudge(profile, seed=1), [request()])
    assert isinstance(error, RateLimitedError)
