"""An ENG5 assets folder is read whole, or refused with everything that is wrong with it."""

import hashlib
import os
from pathlib import Path

import pytest

from cj_pipeline.core.errors import RequestError
from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.settings import load_settings
from cj_pipeline_tests.eng5.folders import SCALE, TABLE, anchor_name, assets_in
from cj_pipeline_tests.workflow.files import SECRET, workbook_of, write

LEGACY = get_grade_scale(SCALE)


def problems_in(folder: Path) -> list[str]:
    with pytest.raises(RequestError) as caught:
        read_inventory(folder, LEGACY)
    assert SECRET not in str(caught.value)
    return caught.value.problems


def table_in(folder: Path, *rows: str, header: str = "ANCHOR-ID,FILE-NAME,grade") -> None:
    write(folder / f"{TABLE}.csv", "\n".join([header, *rows]) + "\n")


# --- what is read ----------------------------------------------------------------------------------------------------


def test_every_document_is_found_with_its_id_grade_checksum_and_word_count(tmp_path: Path) -> None:
    folder = assets_in(tmp_path)
    write(folder / "student_essays" / "quality.csv", "essay_id,quality\ns2,4.5\n")
    inventory = read_inventory(folder, LEGACY)
    assert [(anchor.anchor_id, anchor.grade) for anchor in inventory.anchors] == [
        ("a1", "F+"),
        ("a2", "C-"),
        ("a3", "A"),
    ]
    assert [(student.essay_id, student.quality) for student in inventory.students] == [("s1", None), ("s2", 4.5)]
    first = inventory.anchors[0].document
    assert first.path == "anchor_essays/anchor_essay_eng_5_17_vt_001_F+.docx"
    assert (first.text, first.word_count) == ("The text of anchor number 1.", 6)
    assert first.text_sha256 == hashlib.sha256(b"The text of anchor number 1.").hexdigest()
    for path, sha256 in inventory.checksums.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == sha256
    texts = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.name != "quality.csv"}
    assert set(inventory.checksums) == texts


@pytest.mark.parametrize(
    "header",
    ["anchor_id,file_name,pred_mode_grade", "ANCHOR-ID,FILE-NAME,pred_mode_grade", "anchor_id,FILE-NAME,grade"],
)
def test_the_columns_of_the_table_may_have_either_name(tmp_path: Path, header: str) -> None:
    folder = assets_in(tmp_path, ("B",))
    table_in(folder, f"x7,{anchor_name(1, 'B')},B", header=header)
    assert [anchor.anchor_id for anchor in read_inventory(folder, LEGACY).anchors] == ["x7"]


def test_a_workbook_serves_as_the_table_and_further_columns_do_no_harm(tmp_path: Path) -> None:
    folder = assets_in(tmp_path, ("F+", "B"))
    (folder / f"{TABLE}.csv").unlink()
    rows = [["ANCHOR-ID", "mean", "FILE-NAME", "grade"]]
    rows += [["x1", "0.2", anchor_name(1, "F+"), "F+"], ["x2", "0.9", anchor_name(2, "B"), "B"]]
    write(folder / f"{TABLE}.xlsx", workbook_of(rows))
    inventory = read_inventory(folder, LEGACY)
    assert [(anchor.anchor_id, anchor.grade) for anchor in inventory.anchors] == [("x1", "F+"), ("x2", "B")]
    assert inventory.table_path == f"{TABLE}.xlsx"


def test_the_prefix_that_every_anchor_gets_is_not_kept_twice(tmp_path: Path) -> None:
    folder = assets_in(tmp_path, ("B",))
    table_in(folder, f"ANCHOR_7,{anchor_name(1, 'B')},B")
    assert read_inventory(folder, LEGACY).anchors[0].anchor_id == "7"


def test_the_table_may_name_files_without_their_ending_and_in_another_case(tmp_path: Path) -> None:
    folder = assets_in(tmp_path, ("B",))
    table_in(folder, f"a1,{anchor_name(1, 'B').removesuffix('.docx').upper()},B")
    assert len(read_inventory(folder, LEGACY).anchors) == 1


def test_office_lock_files_hidden_files_and_readmes_are_passed_over(tmp_path: Path) -> None:
    folder = assets_in(tmp_path)
    for name in ("~$chor_essay_eng_5_17_vt_001_F+.docx", ".DS_Store", "README.md"):
        write(folder / "anchor_essays" / name, b"\0lock")
        write(folder / "student_essays" / name, b"\0lock")
    write(folder / f"~${TABLE}.xlsx", b"\0lock")
    assert len(read_inventory(folder, LEGACY).anchors) == 3


def test_the_shipped_material_is_sound_and_none_of_its_texts_is_the_demos() -> None:
    settings = load_settings(data_dir=Path(__file__).parents[2] / "assets_data")
    inventory = read_inventory(settings.effective_eng5_assets_dir, LEGACY)
    grades = [anchor.grade for anchor in inventory.anchors]
    assert sorted(grades) == sorted([*LEGACY.grades, "F+", "B", "A"])
    assert all(anchor.document.path.partition(".")[0].endswith(f"_{anchor.grade}") for anchor in inventory.anchors)
    assert len(inventory.students) == 12
    assert all(student.quality is not None for student in inventory.students)
    documents = [item.document for item in (*inventory.anchors, *inventory.students)]
    assert {Path(document.path).suffix for document in documents} == {".docx", ".pdf", ".txt"}
    assert len({document.text_sha256 for document in documents}) == 24
    assert all(100 <= document.word_count <= 250 for document in documents)
    demo = {line for path in (settings.data_dir / "inputs" / "demo").rglob("*.txt") for line in path.open()}
    assert not demo & {line + "\n" for document in documents for line in document.text.split("\n") if line}


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_refused_with_the_ways_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere.*\n.*--assets or CJ_ENG5_ASSETS_DIR"):
        read_inventory(tmp_path / "nowhere", LEGACY)


def test_an_empty_folder_lacks_all_of_its_parts(tmp_path: Path) -> None:
    found = "\n".join(problems_in(tmp_path))
    for part in ("essay_instruction.md: is missing", "eng5.md: is missing", f"{TABLE}.csv or {TABLE}.xlsx: is missing"):
        assert part in found
    assert "anchor_essays: is missing" in found and "student_essays: is missing" in found


def test_everything_wrong_is_listed_at_once_with_its_path(tmp_path: Path) -> None:
    folder = assets_in(tmp_path, ("F+", "E-", "D+", "C-", "A"))
    write(folder / "llm_prompt_cj_assessment_eng5.md", " \n")
    write(folder / "anchor_essays" / anchor_name(1, "F+"), SECRET.encode())  # no Word document
    (folder / "anchor_essays" / anchor_name(2, "E-")).unlink()
    write(folder / "anchor_essays" / anchor_name(6, "B", "txt"), SECRET)  # no row
    write(folder / "student_essays" / "s1.txt", SECRET)  # the same text
    write(folder / "student_essays" / "s2.pdf", "%PDF-1.4 broken")
    write(folder / "student_essays" / "s3.odt", "x")
    table_in(
        folder,
        f"a1,{anchor_name(1, 'F+')},F+",
        f"a1,{anchor_name(2, 'E-')},E-",
        f"a3,{anchor_name(3, 'D+')},D-",
        f"a4,{anchor_name(4, 'C-')},X",
        f",{anchor_name(5, 'A')},A",
    )
    problems = problems_in(folder)
    expected = [
        ("llm_prompt_cj_assessment_eng5.md", "has no text"),
        ("anchor_essays/anchor_essay_eng_5_17_vt_001_F+.docx", "cannot be opened as a Word document"),
        (f"{TABLE}.csv row 3", "there is no file 'anchor_essay_eng_5_17_vt_002_E-.docx'"),
        ("anchor_essays/anchor_essay_eng_5_17_vt_006_B.txt", "has no row in the grade table"),
        ("anchor_essays/anchor_essay_eng_5_17_vt_006_B.txt and student_essays/s1.txt", "have the same text"),
        ("student_essays/s2.pdf", "cannot be read as a PDF"),
        ("student_essays/s3.odt", ".odt files are not read"),
        (f"'a1' is used by {TABLE}.csv row 2 and {TABLE}.csv row 3", "give each anchor its own id"),
        ("anchor_essays/anchor_essay_eng_5_17_vt_003_D+.docx", f"'D+' by its name but 'D-' by {TABLE}.csv row 4"),
        (f"{TABLE}.csv row 5", "grade 'X' is not one of the scale"),
        (f"{TABLE}.csv row 6", "ANCHOR-ID is empty"),
        ("essay id 's2' is used by student_essays/s2.pdf and student_essays/s2.txt", "give each essay its own id"),
    ]
    for place, what in expected:
        assert [p for p in problems if place in p and what in p], (place, what)
    assert len(problems) == len(expected)


def test_a_file_name_must_carry_a_grade_of_the_scale(tmp_path: Path) -> None:
    folder = assets_in(tmp_path, ("B",))
    path = folder / "anchor_essays" / anchor_name(1, "B")
    path.rename(path.with_name("anchor_one_Z.docx"))
    table_in(folder, "a1,anchor_one_Z.docx,B")
    assert [p for p in problems_in(folder) if "anchor_essays/anchor_one_Z.docx: its name does not end in a grade" in p]


def test_two_tables_two_rows_of_one_file_and_two_files_of_one_row_are_refused(tmp_path: Path) -> None:
    folder = assets_in(tmp_path / "tables")
    write(folder / f"{TABLE}.xlsx", workbook_of([["anchor_id", "file_name", "grade"]]))
    assert [p for p in problems_in(folder) if "are both there" in p]
    folder = assets_in(tmp_path / "rows", ("B",))
    table_in(folder, f"a1,{anchor_name(1, 'B')},B", f"a2,{anchor_name(1, 'B')},B")
    assert problems_in(folder) == [
        f"anchor_essays/{anchor_name(1, 'B')}: has two rows ({TABLE}.csv row 2 and {TABLE}.csv row 3): keep one"
    ]
    folder = assets_in(tmp_path / "files", ("B",))
    write(folder / "anchor_essays" / anchor_name(1, "B", "txt"), "Another text.")
    table_in(folder, f"a1,{anchor_name(1, 'B').removesuffix('.docx')},B")
    assert [p for p in problems_in(folder) if "write the name with its ending" in p]


def test_a_table_with_swapped_columns_does_not_give_essays_away(tmp_path: Path) -> None:
    folder = assets_in(tmp_path, ("B",))
    table_in(folder, f"{SECRET},{SECRET},{SECRET}")
    assert len(problems_in(folder)) == 4  # the row's id, file and grade, and the file that has no row


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_that_leads_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.txt", SECRET)
    folder = assets_in(tmp_path / "assets")
    (folder / "student_essays" / "s9.txt").symlink_to(outside)
    assert problems_in(folder) == ["student_essays/s9.txt: leads out of the folder: put a copy of the file inside"]


# --- where the folder is ---------------------------------------------------------------------------------------------


def test_the_folder_is_a_setting_and_a_relative_one_starts_at_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert load_settings().effective_eng5_assets_dir == (
        tmp_path / "assets_data" / "inputs" / "eng5_np" / "ROLE_MODELS_ENG5_NP_2016"
    )
    monkeypatch.setenv("CJ_ENG5_ASSETS_DIR", "safe/eng5")
    assert load_settings().effective_eng5_assets_dir == tmp_path / "safe" / "eng5"
    monkeypatch.setenv("CJ_ENG5_ASSETS_DIR", str(tmp_path / "vault"))
    assert load_settings().effective_eng5_assets_dir == tmp_path / "vault"
