"""Files become validated requests, or one error that lists everything wrong with them."""

import math
import unicodedata
from pathlib import Path

import pytest

from cj_pipeline.core.errors import InputError
from cj_pipeline.core.grade_scale import get_grade_scale
from cj_pipeline.core.models import BatchKind
from cj_pipeline.workflow.documents import DOCUMENT_SUFFIXES
from cj_pipeline.workflow.intake import AssignmentRequest, read_assignment, read_batch
from cj_pipeline_tests.workflow.files import (
    SECRET,
    assignment_in,
    essays_in,
    only_problem_of,
    pdf_bytes,
    problems_of,
    word_bytes,
    write,
)

DEMO = Path(__file__).parents[2] / "assets_data" / "inputs" / "demo"
"""The demo that is shipped."""


def refs_and_grades(request: AssignmentRequest) -> list[tuple[str, str]]:
    return [(anchor.anchor_ref, anchor.grade) for anchor in request.anchors]


# --- batches ---------------------------------------------------------------------------------------------------------


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


def test_students_come_in_order_of_their_ids_whatever_the_order_of_rows(tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", "essay_id,text\ns2,Two\ns10,Ten\ns1,One\n")
    assert [essay.essay_id for essay in read_batch(table).students] == ["s1", "s10", "s2"]


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
        ("overrides: 3", "overrides must be a mapping"),
        ("max_comparisons: 5\noverrides: {max_comparisons: 6}", "stated twice, differently"),
        ("assignment: two words", "is not the id of an assignment"),
    ],
)
def test_a_value_of_the_wrong_kind_in_batch_yaml_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    write(essays_in(tmp_path / "b", "s1.txt") / "batch.yaml", content)
    assert expected in only_problem_of(read_batch, tmp_path / "b")


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


# --- the shipped demo ------------------------------------------------------------------------------------------------


def test_the_demos_assignment_has_twelve_anchors_on_all_nine_steps_of_the_legacy_scale() -> None:
    request = read_assignment(DEMO / "assignment")
    grades = get_grade_scale("eng5_np_legacy_9_step").grades
    assert (request.assignment_id, request.grade_scale) == ("demo-eng5", "eng5_np_legacy_9_step")
    assert [ref for ref, _ in refs_and_grades(request)] == [f"anchor_{number:02}" for number in range(1, 13)]
    assert len(grades) == 9 and {grade for _, grade in refs_and_grades(request)} == set(grades)
    assert {Path(anchor.source_name).suffix for anchor in request.anchors} == set(DOCUMENT_SUFFIXES)


def test_the_demos_batch_has_twelve_students_with_finite_qualities() -> None:
    request = read_batch(DEMO / "batch")
    assert (request.batch_id, request.assignment_id, request.judge) == ("demo", "demo-eng5", "cj-generic")
    assert [essay.essay_id for essay in request.students] == [f"s{number:02}" for number in range(1, 13)]
    assert all(essay.quality is not None and math.isfinite(essay.quality) for essay in request.students)
