"""The alignment report of a batch, as Markdown and as one self-contained HTML page.

Here: what a report is made from, which sections it has, and the two forms. Not here: the figures (`core.alignment`),
the picture (`reports.figures.alignment`), where files go, and the reading of a ledger. The same report gives the same
bytes: nothing in it tells when it was made.

A report holds the justifications of inversions, which may quote essays: it may be kept where the graph is, and must not
reach logs or metadata.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

import polars as pl

from cj_pipeline.core.alignment import (
    Alignment,
    AlignmentTargets,
    DirectInversion,
    TargetVerdict,
    judge_targets,
)
from cj_pipeline.reports.figures.alignment import alignment_picture
from cj_pipeline.reports.figures.sheet import SIMULATED_MARK
from cj_pipeline.reports.markdown import cell_text, escape_markdown, markdown_table


@dataclass(frozen=True)
class ReportedPrompt:
    """A prompt the judge was given.

    Attributes:
        role: what it was used as, e.g. `System prompt`.
        name: the variant's name, or where it came from.
        text: in full.
        sha256: of the text in normal form.
    """

    role: str
    name: str
    text: str
    sha256: str


@dataclass(frozen=True)
class AlignmentReport:
    """What a report is made from.

    Attributes:
        batch_id: the batch.
        judge: provider and model, as a reader knows them.
        simulated: whether the judge was simulated, which the report then says at the top.
        alignment: the figures.
        targets: what they are held against.
        facts: further lines for the head: settings, tokens, cost.
        prompts: all that the judge was given besides the essays.
        justifications: by comparison id; those of inversions are shown.
    """

    batch_id: str
    judge: str
    simulated: bool
    alignment: Alignment
    targets: AlignmentTargets = field(default_factory=AlignmentTargets)
    facts: Sequence[tuple[str, str]] = ()
    prompts: Sequence[ReportedPrompt] = ()
    justifications: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """The report's heading."""
        return f"Judge against experts: {self.batch_id}"

    @property
    def verdicts(self) -> tuple[TargetVerdict, ...]:
        """One verdict per target."""
        return judge_targets(self.alignment, self.targets)

    def picture(self) -> bytes:
        """The report's picture, a PNG."""
        return alignment_picture(self.alignment, title=self.title, simulated=self.simulated)


def report_markdown(report: AlignmentReport, *, picture: str | None = None) -> str:
    """The report as GitHub Markdown.

    Args:
        report: what it is made from.
        picture: the link to the picture: a path relative to the file, or a data URI; no picture if None.
    """
    lines = [f"# {escape_markdown(report.title)}"]
    if report.simulated:
        lines.append(f"**{SIMULATED_MARK}**")
    for section in _sections(report):
        if section.title:
            lines.append(f"## {escape_markdown(section.title)}")
        for block in section.blocks:
            if isinstance(block, _Picture):
                lines += [f"![Score over expert grade]({picture})"] if picture else []
            else:
                lines.append(_block_markdown(block))
    return "\n\n".join(lines) + "\n"


def report_html(report: AlignmentReport) -> str:
    """The report as one HTML page that loads nothing from elsewhere."""
    parts = [f"<h1>{escape(report.title)}</h1>"]
    if report.simulated:
        parts.append(f'<p class="mark">{escape(SIMULATED_MARK)}</p>')
    for section in _sections(report):
        if section.title:
            parts.append(f"<h2>{escape(section.title)}</h2>")
        for block in section.blocks:
            if isinstance(block, _Picture):
                data = base64.b64encode(report.picture()).decode("ascii")
                parts.append(f'<img alt="Score over expert grade" src="data:image/png;base64,{data}">')
            else:
                parts.append(_block_html(block))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# --- sections ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Table:
    frame: pl.DataFrame


@dataclass(frozen=True)
class _Quotation:
    """Somebody else's words under a heading of ours."""

    heading: str
    text: str


@dataclass(frozen=True)
class _Verbatim:
    text: str


@dataclass(frozen=True)
class _Picture:
    pass


_Block = _Text | _Table | _Quotation | _Verbatim | _Picture


@dataclass(frozen=True)
class _Section:
    title: str
    blocks: Sequence[_Block]


def _sections(report: AlignmentReport) -> list[_Section]:
    alignment = report.alignment
    facts = [("judge", report.judge), ("grade scale", alignment.grade_scale)]
    facts += [("judgments", str(alignment.judgments)), ("anchors", str(len(alignment.anchors))), *report.facts]
    return [
        _Section("", [_Table(pl.DataFrame(facts, schema=["item", "value"], orient="row"))]),
        _Section(
            "Targets",
            [_Table(_targets_table(report.verdicts, alignment.top_grades)), *_target_remarks(report.verdicts)],
        ),
        _Section("Agreement", [_Text(_agreement_text(alignment)), _Picture()]),
        _Section("Anchors", [_Table(_anchors_table(alignment)), _Text(_ANCHORS_NOTE)]),
        _Section("Direct inversions", _inversion_blocks(alignment.inversions, report.justifications)),
        _Section("Neighbouring grades", [_Text(_NEIGHBOURS_NOTE), _Table(_neighbours_table(alignment))]),
        _Section("Reading order", [_Text(alignment.position.verdict)]),
        _Section("Prompts", _prompt_blocks(report.prompts)),
    ]


def _targets_table(verdicts: Sequence[TargetVerdict], top_grades: Sequence[str]) -> pl.DataFrame:
    names = {
        "inversions": "Direct inversions",
        "zero_win": "Anchors without a win",
        "tau_b": "Kendall's τ-b",
        "top_regressions": f"{'/'.join(top_grades)} regressions",
    }

    def shown(verdict: TargetVerdict, value: float) -> str:
        return f"{value:.2f}" if verdict.name == "tau_b" else f"{value:g}"

    def limit(verdict: TargetVerdict) -> str:
        return f"{'≥' if verdict.name == 'tau_b' else '≤'} {shown(verdict, verdict.target)}"

    return pl.DataFrame(
        {
            "figure": [names[verdict.name] for verdict in verdicts],
            "value": [shown(verdict, verdict.value) for verdict in verdicts],
            "target": [limit(verdict) for verdict in verdicts],
            "verdict": ["met" if verdict.met else "MISSED" for verdict in verdicts],
        }
    )


def _target_remarks(verdicts: Sequence[TargetVerdict]) -> list[_Block]:
    return [_Text(f"Missed: {verdict.text}.") for verdict in verdicts if not verdict.met]


def _agreement_text(alignment: Alignment) -> str:
    tau, (low, high) = alignment.tau, alignment.tau.interval
    return (
        f"Kendall's τ-b between expert grades and scores is {tau.tau_b:.3f}; anchors of equal grade keep it from "
        f"exceeding {tau.attainable:.3f}. τ-a, the same difference over all pairs, is {tau.tau_a:.3f}. "
        f"{tau.concordant} pairs of anchors stand in the experts' order, {tau.discordant} in the opposite one, and one "
        f"pair that changes places moves τ-b by {tau.one_swap:.3f}. These {alignment.judgments} judgments are a sample "
        f"of what the judge would say: τ-b of its true scores lies between {low:.2f} and {high:.2f} with 95 % "
        f"probability (posterior mean {tau.posterior_mean:.2f}). Do not take a difference within such an interval for "
        "progress."
    )


def _anchors_table(alignment: Alignment) -> pl.DataFrame:
    anchors = alignment.anchors
    return pl.DataFrame(
        {
            "rank": [_rank(anchor.rank) for anchor in anchors],
            "95 %": ["–".join(map(str, anchor.rank_interval)) for anchor in anchors],
            "expected": [_rank(anchor.expected_rank) for anchor in anchors],
            "anchor": [anchor.essay_id for anchor in anchors],
            "grade": [anchor.grade for anchor in anchors],
            "score": [anchor.score for anchor in anchors],
            "SE": [anchor.se for anchor in anchors],
            "wins": [anchor.wins for anchor in anchors],
            "losses": [anchor.losses for anchor in anchors],
            "win rate": [anchor.win_rate for anchor in anchors],
            "remark": [_remark(alignment, anchor.essay_id) for anchor in anchors],
        },
        schema_overrides={"win rate": pl.Float64},
    )


_ANCHORS_NOTE: Final = (
    "Scores are in logits and add up to zero. The interval of a rank is that of the true score, from the judgments "
    "alone; the expected rank is that of the expert grade, shared among equal grades."
)


def _rank(rank: float) -> str:
    return f"{rank:g}"


def _remark(alignment: Alignment, essay_id: str) -> str:
    fallen = next((top for top in alignment.top_regressions if top.essay_id == essay_id), None)
    remarks = ["never won"] if essay_id in alignment.zero_win else []
    if fallen is not None:
        remarks.append(f"below {', '.join(fallen.below[:3])}" + (" and more" if len(fallen.below) > 3 else ""))
    return "; ".join(remarks)


def _inversion_blocks(inversions: Sequence[DirectInversion], justifications: Mapping[str, str]) -> list[_Block]:
    if not inversions:
        return [_Text("None: no anchor won against one of a higher grade.")]
    blocks: list[_Block] = [
        _Text(
            f"Pairs of anchors in which the lower-graded one won at least once: {len(inversions)}. Every pair counts "
            "once, however often it was judged."
        )
    ]
    for pair in inversions:
        won = f"{pair.lower_wins} of {pair.lower_wins + pair.higher_wins}"
        for comparison_id in pair.comparison_ids:
            blocks.append(
                _Quotation(
                    f"{pair.lower} ({pair.lower_grade}) beat {pair.higher} ({pair.higher_grade}), {won}; "
                    f"comparison {comparison_id}",
                    justifications.get(comparison_id, "").strip() or "(no justification recorded)",
                )
            )
    return blocks


_NEIGHBOURS_NOTE: Final = (
    "How probable it is that the lower-graded of two anchors of neighbouring grades truly scores higher. Above 0.5 "
    "judge and experts probably differ; between 0.05 and 0.95 these judgments do not settle it."
)


def _neighbours_table(alignment: Alignment) -> pl.DataFrame:
    pairs = alignment.neighbours
    return pl.DataFrame(
        {
            "lower": [f"{pair.lower} ({pair.lower_grade})" for pair in pairs],
            "higher": [f"{pair.higher} ({pair.higher_grade})" for pair in pairs],
            "P(inverted)": [pair.probability for pair in pairs],
        }
    )


def _prompt_blocks(prompts: Sequence[ReportedPrompt]) -> list[_Block]:
    blocks: list[_Block] = []
    for prompt in prompts:
        blocks += [_Text(f"{prompt.role}: {prompt.name}, SHA-256 {prompt.sha256}"), _Verbatim(prompt.text)]
    return blocks or [_Text("Not recorded.")]


# --- the two forms -----------------------------------------------------------------------------------------------


def _block_markdown(block: _Block) -> str:
    match block:
        case _Text(text):
            return escape_markdown(text)
        case _Table(frame):
            return markdown_table(frame, limit=frame.height)
        case _Quotation(heading, text):
            # between quotation marks no first character can start a heading or a list
            return f"**{escape_markdown(heading)}**\n\n> “{escape_markdown(text)}”"
        case _Verbatim(text):
            longest = max((len(run) for run in re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}text\n{text}\n{fence}"
        case _Picture():
            return ""


def _block_html(block: _Block) -> str:
    match block:
        case _Text(text):
            return f"<p>{escape(text)}</p>"
        case _Table(frame):
            return _table_html(frame)
        case _Quotation(heading, text):
            return f"<h3>{escape(heading)}</h3>\n<blockquote>{escape(text)}</blockquote>"
        case _Verbatim(text):
            return f"<pre>{escape(text)}</pre>"
        case _Picture():
            return ""


def _table_html(frame: pl.DataFrame) -> str:
    sides = [' class="n"' if frame.schema[name].is_numeric() else "" for name in frame.columns]

    def row(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{side}>{escape(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True))

    lines = [f"<tr>{row('td', [cell_text(value) for value in values])}</tr>" for values in frame.iter_rows()]
    return (
        f"<table>\n<thead><tr>{row('th', frame.columns)}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table>"
    )


_STYLE: Final = """
body { font: 16px/1.5 "DejaVu Sans", Verdana, sans-serif; color: #1f2328; max-width: 60em; margin: 2em auto;
  padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1em; margin: 1.2em 0 .3em }
table { border-collapse: collapse; font-size: .85em; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25em .7em; border-bottom: 1px solid #d9dde2; vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto }
pre, blockquote { background: #f5f6f8; padding: .8em 1em; margin: .3em 0 1em; white-space: pre-wrap;
  overflow-wrap: anywhere }
pre { font-size: .85em }
.mark { color: #a40e26; font-weight: bold }
"""
