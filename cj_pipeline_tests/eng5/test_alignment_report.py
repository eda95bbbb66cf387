"""The alignment report says everything in both forms, quotes nobody as markup, and is the same each time."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from cj_pipeline.core.alignment import AlignmentTargets
from cj_pipeline.eng5.alignment_report import AlignmentReport, ReportedPrompt, report_html, report_markdown
from cj_pipeline.reports.figures import SIMULATED_MARK
from cj_pipeline_tests.reports.made import made_alignment

HOSTILE = "# Winner <script>alert(1)</script> | [x](http://example.org) `code` **bold**"
PROMPT = "Compare them.\n```\nfenced ````\n```\n<b>& done</b>"


@pytest.fixture(scope="module")
def report() -> AlignmentReport:
    alignment = made_alignment(inverted=2)
    return AlignmentReport(
        batch_id="align-1",
        judge="provider/model-x",
        simulated=False,
        alignment=alignment,
        facts=[("cost", "0.42 USD")],
        prompts=[ReportedPrompt("Rubric", "003_language_control", PROMPT, "ab" * 32)],
        justifications={alignment.inversions[0].comparison_ids[0]: HOSTILE, "c0000": "Never shown."},
    )


class Page(HTMLParser):
    """What a browser makes of a page: its tags, its links, its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_both_forms_say_the_same(report: AlignmentReport) -> None:
    markdown, page = report_markdown(report), Page(report_html(report))
    for said in (
        "align-1",
        "provider/model-x",
        "0.42 USD",
        "Direct inversions",
        "A/B regressions",
        "MISSED",
        "never won",
        "ab" * 32,
        "vt_003 (E-) beat vt_004 (E+), 1 of 1",
        "(no justification recorded)",
        "Neighbouring grades",
        "The judge favours the essay read second",
        "moves τ-b by 0.031",
    ):
        assert said in markdown, said
        assert said in page.text, said
    assert "Never shown." not in markdown + page.text
    assert all(anchor.essay_id in markdown for anchor in report.alignment.anchors)


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(report: AlignmentReport) -> None:
    page = Page(report_html(report))
    assert page.open == []
    assert len(page.sources) == 1 and page.sources[0].startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert HOSTILE in page.text and PROMPT in page.text


def test_the_words_of_a_judge_are_no_markup(report: AlignmentReport) -> None:
    (quoted,) = (line for line in report_markdown(report).splitlines() if "Winner" in line)
    assert quoted.startswith("> “# Winner &lt;script&gt;")
    assert r"\[x\](http" in quoted and r"\`code\`" in quoted and r"\*\*bold\*\*" in quoted


def test_a_prompt_with_fences_stays_inside_its_own(report: AlignmentReport) -> None:
    assert f"`````text\n{PROMPT}\n`````" in report_markdown(report)


def test_the_picture_of_the_markdown_is_where_the_caller_put_it(report: AlignmentReport) -> None:
    assert "![" not in report_markdown(report)
    assert "](align.png)" in report_markdown(report, picture="align.png")


def test_a_simulated_judge_is_called_so_at_the_top(report: AlignmentReport) -> None:
    simulated = replace(report, simulated=True)
    assert f"# Judge against experts: align-1\n\n**{SIMULATED_MARK}**" in report_markdown(simulated)
    assert SIMULATED_MARK in Page(report_html(simulated)).text
    assert SIMULATED_MARK not in report_markdown(report)


def test_targets_are_the_readers_own(report: AlignmentReport) -> None:
    lenient = replace(report, targets=AlignmentTargets(most_inversions=2, most_zero_win=1, least_tau_b=0.8))
    assert "MISSED" not in report_markdown(lenient)
    assert re.search(r"\| Direct inversions \| 2 \| ≤ 2 \| met \|", report_markdown(lenient))


def test_a_report_without_inversions_or_prompts_says_so() -> None:
    plain = AlignmentReport("b", "j", simulated=False, alignment=made_alignment(inverted=0))
    assert "None: no anchor won against one of a higher grade." in report_markdown(plain)
    assert "Not recorded." in report_markdown(plain)


def test_the_same_report_gives_the_same_bytes(report: AlignmentReport) -> None:
    again = replace(report, alignment=made_alignment(inverted=2))
    assert report_html(again) == report_html(report)
    assert report_markdown(again) == report_markdown(report)
