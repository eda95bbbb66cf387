"""A prompt variant is chosen by number, name or path, and a choice that fails says what there is."""

import hashlib
from pathlib import Path

import pytest

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.eng5.prompt_variants import VariantKind, read_variants, select_variant
from cj_pipeline.judges.prompts import JudgeInstructions, build_prompt
from cj_pipeline.settings import load_settings
from cj_pipeline_tests.workflow.files import write


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    write(tmp_path / "system" / "001_baseline.txt", "You compare.\r\n")
    write(tmp_path / "system" / "003_language_control.txt", "You compare language.")
    write(tmp_path / "system" / "README.md", "not a variant")
    write(tmp_path / "rubric" / "001_baseline.txt", "Compare all.")
    return tmp_path


@pytest.mark.parametrize("choice", ["3", "003", "003_language_control", "language_control", " 3 "])
def test_a_variant_is_found_by_its_number_or_name(prompts: Path, choice: str) -> None:
    variant = select_variant(prompts, "system", choice)
    assert (variant.name, variant.text) == ("003_language_control", "You compare language.")
    assert variant.sha256 == hashlib.sha256(b"You compare language.").hexdigest()


def test_a_path_names_any_file_link_or_not(prompts: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "elsewhere" / "my prompt.txt", "Mine.")
    (tmp_path / "link.txt").symlink_to(mine)
    assert select_variant(prompts, "rubric", str(mine)).text == "Mine."
    assert select_variant(prompts, "rubric", str(tmp_path / "link.txt")).text == "Mine."


def test_a_file_without_text_is_named_with_its_folder_and_the_prompt_it_was_to_be(prompts: Path) -> None:
    with pytest.raises(InputError, match=rf"rubric prompt {prompts}/void.txt: has no text"):
        select_variant(prompts, "rubric", str(write(prompts / "void.txt", " ")))


def test_the_two_kinds_are_kept_apart(prompts: Path) -> None:
    assert select_variant(prompts, "system", "1").text == "You compare."
    assert select_variant(prompts, "rubric", "1").text == "Compare all."
    with pytest.raises(InputError, match=r"'3'.*there are: 001_baseline\."):
        select_variant(prompts, "rubric", "3")


def test_a_choice_without_a_variant_lists_those_there_are(prompts: Path) -> None:
    with pytest.raises(InputError, match=r"'9'.*there are: 001_baseline, 003_language_control\. Choose"):
        select_variant(prompts, "system", "9")
    with pytest.raises(InputError, match="no such file"):
        select_variant(prompts, "system", str(prompts / "none.txt"))
    with pytest.raises(InputError, match="is no folder"):
        select_variant(prompts / "nowhere", "system", "1")


def test_a_name_that_several_variants_bear_is_not_guessed(prompts: Path) -> None:
    write(prompts / "system" / "004_baseline.txt", "You compare again.")
    with pytest.raises(InputError, match="may be 001_baseline and 004_baseline"):
        select_variant(prompts, "system", "baseline")


def test_files_that_are_misnamed_empty_or_share_a_number_are_listed_together(prompts: Path) -> None:
    write(prompts / "system" / "003_again.txt", "Twice.")
    write(prompts / "system" / "4_short.txt", "Short number.")
    write(prompts / "system" / "005_empty.txt", "")
    with pytest.raises(RequestError) as caught:
        read_variants(prompts, "system")
    found = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert "003_again.txt and 003_language_control.txt: have the same number" in found
    assert "4_short.txt: rename it" in found and "005_empty.txt: has no text" in found


@pytest.mark.parametrize("kind", ["system", "rubric"])
def test_the_shipped_variants_are_sound_and_leave_the_form_of_the_answer_to_the_program(kind: VariantKind) -> None:
    folder = load_settings(data_dir=Path(__file__).parents[2] / "assets_data").prompt_variants_dir
    variants = read_variants(folder, kind)
    assert [variant.name[:3] for variant in variants] == ["001", "003", "006", "010"]
    assert len({variant.sha256 for variant in variants}) == len(variants)
    for variant in variants:
        folded = variant.text.casefold()
        assert not [word for word in ("json", '"winner"', "anchor", "essay a ", "essay b ") if word in folded]
    capped = [variant for variant in variants if variant.name[:3] in ("003", "006")]
    assert all("50 words" in variant.text for variant in capped)
    prompt = build_prompt(JudgeInstructions(rubric=variants[0].text), "One.", "Two.")
    assert variants[0].text in prompt.stable
