"""`cj simulate`: what a budget buys, from simulated exams with the real pairing, fit, grades and stop rule."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cj_pipeline.cli.arguments import name_and_value
from cj_pipeline.cli.context import errors, open_ledger, print_json, say
from cj_pipeline.core.errors import InputError

if TYPE_CHECKING:
    from cj_pipeline.core.simulation import BudgetRow

_MEASURES = {
    "rmse": "RMSE (logits)",
    "tau_b": "τ-b",
    "exact": "exact grade",
    "adjacent": "± 1 step",
    "rps": "RPS (steps)",
    "expected_rps": "RPS expected",
}


def simulate(
    students: Annotated[int, typer.Option(help="Essays to be graded.", min=2, max=2000)] = 24,
    anchors: Annotated[int, typer.Option(help="Essays with a known grade; 0: scores without grades.", min=0)] = 12,
    budget: Annotated[int, typer.Option(help="Comparisons that may be paid for.", min=1)] = 400,
    step: Annotated[
        float | None,
        typer.Option(help="Logits between neighbouring grades: the judge's strength. [default: 1.25]", min=0.01),
    ] = None,
    within: Annotated[float, typer.Option(help="Spread of quality within a grade, in steps (sd).", min=0)] = 0.4,
    order_effect: Annotated[
        float | None, typer.Option(help="Logits by which the essay read first is favoured. [default: 0]")
    ] = None,
    lapses: Annotated[float, typer.Option(help="Share of judgments that a coin decides.", min=0, max=0.99)] = 0.0,
    from_batch: Annotated[
        str | None, typer.Option(help="Learn step and order effect from this finished batch.")
    ] = None,
    grade_scale: Annotated[str, typer.Option(help="A built-in grade scale.")] = "eng5_np_legacy_9_step",
    override: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a batch's setting, e.g. stop_rule=precision. Repeatable.")
    ] = None,
    replications: Annotated[int, typer.Option(help="Simulated exams.", min=1)] = 40,
    points: Annotated[int, typer.Option(help="Rows of the table.", min=1, max=50)] = 8,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 1,
    usd_per_judgment: Annotated[
        float | None, typer.Option(help="What a judgment costs, US dollars: adds a column.", min=0)
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Write a PNG of the table to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """What a budget buys: exams are simulated and graded, and compared with their truth. Nothing is judged or paid.

    The first table goes to the whole budget, the line under it says where the stop rule would have ended the batch.
    """
    from cj_pipeline.core.grade_scale import get_grade_scale
    from cj_pipeline.core.simulation import Exam, budget_table, even_budgets, simulate_exams, stopped_at
    from cj_pipeline.settings import effective_tunables, load_settings, parse_overrides

    learned = learn_from(from_batch) if from_batch is not None else {}
    exam = Exam(
        students=students,
        anchors=anchors,
        step=step if step is not None else learned.get("step", 1.25),
        within=within,
        order_effect=order_effect if order_effect is not None else learned.get("order_effect", 0.0),
        lapses=lapses,
    )
    scale = get_grade_scale(grade_scale)
    overrides = parse_overrides(dict(name_and_value(text) for text in override or []), where="options")
    tunables = effective_tunables(load_settings(), overrides)
    with exam_progress(replications) as advance:
        played = simulate_exams(
            exam, tunables, scale, budget=budget, replications=replications, seed=seed, progress=advance
        )
    rows = budget_table(played, even_budgets(budget, points))
    low, middle, high = stopped_at(played)
    at_stop = budget_table([exam.as_stopped for exam in played], [budget])[0]
    told = {
        "exam": exam.model_dump(),
        "stop_rule": tunables.stop_rule.value,
        "replications": replications,
        "seed": seed,
        "rows": [
            {"judgments": row.judgments, "usd": _usd(row.judgments, usd_per_judgment)}
            | {name: {"mean": mean, "margin95": margin} for name, (mean, margin) in row.measures.items()}
            for row in rows
        ],
        "stopped": {
            "judgments": {"p10": low, "median": middle, "p90": high},
            "usd_median": _usd(middle, usd_per_judgment),
            "reasons": _reasons(played),
        }
        | {name: {"mean": mean, "margin95": margin} for name, (mean, margin) in at_stop.measures.items()},
    }
    notes = _notes(exam, replications, seed)
    if picture is not None:
        from cj_pipeline.reports.figures.simulation import simulation_picture
        from cj_pipeline.whole_files import write_whole

        drawn = simulation_picture(rows, title=f"What {budget} judgments buy", notes=notes)
        try:
            write_whole(picture, lambda stream: stream.write(drawn))
        except OSError as error:
            raise InputError(f"--picture {picture}: cannot be written ({error.strerror})") from None
    if as_json:
        print_json(told)
        return
    budget_rows_text(rows, usd_per_judgment)
    for note in notes:
        say(note)
    say(
        f"stop rule {tunables.stop_rule.value}: judging ends after {middle:.0f} judgments (median; 10-90 %: {low:.0f} "
        f"to {high:.0f}), because " + ", ".join(f"{reason} ({count})" for reason, count in _reasons(played).items())
    )
    if at_stop.measures:
        say(f"at that point: {measures_text(at_stop)}")
    if picture is not None:
        say(f"picture: {picture}")


def learn_from(batch_id: str) -> dict[str, float]:
    """Step and order effect of a batch, as its calibration and last fit have them.

    Raises:
        UnknownBatchError: no such batch.
        InputError: it has no grades yet.
    """
    from itertools import pairwise
    from statistics import mean

    from cj_pipeline.workflow.results import collect_results

    with open_ledger() as (_settings, ledger):
        batch = ledger.batch(batch_id)
        results = collect_results(ledger, batch_id)
    if results.projection is None or not results.projection.centres:
        raise InputError(f"--from-batch {batch_id}: it has no calibration to learn from; give --step")
    gaps = [high - low for low, high in pairwise(results.projection.centres.values())]
    return {"step": mean(gaps), "order_effect": float(batch.processing_metadata.get("order_effect") or 0.0)}


@contextmanager
def exam_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; what it yields is told how many exams are played."""
    with Progress(
        TextColumn("simulated exams"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
    ) as bar:
        task = bar.add_task("exams", total=total)
        yield lambda done: bar.update(task, completed=done)


def _notes(exam: Any, replications: int, seed: int) -> list[str]:
    graded = f"{exam.anchors} anchors, " if exam.anchors else "no anchors, "
    return [
        f"{replications} simulated exams (seed {seed}): {exam.students} students, {graded}{exam.step:.3g} logits a "
        f"grade, within-grade sd {exam.within:.3g} steps, order effect {exam.order_effect:.3g}, lapses "
        f"{exam.lapses:.0%}. Means with 95 % intervals over exams."
    ]


def _reasons(played: Any) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(exam.reason for exam in played).most_common())


def _usd(judgments: float, each: float | None) -> float | None:
    return None if each is None else judgments * each


def measures_text(row: "BudgetRow") -> str:
    """All measures of a row with their margins."""
    return ", ".join(f"{_MEASURES[name]} {_with_margin(*found, 2)}" for name, found in row.measures.items())


def budget_rows_text(rows: "Sequence[BudgetRow]", usd_per_judgment: float | None) -> None:
    """Print a line per number of judgments, with its cost if the price of one is known."""
    from cj_pipeline.cli.render import console, plain_table

    names = [name for name in _MEASURES if any(name in row.measures for row in rows)]
    shown = []
    for row in rows:
        line: dict[str, Any] = {"judgments": row.judgments}
        if usd_per_judgment is not None:
            line["USD"] = f"{row.judgments * usd_per_judgment:.2f}"
        for name in names:
            found = row.measures.get(name)
            line[_MEASURES[name]] = "" if found is None else _with_margin(*found, 3)
        shown.append(line)
    console.print(plain_table(shown))


def _with_margin(mean: float, margin: float, digits: int) -> str:
    # one exam alone has no margin
    return f"{mean:.{digits}f}" + (f" ± {margin:.{digits}f}" if math.isfinite(margin) else "")
