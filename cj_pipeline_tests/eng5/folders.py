"""ENG5 assets folders as people hand them in, sound and spoilt."""

from collections.abc import Sequence
from pathlib import Path

from cj_pipeline_tests.workflow.files import word_bytes, write

SCALE = "eng5_np_legacy_9_step"
TABLE = "ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA"


def anchor_name(number: int, grade: str, suffix: str = "docx") -> str:
    return f"anchor_essay_eng_5_17_vt_{number:03}_{grade}.{suffix}"


def assets_in(folder: Path, grades: Sequence[str] = ("F+", "C-", "A"), students: int = 2) -> Path:
    """A sound assets folder: anchors `a1`, `a2`, … of these grades."""
    write(folder / "eng5_np_vt_2017_essay_instruction.md", "# The task")
    write(folder / "llm_prompt_cj_assessment_eng5.md", "Compare them.")
    rows = ["ANCHOR-ID,FILE-NAME,grade"]
    for number, grade in enumerate(grades, start=1):
        name = anchor_name(number, grade)
        write(folder / "anchor_essays" / name, word_bytes(f"The text of anchor number {number}."))
        rows.append(f"a{number},{name},{grade}")
    write(folder / f"{TABLE}.csv", "\n".join(rows) + "\n")
    for number in range(1, students + 1):
        write(folder / "student_essays" / f"s{number}.txt", f"The text of student number {number}.")
    return folder
