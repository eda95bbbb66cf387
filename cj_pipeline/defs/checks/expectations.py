"""Great Expectations suites over essays, anchors and judgments, as Dagster asset checks.

One adapter: a suite is data (expectation, arguments, severity), each suite is one check, a failure of severity critical
is an error and anything else a warning. Great Expectations costs seconds to import, so it is imported when a check
runs, and judgments are checked only once their batch is final. No value of a cell is reported: counts and rules only.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import polars as pl
from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSeverity,
    MetadataValue,
    asset_check,
)

from cj_pipeline.core.models import ESSAY_ID_PATTERN, MAX_ESSAY_CHARACTERS, ComparisonStatus, PairMode, Winner
from cj_pipeline.defs.partitions import CJ_BATCH
from cj_pipeline.defs.resources import CJResource, plain_errors
from cj_pipeline.reports.markdown import markdown_table

Severity = Literal["critical", "warning", "info"]
_NODE_ID_PATTERN: Final = ESSAY_ID_PATTERN.replace("{0,127}", "{0,159}")


@dataclass(frozen=True)
class Expectation:
    """One expectation: the class's name in Great Expectations, its arguments, and how bad a failure is."""

    name: str
    arguments: Mapping[str, Any]
    severity: Severity = "critical"

    @property
    def rule(self) -> str:
        """The rule in one line, without the lists of values."""
        stated = ", ".join(f"{key}={value}" for key, value in self.arguments.items() if not isinstance(value, list))
        return f"{self.name}({stated})"


@dataclass(frozen=True)
class Finding:
    """What came of one expectation."""

    rule: str
    severity: Severity
    passed: bool
    unexpected: int


_ESSAY_RULES: Final = (
    # the other rules pass over what is missing
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "essay_id"}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "text_sha256"}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "word_count"}),
    Expectation("ExpectColumnValuesToBeUnique", {"column": "essay_id"}),
    Expectation("ExpectColumnValuesToMatchRegex", {"column": "essay_id", "regex": _NODE_ID_PATTERN}),
    Expectation("ExpectColumnValuesToBeUnique", {"column": "text_sha256"}),
    Expectation("ExpectColumnValuesToMatchRegex", {"column": "text_sha256", "regex": "^[0-9a-f]{64}$"}),
    Expectation(
        "ExpectColumnValuesToBeBetween", {"column": "word_count", "min_value": 1, "max_value": MAX_ESSAY_CHARACTERS}
    ),
    Expectation(
        "ExpectColumnValuesToBeBetween", {"column": "word_count", "min_value": 50, "max_value": 3000}, "warning"
    ),
)
ESSAYS_SUITE: Final = (
    *_ESSAY_RULES,
    Expectation("ExpectColumnValuesToBeInSet", {"column": "is_anchor", "value_set": [False]}),
    Expectation("ExpectTableRowCountToBeBetween", {"min_value": 2}, "warning"),
)
ANCHORS_SUITE: Final = (
    *_ESSAY_RULES,
    Expectation("ExpectColumnValuesToBeInSet", {"column": "is_anchor", "value_set": [True]}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "known_grade"}),
    Expectation("ExpectColumnUniqueValueCountToBeBetween", {"column": "known_grade", "min_value": 2}, "warning"),
)
JUDGMENTS_SUITE: Final = (
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "comparison_id"}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "status"}),
    Expectation("ExpectColumnValuesToBeUnique", {"column": "comparison_id"}),
    Expectation(
        "ExpectColumnValuesToBeInSet",
        {"column": "status", "value_set": [status.value for status in ComparisonStatus]},
    ),
    Expectation("ExpectColumnValuesToBeInSet", {"column": "pair_mode", "value_set": [mode.value for mode in PairMode]}),
    Expectation("ExpectColumnValuesToBeInSet", {"column": "winner", "value_set": [winner.value for winner in Winner]}),
    Expectation("ExpectColumnValuesToBeBetween", {"column": "confidence", "min_value": 1, "max_value": 5}),
    Expectation("ExpectColumnValuesToBeBetween", {"column": "attempts", "min_value": 0}),
    Expectation("ExpectColumnValuesToBeBetween", {"column": "tokens_in", "min_value": 0}),
    Expectation("ExpectColumnValuesToBeBetween", {"column": "cost_usd", "min_value": 0}),
)
JUDGED_SUITE: Final = (
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "winner"}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "confidence"}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "completed_at"}),
    Expectation("ExpectColumnValuesToNotBeNull", {"column": "prompt_sha256"}),
    Expectation("ExpectColumnValuesToMatchRegex", {"column": "prompt_sha256", "regex": "^[0-9a-f]{64}$"}),
)


def run_suite(frame: pl.DataFrame, suite: Sequence[Expectation]) -> list[Finding]:
    """Validate a frame against a suite.

    Raises:
        RuntimeError: an expectation could not be evaluated at all, which is a defect of the suite.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import pandas as pd
    from great_expectations import expectations as gxe

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    # by way of Python lists: polars needs pyarrow to make a pandas frame itself
    pandas_frame = pd.DataFrame(frame.to_dict(as_series=False))
    definition = (
        context.data_sources.add_pandas("frames")
        .add_dataframe_asset("frame")
        .add_batch_definition_whole_dataframe("whole")
    )
    batch = definition.get_batch({"dataframe": pandas_frame})
    findings = []
    for expectation in suite:
        configured = getattr(gxe, expectation.name)(**expectation.arguments, severity=expectation.severity)
        outcome = batch.validate(configured, result_format="BASIC")
        if (obstacle := _obstacle(outcome.exception_info or {})) is not None:
            raise RuntimeError(f"{expectation.rule}: {obstacle}")
        unexpected = int(outcome.result.get("unexpected_count") or 0)
        findings.append(Finding(expectation.rule, expectation.severity, bool(outcome.success), unexpected))
    return findings


def _obstacle(exception_info: Mapping[str, Any]) -> str | None:
    """What kept an expectation from being evaluated; it is told as such, or under each metric that it befell."""
    told = [exception_info] if "raised_exception" in exception_info else exception_info.values()
    return next((str(one["exception_message"]) for one in told if one["raised_exception"]), None)


def check_result(findings: Sequence[Finding]) -> AssetCheckResult:
    """Findings as one check result; a failed critical expectation is an error, any other a warning."""
    failed = [finding for finding in findings if not finding.passed]
    critical = any(finding.severity == "critical" for finding in failed)
    table = pl.DataFrame([vars(finding) for finding in findings])
    return AssetCheckResult(
        passed=not failed,
        severity=AssetCheckSeverity.ERROR if critical else AssetCheckSeverity.WARN,
        metadata={
            "expectations": len(findings),
            "failed": len(failed),
            "findings": MetadataValue.md(markdown_table(table)),
        },
        description="; ".join(f"{finding.rule}: {finding.unexpected} values" for finding in failed) or None,
    )


@asset_check(
    asset="essays",
    name="essays_expectations",
    partitions_def=CJ_BATCH,
    description="Great Expectations: ids, hashes and lengths of the student essays.",
)
def essays_expectations(essays: pl.DataFrame) -> AssetCheckResult:
    """The suite over the students' essays."""
    return check_result(run_suite(essays, ESSAYS_SUITE))


@asset_check(
    asset="anchors",
    name="anchors_expectations",
    partitions_def=CJ_BATCH,
    description="Great Expectations: ids, hashes, lengths and grades of the anchors.",
)
def anchors_expectations(anchors: pl.DataFrame) -> AssetCheckResult:
    """The suite over the anchors; a batch without anchors has nothing to check."""
    if anchors.is_empty():
        return AssetCheckResult(passed=True, description="the batch has no anchors")
    return check_result(run_suite(anchors, ANCHORS_SUITE))


@asset_check(
    asset="llm_judgments",
    name="judgments_expectations",
    partitions_def=CJ_BATCH,
    description="Great Expectations: the judgments' form; checked once the batch is final.",
)
def judgments_expectations(
    context: AssetCheckExecutionContext, cj: CJResource, llm_judgments: pl.DataFrame
) -> AssetCheckResult:
    """The suite over the judgments of a final batch."""
    with plain_errors(), cj.ledger() as ledger:
        final = ledger.batch(context.partition_key).status.is_final
    if not final:
        return AssetCheckResult(passed=True, description="the batch is not final yet: checked at its publication")
    if llm_judgments.is_empty():
        return AssetCheckResult(passed=True, description="nothing was judged")
    judged = llm_judgments.filter(pl.col("status") == ComparisonStatus.JUDGED.value)
    return check_result([*run_suite(llm_judgments, JUDGMENTS_SUITE), *run_suite(judged, JUDGED_SUITE)])


EXPECTATION_CHECKS: Final[list[AssetChecksDefinition]] = [
    essays_expectations,
    anchors_expectations,
    judgments_expectations,
]
