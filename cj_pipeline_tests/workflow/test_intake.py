"""Files become validated requests, or one error that lists everything wrong with them."""

import hashlib
import io
import logging
import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import docx
import polars as pl
import pypdf
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given
from hypothesis import strategies as st

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import MAX_ESSAY_CHARACTERS, BatchKind
from cj_pipeline.workflow import intake
from cj_pipeline.workflow.intake import (
    AssignmentRequest,
    BatchRequest,
    normalise_text,
    read_assignment,
    read_batch,
    text_sha256,
    word_count,
)

SECRET = "Min hemliga hund heter Zorro"
"""A sentence of an essay. No error may repeat it."""


# --- files ---------------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def word_bytes(*paragraphs: str, document: Any = None) -> bytes:
    document = document or docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def pdf_bytes(*pages: str) -> bytes:
    """A PDF written by hand: a font, and per page one line of Latin text (none for an empty string)."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for page in pages:
        stream = f"BT /F1 12 Tf 72 700 Td ({page}) Tj ET" if page else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>"
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}" + trailer).encode("latin-1")


def encrypted_pdf_bytes(text: str, *, user_password: str) -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_bytes(text)))
    writer.encrypt(user_password=user_password, owner_password="owner", algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()


def essays_in(folder: Path, *names: str) -> Path:
    for name in names:
        write(folder / name, f"This is the text of {name}.")
    return folder


def assignment_in(folder: Path, *, anchors: Mapping[str, str | bytes] | None = None, **changes: Any) -> Path:
    """A sound assignment with two anchors, then `changes`: a value for a key of assignment.yaml, None to leave out."""
    keys = {
        "id": "letters-2016",
        "title": "A letter to the editor",
        "language": "en",
        "grade_scale": "eng5_np_legacy_9_step",
        "student_prompt": "prompt.md",
        "judge_rubric": "rubric.txt",
        "instructions": "Decide which essay is better.",
    } | changes
    write(folder / "assignment.yaml", "".join(f"{key}: {value}\n" for key, value in keys.items() if value is not None))
    write(folder / "prompt.md", "Write a letter.")
    write(folder / "rubric.txt", "Content before language.")
    if anchors is None:
        anchors = {"anchor_01_F+.txt": "A weak one.", "anchor_02_A.md": "A strong one."}
    (folder / "anchors").mkdir(exist_ok=True)
    for name, content in anchors.items():
        write(folder / "anchors" / name, content)
    return folder


def problems_of(read: Callable[..., object], *args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(RequestError) as caught:
        read(*args, **kwargs)
    assert "Zorro" not in str(caught.value)
    return caught.value.problems


def only_problem_of(read: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    problems = problems_of(read, *args, **kwargs)
    assert len(problems) == 1, problems
    return problems[0]


def texts_of(request: BatchRequest) -> dict[str, str]:
    return {essay.essay_id: essay.text for essay in request.students}


def refs_and_grades(request: AssignmentRequest) -> list[tuple[str, str]]:
    return [(anchor.anchor_ref, anchor.grade) for anchor in request.anchors]


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


# --- essays from a folder --------------------------------------------------------------------------------------------


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


def test_texts_do_not_show_in_a_requests_repr(tmp_path: Path) -> None:
    write(tmp_path / "s1.txt", SECRET)
    assert "Zorro" not in repr(read_batch(tmp_path, batch_id="b"))


def test_an_empty_folder_has_no_essays(tmp_path: Path) -> None:
    assert "no essays" in only_problem_of(read_batch, tmp_path, batch_id="b")


def test_a_calibration_needs_no_essays_because_it_judges_anchors(tmp_path: Path) -> None:
    write(tmp_path / "batch.yaml", "kind: calibration\nassignment: letters\n")
    request = read_batch(tmp_path, batch_id="b")
    assert (request.kind, request.assignment_id, request.students) == (BatchKind.CALIBRATION, "letters", ())


def test_a_source_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in only_problem_of(read_batch, tmp_path / "nowhere")
    assert "neither a folder" in only_problem_of(read_batch, write(tmp_path / "one.txt", SECRET))


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
        stream.truncate(intake.MAX_DOCUMENT_BYTES + 1)
    assert "s2.txt: is larger than 10 MB" in only_problem_of(read_batch, tmp_path, batch_id="b")


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
    monkeypatch.setattr(intake, "_MAX_UNPACKED_BYTES", 1000)
    assert "s1.docx: unpacks to more than" in only_problem_of(read_batch, tmp_path, batch_id="b")


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


def test_a_file_and_a_table_with_the_same_text_give_the_same_hash(tmp_path: Path) -> None:
    write(tmp_path / "files" / "s1.txt", b"One\r\ntwo\r\n")
    pl.DataFrame({"essay_id": ["s1"], "text": ["One\ntwo"]}).write_parquet(tmp_path / "table.parquet")
    hashes = {
        text_sha256(texts_of(read_batch(source, batch_id="b"))["s1"])
        for source in (tmp_path / "files", tmp_path / "table.parquet")
    }
    assert hashes == {hashlib.sha256(b"One\ntwo").hexdigest()}


def test_windows_newlines_and_blank_rows_in_a_csv_are_harmless(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", 'essay_id,text\r\n s1 ,"One\r\ntwo"\r\n\r\n,\r\ns2,Three\r\n')
    assert texts_of(read_batch(table)) == {"s1": "One\ntwo", "s2": "Three"}


def test_students_come_in_order_of_their_ids_whatever_the_order_of_rows(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", "essay_id,text\ns2,Two\ns10,Ten\ns1,One\n")
    assert [essay.essay_id for essay in read_batch(table).students] == ["s1", "s10", "s2"]


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


def test_essays_in_two_places_are_refused(tmp_path: Path) -> None:
    essays_in(tmp_path, "s1.txt")
    write(tmp_path / "essays.csv", "essay_id,text\ns2,Two\n")
    pl.DataFrame({"essay_id": ["s3"], "text": ["Three"]}).write_parquet(tmp_path / "essays.parquet")
    problem = only_problem_of(read_batch, tmp_path, batch_id="b")
    assert "essays.csv and essays.parquet and 1 essay files: keep the essays in one place" in problem


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


# --- batch.yaml and arguments ----------------------------------------------------------------------------------------

FULL_BATCH_YAML = """\
assignment: letters
batch_id: from-yaml
judge: eng5-anchor
kind: anchor_align
max_comparisons: 40
overrides:
  score_stability_threshold: 0.1
  pair_generation_seed: 7
"""


def test_batch_yaml_says_what_the_batch_is(tmp_path: Path) -> None:
    write(essays_in(tmp_path, "s1.txt") / "batch.yaml", FULL_BATCH_YAML)
    request = read_batch(tmp_path)
    assert (request.batch_id, request.assignment_id, request.judge) == ("from-yaml", "letters", "eng5-anchor")
    assert request.kind is BatchKind.ANCHOR_ALIGN
    assert request.overrides.model_dump(exclude_none=True) == {
        "max_comparisons": 40,
        "score_stability_threshold": 0.1,
        "pair_generation_seed": 7,
    }


def test_arguments_win_over_batch_yaml_one_by_one(tmp_path: Path) -> None:
    write(essays_in(tmp_path, "s1.txt") / "batch.yaml", FULL_BATCH_YAML)
    request = read_batch(
        tmp_path,
        assignment_id="other",
        batch_id="from-arguments",
        judge="cj-generic",
        kind="assessment",
        overrides={"max_comparisons": 99, "pair_generation_seed": None},
    )
    assert (request.batch_id, request.assignment_id, request.judge) == ("from-arguments", "other", "cj-generic")
    assert request.kind is BatchKind.ASSESSMENT
    assert request.overrides.max_comparisons == 99
    assert request.overrides.pair_generation_seed == 7


def test_an_argument_mends_what_batch_yaml_has_wrong(tmp_path: Path) -> None:
    write(essays_in(tmp_path, "s1.txt") / "batch.yaml", "batch_id: not usable\nmax_comparisons: 0\n")
    request = read_batch(tmp_path, batch_id="b", overrides={"max_comparisons": 5})
    assert (request.batch_id, request.overrides.max_comparisons) == ("b", 5)


def test_batch_yaml_can_be_left_unread(tmp_path: Path) -> None:
    write(essays_in(tmp_path / "plain", "s1.txt") / "batch.yaml", FULL_BATCH_YAML)
    request = read_batch(tmp_path / "plain", batch_yaml=False)
    assert (request.batch_id, request.assignment_id) == ("plain", None)


def test_every_problem_of_batch_yaml_is_listed(tmp_path: Path) -> None:
    write(
        essays_in(tmp_path, "s1.txt") / "batch.yaml",
        "assigment: x\nbatch_id: a/b\njudge: [1]\nkind: exam\nmax_comparisons: 0\noverrides: {wave_size: 3}\n",
    )
    problems = "\n".join(problems_of(read_batch, tmp_path))
    assert "unknown key 'assigment' (known: assignment, batch_id" in problems
    assert "batch id 'a/b' is not usable" in problems
    assert "judge must be text" in problems
    assert "kind 'exam' is not known: choose one of assessment, anchor_align, calibration" in problems
    assert "max_comparisons" in problems and "wave_size" in problems


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
        ("overrides: 3", "overrides must be a mapping"),
        ("max_comparisons: 5\noverrides: {max_comparisons: 6}", "stated twice, differently"),
        ("assignment: two words", "is not the id of an assignment"),
        ("a: " + "[" * 20_000, "is nested deeper than 20 levels"),
        (b"kind: \xff", "is not UTF-8 text (byte offset 6)"),
    ],
)
def test_a_bad_batch_yaml_is_refused(tmp_path: Path, content: str | bytes, expected: str) -> None:
    write(essays_in(tmp_path / "b", "s1.txt") / "batch.yaml", content)
    assert expected in only_problem_of(read_batch, tmp_path / "b")


def test_an_empty_batch_yaml_says_nothing_and_a_yml_is_pointed_out(tmp_path: Path) -> None:
    write(essays_in(tmp_path / "b", "s1.txt") / "batch.yaml", "")
    assert read_batch(tmp_path / "b").batch_id == "b"
    (tmp_path / "b" / "batch.yaml").rename(tmp_path / "b" / "batch.yml")
    assert "batch.yml: is not read: rename it to batch.yaml" in only_problem_of(read_batch, tmp_path / "b")


def test_a_folder_or_file_whose_name_cannot_be_the_batch_id_asks_for_one(tmp_path: Path) -> None:
    essays_in(tmp_path / "class 9", "s1.txt")
    assert "give one with --batch-id" in only_problem_of(read_batch, tmp_path / "class 9")
    assert "give one with --batch-id" in only_problem_of(
        read_batch, write(tmp_path / "åk9.csv", "essay_id,text\ns1,One\n")
    )


def test_the_batch_id_of_the_current_folder_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    essays_in(tmp_path / "class9", "s1.txt")
    monkeypatch.chdir(tmp_path / "class9")
    assert read_batch(Path()).batch_id == "class9"


def test_a_batch_id_with_a_trailing_newline_is_refused(tmp_path: Path) -> None:
    assert "not usable" in only_problem_of(read_batch, essays_in(tmp_path, "s1.txt"), batch_id="b\n")


def test_problems_of_every_sort_are_listed_together(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", SECRET)
    write(tmp_path / "b.txt", SECRET)
    write(tmp_path / "c.txt", "")
    write(tmp_path / "c.md", "See.")
    write(tmp_path / "d.pdf", pdf_bytes(""))
    write(tmp_path / "e.txt", b"\xe5")
    write(tmp_path / "f f.txt", "Eff.")
    write(tmp_path / "quality.csv", "essay_id,quality\nzz,1\n")
    write(tmp_path / "batch.yaml", "pupils: 3\n")
    problems = problems_of(read_batch, tmp_path, batch_id="-")
    expected = [
        "batch.yaml: unknown key 'pupils'",
        "batch id '-' is not usable",
        "c.txt: has no text",
        "d.pdf: is a PDF without text",
        "e.txt: is not UTF-8",
        "quality.csv row 2: there is no essay 'zz'",
        "f f.txt: its essay id is not usable",
        "essay id 'c' is used by c.md and c.txt",
        "a.txt and b.txt have the same text",
    ]
    assert [problem[: len(start)] for problem, start in zip(problems, expected, strict=True)] == expected


# --- assignments -----------------------------------------------------------------------------------------------------


def test_an_assignment_is_read_with_its_texts_and_anchors(tmp_path: Path) -> None:
    folder = assignment_in(
        tmp_path,
        system_prompt="system.txt",
        anchors={
            "anchor_03_C+.pdf": pdf_bytes("Third anchor"),
            "anchor_02_A.docx": word_bytes("Second anchor"),
            "anchor_01_F+.txt": "First anchor",
            "README.md": "How these were chosen.",
            "~$chor_02_A.docx": b"\0",
        },
    )
    write(folder / "system.txt", "\ufeffYou are a judge.\r\n")
    request = read_assignment(folder)
    assert refs_and_grades(request) == [("anchor_01", "F+"), ("anchor_02", "A"), ("anchor_03", "C+")]
    assert [anchor.text for anchor in request.anchors] == ["First anchor", "Second anchor", "Third anchor"]
    assert request.anchors[0].source_name == "anchors/anchor_01_F+.txt"
    assert (request.assignment_id, request.title, request.language) == ("letters-2016", "A letter to the editor", "en")
    assert (request.grade_scale, request.grade_scale_definition) == ("eng5_np_legacy_9_step", None)
    assert (request.student_prompt, request.judge_rubric) == ("Write a letter.", "Content before language.")
    assert (request.instructions, request.system_prompt) == ("Decide which essay is better.", "You are a judge.")
    assert "anchor_01" in repr(request) and "First anchor" not in repr(request) and "a judge" not in repr(request)


def test_every_missing_key_is_named(tmp_path: Path) -> None:
    problems = problems_of(
        read_assignment,
        assignment_in(tmp_path, id=None, title=None, instructions=None, student_prompt=None, language="no"),
    )
    assert [problem.split(" is ")[0].split(" must ")[0] for problem in problems] == [
        "assignment.yaml: id",
        "assignment.yaml: title",
        "assignment.yaml: language",
        "assignment.yaml: instructions",
        "assignment.yaml: student_prompt",
    ]
    assert "YAML reads it as bool: put it in quotes" in problems[2]


def test_a_folder_without_assignment_yaml_or_anchors_is_refused(tmp_path: Path) -> None:
    problems = problems_of(read_assignment, tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["assignment.yaml", "anchors/"]
    assert "is not a folder" in only_problem_of(read_assignment, tmp_path / "nowhere")


def test_an_assignment_without_a_single_anchor_is_refused(tmp_path: Path) -> None:
    assert "anchors/: has no anchors" in only_problem_of(read_assignment, assignment_in(tmp_path, anchors={}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": "two words"}, "assignment.yaml: id"),
        ({"grade_scale": "no_such_scale"}, "no_such_scale"),
        ({"student_prompt": "gone.md"}, "gone.md: is missing"),
        ({"student_prompt": "../prompt.md"}, "../prompt.md: leads out of the folder"),
        ({"judge_rubric": "/etc/motd.txt"}, "motd.txt: leads out of the folder"),
        ({"judge_rubric": "rubric.png"}, "judge_rubric must name a file"),
        ({"system_prompt": "gone.txt"}, "gone.txt: is missing"),
        ({"rubric": "rubric.txt"}, "unknown key 'rubric' (known: id, title"),
        ({"grade_scale_definition": "[A, B]"}, "assignment.yaml: grade_scale_definition"),
    ],
)
def test_a_bad_value_in_assignment_yaml_is_refused(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    assert expected in only_problem_of(read_assignment, assignment_in(tmp_path / "letters", **changes))


def test_a_users_own_scale_decides_which_grades_anchors_may_have(tmp_path: Path) -> None:
    changes = {"grade_scale": "pass_fail", "grade_scale_definition": "{name: pass_fail, grades: [U, G, VG]}"}
    anchors = {"x_G.txt": "One.", "y_VG.txt": "Two."}
    request = read_assignment(assignment_in(tmp_path, anchors=anchors, **changes))
    assert refs_and_grades(request) == [("x", "G"), ("y", "VG")]
    assert request.grade_scale_definition == {"name": "pass_fail", "grades": ["U", "G", "VG"]}
    problem = only_problem_of(read_assignment, assignment_in(tmp_path, anchors={"z_MVG.txt": "Three."}, **changes))
    assert "anchors/z_MVG.txt: grade 'MVG' is not one of the scale pass_fail: use U, G, VG" in problem


def test_a_definition_under_another_name_than_the_scale_is_refused(tmp_path: Path) -> None:
    changes = {"grade_scale": "mine", "grade_scale_definition": "{name: other, grades: [F+, A]}"}
    assert "give both the same name" in only_problem_of(read_assignment, assignment_in(tmp_path, **changes))


def test_anchors_csv_gives_grades_and_refs_and_wins_over_file_names(tmp_path: Path) -> None:
    anchors = {"one_B.txt": "One.", "two.txt": "Two.", "Å tre.txt": "Three."}
    listed = "file_name,grade,anchor_ref\none_B.txt,A,\ntwo.txt,F+,\nÅ tre.txt,C+,three\n"
    folder = assignment_in(tmp_path, anchors=anchors)
    for path in (folder / "anchors.csv", folder / "anchors" / "anchors.csv"):
        write(path, listed)
        assert refs_and_grades(read_assignment(folder)) == [("one", "A"), ("three", "C+"), ("two", "F+")]
        path.unlink()


def test_a_file_name_stored_decomposed_is_found_in_anchors_csv(tmp_path: Path) -> None:
    folder = assignment_in(tmp_path, anchors={unicodedata.normalize("NFD", "Åsa.txt"): "One."})
    write(folder / "anchors.csv", "file,grade,anchor_ref\nÅsa.txt,A,first\n")
    assert refs_and_grades(read_assignment(folder)) == [("first", "A")]


def test_anchors_csv_and_the_files_must_agree(tmp_path: Path) -> None:
    folder = assignment_in(tmp_path, anchors={"a_A.txt": "One.", "b_B.txt": "Two."})
    write(folder / "anchors.csv", "file_name,grade\na_A.txt,A\na_A.txt,B\nc_C.txt,A\n")
    problems = problems_of(read_assignment, folder)
    assert len(problems) == 3
    assert problems[0].startswith("anchors.csv row 3: lists 'a_A.txt' again, after anchors.csv row 2")
    assert problems[1].startswith("anchors.csv row 4: the file 'c_C.txt' is not in anchors/")
    assert problems[2].startswith("anchors/b_B.txt: is not listed in anchors.csv")


def test_an_unreadable_anchors_csv_is_one_problem_and_the_texts_are_still_checked(tmp_path: Path) -> None:
    folder = assignment_in(tmp_path, anchors={"a.txt": "One.", "b.txt": ""})
    write(folder / "anchors.csv", "name,grade\na.txt,A\n")
    problems = problems_of(read_assignment, folder)
    assert [problem.split(":")[0] for problem in problems] == ["anchors/b.txt", "anchors.csv"]
    assert "has no column file_name or file; found 'name', 'grade'" in problems[1]


def test_two_lists_of_anchors_are_refused(tmp_path: Path) -> None:
    folder = assignment_in(tmp_path, anchors={"a_A.txt": "One."})
    for path in (folder / "anchors.csv", folder / "anchors" / "anchors.csv"):
        write(path, "file_name,grade\na_A.txt,A\n")
    assert "two lists of anchors" in only_problem_of(read_assignment, folder)


def test_every_problem_of_the_anchors_is_listed(tmp_path: Path) -> None:
    anchors = {
        "nograde.txt": "No grade.",
        "a_Q.txt": SECRET,
        "b_A.txt": SECRET,
        "B_B.txt": "Another.",
        "c_A.txt": "",
        "d_A.rtf": "Rich.",
        "e e_A.txt": "Spaces.",
        "f_A.pdf": "no pdf",
    }
    problems = problems_of(read_assignment, assignment_in(tmp_path, anchors=anchors))
    expected = [
        "anchors/d_A.rtf: .rtf files are not read",
        "anchors/c_A.txt: has no text",
        "anchors/f_A.pdf: cannot be read as a PDF",
        "anchors/a_Q.txt: grade 'Q' is not one of the scale",
        "anchors/e e_A.txt: its anchor ref (3 characters, not shown) is not usable",
        "anchors/nograde.txt: has no grade in its name",
        "anchor refs 'B' and 'b' (anchors/B_B.txt and anchors/b_A.txt) differ only by case",
        "anchors/a_Q.txt and anchors/b_A.txt have the same text",
    ]
    assert [problem[: len(start)] for problem, start in zip(problems, expected, strict=True)] == expected


def test_an_anchors_folder_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a_A.txt", SECRET)
    folder = assignment_in(tmp_path / "letters", anchors={})
    (folder / "anchors").rmdir()
    (folder / "anchors").symlink_to(tmp_path / "elsewhere")
    assert "anchors: leads out of the folder" in only_problem_of(read_assignment, folder)


def test_a_request_error_is_an_input_error_so_that_the_command_line_exits_with_2(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_batch(tmp_path, batch_id="b")
    assert caught.value.exit_code == 2
