"""A plan lists what is wrong at once, and costs a judge by its price and the length of what it would read."""

from datetime import date

import pytest

from cj_pipeline.core.errors import RequestError
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.eng5.plan import make_plan, plan_json
from cj_pipeline_tests.eng5.folders import assets_in
from cj_pipeline_tests.workflow.files import write
from cj_pipeline_tests.workflow.scenes import settings

TODAY = date(2026, 11, 21)
PRICES = """
prices:
  - provider: anthropic
    model: claude-haiku-4-5
    effective_from: 2026-01-01
    usd_per_million: {input: 2.0, cache_read: 0.2, cache_write: 2.5, output: 10.0}
    batch_discount: 0.5
    source: made up
    retrieved: 2026-01-01
"""


@pytest.fixture
def planned(tmp_path):
    """Plans on a small assets folder, with a price list of its own."""
    assets = assets_in(tmp_path / "assets", students=3)
    write(tmp_path / "data" / "inputs" / "prices.yaml", PRICES)

    def plan(*, judge="anthropic/claude-haiku-4-5", replications=0, **overrides):
        return make_plan(
            settings(data_dir=tmp_path / "data"),
            read_inventory(assets, eng5_scale()),
            eng5_scale(),
            judge=judge,
            overrides=overrides,
            replications=replications,
            today=TODAY,
        )

    plan.assets = assets
    return plan


def test_what_stands_against_a_plan_is_listed_at_once(planned):
    with pytest.raises(RequestError) as raised:
        planned(judge="eng5-anchor", max_comparisons=5000)
    assert "CJ_MAX_PAIRWISE_COMPARISONS" in str(raised.value)
    assert "quality.csv" in str(raised.value) and "s1, s2, s3" in str(raised.value)
    with pytest.raises(RequestError) as raised:
        planned(judge="nobody", max_comparisons=5000)
    assert "nobody" in str(raised.value) and "CJ_MAX_PAIRWISE_COMPARISONS" in str(raised.value)


def test_longer_essays_cost_more_by_a_token_for_four_bytes_of_each_of_two(planned):
    before = planned(max_comparisons=100).cost
    longer = 4000
    for path in [*(planned.assets / "student_essays").iterdir()]:
        write(path, path.read_text() + "x" * longer)
    for path in [*(planned.assets / "anchor_essays").iterdir()]:
        path.unlink()
    grades = ("F+", "C-", "A")
    table = ["ANCHOR-ID,FILE-NAME,grade"]
    for number, grade in enumerate(grades, start=1):
        name = f"anchor_essay_eng_5_17_vt_{number:03}_{grade}.txt"
        write(planned.assets / "anchor_essays" / name, f"The text of anchor number {number}." + "x" * longer)
        table.append(f"a{number},{name},{grade}")
    write(planned.assets / "ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA.csv", "\n".join(table) + "\n")
    after = planned(max_comparisons=100).cost
    grown = 2 * longer / 4 * 2.0 / 1e6
    assert after.per_judgment - before.per_judgment == pytest.approx(grown, rel=0.01)
    assert after.at_budget == pytest.approx(100 * after.per_judgment)
    assert after.never_more_than > 3 * after.at_budget, "three attempts, none of them shorter than expected"


def test_a_provider_batch_job_costs_what_its_discount_leaves(planned):
    alone = planned(max_comparisons=100).cost
    in_job = planned(max_comparisons=100, llm_batching_mode="provider_batch_api", batch_api_mode="nightly").cost
    assert in_job.per_judgment == pytest.approx(alone.per_judgment / 2)


def test_an_unpriced_judge_has_no_cost_and_the_plan_says_so(planned):
    plan = planned(judge="anthropic/claude-unheard-of")
    assert plan.cost is None
    assert any("no price is known" in warning for warning in plan.warnings)


def test_expected_accuracy_is_that_of_simulated_exams_of_the_same_size(planned):
    from cj_pipeline.core.simulation import Exam, budget_table, simulate_exams

    plan = planned(max_comparisons=24, replications=2)
    same = simulate_exams(
        Exam(students=3, anchors=3), settings(), eng5_scale(), budget=24, replications=2, seed=1
    )  # fmt: skip
    assert plan.accuracy.rows[-1] == budget_table(same, [24])[0]
    assert plan.cost.at_stop == pytest.approx(plan.cost.per_judgment * plan.accuracy.stopped[1])


def test_machines_get_the_manifest_and_no_text(planned):
    told = plan_json(planned())
    assert told["manifest_length"] == len(told["manifest"]) == 2 + 1 + 3 + 3
    assert all(len(sha256) == 64 for sha256 in told["manifest"].values())
    assert "The text of" not in str(told)
