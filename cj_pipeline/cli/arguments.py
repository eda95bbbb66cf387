"""Arguments that several commands share, from what a person types to what the workflow takes."""

from pathlib import Path
from typing import Any

from cj_pipeline.core.errors import InputError


def name_and_value(text: str) -> tuple[str, Any]:
    """An override typed as NAME=VALUE; the value is read as YAML reads it.

    Raises:
        InputError: it is not of that form.
    """
    import yaml

    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InputError(f"--override {text[:80]!r}: write NAME=VALUE, e.g. judge_concurrency=8")
    try:
        return name.strip().removeprefix("CJ_").lower(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--override {name}: the value cannot be read") from None


def judge_name(judge: str | None, provider: str | None, model: str | None, *, prefix: str = "--") -> str | None:
    """The judge's name out of `--judge`, or `--provider` and `--model`, which `prefix` spells otherwise.

    Raises:
        InputError: both are given, or only one of provider and model.
    """
    if provider is None and model is None:
        return judge
    if judge is not None:
        raise InputError(f"give --judge, or {prefix}provider and {prefix}model, not both")
    if provider is None or model is None:
        raise InputError(
            f"{prefix}provider and {prefix}model go together, e.g. {prefix}provider anthropic {prefix}model "
            "claude-haiku-4-5"
        )
    return f"{provider}/{model}"


def prompt_file(path: Path, option: str) -> str:
    """The text of a file that holds a part of the prompt.

    Raises:
        InputError: the file is missing, empty or not a text; the message names the option.
    """
    from cj_pipeline.workflow.documents import read_document

    if not path.is_file():
        raise InputError(f"{option} {path}: there is no such file")
    try:
        return read_document(path, path.parent)
    except InputError as error:
        raise InputError(f"{option}: {error}") from None
