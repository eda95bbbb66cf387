"""The definitions as Dagster loads them: complete, quick, and without looking at the world."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dagster import (
    AssetKey,
    DagsterInvalidSubsetError,
    DefaultSensorStatus,
    Definitions,
    TableSchema,
    asset,
    define_asset_job,
    in_process_executor,
)

from cj_pipeline.definitions import build_definitions, defs
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.eng5.calibration_files import BANK_TABLE, NIGHTS_TABLE
from cj_pipeline.eng5.leaderboard import ALIGNMENT_LEADERBOARD
from cj_pipeline.workflow import frames
from cj_pipeline_tests.defs.stage import ROOT, Stage

GROUPS = {
    "essays": "inputs",
    "anchors": "inputs",
    "pair_waves": "judging",
    "llm_judgments": "judging",
    "bt_scores": "scoring",
    "bt_se_summary": "scoring",
    "bt_quality_flags": "scoring",
    "batch_state": "scoring",
    "grade_projections": "results",
    "comparison_graph": "publishing",
    "alignment_report": "eng5",
    "assessment_run": "eng5",
    "anchor_bank": "calibration",
    "anchor_calibration_history": "calibration",
    "alignment_leaderboard": "eng5_across_batches",
}
ACROSS_BATCHES = {"anchor_bank", "anchor_calibration_history", "alignment_leaderboard"}
"""Unpartitioned: about all batches, and so in no job that advances one."""
TABLES = {
    "essays": frames.ESSAYS,
    "anchors": frames.ESSAYS,
    "pair_waves": frames.PAIRS,
    "llm_judgments": frames.JUDGMENTS,
    "bt_scores": frames.BT_SCORES,
    "bt_se_summary": frames.SE_SUMMARIES,
    "bt_quality_flags": frames.QUALITY_FLAGS,
    "batch_state": frames.BATCHES,
    "grade_projections": frames.GRADE_PROJECTIONS,
    "anchor_bank": BANK_TABLE,
    "anchor_calibration_history": NIGHTS_TABLE,
    "alignment_leaderboard": ALIGNMENT_LEADERBOARD,
}
CHECKS = {
    "essays_expectations": "essays",
    "anchors_expectations": "anchors",
    "judgments_expectations": "llm_judgments",
    "budget_is_a_wall": "pair_waves",
    "positions_are_balanced": "pair_waves",
    "counters_match_the_ledger": "llm_judgments",
    "graph_is_connected": "bt_scores",
    "probabilities_sum_to_one": "grade_projections",
    "batch_succeeded": "comparison_graph",
    "inversions_target": "alignment_report",
    "zero_win_target": "alignment_report",
    "tau_b_target": "alignment_report",
    "top_regressions_target": "alignment_report",
    "anchor_drift_in_control": "anchor_calibration_history",
    "tau_b_in_control": "anchor_calibration_history",
    "position_bias_in_control": "anchor_calibration_history",
    "cost_in_control": "anchor_calibration_history",
    "latency_in_control": "anchor_calibration_history",
    "night_is_there": "anchor_calibration_history",
}
LOAD_UNDER_WATCH = """
import sys

touched = []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        touched.append(f"wrote {arguments[0]}")
    if event in ("sqlite3.connect", "socket.connect", "os.mkdir"):
        touched.append(f"{event} {arguments[:1]}")

sys.addaudithook(watch)
import cj_pipeline.definitions

assert cj_pipeline.definitions.defs is not None
heavy = {"great_expectations", "matplotlib", "openai", "anthropic", "pandas"} & set(sys.modules)
print("touched", touched)
print("heavy", sorted(heavy))
"""


def test_loading_the_definitions_touches_nothing_and_no_setting_can_keep_them_from_loading(tmp_path: Path) -> None:
    # any of these would be refused if it were read
    poison = {
        "CJ_LEASE_SECONDS": "never",
        "CJ_LEDGER_URL": "mysql://nowhere",
        "CJ_DATA_DIR": "/proc/nowhere",
        "CJ_LAKE_URL": "nosuchscheme://lake",
    }
    folder = tmp_path / "empty"
    folder.mkdir(mode=0o555)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CJ_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-B", "-c", LOAD_UNDER_WATCH],
        cwd=folder,
        env=clean | poison,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["touched []", "heavy []"]
    assert list(folder.iterdir()) == []


def test_the_definitions_are_loadable() -> None:
    Definitions.validate_loadable(defs)


def test_every_asset_says_what_it_is_whose_it_is_and_what_made_it() -> None:
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert {name: spec.group_name for name, spec in specs.items()} == GROUPS
    for name, spec in specs.items():
        assert spec.owners == ["team:assessment"], name
        assert spec.kinds, name
        assert spec.description and len(spec.description) > 20, name
        assert spec.code_version, name
        assert spec.partitions_def == (None if name in ACROSS_BATCHES else CJ_BATCH), name


def test_every_tabular_asset_shows_the_columns_it_has() -> None:
    for spec in defs.resolve_all_asset_specs():
        name = spec.key.to_user_string()
        schema = spec.metadata.get("dagster/column_schema")
        if name not in TABLES:
            assert schema is None, name
            continue
        assert isinstance(schema, TableSchema), name
        assert [column.name for column in schema.columns] == list(TABLES[name].schema), name
        assert all(column.description for column in schema.columns), name
        assert {column.name for column in schema.columns if column.constraints.nullable} == {
            column.name for column in TABLES[name].columns if column.nullable
        }, name


def test_every_check_belongs_to_its_asset_and_partition_and_only_the_last_ones_block() -> None:
    graph = defs.resolve_asset_graph()
    specs = {key.name: graph.get_check_spec(key) for key in graph.asset_check_keys}
    assert {name: spec.asset_key.to_user_string() for name, spec in specs.items()} == CHECKS
    last = {name for name, asset in CHECKS.items() if asset == "alignment_report"}
    assert {name for name, spec in specs.items() if spec.blocking} == {"batch_succeeded", *last}
    for name, spec in specs.items():
        assert spec.partitions_def == (None if CHECKS[name] in ACROSS_BATCHES else CJ_BATCH), name
        assert spec.description, name


_SHARED_STEP = {name: "alignment_targets" for name in CHECKS if name.endswith("_target")} | {
    name: "calibration_control" for name in CHECKS if name.endswith("_in_control")
}


def _selected(job: str) -> tuple[set[str], set[str]]:
    resolved = defs.resolve_job_def(job)
    layer = resolved.asset_layer
    steps = {node.name for node in resolved.nodes}
    checks = {key.name for key in layer.asset_graph.asset_check_keys}
    # a check is selected if it is a step of the job, named after its asset and itself; the targets share one
    selected = {name for name in checks if {f"{CHECKS[name]}_{name}", _SHARED_STEP.get(name)} & steps}
    return {key.to_user_string() for key in layer.selected_asset_keys}, selected


@pytest.mark.parametrize(
    ("job", "groups"),
    [
        ("assess_batch_job", {"inputs", "judging", "scoring", "results", "publishing", "eng5"}),
        ("continue_batch_job", {"judging", "scoring", "results", "publishing", "eng5"}),
        ("rescore_batch_job", {"scoring", "results", "publishing", "eng5"}),
        ("calibration_history_job", {"calibration"}),
        ("alignment_leaderboard_job", {"eng5_across_batches"}),
    ],
)
def test_a_job_has_its_groups_and_the_checks_of_its_assets(job: str, groups: set[str]) -> None:
    assets, checks = _selected(job)
    assert assets == {name for name, group in GROUPS.items() if group in groups}
    assert checks == {name for name, of in CHECKS.items() if of in assets}


def test_runs_stay_in_one_process() -> None:
    jobs = [job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")]
    assert len(jobs) == 11
    assert {job.executor_def.name for job in [*jobs, defs.resolve_implicit_global_asset_job_def()]} == {
        in_process_executor.name
    }


@pytest.mark.parametrize("alone", ["pair_waves", "llm_judgments"])
def test_plan_and_judgments_are_made_together_or_not_at_all(alone: str) -> None:
    everything = defs.resolve_implicit_global_asset_job_def()
    with pytest.raises(DagsterInvalidSubsetError, match="does not support subsetting"):
        everything.get_subset(asset_selection={AssetKey(alone)})
    both = everything.get_subset(asset_selection={AssetKey("pair_waves"), AssetKey("llm_judgments")})
    assert both.asset_layer.selected_asset_keys == {AssetKey("pair_waves"), AssetKey("llm_judgments")}


def test_all_sensors_run_without_being_switched_on() -> None:
    sensors = {sensor.name: sensor.default_status for sensor in defs.sensors or []}
    assert sensors == dict.fromkeys(
        [
            "new_batch_sensor",
            "calibration_history_sensor",
            "continue_batch_sensor",
            "provider_batch_sensor",
            "batch_monitor_sensor",
            "terminated_run_sensor",
            "alignment_leaderboard_sensor",
        ],
        DefaultSensorStatus.RUNNING,
    )


def test_a_resource_can_be_replaced_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    stage = Stage(tmp_path / "home")
    changed = build_definitions({"cj": stage.cj})
    assert changed.resources is not None
    assert defs.resources is not None
    assert changed.resources["cj"].data_dir == str(stage.data_dir)
    assert changed.resources["io_manager"].base_url is None
    assert defs.resources["cj"].data_dir is None
    Definitions.validate_loadable(changed)


def test_the_instance_watches_runs_and_lets_one_batch_have_one_run(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with Stage(tmp_path / "home").instance() as instance:
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 2
        assert queue.tag_concurrency_limits == [
            {"key": "dagster/partition", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}
        ]
        # slots of runs that were cancelled are given back
        assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] > 0


def test_the_workspace_names_the_module_that_dagster_loads() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    assert [location["python_module"]["module_name"] for location in workspace["load_from"]] == [
        "cj_pipeline.definitions"
    ]


def test_the_workspace_loads_and_validates(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    stage = Stage(tmp_path / "home")
    done = stage.call("dagster", "definitions", "validate", "-w", "workspace.yaml")
    assert done.returncode == 0, done.stderr
    assert "cj_pipeline" in done.stderr + done.stdout
    assert not (stage.data_dir / "outputs").exists()


@asset(name="stranger")
def _stranger() -> None:
    """An asset of somebody else."""


def test_an_unpartitioned_asset_beside_ours_does_not_break_the_selection_of_everything() -> None:
    job = define_asset_job("everything", selection="*")
    merged = Definitions.merge(build_definitions(), Definitions(assets=[_stranger], jobs=[job]))
    keys = merged.resolve_job_def("everything").asset_layer.selected_asset_keys
    assert {key.to_user_string() for key in keys} == {*GROUPS, "stranger"}
