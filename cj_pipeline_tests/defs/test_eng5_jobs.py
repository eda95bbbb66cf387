"""The modes of the ENG5 programme as jobs, on a real ledger, and the run artefact as an asset."""

import json
from pathlib import Path

import pytest
from dagster import DagsterInstance, ExecuteInProcessResult

from cj_pipeline.eng5.anchor_align import align_request
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.settings import load_settings
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline_tests.defs.stage import QUIET, Stage
from cj_pipeline_tests.eng5.folders import assets_in


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage.alone(tmp_path, monkeypatch)
    assets = assets_in(tmp_path / "material", ("F+", "D-", "B", "A"))
    (assets / "student_essays" / "quality.csv").write_text("essay_id,quality\ns1,2\ns2,5\n")
    monkeypatch.setenv("CJ_ENG5_ASSETS_DIR", str(assets))
    return made


def launch(stage: Stage, instance: DagsterInstance, mode: str, **options: object) -> ExecuteInProcessResult:
    return stage.job(f"eng5_{mode}_job").execute_in_process(
        instance=instance, raise_on_error=False, run_config=QUIET | {"ops": {f"eng5_{mode}": {"config": options}}}
    )


def told(result: ExecuteInProcessResult, mode: str) -> dict:
    (output,) = [event for event in result.events_for_node(f"eng5_{mode}") if event.is_successful_output]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_a_plan_and_a_dry_run_leave_no_ledger(stage: Stage):
    with DagsterInstance.ephemeral() as instance:
        plan = told(launch(stage, instance, "plan", max_comparisons=12, replications=0), "plan")
        assert (plan["anchors"], plan["students"], plan["budget"]) == (4, 2, 12)
        dry = told(launch(stage, instance, "dry_run", batch_id="rehearsal", max_comparisons=12), "dry_run")
        assert json.loads(Path(dry["path"]).read_text())["metadata"]["mode"] == "dry-run"
        assert instance.get_dynamic_partitions("cj_batch") == []
    assert not (stage.data_dir / "outputs" / "ledger.sqlite").exists()


def test_what_execute_submits_is_a_partition_whose_run_brings_the_artefact_up_to_date(stage: Stage):
    with DagsterInstance.ephemeral() as instance:
        begun = told(launch(stage, instance, "execute", batch_id="e1", max_comparisons=6), "execute")
        assert instance.get_dynamic_partitions("cj_batch") == ["e1"]
        path = Path(begun["path"])
        assert json.loads(path.read_text())["validation"]["runner_status"]["partial_data"] is True
        result = stage.run(instance, "assess_batch_job", "e1")
        assert result.success
    artefact = json.loads(path.read_text())
    assert artefact["validation"]["runner_status"]["partial_data"] is False
    (one,) = result.asset_materializations_for_node("assessment_run")
    assert one.metadata["judged"].value == len(artefact["results"]["comparisons"]) == 6
    assert one.metadata["mode"].value == "execute"


@pytest.mark.slow
def test_an_alignment_that_no_mode_submitted_gets_its_artefact_when_it_is_published(stage: Stage):
    settings = load_settings(data_dir=stage.data_dir)
    inventory = read_inventory(settings.effective_eng5_assets_dir, eng5_scale())
    request = align_request(
        inventory, eng5_scale(), batch_id="cell", judge="cj-generic", system=None, rubric=None,
        overrides={"max_comparisons": 6},
    )  # fmt: skip
    (stage.data_dir / "outputs").mkdir(exist_ok=True)
    with stage.ledger() as ledger:
        submit_batch(ledger, settings, request)
    with DagsterInstance.ephemeral() as instance:
        result = stage.run(instance, "assess_batch_job", "cell")
    (one,) = result.asset_materializations_for_node("assessment_run")
    assert one.metadata["mode"].value == "anchor-align-test"
    artefact = json.loads(Path(one.metadata["path"].value).read_text())
    assert artefact["metadata"]["batch_id"] == "cell" and len(artefact["results"]["comparisons"]) == 6


def test_an_option_that_may_not_be_so_fails_the_run_with_its_reason_and_stores_nothing(stage: Stage):
    with DagsterInstance.ephemeral() as instance:
        result = launch(stage, instance, "anchor_align_test", rubric="no-such-file.txt")
    assert not result.success
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "no-such-file.txt" in failure.user_failure_data.description
    assert not (stage.data_dir / "outputs" / "ledger.sqlite").exists()
