"""The prompt variants that an alignment run can be told to use, and how one is chosen.

Here: the folders `system` and `rubric` with a file `NNN_name.txt` per variant, and the choice by number, name or path.
Not here: what a judge reads besides (`judges.prompts`), and which variant does better (`alignment_report`).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.words import quoted
from cj_pipeline.workflow.documents import read_document, text_sha256
from cj_pipeline.workflow.problems import listed, shown

VariantKind = Literal["system", "rubric"]
"""`system`: who the judge is to be. `rubric`: what makes one essay better than another."""

_FILE_NAME: Final = re.compile(r"(?P<number>\d{3})_(?P<name>[a-z0-9][a-z0-9_]*)\.txt")


@dataclass(frozen=True)
class PromptVariant:
    """A prompt variant as read.

    Attributes:
        kind: system or rubric.
        name: the file's name without its ending, `003_language_control`; of a file chosen by path whatever it has.
        path: where it was read.
        text: in normal form.
    """

    kind: VariantKind
    name: str
    path: Path
    text: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in normal form, as the ledger knows it."""
        return text_sha256(self.text)


def read_variants(prompts: Path, kind: VariantKind) -> list[PromptVariant]:
    """All variants of one kind, by number.

    Args:
        prompts: the folder that holds `system` and `rubric`.
        kind: which of the two.

    Raises:
        InputError: there is no such folder.
        RequestError: files that are not named `NNN_name.txt`, share a number, or cannot be read, all at once.
    """
    folder = prompts / kind
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder: prompt variants are files {kind}/NNN_name.txt")
    problems: list[str] = []
    variants: dict[str, PromptVariant] = {}
    for path in sorted(folder.glob("*.txt")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            problems.append(f"{shown(path.name)}: rename it like 001_baseline.txt (small letters, digits, _)")
        elif match["number"] in variants:
            twin = variants[match["number"]].path.name
            problems.append(f"{twin} and {path.name}: have the same number: give one of them the next free number")
        else:
            try:
                variants[match["number"]] = PromptVariant(kind, path.stem, path, read_document(path, folder))
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise RequestError(f"prompt variants {folder}", problems)
    return list(variants.values())


def select_variant(prompts: Path, kind: VariantKind, choice: str) -> PromptVariant:
    """The variant that `choice` names.

    Args:
        prompts: the folder that holds `system` and `rubric`.
        kind: which of the two.
        choice: a number (`3`, `003`), a name with or without the number (`003_language_control`, `language_control`),
            or a path, which has a `/` or ends in `.txt` or `.md`.

    Raises:
        InputError: nothing, or more than one variant, is meant; the message lists what there is.
    """
    choice = choice.strip()
    if "/" in choice or choice.endswith((".txt", ".md")):
        return _variant_at(kind, Path(choice))
    variants = read_variants(prompts, kind)
    meant = [variant for variant in variants if _is_meant(variant.name, choice)]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(variant.name for variant in variants) or "none"
    if meant:
        several = listed([variant.name for variant in meant])
        raise InputError(f"{kind} prompt {quoted(choice)} may be {several}: give its number")
    raise InputError(
        f"{kind} prompt {quoted(choice)}: there is no such variant in {prompts / kind}; there are: {names}. Choose one "
        "by number or name, or give the path of a file"
    )


def variant_overrides(system: PromptVariant | None, rubric: PromptVariant | None) -> dict[str, str]:
    """The overrides, text and name, by which a batch brings chosen variants along; none of what was not chosen."""
    overrides: dict[str, str] = {}
    if system is not None:
        overrides |= {"system_prompt": system.text, "system_prompt_name": system.name}
    if rubric is not None:
        overrides |= {"judge_rubric": rubric.text, "judge_rubric_name": rubric.name}
    return overrides


def _variant_at(kind: VariantKind, path: Path) -> PromptVariant:
    if not path.is_file():
        raise InputError(f"{kind} prompt {shown(str(path))}: there is no such file: correct the path, or give a number")
    # whoever names a file means it, link or not
    resolved = path.resolve()
    try:
        text = read_document(resolved, resolved.parent)
    except InputError as error:
        raise InputError(f"{kind} prompt {shown(str(path.parent))}/{error}") from None
    return PromptVariant(kind, path.stem, path, text)


def _is_meant(name: str, choice: str) -> bool:
    number, _, rest = name.partition("_")
    if choice.isdecimal():
        return choice.isascii() and int(choice) == int(number)
    return choice in (name, rest)
