"""Files as people hand them in, and what reading them finds wrong."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import docx
import pypdf
import pytest

from cj_pipeline.core.errors import RequestError
from cj_pipeline.workflow.intake import BatchRequest

SECRET = "Min hemliga hund heter Zorro"
"""A sentence of an essay. No error may repeat it."""


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


_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def workbook_bytes(sheet_data: str, shared: Sequence[str] = (), *, target: str = "worksheets/sheet1.xml") -> bytes:
    """An Excel workbook whose first sheet has these `<row>` elements; `shared` are the inner parts of `<si>`."""
    parts = {
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="Grades" sheetId="7" r:id="rId2"/><sheet name="Notes" sheetId="1" r:id="rId1"/>'
        "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}">'
        f'<Relationship Id="rId1" Type="t" Target="worksheets/notes.xml"/>'
        f'<Relationship Id="rId2" Type="t" Target="{target}"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{_MAIN}"><sheetData>{sheet_data}</sheetData></worksheet>',
        "xl/worksheets/notes.xml": f'<worksheet xmlns="{_MAIN}"><sheetData/></worksheet>',
    }
    if shared:
        items = "".join(f"<si>{item}</si>" for item in shared)
        parts["xl/sharedStrings.xml"] = f'<sst xmlns="{_MAIN}">{items}</sst>'
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in parts.items():
            package.writestr(name, _HEAD + content)
    return stream.getvalue()


def workbook_of(rows: Sequence[Sequence[str]]) -> bytes:
    """A workbook of plain text cells."""
    return workbook_bytes(
        "".join(
            f'<row r="{number}">'
            + "".join(
                f'<c r="{chr(ord("A") + column)}{number}" t="inlineStr"><is><t>{escape(cell)}</t></is></c>'
                for column, cell in enumerate(cells)
            )
            + "</row>"
            for number, cells in enumerate(rows, start=1)
        )
    )


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
