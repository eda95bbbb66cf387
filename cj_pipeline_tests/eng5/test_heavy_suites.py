"""The heavy suites of the ENG5 programme: whole batches of the shipped material, and the simulated judges' profiles.

`make eng5-suite` runs the first two (`SUITE=regular` or `SUITE=small-net` one of them), `make mock-profile PROFILE=...`
the third. They judge by serial bundles, as ENG5 trials do.
"""

import itertools
import math
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cj_pipeline.core.models import BatchingMode, BatchKind, BatchStatus, ComparisonStatus, Winner
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.handlers import AlignHandler, AlignOptions, Desk, ExecuteHandler, ExecuteOptions
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.judges.simulated import grade_quality, load_profiles
from cj_pipeline.ledger import Ledger
from cj_pipeline.metrics import exposition
from cj_pipeline.settings import BatchOverrides, CJSettings, load_settings
from cj_pipeline.workflow.intake import BatchRequest, EssaySubmission
from cj_pipeline.workflow.loop import Advance, advance_batch
from cj_pipeline.workflow.registration import submit_batch

INPUTS = Path(__file__).parents[2] / "assets_data" / "inputs"
MATERIAL = INPUTS / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016"
LEAST_PER_BUNDLE, MOST_PER_BUNDLE = 1, 8
PROFILES = ("cj-generic", "eng5-anchor", "eng5-lower5")

regular = pytest.mark.eng5_regular
small_net = pytest.mark.eng5_small_net
mock_profile = pytest.mark.mock_profile
pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CJSettings:
    monkeypatch.setenv("CJ_ENG5_ASSETS_DIR", str(MATERIAL))
    monkeypatch.setenv("CJ_LLM_BATCHING_MODE", BatchingMode.SERIAL_BUNDLE.value)
    monkeypatch.setenv("CJ_SERIAL_BUNDLE_MAX_REQUESTS_PER_CALL", str(MOST_PER_BUNDLE))
    return load_settings(data_dir=tmp_path / "data")


@pytest.fixture
def ledger(settings: CJSettings):
    settings.outputs_dir.mkdir(parents=True)
    with closing(Ledger.open(settings.effective_ledger_url)) as opened:
        yield opened


def desk(settings: CJSettings) -> Desk:
    url = settings.effective_ledger_url
    return Desk(settings, lambda: closing(Ledger.open(url)), datetime.now(UTC))


def judged_to_the_end(ledger: Ledger, settings: CJSettings, batch_id: str) -> Advance:
    for _ in range(100):
        done = advance_batch(ledger, batch_id, settings, owner=None)
        if done.status.is_final:
            return done
    raise AssertionError("a hundred runs did not end it")


def submit_lower_five(ledger: Ledger, settings: CJSettings, **overrides: object) -> None:
    """The five lowest-graded anchors of the material, as students without an assignment: a small net."""
    grades = eng5_scale().grades
    anchors = sorted(read_inventory(MATERIAL, eng5_scale()).anchors, key=lambda one: grades.index(one.grade))[:5]
    students = tuple(
        EssaySubmission(
            essay_id=anchor.anchor_id,
            text=anchor.document.text,
            quality=grade_quality(grades, anchor.grade),
            source_name=anchor.document.path,
            known_grade=anchor.grade,
        )
        for anchor in sorted(anchors, key=lambda one: one.anchor_id)
    )
    submit_batch(
        ledger,
        settings,
        BatchRequest(
            batch_id="lower5",
            assignment_id=None,
            kind=BatchKind.ANCHOR_ALIGN,
            judge="eng5-lower5",
            overrides=BatchOverrides.model_validate({"max_comparisons": 200, **overrides}),
            students=students,
        ),
    )


def samples(ledger: Ledger) -> dict[str, float]:
    """Sample name → its value, summed over labels."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(exposition(ledger).decode()):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                continue
            found[sample.name] += sample.value
    return found


def assert_callbacks_and_bundles_add_up(ledger: Ledger, batch_id: str) -> None:
    """Every comparison is answered exactly once, in its own wave, and no bundle holds more than it may."""
    batch, counts = ledger.batch(batch_id), ledger.state(batch_id)
    records, attempts = ledger.comparison_records(batch_id), ledger.attempts(batch_id)
    assert len({record.comparison_id for record in records}) == len(records) == counts.submitted
    assert {record.status for record in records} == {ComparisonStatus.JUDGED}
    assert counts.callbacks == counts.judged == len(attempts) <= (batch.total_budget or 0)
    assert len({attempt.comparison_id for attempt in attempts}) == len(attempts)
    bundles = Counter(attempt.bundle_id for attempt in attempts)
    assert None not in bundles
    assert all(LEAST_PER_BUNDLE <= size <= MOST_PER_BUNDLE for size in bundles.values())
    waves = {record.comparison_id: record.wave for record in records}
    for bundle in bundles:
        assert len({waves[attempt.comparison_id] for attempt in attempts if attempt.bundle_id == bundle}) == 1
    ended = ledger.waves(batch_id)
    assert all(wave.ended_at is not None for wave in ended)
    assert ended[-1].callbacks == counts.callbacks
    first_reads = Counter(record.essay_a for record in records)
    second_reads = Counter(record.essay_b for record in records)
    for essay in ledger.essays(batch_id):
        assert abs(first_reads[essay.essay_id] - second_reads[essay.essay_id]) <= 1


# --- whole batches -------------------------------------------------------------------------------------------------


@regular
@pytest.mark.parametrize("budget", [60, 288])
def test_24_essays_are_judged_with_every_callback_counted_once_and_every_bundle_within_its_size(
    settings: CJSettings, ledger: Ledger, budget: int
):
    ExecuteHandler().run(desk(settings), ExecuteOptions(batch_id="regular", max_comparisons=budget))
    done = judged_to_the_end(ledger, settings, "regular")
    assert len(ledger.essays("regular")) == 24
    assert done.status.has_grades
    if done.status is BatchStatus.COMPLETE_MAX_COMPARISONS:
        assert done.judged == budget
    assert_callbacks_and_bundles_add_up(ledger, "regular")
    assert "resampling" not in {wave.pair_mode.value for wave in ledger.waves("regular")}, "24 essays are no small net"


@regular
def test_a_regular_batch_goes_on_from_where_a_stopped_run_left_it(settings: CJSettings, ledger: Ledger):
    import threading

    ExecuteHandler().run(desk(settings), ExecuteOptions(batch_id="regular", max_comparisons=120))
    runs = 0
    while not ledger.batch("regular").status.is_final:
        stop = threading.Event()

        def after_a_wave(_event: object, stop: threading.Event = stop) -> None:
            stop.set()

        advance_batch(ledger, "regular", settings, stop=stop, on_event=after_a_wave, owner=None)
        runs += 1
        assert runs < 200
    assert runs > 2
    assert_callbacks_and_bundles_add_up(ledger, "regular")


@small_net
def test_lower5_is_compared_in_full_and_then_judged_again_until_its_cap(settings: CJSettings, ledger: Ledger):
    submit_lower_five(ledger, settings, score_stability_threshold=0.0)
    done = judged_to_the_end(ledger, settings, "lower5")
    assert (done.status, done.stop_reason) == (BatchStatus.COMPLETE_SMALL_NET, "small_net_cap")
    pairs = Counter(frozenset((one.essay_a, one.essay_b)) for one in ledger.comparison_records("lower5"))
    essays = [essay.essay_id for essay in ledger.essays("lower5")]
    assert set(pairs) == {frozenset(pair) for pair in itertools.combinations(essays, 2)}
    passes = ledger.state("lower5").resampling_passes
    assert passes == settings.max_resampling_passes_for_small_net
    assert max(pairs.values()) <= 1 + passes + 1  # a coverage wave may repeat a pair to repair a skew
    modes = [wave.pair_mode.value for wave in ledger.waves("lower5")]
    assert modes == [*["coverage"] * (len(modes) - passes), *["resampling"] * passes]
    assert_callbacks_and_bundles_add_up(ledger, "lower5")


@small_net
def test_lower5_ends_early_where_its_scores_stand_still_and_never_beyond_its_budget(
    settings: CJSettings, ledger: Ledger
):
    submit_lower_five(ledger, settings, score_stability_threshold=5.0)
    done = judged_to_the_end(ledger, settings, "lower5")
    assert done.status is BatchStatus.COMPLETE_STABLE
    assert ledger.state("lower5").resampling_passes <= 1
    assert_callbacks_and_bundles_add_up(ledger, "lower5")


@small_net
def test_lower5_stops_at_a_budget_below_its_pairs(settings: CJSettings, ledger: Ledger):
    submit_lower_five(ledger, settings, max_comparisons=7, score_stability_threshold=0.0)
    done = judged_to_the_end(ledger, settings, "lower5")
    assert (done.status, done.judged) == (BatchStatus.COMPLETE_MAX_COMPARISONS, 7)
    assert_callbacks_and_bundles_add_up(ledger, "lower5")


# --- profiles ------------------------------------------------------------------------------------------------------


@mock_profile
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_judges_the_anchors_as_its_law_says_and_its_metrics_add_up(
    settings: CJSettings, ledger: Ledger, profile: str
):
    law = load_profiles()[profile]
    options = AlignOptions(batch_id="parity", judge=profile, max_comparisons=66)
    AlignHandler().run(desk(settings), options)
    judged_to_the_end(ledger, settings, "parity")
    assert_callbacks_and_bundles_add_up(ledger, "parity")

    quality = {essay.essay_id: essay.quality for essay in ledger.essays("parity")}
    judged = ledger.comparison_records("parity")
    chances = [
        1 / (1 + math.exp(-law.discrimination * (quality[one.essay_a] - quality[one.essay_b]) - law.position_bias))
        for one in judged
    ]
    wins = sum(one.winner == Winner.A.value for one in judged)
    spread = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    assert abs(wins - sum(chances)) < 4 * spread, f"A won {wins} of {len(judged)}"

    attempts = ledger.attempts("parity")
    assert {(attempt.provider, attempt.model) for attempt in attempts} == {("simulated", law.model)}
    assert all(attempt.cost_usd == 0 for attempt in attempts)
    found = samples(ledger)
    bundles = len({attempt.bundle_id for attempt in attempts})
    assert found["llm_provider_serial_bundle_calls_total"] == bundles >= 1
    assert found["llm_provider_serial_bundle_items_per_call_count"] == bundles
    assert found["llm_provider_serial_bundle_items_per_call_sum"] == len(judged) <= MOST_PER_BUNDLE * bundles
    waits = found["llm_provider_queue_wait_time_seconds_count"]
    assert waits == len(judged)
    assert 0 <= found["llm_provider_queue_wait_time_seconds_sum"] / waits <= 120
    assert found["llm_provider_queue_depth"] == 0
    assert found["llm_provider_comparison_callbacks_total"] == len(judged)
