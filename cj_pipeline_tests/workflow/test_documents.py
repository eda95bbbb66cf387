"""The text of a document is read whole, in one normal form, or refused by the file's name."""

import hashlib
import logging
import os
import unicodedata
from pathlib import Path
from typing import Any

import docx
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given
from hypothesis import strategies as st

from cj_pipeline.core.models import MAX_ESSAY_CHARACTERS
from cj_pipeline.workflow import documents
from cj_pipeline.workflow.documents import normalise_text, text_sha256, word_count
from cj_pipeline.workflow.intake import read_batch
from cj_pipeline_tests.workflow.files import (
    SECRET,
    encrypted_pdf_bytes,
    essays_in,
    only_problem_of,
    pdf_bytes,
    problems_of,
    texts_of,
    word_bytes,
    write,
)

# --- the normal form -------------------------------------------------------------------------------------------------


def test_the_normal_form_has_unix_lines_composed_letters_and_no_trailing_space() -> None:
    assert normalise_text("\ufeff\r\n \r\nEn a\u030a  \r\n\r\n  tva\u030a\t\rtre\n\n") == "En å\n\n  två\ntre"


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\r\n \ufeff\x0b\u2028a\u030a")), max_size=60))
def test_the_normal_form_of_a_normal_form_is_itself(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert "\r" not in once and "\ufeff" not in once
    assert unicodedata.is_normalized("NFC", once)


def test_the_hash_is_that_of_the_normal_forms_utf8_bytes() -> None:
    assert text_sha256("Blåbär\r\n") == hashlib.sha256("Blåbär".encode()).hexdigest()


@given(st.text(alphabet="ab å.\n", max_size=40))
def test_windows_and_old_mac_newlines_hash_like_unix_ones(text: str) -> None:
    assert text_sha256(text) == text_sha256(text.replace("\n", "\r\n")) == text_sha256(text.replace("\n", "\r"))


def test_a_different_word_gives_a_different_hash() -> None:
    assert text_sha256("a cat") != text_sha256("a cot")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", 0), (" \n", 0), ("It's 5 o'clock – already!", 4), ("Över\nhela   världen\t.", 3), ("well-known", 1)],
)
def test_words_are_runs_with_a_letter_or_digit(text: str, words: int) -> None:
    assert word_count(text) == words


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_are_not_essays_are_passed_over(tmp_path: Path) -> None:
    folder = essays_in(tmp_path, "s1.txt", "s2.txt", "README.md", "readme.txt", ".hidden.txt", "~$s1.docx", "list.xlsx")
    write(folder / "drafts.txt" / "s3.txt", "In a subfolder.")
    assert list(texts_of(read_batch(folder, batch_id="b"))) == ["s1", "s2"]


def test_a_document_in_a_format_that_is_not_read_is_a_problem_and_not_a_lost_pupil(tmp_path: Path) -> None:
    problem = only_problem_of(read_batch, essays_in(tmp_path, "s1.txt", "s2.odt"), batch_id="b")
    assert "s2.odt" in problem and "save it as .docx" in problem


def test_a_byte_order_mark_and_windows_newlines_leave_no_trace(tmp_path: Path) -> None:
    write(tmp_path / "s1.txt", b"\xef\xbb\xbfOne\r\nTwo\r\n")
    assert texts_of(read_batch(tmp_path, batch_id="b")) == {"s1": "One\nTwo"}


@pytest.mark.parametrize("content", ["", " \n\t\r\n", "\ufeff", "\u00a0\u2003"])
def test_blank_text_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path / "s1.txt", content)
    assert only_problem_of(read_batch, tmp_path, batch_id="b").startswith("s1.txt: has no text")


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_utf8_is_refused_with_the_byte_offset(tmp_path: Path, prefix: bytes) -> None:
    write(tmp_path / "s1.txt", prefix + b"Zorro \xe5")
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert f"s1.txt: is not UTF-8 text (byte offset {6 + len(prefix)})" in problem


def test_nul_characters_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s1.txt", SECRET + "\0")
    assert "s1.txt: contains NUL characters" in only_problem_of(read_batch, tmp_path, batch_id="b")


def test_the_longest_essay_is_read_and_one_character_more_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s1.txt", "å" * MAX_ESSAY_CHARACTERS + "\n")
    assert len(texts_of(read_batch(tmp_path, batch_id="b"))["s1"]) == MAX_ESSAY_CHARACTERS
    write(tmp_path / "s1.txt", "å" * (MAX_ESSAY_CHARACTERS + 1))
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert "s1.txt" in problem and str(MAX_ESSAY_CHARACTERS + 1) in problem


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    essays_in(tmp_path, "s1.txt")
    with (tmp_path / "s2.txt").open("wb") as stream:
        stream.truncate(documents.MAX_DOCUMENT_BYTES + 1)
    assert "s2.txt: is larger than 10 MB" in only_problem_of(read_batch, tmp_path, batch_id="b")


def test_links_may_stay_inside_the_folder_and_may_not_leave_it(tmp_path: Path) -> None:
    outside = write(tmp_path / "secret.txt", SECRET)
    folder = tmp_path / "b"
    write(folder / ".store" / "one.txt", "One.")
    (folder / "s1.txt").symlink_to(folder / ".store" / "one.txt")
    assert texts_of(read_batch(folder)) == {"s1": "One."}
    (folder / "s2.txt").symlink_to(outside)
    (folder / "s3.txt").symlink_to(folder / "gone.txt")
    (folder / "s4.txt").symlink_to(folder / "s4.txt")
    (folder / "quality.csv").symlink_to(outside)
    problems = problems_of(read_batch, folder)
    assert len(problems) == 4
    assert any(problem.startswith("s2.txt: leads out of the folder") for problem in problems)
    assert any(problem.startswith("s3.txt: is missing") for problem in problems)
    assert any(problem.startswith("s4.txt: leads nowhere") for problem in problems)
    assert any(problem.startswith("quality.csv: leads out of the folder") for problem in problems)


def test_a_folder_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    essays_in(tmp_path / "real", "s1.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read_batch(tmp_path / "linked").batch_id == "linked"


def test_a_file_that_may_not_be_read_is_named_with_the_systems_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    essays_in(tmp_path, "s1.txt", "s2.txt")
    really_open = Path.open

    def refuse_first(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "s1.txt":
            raise PermissionError(13, "Permission denied")
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse_first)
    assert only_problem_of(read_batch, tmp_path, batch_id="b") == "s1.txt: cannot be read (Permission denied)"


def test_a_pipe_does_not_hang_the_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s1.txt")
    assert "s1.txt: is not a file" in only_problem_of(read_batch, tmp_path, batch_id="b")


def test_a_file_name_with_control_characters_is_shown_escaped(tmp_path: Path) -> None:
    problem = only_problem_of(read_batch, essays_in(tmp_path, "s\x1b[2J.txt"), batch_id="b")
    assert "\x1b" not in problem and r"s\x1b[2J.txt" in problem


# --- Word and PDF ----------------------------------------------------------------------------------------------------


def test_a_word_table_is_read_where_it_stands(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_paragraph("Before")
    table = document.add_table(rows=2, cols=2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "Merged"
    table.cell(1, 0).text, table.cell(1, 1).text = "Left", "Right"
    write(tmp_path / "s1.docx", word_bytes("After\ttab", document=document))
    assert texts_of(read_batch(tmp_path, batch_id="b")) == {"s1": "Before\nMerged\nLeft\nRight\nAfter\ttab"}


def test_tracked_changes_count_as_accepted_and_form_fields_are_read(tmp_path: Path) -> None:
    document = docx.Document()
    paragraph = document.add_paragraph("I ")
    for xml in (
        "<w:ins {ns}><w:r><w:t>really </w:t></w:r></w:ins>",
        "<w:del {ns}><w:r><w:delText>hardly </w:delText><w:br/></w:r></w:del>",
        "<w:moveFrom {ns}><w:r><w:t>cats </w:t></w:r></w:moveFrom>",
        '<w:hyperlink {ns}><w:r><w:t xml:space="preserve">like </w:t></w:r></w:hyperlink>',
        "<w:r {ns}><w:t>cats</w:t><w:br/><w:t>and dogs.</w:t></w:r>",
    ):
        paragraph._p.append(parse_xml(xml.format(ns=nsdecls("w"))))
    control = "<w:sdt {ns}><w:sdtContent><w:p><w:r><w:t>In a form.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    document.element.body.insert(1, parse_xml(control.format(ns=nsdecls("w"))))
    write(tmp_path / "s1.docx", word_bytes(document=document))
    assert texts_of(read_batch(tmp_path, batch_id="b")) == {"s1": "I really like cats\nand dogs.\nIn a form."}


def test_a_text_box_is_read_once_though_word_stores_it_twice(tmp_path: Path) -> None:
    document = docx.Document()
    box = "<w:txbxContent><w:p><w:r><w:t>Boxed</w:t></w:r></w:p></w:txbxContent>"
    mc = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    document.add_paragraph("Around")._p.append(
        parse_xml(
            f"<w:r {nsdecls('w')} {mc}><mc:AlternateContent><mc:Choice Requires='wps'>{box}</mc:Choice>"
            f"<mc:Fallback><w:pict>{box}</w:pict></mc:Fallback></mc:AlternateContent></w:r>"
        )
    )
    write(tmp_path / "s1.docx", word_bytes(document=document))
    assert texts_of(read_batch(tmp_path, batch_id="b")) == {"s1": "Around\nBoxed"}


def test_a_word_file_with_only_blank_paragraphs_has_no_text(tmp_path: Path) -> None:
    write(tmp_path / "s1.docx", word_bytes("", "  "))
    assert "s1.docx: has no text" in only_problem_of(read_batch, tmp_path, batch_id="b")


def test_a_pdf_without_text_is_named_as_a_scan(tmp_path: Path) -> None:
    write(tmp_path / "s1.pdf", pdf_bytes("", ""))
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert problem.startswith("s1.pdf: is a PDF without text, perhaps a scan") and "OCR" in problem


def test_a_pdf_that_needs_a_password_is_refused_and_one_locked_only_for_printing_is_read(tmp_path: Path) -> None:
    write(tmp_path / "s1.pdf", encrypted_pdf_bytes("Readable text", user_password=""))
    assert texts_of(read_batch(tmp_path, batch_id="b")) == {"s1": "Readable text"}
    write(tmp_path / "s2.pdf", encrypted_pdf_bytes(SECRET, user_password="pw"))
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert problem.startswith("s2.pdf: is protected by a password")


def test_half_a_character_from_a_pdf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "s1.pdf", pdf_bytes("Text"))
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: SECRET + "\ud83d")
    assert "s1.pdf: contains characters that are no text" in only_problem_of(read_batch, tmp_path, batch_id="b")


def test_unreadable_files_are_all_reported_and_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = word_bytes(SECRET)
    write(tmp_path / "s1.docx", sound[: len(sound) // 2])
    write(tmp_path / "s2.docx", SECRET)
    write(tmp_path / "s3.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512)
    write(tmp_path / "s4.pdf", f"Zorro {SECRET}")
    write(tmp_path / "s5.pdf", pdf_bytes(SECRET)[:60])
    write(tmp_path / "s6.txt", b"\xff\xfeZ\0")
    write(tmp_path / "s7.txt", "Sound.")
    with caplog.at_level(logging.DEBUG):
        problems = problems_of(read_batch, tmp_path, batch_id="b")
    assert [problem.split(":")[0] for problem in problems] == [
        "s1.docx",
        "s2.docx",
        "s3.docx",
        "s4.pdf",
        "s5.pdf",
        "s6.txt",
    ]
    assert "password" in problems[2]
    assert "Zorro" not in caplog.text


def test_a_word_file_that_unpacks_to_more_than_it_should_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s1.docx", word_bytes("Hello."))
    monkeypatch.setattr(documents, "_MAX_UNPACKED_BYTES", 1000)
    assert "s1.docx: unpacks to more than" in only_problem_of(read_batch, tmp_path, batch_id="b")
