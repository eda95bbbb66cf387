"""Judge against experts, as an asset with its targets as checks."""

from pathlib import Path

import pytest
from dagster import AssetCheckSeverity, DagsterInstance, ExecuteInProcessResult

from cj_pipeline.eng5.anchor_align import align_request
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.settings import load_settings
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline_tests.defs.stage import Stage
from cj_pipeline_tests.eng5.folders import assets_in

GRADES = ("F+", "E-", "D-", "C-", "B", "A")
CHECKS = {"inversions_target", "zero_win_target", "tau_b_target", "top_regressions_target"}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage.alone(tmp_path, monkeypatch)


def play(stage: Stage, batch_id: str, job: str = "assess_batch_job") -> ExecuteInProcessResult:
    with DagsterInstance.ephemeral() as instance:
        return stage.run(instance, job, batch_id)


def evaluations(result: ExecuteInProcessResult) -> dict:
    return {one.check_name: one for one in result.get_asset_check_evaluations() if one.check_name in CHECKS}


def reported(result: ExecuteInProcessResult) -> list:
    return result.asset_materializations_for_node("alignment_report")


def submit_anchors(stage: Stage) -> None:
    inventory = read_inventory(assets_in(stage.home / "assets", GRADES), eng5_scale())
    # five judgments cannot give six anchors a win each: a target is missed for certain
    request = align_request(
        inventory,
        eng5_scale(),
        batch_id="align",
        judge="cj-generic",
        system=None,
        rubric=None,
        overrides={"max_comparisons": 5},
    )
    (stage.data_dir / "outputs").mkdir(exist_ok=True)
    with stage.ledger() as ledger:
        submit_batch(ledger, load_settings(data_dir=stage.data_dir), request)


@pytest.mark.slow
def test_a_missed_target_is_a_warning_and_where_targets_are_enforced_the_runs_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_anchors(stage)
    result = play(stage, "align")
    assert result.success
    (one,) = reported(result)
    folder = stage.data_dir / "outputs" / "eng5" / "align"
    assert one.metadata["path"].value == str(folder / "alignment_report.md")
    assert one.metadata["zero_win"].value >= 1
    found = evaluations(result)
    assert set(found) == CHECKS
    assert {check.severity for check in found.values()} == {AssetCheckSeverity.WARN}
    assert not found["zero_win_target"].passed and "anchors without a win" in found["zero_win_target"].description

    first = (folder / "alignment_report.html").read_bytes()
    monkeypatch.setenv("CJ_ENFORCE_TARGETS", "true")
    again = play(stage, "align", "rescore_batch_job")
    assert not again.success
    assert {name: check.passed for name, check in evaluations(again).items()} == {
        name: check.passed for name, check in found.items()
    }
    assert (folder / "alignment_report.html").read_bytes() == first


def test_an_assessment_has_no_alignment_report_and_its_run_succeeds(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CJ_ENFORCE_TARGETS", "true")
    stage.submit_demo("b", students=3, max_comparisons=10)
    result = play(stage, "b")
    assert result.success
    assert reported(result) == [] and evaluations(result) == {}
