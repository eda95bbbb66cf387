import re
from html import unescape

import polars as pl
import pytest
from markdown_it import MarkdownIt

from cj_pipeline.reports.markdown import markdown_table
from cj_pipeline.workflow import frames
from cj_pipeline_tests.reports.made import made_comparisons, made_projections, made_scores


def test_a_table_aligns_numbers_right_and_rounds_floats() -> None:
    frame = pl.DataFrame({"essay": ["a", "b"], "wins": [3, None], "score": [1.005, -2.5], "anchor": [True, False]})
    assert markdown_table(frame, float_digits=1).splitlines() == [
        "| essay | wins | score | anchor |",
        "| --- | ---: | ---: | --- |",
        "| a | 3 | 1.0 | yes |",
        "| b | – | -2.5 | no |",
    ]


def test_a_float_that_rounds_to_zero_has_no_sign() -> None:
    frame = pl.DataFrame({"x": [-0.001, -0.01, -10.0]})
    assert markdown_table(frame).splitlines()[2:] == ["| 0.00 |", "| -0.01 |", "| -10.00 |"]
    assert markdown_table(frame, float_digits=0).splitlines()[2:] == ["| 0 |", "| 0 |", "| -10 |"]


def test_columns_are_chosen_and_ordered_by_name() -> None:
    frame = pl.DataFrame({"a": [1], "b": [2], "c": [3]})
    assert markdown_table(frame, ["c", "a"]).splitlines() == ["| c | a |", "| ---: | ---: |", "| 3 | 1 |"]


def test_a_cut_table_says_how_many_rows_are_missing() -> None:
    frame = pl.DataFrame({"n": range(40)})
    assert markdown_table(frame).splitlines()[-3:] == ["| 29 |", "", "… and 10 more"]
    assert markdown_table(frame, limit=39).endswith("\n\n… and 1 more")
    assert markdown_table(frame, limit=40).endswith("| 39 |")
    assert markdown_table(frame, limit=0) == "| n |\n| ---: |\n\n… and 40 more"


def test_an_empty_table_says_so() -> None:
    assert markdown_table(frames.WAVES.frame([]), ["wave"]) == "| wave |\n| ---: |\n\n(no rows)"
    assert markdown_table(pl.DataFrame()) == "(no columns)"


def test_pipes_backslashes_and_line_breaks_are_escaped() -> None:
    frame = pl.DataFrame({"a|b": ["x|y", "x\\|y", "one\r\ntwo\nthree"]})
    assert markdown_table(frame).splitlines() == [
        r"| a\|b |",
        "| --- |",
        r"| x\|y |",
        r"| x\\\|y |",
        "| one two three |",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x|y", "x\\|y", "ends with \\", "`code`", "**bold** and *italic*", "_start_ and mid_word_s", "~~gone~~",
        "<script>alert(1)</script>", "<b>", "&amp; & &lt;", "[link](http://x)", "![image](http://x/y.png)",
        "# heading", "- item", "a __b__ c", "ANCHOR_np-3_0a1b2c3d",
    ],
)  # fmt: skip
def test_a_markdown_parser_reads_back_exactly_what_a_cell_holds(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    html = parser.render(markdown_table(pl.DataFrame({"first": [text], "second": ["end"]})))
    cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", html)]
    assert cells == [text, "end"]


def test_justifications_never_reach_a_table() -> None:
    frame = made_comparisons([("a", "b")])
    assert "quotes" not in markdown_table(frame)
    assert "justification |" not in markdown_table(frame)
    with pytest.raises(ValueError, match="justifications"):
        markdown_table(frame, ["essay_a", "justification"])
    with pytest.raises(ValueError, match="justifications"):
        markdown_table(pl.DataFrame({"a": [1]}), ["justification"])


def test_unusable_arguments_are_named() -> None:
    frame = pl.DataFrame({"a": [1]})
    with pytest.raises(ValueError, match="no column 'b' in a frame with a"):
        markdown_table(frame, ["a", "b"])
    with pytest.raises(ValueError, match="limit"):
        markdown_table(frame, limit=-1)


def test_probabilities_read_as_grades_with_numbers() -> None:
    frame = made_projections(made_scores(1), scale=["E", "C", "A"])
    assert markdown_table(frame, ["probabilities"]).splitlines()[-1] == "| E 0.10, C 0.10, A 0.10 |"
