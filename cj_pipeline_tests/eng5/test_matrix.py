"""A matrix becomes one batch per cell, sound and costed before anything is stored, and never more than its ceiling."""

import shutil
from datetime import date
from pathlib import Path

import pytest

from cj_pipeline.core.errors import RequestError
from cj_pipeline.core.models import BatchKind
from cj_pipeline.eng5.artefact_verification import read_artefact
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.eng5.matrix import CellState, cell_id, plan_matrix, submit_matrix
from cj_pipeline.eng5.matrix_file import MatrixFile, MatrixJudge, MatrixPrompts
from cj_pipeline.ledger import Lease, Ledger
from cj_pipeline_tests.eng5.folders import assets_in
from cj_pipeline_tests.workflow.files import write
from cj_pipeline_tests.workflow.scenes import advance, settings

INPUTS = Path(__file__).parents[2] / "assets_data" / "inputs"
TODAY = date(2026, 11, 21)
BASE = MatrixPrompts(label="base", system="1", rubric="1")
CAPPED = MatrixPrompts(label="capped", system="3", rubric="3")
OWN = MatrixPrompts(label="own")
SIMULATED = (MatrixJudge(label="fair", judge="cj-generic"), MatrixJudge(label="sharp", judge="eng5-anchor"))
HAIKU = MatrixJudge(label="haiku", judge="anthropic/claude-haiku-4-5")
LOW = HAIKU.model_copy(update={"label": "low", "reasoning_effort": "low"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with the shipped prompts and prices, and small assets."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(INPUTS / "prompts", folder / "inputs" / "prompts")
    shutil.copy(INPUTS / "prices.yaml", folder / "inputs")
    assets_in(folder / "assets", ("F+", "E-", "C-", "A"))
    return folder


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield opened
    opened.close()


def described(judges=SIMULATED, prompts=(BASE, CAPPED, OWN), **changes):
    return MatrixFile(matrix="m", judges=judges, prompts=prompts, **({"max_comparisons": 6} | changes))


def planned(data, ledger, file, **stated):
    inventory = read_inventory(data / "assets", eng5_scale())
    return plan_matrix(settings(data_dir=data, **stated), ledger, inventory, eng5_scale(), file, today=TODAY)


def submitted(data, ledger, file):
    made = planned(data, ledger, file)
    return made, submit_matrix(ledger, settings(data_dir=data), made)


def problems(data, ledger, file, **stated):
    with pytest.raises(RequestError) as raised:
        planned(data, ledger, file, **stated)
    return raised.value.problems


def publish(ledger, batch_id):
    with Lease.acquire(ledger, batch_id, owner="test", seconds=30) as lease:
        lease.mark_published(ledger.state(batch_id).judged)


def over(ledger, batch_id):
    advance(ledger, batch_id)
    publish(ledger, batch_id)


def test_every_judge_meets_every_prompt_in_a_batch_of_its_own(data, ledger):
    made, done = submitted(data, ledger, described())
    assert [cell.batch_id for cell in made.cells] == [
        f"eng5-matrix-m-{judge}-{prompts}" for judge in ("fair", "sharp") for prompts in ("base", "capped", "own")
    ]
    assert all(submission.created and submission.total_budget == 6 for submission in done)
    capped = ledger.batch("eng5-matrix-m-sharp-capped")
    assert (capped.kind, capped.judge_profile) == (BatchKind.ANCHOR_ALIGN, "eng5-anchor")
    assert capped.settings["judge_rubric_name"] == capped.settings["system_prompt_name"] == "003_language_control"
    own = ledger.batch("eng5-matrix-m-sharp-own")
    assert own.settings["system_prompt"] is None and own.settings["judge_rubric"] == "Compare them."


def test_every_cell_has_a_run_artefact_which_says_so_far_what_was_asked(data, ledger):
    made, _ = submitted(data, ledger, described())
    for cell in made.cells:
        folder = data / "outputs" / "eng5" / cell.batch_id
        artefact = read_artefact(folder / "assessment_run.anchor-align-test.json")
        assert artefact.metadata.judge.profile == cell.judge.judge
        assert artefact.validation.runner_status.partial_data


def test_a_cell_whose_id_another_mode_has_used_is_a_problem(data, ledger):
    taken = write(data / "outputs" / "eng5" / "eng5-matrix-m-fair-base" / "assessment_run.execute.json", "{}")
    try:
        (problem,) = problems(data, ledger, described())
    finally:
        taken.unlink()
    assert "eng5-matrix-m-fair-base" in problem and "assessment_run.execute.json" in problem


def test_the_same_file_again_changes_nothing_and_leaves_out_what_is_over(data, ledger):
    submitted(data, ledger, described())
    over(ledger, "eng5-matrix-m-fair-base")
    made, done = submitted(data, ledger, described())
    assert not any(submission.created for submission in done)
    assert len(ledger.batches()) == 6
    states = {cell.batch_id: cell.state for cell in made.cells}
    assert states.pop("eng5-matrix-m-fair-base") is CellState.OVER
    assert set(states.values()) == {CellState.OPEN}
    assert "eng5-matrix-m-fair-base" not in [cell.batch_id for cell in made.to_run]


def test_rows_columns_and_repeats_can_be_added_to_a_matrix(data, ledger):
    submitted(data, ledger, described(SIMULATED[:1], (BASE,)))
    made, _ = submitted(data, ledger, described(SIMULATED, (BASE, CAPPED), repeats=2))
    states = [cell.state for cell in made.cells]
    assert states.count(CellState.OPEN) == 1 and states.count(CellState.NEW) == 7
    seeds = {
        batch.batch_id: batch.settings["pair_generation_seed"]
        for batch in ledger.batches()
        if batch.batch_id.startswith("eng5-matrix-m-fair-base")
    }
    assert len(set(seeds.values())) == len(seeds) == 2


def test_a_cell_that_the_file_means_otherwise_by_now_stops_everything(data, ledger):
    submitted(data, ledger, described(SIMULATED[:1], (BASE,)))
    changed = described(
        (SIMULATED[1].model_copy(update={"label": "fair"}),), (CAPPED.model_copy(update={"label": "base"}), OWN)
    )
    (told,) = problems(data, ledger, changed)
    assert "eng5-matrix-m-fair-base" in told and "other judge and prompts" in told and "another name" in told
    (told,) = problems(data, ledger, described(SIMULATED[:1], (BASE,), max_comparisons=7))
    assert "other settings" in told
    assert len(ledger.batches()) == 1


def test_changed_anchors_are_another_matrix(data, ledger, tmp_path):
    submitted(data, ledger, described(SIMULATED[:1], (BASE,)))
    regraded = read_inventory(assets_in(tmp_path / "other", ("F+", "E+", "C-", "A")), eng5_scale())
    with pytest.raises(RequestError, match="other anchors"):
        plan_matrix(
            settings(data_dir=data), ledger, regraded, eng5_scale(), described(SIMULATED[:1], (BASE,)), today=TODAY
        )


def test_every_problem_of_judges_and_prompts_is_listed_and_nothing_stored(data, ledger):
    told = problems(
        data,
        ledger,
        described(
            (MatrixJudge(label="who", judge="nobody"), HAIKU),
            (
                BASE,
                MatrixPrompts(label="gone", system="77", rubric="./mine.txt"),
                BASE.model_copy(update={"label": "x"}),
            ),
            max_comparisons=5000,
        ),
    )
    for words in (
        ("judge who", "nobody", "cj-generic"),
        ("prompts gone", "77", "003_language_control"),
        ("prompts gone", "mine.txt", "no such file"),
        ("prompts base and x", "same texts"),
        ("max_cost_usd", "is missing", "haiku"),
        ("5000", "CJ_MAX_PAIRWISE_COMPARISONS"),
    ):
        assert any(all(word in problem for word in words) for problem in told), (words, told)
    assert ledger.batches() == []


def test_one_variant_named_in_two_ways_is_one_column_too_many(data, ledger):
    twin = MatrixPrompts(label="twin", system="001_baseline", rubric="baseline")
    (told,) = problems(data, ledger, described(SIMULATED, (BASE, twin)))
    assert "base and twin" in told


def test_labels_that_would_make_one_batch_id_or_too_long_a_one_are_refused(data, ledger):
    judges = (MatrixJudge(label="a", judge="cj-generic"), MatrixJudge(label="a-b", judge="eng5-anchor"))
    prompts = (CAPPED.model_copy(update={"label": "b-c"}), BASE.model_copy(update={"label": "c"}))
    (told,) = problems(data, ledger, described(judges, prompts))
    assert "eng5-matrix-m-a-b-c" in told and "a × b-c" in told and "a-b × c" in told
    long = described(
        (MatrixJudge(label="j" * 24, judge="cj-generic"),), (BASE.model_copy(update={"label": "p" * 24}),), repeats=2
    )
    told = problems(data, ledger, long.model_copy(update={"matrix": "name"}))
    assert len(told) == 2 and all("64 are allowed" in problem for problem in told)


def test_a_plan_needs_no_ledger(data):
    made = planned(data, None, described())
    assert {cell.state for cell in made.cells} == {CellState.NEW}
    assert made.expected_usd == 0 and made.never_more_than_usd == 0


# --- money -------------------------------------------------------------------------------------------------------


def walls(made):
    return {cell.batch_id: cell.wall_usd for cell in made.cells if cell.wall_usd is not None}


def test_the_cells_that_cost_money_share_the_ceiling_and_never_exceed_it(data, ledger):
    made, _ = submitted(data, ledger, described((HAIKU, LOW, SIMULATED[0]), (BASE, CAPPED), max_cost_usd=7.0))
    stored = {batch.batch_id: batch.settings["max_cost_usd"] for batch in ledger.batches()}
    assert {batch_id: wall for batch_id, wall in stored.items() if wall is not None} == walls(made)
    assert len(walls(made)) == 4 and all("fair" not in batch_id for batch_id in walls(made))
    assert sum(walls(made).values()) <= 7.0
    assert sum(walls(made).values()) == pytest.approx(7.0, abs=1e-5)
    for cell in made.cells:
        if cell.cost is not None:
            assert cell.wall_usd >= cell.cost.at_budget
    assert made.expected_usd == pytest.approx(sum(cell.cost.at_budget for cell in made.cells if cell.cost))


def test_a_ceiling_below_the_expected_cost_is_refused_with_the_one_that_would_do(data, ledger):
    expected = planned(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=99.0)).expected_usd
    (told,) = problems(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=expected / 2))
    assert "max_cost_usd" in told and f"{expected:.2f} or more" in told


def test_a_ceiling_that_calls_in_flight_may_reach_early_is_warned_of(data, ledger):
    wide = planned(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=99.0))
    assert wide.warnings == ()
    tight = planned(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=wide.expected_usd * 1.2))
    (warning,) = tight.warnings
    assert "before their 6 comparisons" in warning


def test_a_file_submitted_again_keeps_every_share_whatever_the_ceiling_is_now(data, ledger):
    first, _ = submitted(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=3.0))
    again, done = submitted(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=5.0))
    assert not done[0].created and walls(again) == walls(first)


def test_added_cells_share_what_the_others_leave(data, ledger):
    first, _ = submitted(data, ledger, described((HAIKU,), (BASE,), max_cost_usd=3.0))
    (told,) = problems(data, ledger, described((HAIKU,), (BASE, CAPPED), max_cost_usd=3.0))
    assert "is left for them" in told
    grown, _ = submitted(data, ledger, described((HAIKU,), (BASE, CAPPED), max_cost_usd=5.0))
    assert sum(walls(grown).values()) <= 5.0
    assert walls(grown).items() >= walls(first).items()


def test_a_judge_whose_price_is_unknown_cannot_have_a_ceiling(data, ledger):
    unpriced = MatrixJudge(label="mine", judge="compatible/llama")
    told = problems(
        data, ledger, described((unpriced,), (BASE,), max_cost_usd=3.0), openai_compatible_base_url="http://x/v1"
    )
    assert any("max_cost_usd needs a known price" in problem for problem in told)
    made = planned(data, ledger, described((unpriced,), (BASE,)), openai_compatible_base_url="http://x/v1")
    assert made.expected_usd is None


def test_the_first_repeat_has_the_id_of_a_matrix_without_repeats():
    assert cell_id("m", "a", "b") == cell_id("m", "a", "b", 1) == "eng5-matrix-m-a-b"
    assert cell_id("m", "a", "b", 3) == "eng5-matrix-m-a-b-r3"
