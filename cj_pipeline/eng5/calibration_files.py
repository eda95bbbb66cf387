"""What calibration leaves on disk: the anchor bank, and the history as tables, Markdown and a picture.

Files are replaced whole; the same ledger gives the same content. What the figures are is in `calibration_history` and
`workflow.calibration`.
"""

from pathlib import Path
from typing import Any, Final

import polars as pl

from cj_pipeline.core.anchor_bank import AnchorBank
from cj_pipeline.core.errors import InputError
from cj_pipeline.core.models import Value
from cj_pipeline.eng5.calibration_history import TITLES, CalibrationHistory, Measure
from cj_pipeline.reports.figures.control_charts import Panel, control_charts_picture
from cj_pipeline.reports.markdown import escape_markdown, markdown_table
from cj_pipeline.whole_files import write_whole
from cj_pipeline.workflow.calibration import JudgeConfiguration, Nights, anchor_bank
from cj_pipeline.workflow.frames import Column, Table

BANK_NAME: Final = "anchor_bank"
HISTORY_NAME: Final = "anchor_calibration_history"
_ALARMS_SHOWN: Final = 50

_NIGHT = Column("night", pl.String, "the night, YYYY-MM-DD, UTC")
_BATCH_ID = Column("batch_id", pl.String, "the calibration batch")

BANK_TABLE: Final = Table(
    "anchor_bank",
    "one row per anchor: where all nights together have it",
    (
        Column("assignment_id", pl.String, "the writing task"),
        Column("anchor_ref", pl.String, "the anchor, as it is registered"),
        Column("expert_grade", pl.String, "its registered grade", nullable=True),
        Column("position", pl.Float64, "logits; all anchors sum to zero"),
        Column("se", pl.Float64, "its standard error, logits; what a single night adds is not in it"),
        Column("night_sd", pl.Float64, "logits by which a night moves an anchor, the same for all"),
        Column("nights", pl.Int64, "nights in the bank"),
        Column("judge", pl.String, "whose nights they are"),
        Column("simulated", pl.Boolean, "true if the judge is simulated: no statement about pupils"),
    ),
)

NIGHTS_TABLE: Final = Table(
    "calibration_nights",
    "one row per calibration batch of the assignment: what it measured, or why it is left out",
    (
        _NIGHT,
        _BATCH_ID,
        Column("used", pl.Boolean, "whether it is a night of the configured judge"),
        Column("reason", pl.String, "why it is not used", nullable=True),
        Column("judgments", pl.Int64, "judgments its scores come from", nullable=True),
        Column("tau_b", pl.Float64, "Kendall's τ-b of its scores with the expert grades", nullable=True),
        Column("tau_b_se", pl.Float64, "standard error of it", nullable=True),
        Column("order_effect", pl.Float64, "logits by which being read first helps", nullable=True),
        Column("order_effect_se", pl.Float64, "standard error of it, logits", nullable=True),
        Column("cost_usd", pl.Float64, "US dollars; null if a price is unknown", nullable=True),
        Column("cost_per_judgment", pl.Float64, "US dollars", nullable=True),
        Column("latency_seconds", pl.Float64, "geometric mean over answered calls", nullable=True),
    ),
)

CHART_TABLE: Final = Table(
    "calibration_charts",
    "one row per night and chart: what was measured, what was expected, and the verdict",
    (
        _NIGHT,
        _BATCH_ID,
        Column("measure", pl.String, "anchor_drift, tau_b, position_bias, cost or latency"),
        Column("anchor_ref", pl.String, "the anchor, on charts of anchor_drift", nullable=True),
        Column("value", pl.Float64, "what was measured, in the measure's unit", nullable=True),
        Column("se", pl.Float64, "its standard error"),
        Column("centre", pl.Float64, "what earlier nights let one expect", nullable=True),
        Column("low", pl.Float64, "lower limit; null where low is no concern", nullable=True),
        Column("high", pl.Float64, "upper limit; null where high is no concern", nullable=True),
        Column("z", pl.Float64, "standard deviations from the centre", nullable=True),
        Column("ewma", pl.Float64, "weighted mean of z over the nights, in its own standard deviations", nullable=True),
        Column("baseline_nights", pl.Int64, "nights it was held against"),
        Column("verdict", pl.String, "in control, beyond limits, drifting, not enough nights yet, or no value"),
    ),
)


class StoredBank(Value):
    """An anchor bank as `anchor_bank.json` has it: with what it is of.

    Attributes:
        assignment_id: the writing task.
        configuration: of the judge whose nights they are.
        simulated: whether that judge is.
        bank: the bank; its `nights` are the batches in it.
    """

    assignment_id: str
    configuration: JudgeConfiguration
    simulated: bool
    bank: AnchorBank


def stored_bank(nights: Nights) -> StoredBank:
    """The bank of all nights.

    Raises:
        InputError: there is no finished night.
    """
    return StoredBank(
        assignment_id=nights.assignment_id,
        configuration=nights.configuration,
        simulated=any(night.batch.simulated for night in nights.nights),
        bank=anchor_bank(nights),
    )


def read_bank(path: Path) -> StoredBank:
    """A bank that `write_bank` wrote.

    Raises:
        InputError: the file cannot be read, or is no anchor bank.
    """
    try:
        return StoredBank.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as an anchor bank ({type(error).__name__}): `cj eng5 calibration-history` writes "
            "it again from the ledger"
        ) from None


def bank_frame(stored: StoredBank, nights: Nights) -> pl.DataFrame:
    """The bank as `BANK_TABLE`."""
    grades = {anchor: grade for night in nights.nights for anchor, grade in night.grades.items()}
    errors = stored.bank.standard_errors()
    return BANK_TABLE.frame(
        [
            {
                "assignment_id": stored.assignment_id,
                "anchor_ref": anchor,
                "expert_grade": grades.get(anchor),
                "position": position,
                "se": errors[anchor],
                "night_sd": stored.bank.night_variance**0.5,
                "nights": len(stored.bank.nights),
                "judge": stored.configuration.profile,
                "simulated": stored.simulated,
            }
            for anchor, position in zip(stored.bank.anchors, stored.bank.positions, strict=True)
        ]
    )


def write_bank(stored: StoredBank, nights: Nights, folder: Path) -> list[Path]:
    """Write the bank's JSON and its DuckDB table; the paths, JSON first.

    Raises:
        InputError, TableFileError: the folder or a file cannot be written.
    """
    from cj_pipeline.analysis.duckdb_files import write_tables

    path, tables = folder / f"{BANK_NAME}.json", folder / f"{BANK_NAME}.duckdb"
    _write(path, stored.model_dump_json(indent=2).encode())
    write_tables(tables, [(BANK_TABLE, bank_frame(stored, nights))])
    return [path, tables]


def nights_frame(history: CalibrationHistory) -> pl.DataFrame:
    """All calibration batches of the assignment as `NIGHTS_TABLE`, oldest first."""
    used: list[dict[str, Any]] = [
        {
            "night": row.date.isoformat(),
            "used": True,
            **{name: getattr(row, name) for name in NIGHTS_TABLE.schema if name not in ("night", "used", "reason")},
        }
        for row in history.rows
    ]
    left_out: list[dict[str, Any]] = [
        {"night": one.date.isoformat(), "batch_id": one.batch_id, "used": False, "reason": one.reason}
        for one in history.nights.left_out
    ]
    rows = sorted(used + left_out, key=lambda row: (row["night"], row["batch_id"]))
    return NIGHTS_TABLE.frame([{name: row.get(name) for name in NIGHTS_TABLE.schema} for row in rows])


def charts_frame(history: CalibrationHistory) -> pl.DataFrame:
    """All points of all charts as `CHART_TABLE`, oldest night first."""
    return CHART_TABLE.frame(
        [
            {
                **point.model_dump(exclude={"night", "baseline", "verdict"}),
                "night": row.date.isoformat(),
                "batch_id": row.batch_id,
                "measure": measure.value,
                "anchor_ref": name if measure is Measure.ANCHORS else None,
                "baseline_nights": point.baseline,
                "verdict": point.verdict.value,
            }
            for index, row in enumerate(history.rows)
            for measure in Measure
            for name, points in sorted(history.charts_of(measure).items())
            for point in (points[index],)
        ]
    )


def history_picture(history: CalibrationHistory) -> bytes:
    """The control charts of all figures and anchors, as a PNG."""
    figures = [Panel(TITLES[measure], history.charts[measure]) for measure in history.charts]
    anchors = [Panel(f"anchor {name}: drift (logits)", points) for name, points in sorted(history.anchors.items())]
    return control_charts_picture(
        [f"{row.date:%d %b}" for row in history.rows],
        figures + anchors,
        title=f"Calibration of {history.assignment_id} by {history.configuration.profile}",
        simulated=history.simulated,
    )


def history_markdown(history: CalibrationHistory, *, picture: str) -> str:
    """The history as Markdown, newest night first.

    Args:
        picture: file name of the picture beside it.
    """
    lines = [f"# Calibration of {escape_markdown(history.assignment_id)}", ""]
    if history.simulated:
        lines += ["**SIMULATED JUDGE — no statement about pupils**", ""]
    lines += [
        f"Judge {escape_markdown(history.configuration.profile)}, {len(history.rows)} nights, limits at "
        f"{history.rules.sigmas:g} standard deviations (all anchors together count as one chart).",
        "",
        "## The last night",
        "",
        *(
            f"- {TITLES[measure]}: {'' if (said := history.verdict(measure)).in_control else '**out of control** '}"
            f"{escape_markdown(said.text)}"
            for measure in Measure
        ),
        "",
        f"![control charts]({picture})",
        "",
        "## Nights out of control",
        "",
        *(_alarm_lines(history) or ["None."]),
        "",
        "## All nights",
        "",
        markdown_table(nights_frame(history).reverse(), limit=400, float_digits=4),
        "",
    ]
    return "\n".join(lines)


def write_history(history: CalibrationHistory, folder: Path) -> list[Path]:
    """Write the history's Markdown, picture and DuckDB tables; the paths, Markdown first.

    Raises:
        InputError, TableFileError: the folder or a file cannot be written.
    """
    from cj_pipeline.analysis.duckdb_files import write_tables

    page, picture, tables = (folder / f"{HISTORY_NAME}.{suffix}" for suffix in ("md", "png", "duckdb"))
    _write(picture, history_picture(history))
    _write(page, history_markdown(history, picture=picture.name).encode())
    write_tables(tables, [(NIGHTS_TABLE, nights_frame(history)), (CHART_TABLE, charts_frame(history))])
    return [page, picture, tables]


def _alarm_lines(history: CalibrationHistory) -> list[str]:
    alarms = list(reversed(history.alarms()))
    lines = [
        f"- {row.date}: {escape_markdown(name)} {point.verdict.value}"
        + (f", {point.value:.3g} where {point.centre:.3g} was expected" if point.value is not None else "")
        for row, _, name, point in alarms[:_ALARMS_SHOWN]
    ]
    return lines + ([f"- and {len(alarms) - _ALARMS_SHOWN} more"] if len(alarms) > _ALARMS_SHOWN else [])


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda stream: stream.write(content))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__}): check the folder") from None
