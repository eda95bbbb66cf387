"""Every essay of a folder or a table is found, with its quality, and none twice."""

import hashlib
from pathlib import Path

import polars as pl
import pytest

from cj_pipeline.core.models import BatchKind
from cj_pipeline.workflow.documents import text_sha256
from cj_pipeline.workflow.intake import read_batch
from cj_pipeline_tests.workflow.files import (
    SECRET,
    essays_in,
    only_problem_of,
    pdf_bytes,
    problems_of,
    texts_of,
    word_bytes,
    write,
)

# --- where essays are found ------------------------------------------------------------------------------------------


def test_a_folder_of_text_word_and_pdf_files_is_a_batch_in_order_of_ids(tmp_path: Path) -> None:
    folder = tmp_path / "class_9A"
    write(folder / "s4.PDF", pdf_bytes("Page one here", "Page two here"))
    write(folder / "s3.docx", word_bytes("First paragraph.", "Andra stycket åäö."))
    write(folder / "s2.md", "# Title\n\nText.")
    write(folder / "s1.txt", "Plain text.")
    request = read_batch(folder)
    assert (request.batch_id, request.kind, request.assignment_id, request.judge) == (
        "class_9A",
        BatchKind.ASSESSMENT,
        None,
        None,
    )
    assert list(texts_of(request).items()) == [
        ("s1", "Plain text."),
        ("s2", "# Title\n\nText."),
        ("s3", "First paragraph.\nAndra stycket åäö."),
        ("s4", "Page one here\nPage two here"),
    ]
    assert [essay.source_name for essay in request.students] == ["s1.txt", "s2.md", "s3.docx", "s4.PDF"]


def test_a_file_and_a_table_with_the_same_text_give_the_same_hash(tmp_path: Path) -> None:
    write(tmp_path / "files" / "s1.txt", b"One\r\ntwo\r\n")
    pl.DataFrame({"essay_id": ["s1"], "text": ["One\ntwo"]}).write_parquet(tmp_path / "table.parquet")
    hashes = {
        text_sha256(texts_of(read_batch(source, batch_id="b"))["s1"])
        for source in (tmp_path / "files", tmp_path / "table.parquet")
    }
    assert hashes == {hashlib.sha256(b"One\ntwo").hexdigest()}


def test_essays_in_two_places_are_refused(tmp_path: Path) -> None:
    essays_in(tmp_path, "s1.txt")
    write(tmp_path / "essays.csv", "essay_id,text\ns2,Two\n")
    pl.DataFrame({"essay_id": ["s3"], "text": ["Three"]}).write_parquet(tmp_path / "essays.parquet")
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert "essays.csv and essays.parquet and 1 essay files: keep the essays in one place" in problem


# --- ids and texts as a set ------------------------------------------------------------------------------------------


def test_texts_that_are_the_same_but_for_white_space_and_composition_are_named_together(tmp_path: Path) -> None:
    write(tmp_path / "s1.txt", f"{SECRET} på ön\n")
    write(tmp_path / "s2.txt", f"\r\n{SECRET} pa\u030a o\u0308n  ")
    write(tmp_path / "s3.txt", f"{SECRET} på  ön")
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert problem.startswith("s1.txt and s2.txt have the same text")


def test_two_files_for_one_essay_id_are_named_together(tmp_path: Path) -> None:
    problem = only_problem_of(read_batch, essays_in(tmp_path, "s1.txt", "s1.md", "s2.txt"), batch_id="b")
    assert "'s1'" in problem and "s1.md and s1.txt" in problem


def test_ids_that_differ_only_by_case_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", "essay_id,text\nS1,one\ns1,two\n")
    problem = only_problem_of(read_batch, table)
    assert "'S1' and 's1' (b.csv row 2 and b.csv row 3) differ only by case" in problem


@pytest.mark.parametrize("name", ["åsa.txt", "elev 1.txt", "-s1.txt", "_s1.txt", f"{'x' * 129}.txt"])
def test_a_file_name_that_cannot_be_an_essay_id_is_refused(tmp_path: Path, name: str) -> None:
    problem = only_problem_of(read_batch, essays_in(tmp_path, name), batch_id="b")
    assert problem.startswith(f"{name}: its essay id is not usable")


def test_ids_that_begin_like_anchor_nodes_are_kept_for_anchors(tmp_path: Path) -> None:
    assert "kept for anchors" in only_problem_of(read_batch, essays_in(tmp_path, "ANCHOR_1.txt"), batch_id="b")
    (tmp_path / "ANCHOR_1.txt").rename(tmp_path / "anchor_01_F+.txt")
    assert list(texts_of(read_batch(tmp_path, batch_id="b"))) == ["anchor_01_F+"]


# --- quality ---------------------------------------------------------------------------------------------------------


def test_quality_comes_from_quality_csv_or_the_table(tmp_path: Path) -> None:
    essays_in(tmp_path, "s1.txt", "s2.txt", "s3.txt")
    write(tmp_path / "quality.csv", "essay_id,quality\ns2,-1.5\ns1, 3 \n")
    assert [essay.quality for essay in read_batch(tmp_path, batch_id="b").students] == [3.0, -1.5, None]
    table = write(tmp_path / "b.csv", "essay_id,text,quality\ns1,One,0.5\ns2,Two,\n")
    assert [essay.quality for essay in read_batch(table).students] == [0.5, None]


def test_quality_that_is_no_finite_number_or_belongs_to_no_essay_is_refused(tmp_path: Path) -> None:
    essays_in(tmp_path, "s1.txt", "s2.txt", "s3.txt", "s4.txt")
    rows = ["s1,nan", "s2,inf", 's3,"3,5"', "s9,1", "s4,1", "s4,2"]
    write(tmp_path / "quality.csv", "\n".join(["essay_id,quality", *rows]))
    problems = problems_of(read_batch, tmp_path, batch_id="b")
    assert [problem.split(":")[0] for problem in problems] == [f"quality.csv row {row}" for row in (2, 3, 4, 5, 7)]
    assert "'s9'" in problems[3] and "'s4' again" in problems[4]


def test_parquet_quality_must_be_finite_too(tmp_path: Path) -> None:
    path = tmp_path / "b.parquet"
    pl.DataFrame({"essay_id": ["s1"], "text": ["One"], "quality": [float("inf")]}).write_parquet(path)
    assert "b.parquet row 1: quality is not finite" in only_problem_of(read_batch, path)


def test_quality_in_two_places_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "essays.csv", "essay_id,text,quality\ns1,One,1\n")
    write(tmp_path / "quality.csv", "essay_id,quality\ns1,1\n")
    assert "quality too: keep one" in only_problem_of(read_batch, tmp_path, batch_id="b")
