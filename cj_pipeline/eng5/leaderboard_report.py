"""The leaderboard as Markdown, picture and DuckDB file, and where these are kept.

Here: the words, the columns a reader sees first, and the publication of all three. Not here: the figures
(`leaderboard`), the drawing (`reports.figures.leaderboard`). The same leaderboard gives the same Markdown and picture:
nothing in them tells when they were made. No justification and no essay is in any of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl
from filelock import FileLock, Timeout

from cj_pipeline.analysis.duckdb_files import write_tables
from cj_pipeline.core.alignment import AlignmentTargets
from cj_pipeline.core.errors import CJError, InputError
from cj_pipeline.core.grade_scale import GradeScale
from cj_pipeline.eng5.anchor_align import RUBRIC, SYSTEM
from cj_pipeline.eng5.leaderboard import (
    ALIGNMENT_LEADERBOARD,
    N_DRAWS,
    Group,
    Leaderboard,
    Row,
    leaderboard_frame,
    ledger_leaderboard,
)
from cj_pipeline.ledger import Ledger
from cj_pipeline.reports.figures.leaderboard import LeaderboardBar, LeaderboardPanel, leaderboard_picture
from cj_pipeline.reports.figures.sheet import SIMULATED_MARK
from cj_pipeline.reports.markdown import escape_markdown, markdown_table
from cj_pipeline.whole_files import write_whole

NAME: Final = "alignment_leaderboard"
TITLE: Final = "Judges and prompts against the experts"
_LOCK_SECONDS: Final = 300.0


class LeaderboardBusyError(CJError):
    """Somebody else has been rebuilding the leaderboard all the time."""


@dataclass(frozen=True)
class LeaderboardFiles:
    """Where a leaderboard is kept: the Markdown, the picture beside it, and the DuckDB file where the graph is."""

    markdown: Path
    picture: Path
    database: Path


def leaderboard_files(outputs: Path) -> LeaderboardFiles:
    """The places under an outputs folder."""
    folder = outputs / "eng5" / "leaderboard"
    return LeaderboardFiles(folder / f"{NAME}.md", folder / f"{NAME}.png", outputs / f"{NAME}.duckdb")


def rebuild_leaderboard(
    ledger: Ledger, scale: GradeScale, targets: AlignmentTargets, outputs: Path, *, n_draws: int = N_DRAWS
) -> tuple[Leaderboard, LeaderboardFiles]:
    """Read the leaderboard from the ledger and put its three files in place.

    Only one process rebuilds at a time, reading included, so that an older leaderboard never replaces a newer one.

    Raises:
        LeaderboardBusyError: others were at it for five minutes.
        InputError: a file cannot be written.
        TableFileError: the DuckDB file cannot be written.
    """
    files = leaderboard_files(outputs)
    try:
        files.markdown.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(files.markdown.parent / ".rebuild.lock", timeout=_LOCK_SECONDS):
            made = ledger_leaderboard(ledger, scale, targets, n_draws=n_draws)
            write_tables(files.database, [(ALIGNMENT_LEADERBOARD, leaderboard_frame(made))])
            _write(files.picture, leaderboard_png(made))
            _write(files.markdown, leaderboard_markdown(made, picture=files.picture.name).encode())
    except Timeout:
        raise LeaderboardBusyError(
            f"the leaderboard in {files.markdown.parent} has been rebuilt by others for {_LOCK_SECONDS:g} s: look for "
            "the process, then try again"
        ) from None
    except OSError as error:
        raise InputError(
            f"{files.markdown.parent}: the leaderboard cannot be written ({error.strerror}): make the folder writable, "
            "or set CJ_DATA_DIR"
        ) from None
    return made, files


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda stream: stream.write(content))


# --- words -------------------------------------------------------------------------------------------------------


def leaderboard_png(leaderboard: Leaderboard) -> bytes:
    """The picture: a panel per group."""
    panels = [
        LeaderboardPanel(
            heading=group_heading(group),
            attainable=group.rows[0].alignment.tau.attainable,
            bars=[_bar(row) for row in group.rows],
        )
        for group in leaderboard.groups
    ]
    notes = [note for group in leaderboard.groups[:1] for note in group_notes(group)]
    simulated = bool(leaderboard.groups) and all(group.simulated for group in leaderboard.groups)
    return leaderboard_picture(panels, title=TITLE, notes=notes, simulated=simulated)


def _bar(row: Row) -> LeaderboardBar:
    configuration, standing = row.configuration, row.standing
    return LeaderboardBar(
        judge=configuration.judge_text + (" SIMULATED" if configuration.simulated else ""),
        prompts=_prompts(row),
        fitted=row.alignment.tau.tau_b,
        mean=standing.mean,
        interval=row.alignment.tau.interval,
        figures=f"τ-b {row.alignment.tau.tau_b:.2f} · P(best) {standing.p_best:.2f} · n {row.alignment.judgments}",
        may_be_best=standing.may_be_best,
    )


def _prompts(row: Row) -> str:
    system, rubric = row.configuration.prompt_name(SYSTEM), row.configuration.prompt_name(RUBRIC)
    return f"{system} (system and rubric)" if system == rubric else f"{system} / {rubric}"


def group_heading(group: Group) -> str:
    """What the rows of a group have in common."""
    return f"{len(group.grades)} anchors, {group.grades[0]} to {group.grades[-1]} (anchor group {group.key})"


def group_notes(group: Group) -> list[str]:
    """How to read a group: what one swap is worth, which rows are more than noise apart, and what simulation means."""
    rows, leader = group.rows, group.rows[0]
    abreast = [row for row in rows if row.standing.may_be_best and row is not leader]
    notes = [
        "Rows are in the order of the posterior mean of τ-b of the true scores. One pair of neighbours that changes "
        f"places moves τ by 0.2 among five essays of different grades, and by {group.one_swap:.3f} among these "
        f"{len(group.grades)} anchors: a difference of a few such steps is noise unless the intervals say otherwise."
    ]
    if len(rows) > 1 and len(abreast) == len(rows) - 1:
        notes.append(
            "No row can be told apart from the first (95 %, all rows taken together): this leaderboard shows no "
            "progress. More judgments of each, by repeats or a larger budget, may."
        )
    elif len(rows) > 1:
        told = len(rows) - 1 - len(abreast)
        notes.append(
            f"{told} of {len(rows) - 1} other rows {'is' if told == 1 else 'are'} behind the first (95 %, all rows "
            f"taken together); {len(abreast) or 'none'} cannot be told apart from it."
        )
    if group.simulated:
        notes.append(
            "All judges here are simulated: they answer from the anchors' registered grades and read neither essays "
            "nor prompts, so rows of the same judge differ by chance alone."
        )
    elif any(row.configuration.simulated for row in rows):
        notes.append("Simulated judges read no prompts: their rows of different prompts differ by chance alone.")
    return notes


def leaderboard_markdown(leaderboard: Leaderboard, *, picture: str | None = None) -> str:
    """The leaderboard as GitHub Markdown.

    Args:
        leaderboard: what to tell.
        picture: the link to the picture, a path relative to the file; no picture if None.
    """
    lines = [f"# {TITLE}"]
    if leaderboard.groups and all(group.simulated for group in leaderboard.groups):
        lines.append(f"**{SIMULATED_MARK}**")
    if not leaderboard.groups:
        lines.append(
            "No finished batch holds a judge against experts yet: `cj eng5 matrix FILE` or `cj eng5 anchor-align-test` "
            "makes one."
        )
    elif picture:
        lines.append(f"![τ-b with its interval, a row per judge and prompts]({picture})")
    if len(leaderboard.groups) > 1:
        lines.append("Rows of different anchor groups were judged on different anchors and cannot be compared.")
    for group in leaderboard.groups:
        lines.append(f"## {escape_markdown(group_heading(group))}")
        lines += [escape_markdown(note) for note in group_notes(group)]
        for table in (standings_table(group), _figures_table(group), _prompts_table(group)):
            lines.append(markdown_table(table, limit=table.height))
        lines.append(_KEY)
    if leaderboard.left_out:
        lines.append("## Left out")
        lines += ["\n".join(f"- {escape_markdown(f'{batch}: {reason}')}" for batch, reason in leaderboard.left_out)]
    return "\n\n".join(lines) + "\n"


_KEY: Final = (
    "τ-b is that of the fitted scores, the interval that of the true ones. P(best): no row is better, shared where "
    "rows are equal. P(> leader): ties count half. Inversions are pairs in which the lower-graded anchor won at least "
    "once, over all judgments of the row: more judgments find more of them. Read first: how often the essay that was "
    "read first won."
)


def standings_table(group: Group) -> pl.DataFrame:
    """Who leads, and how surely."""
    rows = group.rows
    return pl.DataFrame(
        {
            "place": list(range(1, len(rows) + 1)),
            "judge": [row.configuration.judge_text for row in rows],
            "system prompt / rubric": [_prompts(row) for row in rows],
            "judgments": [row.alignment.judgments for row in rows],
            "τ-b": [row.alignment.tau.tau_b for row in rows],
            "95 %": ["{:.2f} to {:.2f}".format(*row.alignment.tau.interval) for row in rows],
            "P(best)": [row.standing.p_best for row in rows],
            "P(> leader)": [None if row.standing.leads else row.standing.p_above_leader for row in rows],
            "rank 95 %": ["{}–{}".format(*row.standing.rank_interval) for row in rows],
            "verdict": [_verdict(row) for row in rows],
        },
        schema_overrides={"P(> leader)": pl.Float64},
    )


def _verdict(row: Row) -> str:
    if row.standing.leads:
        return "leads"
    return "cannot be told apart" if row.standing.may_be_best else "behind"


def _figures_table(group: Group) -> pl.DataFrame:
    rows = group.rows
    positions = [row.alignment.position.first_wins for row in rows]
    return pl.DataFrame(
        {
            "place": list(range(1, len(rows) + 1)),
            "targets": [_targets(row) for row in rows],
            "inversions": [len(row.alignment.inversions) for row in rows],
            "never won": [_ids(row.alignment.zero_win) for row in rows],
            f"{'/'.join(rows[0].alignment.top_grades)} regressions": [
                _ids([top.essay_id for top in row.alignment.top_regressions]) for row in rows
            ],
            "read first won": [
                "–" if one.share is None else "{:.2f} ({:.2f} to {:.2f})".format(one.share, *one.interval)
                for one in positions
            ],
            "failed": [row.failed for row in rows],
            "US dollars": ["unknown" if row.cost_usd is None else f"{row.cost_usd:.4f}" for row in rows],
            "tokens in": [row.tokens_in for row in rows],
            "tokens out": [row.tokens_out for row in rows],
        }
    )


def _ids(essays: Sequence[str]) -> str:
    return ", ".join(essays) or "–"


def _targets(row: Row) -> str:
    missed = [verdict.name for verdict in row.verdicts if not verdict.met]
    return f"missed: {', '.join(missed)}" if missed else "all met"


def _prompts_table(group: Group) -> pl.DataFrame:
    rows = group.rows
    return pl.DataFrame(
        {
            "place": list(range(1, len(rows) + 1)),
            "configuration": [row.configuration.key for row in rows],
            "system prompt": [_name_and_hash(row, SYSTEM) for row in rows],
            "rubric": [_name_and_hash(row, RUBRIC) for row in rows],
            "batches": [list(row.batches) for row in rows],
        }
    )


def _name_and_hash(row: Row, role: str) -> str:
    sha256 = row.configuration.prompt_hash(role)
    return "–" if sha256 is None else f"{row.configuration.prompt_name(role)}, SHA-256 {sha256}"
