"""How results look on a terminal and as JSON. Nothing is computed here that `workflow.results` does not know."""

import io
import json
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cj_pipeline.cli.context import console, json_text
from cj_pipeline.core.completion import completion_denominator
from cj_pipeline.core.errors import MissingBudgetError
from cj_pipeline.judges.protocol import ComparisonPrompt, JudgeAnswer
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import BatchRecord
from cj_pipeline.settings import CJSettings, setting_sources
from cj_pipeline.workflow.judging import SentPrompt
from cj_pipeline.workflow.results import BatchResults, summary_by_scope

SIMULATED: Final = "SIMULATED JUDGE: these numbers show how the program works and say nothing about any pupil."
_TEXT_WIDTH: Final = 140
_PROBABILITY_LISTS: Final = ("probabilities", "probabilities_uniform")

STOP_REASONS: Final = {
    "stable": "the scores stopped moving",
    "budget_spent": "the budget is spent",
    "small_net_cap": "every pair of the small net was judged, and judged again as often as allowed",
    "low_success_rate": "too many comparisons could not be judged",
    "cost_spent": "the next call could have cost more than max_cost_usd leaves",
    "single_wave": "everything was planned as one wave, and it is done",
    "provider_rejected": "the judge refused to work (key, model or quota)",
    "insufficient_essays": "fewer than two student essays",
    "timeout_recovered": "it stood still for too long, with enough judged to give a scale",
    "timeout_incomplete": "it stood still for too long, with too little judged",
    "timeout_low_success_rate": "it stood still for too long, and too many comparisons could not be judged",
    "missing_budget": "it has no valid budget, which is a defect",
    "cancelled": "it was cancelled",
}


def plain_table(rows: list[dict[str, Any]], columns: list[str] | None = None) -> Table:
    """Rows as a table; numbers to the right, nothing for None."""
    names = columns or (list(rows[0]) if rows else [])
    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for name in names:
        numeric = bool(rows) and all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[name])) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


# --- settings, assignments, status -------------------------------------------------------------------------------


def settings_rows(settings: CJSettings) -> list[dict[str, Any]]:
    """Each setting with value, source and description; a ledger URL's password is not shown."""
    return [
        {"variable": name, "value": _shown(name, value), "source": source, "description": description}
        for name, value, source, description in setting_sources(settings)
    ]


def _shown(name: str, value: Any) -> str:
    if name == "CJ_LEDGER_URL" and value:
        from cj_pipeline.ledger.engine import without_password

        return without_password(str(value))
    return "unset" if value is None else str(value)


def settings_text(settings: CJSettings) -> None:
    """Print every setting."""
    for row in settings_rows(settings):
        console.print(f"{row['variable']} = {row['value']}   [{row['source']}]", markup=False)
        console.print(f"    {row['description']}", markup=False)


def assignments_text(rows: list[dict[str, Any]], anchors_of: str | None) -> None:
    """Print assignments, or one's anchors, with what to do next."""
    if not rows:
        what = "no anchors" if anchors_of else "no assignments registered yet: cj assignments register FOLDER"
        console.print(what, markup=False)
        return
    console.print(plain_table(rows))
    if anchors_of is None:
        console.print("copy and paste:", markup=False)
        for row in rows:
            console.print(f"  cj assignments list --anchors {row['assignment_id']}", markup=False)
            console.print(f"  cj submit FOLDER --assignment {row['assignment_id']}", markup=False)


def status_rows(ledger: Ledger, records: list[BatchRecord]) -> list[dict[str, Any]]:
    """Where each batch stands. Progress is the share of the budget; a batch without budget counts as 0 %."""
    rows = []
    for record in records:
        state = ledger.state(record.batch_id)
        try:
            progress = state.callbacks / completion_denominator(state)
        except MissingBudgetError:
            progress = 0.0
        calls = ledger.attempt_counts(record.batch_id)
        waits = record.not_before is not None and record.not_before > datetime.now(UTC)
        rows.append(
            {
                "batch_id": record.batch_id,
                "kind": record.kind.value,
                "status": record.status.value,
                "stop_reason": record.stop_reason,
                "progress": round(100 * progress, 1),
                "submitted": state.submitted,
                "judged": state.judged,
                "failed": state.failed,
                "pending": state.pending,
                "total_budget": state.total_budget,
                "waves": len(ledger.waves(record.batch_id)),
                "attempts": sum(calls.values()) - calls.get("unsent", 0),
                "lost_attempts": calls.get("lost", 0),
                "cost_usd": ledger.cost_usd(record.batch_id),
                "judge": record.judge_profile,
                "simulated": record.simulated,
                "orphan_results": len(ledger.orphan_results(record.batch_id)),
                "hold": record.hold_reason,
                "waits_until": record.not_before if waits else None,
                "waits_for": record.processing_metadata.get("waiting_for") if waits else None,
                "at_work": record.lease_owner if record.lease_live else None,
                "launch": record.launch,
                "created_at": record.created_at,
                "completed_at": record.completed_at,
                "published_at": record.published_at,
            }
        )
    return rows


def status_text(rows: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    """Print where batches stand; for one batch, also what happened to it."""
    if not rows:
        console.print("no batches yet: cj submit FOLDER --assignment ID, or cj demo", markup=False)
        return
    if len(rows) == 1 and events:
        for name, value in rows[0].items():
            if value is not None:
                console.print(f"{name:>14}: {value}", markup=False)
        for event in events:
            console.print(f"  {event['at']:%Y-%m-%d %H:%M:%S}  {event['event']}: {event['detail']}", markup=False)
        return
    shown = [
        {
            "batch": row["batch_id"],
            "status": row["status"] + (" (on hold)" if row["hold"] else ""),
            "%": row["progress"],
            "judged": row["judged"],
            "failed": row["failed"],
            "budget": row["total_budget"],
            "waves": row["waves"],
        }
        for row in rows
    ]
    console.print(plain_table(shown))
    for row in rows:
        if row["waits_until"] is not None:
            console.print(
                f"{row['batch_id']} waits until {row['waits_until']:%Y-%m-%d %H:%M:%S} UTC at the latest: "
                f"{row['waits_for'] or 'it was asked to'}",
                markup=False,
            )
    held = [row["batch_id"] for row in rows if row["hold"]]
    if held:
        console.print(f"on hold: {', '.join(held)} (`cj status BATCH` says why, `cj resume BATCH`)", markup=False)


def positions_text(table: pl.DataFrame) -> None:
    """Print A/B counts per essay, then anchors against students."""
    rows = table.drop("batch_id").to_dicts()
    if not rows:
        console.print("the batch has no essays", markup=False)
        return
    console.print(plain_table(rows))
    for name, part in (("anchors", table.filter("is_anchor")), ("students", table.filter(~pl.col("is_anchor")))):
        as_a, as_b = int(part["as_a"].sum()), int(part["as_b"].sum())
        share = f"{100 * as_a / (as_a + as_b):.1f} %" if as_a + as_b else "-"
        worst = max((abs(skew) for skew in part["skew"].to_list()), default=0)
        console.print(f"{name}: {as_a} as A, {as_b} as B ({share} as A), largest |A − B| {worst}", markup=False)


# --- judges --------------------------------------------------------------------------------------------------------


def judges_text(simulated: list[dict[str, Any]], priced: list[dict[str, Any]]) -> None:
    """Print who can judge."""
    console.print("simulated judges (no key, no cost; they need the essays' known qualities):", markup=False)
    console.print(plain_table(simulated))
    console.print("models with a known price (US dollars per million tokens); any other may be named:", markup=False)
    # two decimals would hide what a cheap model costs
    exact = [
        {name: f"{value:g}" if isinstance(value, float) else value for name, value in row.items()} for row in priced
    ]
    console.print(plain_table(exact))
    console.print("try one: cj judge try --provider PROVIDER --model MODEL ESSAY_A ESSAY_B", markup=False)


def trial_text(
    name: str, answer: JudgeAnswer, prompt: ComparisonPrompt, upper_bound_usd: float | None, seconds: float
) -> None:
    """Print one judgment with what it took."""
    console.print(f"{name}: essay {answer.winner.value.upper()} is better (confidence {answer.confidence} of 5)")
    console.print(f"because: {answer.justification}", markup=False)
    usage = answer.usage
    console.print(
        f"latency {answer.latency_seconds:.2f} s ({seconds:.2f} s with connecting); tokens: input {usage.input}, "
        f"from cache {usage.cache_read}, to cache {usage.cache_write}, output {usage.output} (of which reasoning "
        f"{usage.reasoning})",
        markup=False,
    )
    if answer.cost_usd is None:
        console.print("cost unknown: inputs/prices.yaml has no price for this model", markup=False)
    else:
        bound = "" if upper_bound_usd is None else f" (never more than {upper_bound_usd:.6f})"
        console.print(f"cost {answer.cost_usd:.6f} USD{bound}", markup=False)
    console.print(f"prompt {prompt.sha256}; request {answer.request_id or 'without id'}", markup=False)


def prompt_text(batch: BatchRecord, sent: SentPrompt) -> str:
    """What was sent, part by part, in the order in which the judge reads it."""
    attempt = sent.attempt
    head = [
        f"batch {batch.batch_id}, comparison {attempt.comparison_id}, attempt {attempt.number}, "
        f"{attempt.outcome or 'open'}",
        f"judge {attempt.provider}/{attempt.model}, sent {attempt.sent_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"bundle {attempt.bundle_id or '-'}",
        f"prompt_sha256 {attempt.prompt_sha256} ({'matches' if sent.matches else 'DOES NOT MATCH'} what follows)",
    ]
    parts = {"system": sent.prompt.system, "user": f"{sent.prompt.stable}\n\n{sent.prompt.essays}"}
    body = [f"----- {name} -----\n{text}" for name, text in parts.items()]
    return "\n".join([*head, "", *body, "----- end -----", ""])


# --- one batch ---------------------------------------------------------------------------------------------------


def show_text(results: BatchResults) -> str:
    """A batch for reading: why it stopped, what it cost, the ranking, the anchors' check, what deserves a look."""
    stream = io.StringIO()
    out = Console(file=stream, width=_TEXT_WIDTH, highlight=False, soft_wrap=False)
    batch = results["batches"].row(0, named=True)
    if batch["simulated"]:
        out.print(SIMULATED, markup=False)
    reason = STOP_REASONS.get(batch["stop_reason"] or "", batch["stop_reason"] or "it is not final yet")
    out.print(f"batch {batch['batch_id']}: {batch['status']}, because {reason}", markup=False)
    cost = "unknown (a price is missing)" if batch["cost_usd"] is None else f"{batch['cost_usd']:.4f} USD"
    lost = f", {batch['lost_attempts']} lost" if batch["lost_attempts"] else ""
    out.print(
        f"{batch['judged']} judged and {batch['failed']} failed of {batch['submitted']} submitted; budget "
        f"{batch['total_budget']}; {batch['attempts']} calls{lost}; {results['waves'].height} waves; cost {cost}",
        markup=False,
    )
    _print_calls(out, results)
    out.print()
    out.print(plain_table(_ranking_rows(results)))
    _print_grading(out, results)
    _print_notes(out, results)
    return stream.getvalue()


def _print_calls(out: Console, results: BatchResults) -> None:
    """Tokens and failed calls, and what deserves a look in what was read and answered."""
    batch, attempts = results["batches"].row(0, named=True), results["attempts"]
    if not batch["simulated"]:
        tokens = attempts.select(
            pl.col("tokens_input", "tokens_cache_read", "tokens_cache_write", "tokens_output").sum()
        ).row(0)
        out.print(
            f"{batch['provider']}/{batch['model']}, {batch['batching_mode']}; tokens: input {tokens[0]}, from cache "
            f"{tokens[1]}, to cache {tokens[2]}, output {tokens[3]}",
            markup=False,
        )
    failed = attempts.filter(pl.col("outcome") == "error").group_by("error_type").len().sort("error_type")
    if failed.height:
        listed = ", ".join(f"{count} {kind}" for kind, count in failed.iter_rows())
        out.print(f"calls that failed: {listed}", markup=False)
    if batch["orphan_results"]:
        out.print(
            f"{batch['orphan_results']} answers came late, twice or to no call, and changed nothing", markup=False
        )
    flagged = results["essays"].filter(pl.col("injection_signs").fill_null("") != "")
    for essay_id, signs in flagged.select("essay_id", "injection_signs").iter_rows():
        out.print(f"essay {essay_id} looks as if it addresses the judge: {signs}", markup=False)


def _ranking_rows(results: BatchResults) -> list[dict[str, Any]]:
    joined = results["bt_scores"].join(
        results["grade_projections"].select(
            "essay_id", "available", "grade", "confidence", "label", "would_change", "grade_uniform"
        ),
        on="essay_id",
        how="left",
        maintain_order="left",
    )
    return [
        {
            "rank": row["rank"],
            "essay": row["essay_id"],
            "expert": row["known_grade"],
            "score": row["score"],
            "SE": row["se"],
            "won": f"{row['wins']}/{row['comparisons']}",
            "grade": row["grade"] if row["available"] else "n/a",
            "confidence": row["confidence"],
            "label": row["label"],
            "would change": row["would_change"],
            "equal shares": row["grade_uniform"],
        }
        for row in joined.iter_rows(named=True)
    ]


def _print_grading(out: Console, results: BatchResults) -> None:
    """Where grades end, and how the anchors fit in, if there are grades."""
    boundaries, anchors = results["grade_boundaries"], results["anchor_report"]
    if boundaries.height:
        out.print()
        out.print(
            "grade boundaries, with 95 % intervals from the anchors (an error there moves all students alike); shares "
            "of students",
            markup=False,
        )
        out.print(plain_table([_boundary_row(row) for row in boundaries.iter_rows(named=True)]))
    if anchors.height:
        out.print()
        out.print("anchors", markup=False)
        out.print(
            plain_table(
                [
                    {
                        "anchor": row["essay_id"],
                        "expert": row["known_grade"],
                        "probability": row["probability"],
                        "misfit (sd)": row["misfit"],
                        "leverage": row["leverage"],
                        "moves boundaries (steps)": row["influence"],
                        "inversions": row["inversions"],
                        "": "replace first" if row["replace_first"] else None,
                    }
                    for row in anchors.iter_rows(named=True)
                ]
            )
        )
        if results.projection is not None and results.projection.anchor_verdict:
            out.print(results.projection.anchor_verdict, markup=False)
    if boundaries.height or anchors.height:
        out.print()


def _boundary_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "boundary": row["boundary"] + (" (pass)" if row["is_pass"] else ""),
        "score": row["score"],
        "low": row["low"],
        "high": row["high"],
        "above": row["share_above"],
        "by anchors": f"{row['share_low']:.2f}-{row['share_high']:.2f}",
        "accuracy": row["accuracy"],
        "consistency": row["consistency"],
        "false pass": row["false_pass"],
        "false fail": row["false_fail"],
    }


def _print_notes(out: Console, results: BatchResults) -> None:
    projections = results["grade_projections"]
    reasons = projections.filter(~pl.col("is_anchor") & ~pl.col("available"))["reason"].unique().sort().to_list()
    for reason in reasons:
        out.print(f"no grade: {reason}", markup=False)
    if projections.filter("is_anchor").height:
        out.print("an anchor's grade is projected without that anchor, beside the experts'", markup=False)
    if results.projection is not None and results.projection.inversions:
        listed = ", ".join(
            f"{pair.lower_graded} above {pair.higher_graded}" for pair in results.projection.inversions[:5]
        )
        more = len(results.projection.inversions) - 5
        out.print(f"inverted anchors: {listed}{f' and {more} more' if more > 0 else ''}", markup=False)
    flags = results["quality_flags"]
    raised = [name for name, value in flags.row(0, named=True).items() if value is True] if flags.height else []
    if raised:
        out.print(f"deserves a look: {', '.join(raised)} (flags change no decision)", markup=False)


def show_json(results: BatchResults) -> str:
    """A batch for machines."""
    scores, comparisons = results["bt_scores"], results["comparisons"]
    batch = results["batches"].row(0, named=True)
    settings = json.loads(batch.pop("settings_json"))
    flags = results["quality_flags"]
    record = {
        "simulated": batch["simulated"],
        "batch_info": {**batch, "settings": settings},
        "batch_state": {
            "status": batch["status"],
            "stop_reason": batch["stop_reason"],
            "processing_metadata": results.batch.processing_metadata,
            "bt_quality_flags": flags.drop("batch_id").row(0, named=True) if flags.height else {},
            "waves": results["waves"].drop("batch_id").to_dicts(),
        },
        "comparisons": comparisons.drop("batch_id").to_dicts(),
        "attempts": results["attempts"].drop("batch_id").to_dicts(),
        "bradley_terry_stats": {
            "scores": scores.drop("batch_id").to_dicts(),
            "bt_se_summary": summary_by_scope(results["bt_se_summaries"]),
        },
        "grade_projections": [
            row | {name: {e["grade"]: e["probability"] for e in row[name]} for name in _PROBABILITY_LISTS}
            for row in results["grade_projections"].drop("batch_id").to_dicts()
        ],
        "grade_boundaries": results["grade_boundaries"].drop("batch_id").to_dicts(),
        "anchor_report": {
            "verdict": results.projection.anchor_verdict if results.projection else None,
            "anchors": results["anchor_report"].drop("batch_id").to_dicts(),
        },
        "wins_losses": {row["essay_id"]: {"wins": row["wins"], "losses": row["losses"]} for row in scores.to_dicts()},
    }
    return json_text(record)
