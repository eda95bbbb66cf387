"""The words of `cj eng5`: plans, runs and alignment reports, as a terminal shows them."""

from pathlib import Path
from typing import TYPE_CHECKING

from cj_pipeline.cli.context import console, say
from cj_pipeline.core.words import counted

if TYPE_CHECKING:
    from cj_pipeline.eng5.alignment_report import AlignmentReport
    from cj_pipeline.eng5.plan import Plan


def plan_text(made: "Plan") -> None:
    """What a plan found, and what it expects."""
    from cj_pipeline.cli.render import plain_table
    from cj_pipeline.cli.simulate import budget_rows_text, measures_text
    from cj_pipeline.eng5.batches import manifest_checksum

    inventory, checksums = made.inventory, made.inventory.checksums
    say(f"assets {inventory.root}: sound, {len(checksums)} files, checksum {manifest_checksum(checksums)}")
    anchors = [
        {"anchor": one.anchor_id, "grade": one.grade, "words": one.document.word_count, "file": one.document.path}
        for one in inventory.anchors
    ]
    students = [
        {"student": one.essay_id, "words": one.document.word_count, "file": one.document.path}
        for one in inventory.students
    ]
    console.print(plain_table(anchors))
    console.print(plain_table(students))
    essays = len(anchors) + len(students)
    say(
        f"{len(anchors)} anchors, {len(students)} students: {essays * (essays - 1) // 2} pairs; budget {made.budget} "
        f"comparisons, at most {made.worst_case_calls} calls; judge {made.judge}"
        f"{' (SIMULATED)' if made.simulated else ''}; stop rule {made.stop_rule}"
    )
    for warning in made.warnings:
        say(f"note: {warning}")
    cost = made.cost
    if made.accuracy is not None:
        accuracy = made.accuracy
        low, middle, high = accuracy.stopped
        say(
            f"expected accuracy, from {counted(accuracy.replications, 'simulated exam')} "
            f"({accuracy.exam.step:g} logits a grade; `cj simulate` does more):"
        )
        budget_rows_text(accuracy.rows, None if cost is None else cost.per_judgment)
        why = ", ".join(f"{reason} ({count})" for reason, count in accuracy.reasons.items())
        say(f"judging ends after {middle:.0f} judgments (median; 10-90 %: {low:.0f} to {high:.0f}), because {why}")
        say(f"at that point: {measures_text(accuracy.at_stop)}")
    if cost is None:
        say("expected cost: none, nothing is called" if made.simulated else "expected cost: unknown, without a price")
        return
    at_stop = "" if cost.at_stop is None else f", {cost.at_stop:.2f} when the stop rule ends it (median)"
    bound = "" if cost.never_more_than is None else f"; never more than {cost.never_more_than:.2f}"
    say(
        f"expected cost in US dollars, without cache and long reasoning: {cost.per_judgment:.5f} a judgment{at_stop}, "
        f"{cost.at_budget:.2f} for the whole budget{bound}"
    )


def run_summary_text(path: Path) -> None:
    """What a run artefact says its run came to and cost."""
    from cj_pipeline.eng5.artefact import RunArtefact

    run = RunArtefact.model_validate_json(path.read_bytes())
    told, observed = run.metadata, run.validation.runner_status.observed
    partial = run.validation.runner_status.partial_data
    ended = f"not final ({told.status.value})" if partial else f"{told.status.value} ({told.stop_reason})"
    simulated = ", SIMULATED: the numbers say nothing about any pupil" if told.judge.simulated else ""
    say(f"batch {told.batch_id}: {ended}; judge {told.judge.profile}{simulated}")
    say(
        f"  {observed.judged} judged, {observed.failed} failed, {observed.pending} pending of {told.total_budget} "
        f"comparisons; {observed.grade_projections} of {observed.students + observed.anchors} essays with a grade"
    )
    for used in run.costs.token_counts:
        say(
            f"  {used.provider}/{used.model}: {used.calls} calls, tokens {used.input} in, {used.cache_read} from and "
            f"{used.cache_write} to the cache, {used.output} out; {_dollars(used.cost_usd)}"
        )
    say(f"  cost: {_dollars(run.costs.total_usd)}{'; PARTIAL DATA' if partial else ''}")
    say(f"written: {path}")


def _dollars(cost: float | None) -> str:
    return "unknown, without a price" if cost is None else f"{cost:.4f} US dollars"


def report_text(made: "AlignmentReport", *, partial: bool) -> None:
    """Each target with its verdict."""
    say(f"judge {made.judge}, {made.alignment.judgments} judgments{' so far' if partial else ''}, against experts:")
    for verdict in made.verdicts:
        say(f"  {'met   ' if verdict.met else 'MISSED'}  {verdict.text}")
