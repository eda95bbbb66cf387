"""Tables and YAML files are read as they were meant, or refused by file, row and key."""

import io
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cj_pipeline.core.errors import InputError
from cj_pipeline.workflow.data_files import read_xlsx
from cj_pipeline.workflow.documents import normalise_text
from cj_pipeline.workflow.intake import read_batch
from cj_pipeline_tests.workflow.files import (
    SECRET,
    essays_in,
    only_problem_of,
    problems_of,
    texts_of,
    workbook_bytes,
    workbook_of,
    write,
)

# --- tables ----------------------------------------------------------------------------------------------------------

TRICKY = {
    "s1": 'She said "no", then left.\n\nSecond paragraph; semicolons too.',
    "s2": "Räksmörgås, ÅÄÖ – “quoted” 🙂",
}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_table_keeps_quotes_commas_newlines_and_umlauts(tmp_path: Path, suffix: str, in_folder: bool) -> None:
    frame = pl.DataFrame({"text": list(TRICKY.values()), "note": ["", "x"], "essay_id": list(TRICKY)})
    name = f"essays.{suffix}" if in_folder else f"class9.{suffix}"
    folder = tmp_path / "class9"
    folder.mkdir()
    if suffix == "csv":
        frame.write_csv(folder / name, include_bom=True)
    else:
        frame.write_parquet(folder / name)
    request = read_batch(folder if in_folder else folder / name)
    assert (request.batch_id, texts_of(request)) == ("class9", TRICKY)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True).map(str.lower),
        st.text(alphabet="ab\",;\n\r å'", min_size=1, max_size=30).map(lambda text: "x" + text),
        min_size=1,
        max_size=6,
    )
)
def test_any_csv_that_polars_writes_comes_back_in_normal_form(tmp_path_factory: Any, essays: dict[str, str]) -> None:
    expected = {essay_id: normalise_text(text) for essay_id, text in sorted(essays.items())}
    path = tmp_path_factory.mktemp("csv") / "b.csv"
    pl.DataFrame({"essay_id": list(essays), "text": list(essays.values())}).write_csv(path)
    if len(set(expected.values())) < len(expected):
        assert any("have the same text" in problem for problem in problems_of(read_batch, path))
    else:
        assert texts_of(read_batch(path)) == expected


def test_windows_newlines_and_blank_rows_in_a_csv_are_harmless(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", 'essay_id,text\r\n s1 ,"One\r\ntwo"\r\n\r\n,\r\ns2,Three\r\n')
    assert texts_of(read_batch(table)) == {"s1": "One\ntwo", "s2": "Three"}


def test_a_missing_column_is_named_with_the_columns_found(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", f"id,essay\ns1,{SECRET}\n")
    problem = only_problem_of(read_batch, table)
    assert "b.csv: has no column essay_id and text; found 'id', 'essay'" in problem
    pl.DataFrame({"id": ["s1"], "text": [SECRET]}).write_parquet(tmp_path / "b.parquet")
    problem = only_problem_of(read_batch, tmp_path / "b.parquet")
    assert "b.parquet: has no column essay_id; found 'id', 'text'" in problem


def test_a_csv_with_semicolons_is_told_to_use_commas(tmp_path: Path) -> None:
    problem = only_problem_of(read_batch, write(tmp_path / "b.csv", f"essay_id;text\ns1;{SECRET}\n"))
    assert "save it with commas" in problem


def test_a_csv_without_header_or_with_swapped_columns_leaks_no_essay(tmp_path: Path) -> None:
    assert "has no column" in only_problem_of(read_batch, write(tmp_path / "b.csv", f"s1,{SECRET}\ns2,Hej\n"))
    swapped = write(tmp_path / "c.csv", f"essay_id,text,quality\n{SECRET},s1,{SECRET}\nHej du,s2,\n")
    problems = problems_of(read_batch, swapped)
    assert [problem.split(":")[0] for problem in problems] == ["c.csv row 2", "c.csv row 2", "c.csv row 3"]
    assert "Hej" not in str(problems)


def test_an_empty_csv_and_one_with_only_a_header_are_refused(tmp_path: Path) -> None:
    assert "found no columns" in only_problem_of(read_batch, write(tmp_path / "b.csv", ""))
    assert "no essays" in only_problem_of(read_batch, write(tmp_path / "c.csv", "essay_id,text\n"))


def test_rows_of_the_wrong_length_are_named_and_the_others_checked(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", f"essay_id,text\ns1,Hello, {SECRET}\ns2\ns3,\n")
    problems = problems_of(read_batch, table)
    assert problems[0].startswith("b.csv row 2: has 3 cells, the header 2")
    assert problems[1].startswith("b.csv row 3: has 1 cells")
    assert problems[2].startswith("b.csv row 4: has no text")
    assert len(problems) == 3


def test_a_csv_with_a_broken_quote_is_refused(tmp_path: Path) -> None:
    problem = only_problem_of(read_batch, write(tmp_path / "b.csv", f'essay_id,text\ns1,"{SECRET}" and more\n'))
    assert "b.csv: is not well-formed CSV" in problem


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    problem = only_problem_of(read_batch, write(tmp_path / "b.csv", "essay_id,text,text\ns1,a,b\n"))
    assert "the column 'text' more than once" in problem


def test_an_over_long_cell_is_found_by_its_row(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", f"essay_id,text\ns1,{'a' * 200_000}\ns2,\n")
    problems = problems_of(read_batch, table)
    assert problems[0].startswith("b.csv row 2: has 200000 characters")
    assert problems[1].startswith("b.csv row 3: has no text")


def test_a_damaged_parquet_file_and_wrong_column_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.parquet"
    pl.DataFrame({"essay_id": ["s1"], "text": [SECRET]}).write_parquet(path)
    sound = path.read_bytes()
    for damaged in (sound[:-10], b"PAR1" + SECRET.encode() + b"PAR1", b""):
        path.write_bytes(damaged)
        assert "b.parquet: cannot be read as Parquet" in only_problem_of(read_batch, path)
    pl.DataFrame({"essay_id": [1.5], "text": [[1]]}).write_parquet(path)
    assert "the column essay_id and text is not text" in only_problem_of(read_batch, path)


def test_parquet_ids_may_be_whole_numbers_and_nulls_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "b.parquet"
    pl.DataFrame({"essay_id": [7, 8], "text": ["One", "Two"], "quality": [1.25, None]}).write_parquet(path)
    assert [(e.essay_id, e.quality) for e in read_batch(path).students] == [("7", 1.25), ("8", None)]
    pl.DataFrame({"essay_id": ["s1", None], "text": [None, "Two"]}).write_parquet(path)
    problems = problems_of(read_batch, path)
    assert problems[0].startswith("b.parquet row 1: has no text")
    assert problems[1].startswith("b.parquet row 2: has no essay_id")


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- a list", "must be a mapping"),
        ("kind: [", "is not well-formed YAML"),
        ("kind: assessment\nkind: calibration", "key 'kind' is stated twice"),
        ("overrides: &a {pair_generation_seed: 1}\nassignment: *a", "uses aliases"),
        ("batch_id: 2024-99-99", "is not well-formed YAML"),
        ("batch_id: 2016", "batch_id must be text, YAML reads it as int: put it in quotes"),
        ("judge: ' '", "judge is empty"),
        ("a: " + "[" * 20_000, "is nested deeper than 20 levels"),
        (b"kind: \xff", "is not UTF-8 text (byte offset 6)"),
    ],
)
def test_a_yaml_file_of_the_wrong_form_is_refused(tmp_path: Path, content: str | bytes, expected: str) -> None:
    write(essays_in(tmp_path / "b", "s1.txt") / "batch.yaml", content)
    assert expected in only_problem_of(read_batch, tmp_path / "b")


def test_an_empty_batch_yaml_says_nothing_and_a_yml_is_pointed_out(tmp_path: Path) -> None:
    write(essays_in(tmp_path / "b", "s1.txt") / "batch.yaml", "")
    assert read_batch(tmp_path / "b").batch_id == "b"
    (tmp_path / "b" / "batch.yaml").rename(tmp_path / "b" / "batch.yml")
    assert "batch.yml: is not read: rename it to batch.yaml" in only_problem_of(read_batch, tmp_path / "b")


# --- Excel -----------------------------------------------------------------------------------------------------------

NAMED = (("id",), ("grade",))


def test_a_sheet_gives_the_same_rows_as_its_csv(tmp_path: Path) -> None:
    """Cells as ECMA-376 (part 1, 18.3.1.4 and 18.4) stores them: shared, rich, in line, numbers, formulas, gaps."""
    rows = (
        '<row r="2"><c r="B2" t="s"><v>0</v></c><c r="D2" t="inlineStr"><is><t>grade</t></is></c></row>'
        '<row r="4"><c r="B4" t="s"><v>1</v></c><c r="D4" t="str"><f>A1</f><v>E+</v></c></row>'
        '<row r="5"><c r="B5"><v>7</v></c><c r="C5"/><c r="D5"><v>2.50</v></c></row>'
        '<row r="6"><c r="B6"><v>8</v></c></row><row r="7"><c r="C7" t="s"><v>2</v></c></row>'
    )
    shared = ["<t>id</t>", "<r><t>a</t></r><r><rPr><b/></rPr><t>1</t></r><rPh><t>x</t></rPh>", "<t> </t>"]
    write(tmp_path / "t.xlsx", workbook_bytes(rows, shared))
    problems: list[str] = []
    assert read_xlsx(tmp_path / "t.xlsx", tmp_path, NAMED, problems) == [
        ("t.xlsx row 4", {"id": "a1", "grade": "E+"}),
        ("t.xlsx row 5", {"id": "7", "grade": "2.50"}),
        ("t.xlsx row 6", {"id": "8", "grade": ""}),
    ]
    assert problems == []


def test_cells_without_references_follow_each_other_and_columns_go_beyond_z(tmp_path: Path) -> None:
    cell = '<c t="inlineStr"><is><t>{}</t></is></c>'
    rows = f"<row>{cell.format('id')}{cell.format('grade')}</row><row>{cell.format('a1')}{cell.format('B')}</row>"
    write(tmp_path / "t.xlsx", workbook_bytes(rows, target="/xl/worksheets/sheet1.xml"))
    assert read_xlsx(tmp_path / "t.xlsx", tmp_path, NAMED, []) == [("t.xlsx row 2", {"id": "a1", "grade": "B"})]
    far = '<row r="1"><c r="Z1" t="str"><v>id</v></c><c r="AB1" t="str"><v>grade</v></c></row>'
    far += '<row r="2"><c r="AB2" t="str"><v>C-</v></c><c r="Z2" t="str"><v>a2</v></c></row>'
    write(tmp_path / "far.xlsx", workbook_bytes(far))
    assert read_xlsx(tmp_path / "far.xlsx", tmp_path, NAMED, []) == [("far.xlsx row 2", {"id": "a2", "grade": "C-"})]


def test_cells_under_no_column_name_and_missing_columns_are_told(tmp_path: Path) -> None:
    write(tmp_path / "t.xlsx", workbook_of([["id", "grade"], ["a1", "B", SECRET]]))
    problems: list[str] = []
    read_xlsx(tmp_path / "t.xlsx", tmp_path, NAMED, problems)
    assert problems == ["t.xlsx row 2: has a cell under no column name: name its column, or empty the cell"]
    write(tmp_path / "t.xlsx", workbook_of([["id"], ["a1"]]))
    with pytest.raises(InputError, match="has no column grade; found 'id'"):
        read_xlsx(tmp_path / "t.xlsx", tmp_path, NAMED, [])
    write(tmp_path / "t.xlsx", workbook_bytes(""))
    with pytest.raises(InputError, match="no columns"):
        read_xlsx(tmp_path / "t.xlsx", tmp_path, NAMED, [])


def test_a_damaged_costly_or_disguised_workbook_is_refused_without_its_words(tmp_path: Path) -> None:
    bomb = workbook_bytes('<row><c t="str"><v>' + " " * (51 * 1024**2) + "</v></c></row>")
    entities = workbook_bytes('<row><c t="str"><v>x</v></c></row>')
    entities = rewritten(entities, "xl/workbook.xml", '<!DOCTYPE x [<!ENTITY a "aaaa">]><workbook/>')
    for content, message in (
        (SECRET.encode(), "cannot be read as an Excel workbook"),
        (workbook_bytes(f'<row><c t="s"><v>{SECRET}</v></c></row>'), "cannot be read as an Excel workbook"),
        (entities, "cannot be read as an Excel workbook"),
        (bomb, "unpacks to more than 50 MB"),
    ):
        write(tmp_path / "t.xlsx", content)
        with pytest.raises(InputError, match=message) as caught:
            read_xlsx(tmp_path / "t.xlsx", tmp_path, NAMED, [])
        assert SECRET not in str(caught.value)


def rewritten(package: bytes, part: str, content: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name == part else old.read(name))
    return stream.getvalue()
