"""The matrix file: what may stand in it, and how everything that may not is told at once."""

from pathlib import Path

import pytest

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.eng5.matrix_file import read_matrix

SOUND = """
matrix: autumn
judges:
  - {label: one, judge: cj-generic}
  - {label: two, judge: anthropic/claude-haiku-4-5, reasoning_effort: low}
prompts:
  - {label: base, system: 001, rubric: 010}
  - {label: bare}
max_comparisons: 20
max_cost_usd: 1.5
"""


def matrix(folder: Path, text: str = SOUND) -> Path:
    path = folder / "m.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(RequestError) as raised:
        read_matrix(matrix(folder, text))
    return raised.value.problems


def test_a_sound_file_is_read_with_its_defaults(tmp_path):
    read = read_matrix(matrix(tmp_path))
    assert [judge.label for judge in read.judges] == ["one", "two"]
    assert (read.matrix, read.max_comparisons, read.repeats, read.max_cost_usd) == ("autumn", 20, 1, 1.5)
    assert read.judges[1].reasoning_effort == "low" and read.judges[0].reasoning_effort is None


def test_a_variants_number_is_taken_as_it_is_written_and_not_as_an_octal(tmp_path):
    first, second = read_matrix(matrix(tmp_path)).prompts
    assert (first.system, first.rubric) == ("001", "010")
    assert (second.system, second.rubric) == (None, None)


@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_a_field_without_a_value_counts_as_left_out(tmp_path, nothing):
    text = SOUND.replace("max_cost_usd: 1.5", f"max_cost_usd: {nothing}")
    text = text.replace("{label: bare}", f"{{label: bare, rubric: {nothing}}}")
    read = read_matrix(matrix(tmp_path, text))
    assert read.max_cost_usd is None and read.prompts[1].rubric is None


def test_everything_wrong_is_told_at_once_with_its_place(tmp_path):
    told = problems(
        tmp_path,
        """
matrix: Autumn_1
judges:
  - {label: a, judge: cj-generic, reasoning_effort: lots, colour: red}
  - {judge: x}
prompts: 3
max_comparisons: many
repeats: 0
max_cost_usd: -1
speed: 9
""",
    )
    for words in (
        ("m.yaml: matrix", "'Autumn_1'", "small letters"),
        ("judges[1].reasoning_effort", "'lots'", "'medium'"),
        ("judges[1].colour", "unknown key", "output_verbosity"),
        ("judges[2].label", "missing"),
        ("prompts", "list"),
        ("max_comparisons", "'many'", "integer"),
        ("repeats", "greater than or equal to 1"),
        ("max_cost_usd", "greater than 0"),
        ("speed", "unknown key", "max_comparisons"),
    ):
        assert any(all(word in problem for word in words) for problem in told), (words, told)
    assert len(told) == 9


@pytest.mark.parametrize("missing", ["matrix", "judges", "prompts", "max_comparisons"])
def test_what_must_be_stated_is_asked_for(tmp_path, missing):
    lines = SOUND.strip().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(missing))
    end = next((k for k in range(start + 1, len(lines)) if not lines[k].startswith(" ")), len(lines))
    (told,) = problems(tmp_path, "\n".join(lines[:start] + lines[end:]))
    assert f"{missing}: is missing" in told


def test_an_empty_list_is_told_as_empty(tmp_path):
    told = problems(tmp_path, "matrix: a\njudges: []\nprompts:\n  - {label: b}\nmax_comparisons: 3\n")
    assert told == ["m.yaml: judges: is empty: state at least one"]


def test_labels_stated_twice_and_rows_that_say_the_same_are_refused(tmp_path):
    text = SOUND.replace("{label: bare}", "{label: base}\n  - {label: again, system: 001, rubric: 010}")
    told = problems(tmp_path, text)
    assert any("label base is stated 2 times" in problem for problem in told)
    assert any("base and again say the same" in problem and "repeats" in problem for problem in told)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("just words", "must be a mapping"),
        ("matrix: a\nmatrix: b\n", "stated twice"),
        ("matrix: [a\n", "well-formed YAML"),
        ("matrix: &x a\njudges: *x\n", "aliases"),
    ],
)
def test_a_file_that_is_no_matrix_is_named_with_the_reason(tmp_path, text, named):
    with pytest.raises(InputError, match=rf"m\.yaml.*{named}"):
        read_matrix(matrix(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: is missing"):
        read_matrix(tmp_path / "nowhere.yaml")
