"""The file that describes an anchor-align matrix: which judges, which prompts, how much of each, and what it may cost.

Here: its fields, and reading it with every problem of its form listed at once. Not here: whether the judges and prompts
it names exist, and what its cells become (`matrix`).

    matrix: autumn
    judges:
      - label: haiku-low
        judge: anthropic/claude-haiku-4-5     # PROVIDER/MODEL, or a simulated judge
        reasoning_effort: low                 # optional, as is output_verbosity
    prompts:
      - label: baseline
        system: 001                           # number, name or path of a variant; optional, as is rubric
        rubric: 001_baseline
    max_comparisons: 66                       # the budget of every cell
    repeats: 1                                # batches per cell; optional
    max_cost_usd: 5                           # all cells together; optional where nothing costs money
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import Value
from cj_pipeline.core.words import quoted
from cj_pipeline.workflow.data_files import read_text_yaml
from cj_pipeline.workflow.problems import shown

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=24)]
"""Part of a batch id: small letters, digits, single hyphens."""

_LABEL_HINT: Final = "is no label: small letters and digits with single hyphens between, at most 24 characters"
_NOTHING: Final = ("", "null", "~")


class MatrixJudge(Value):
    """A row of the matrix: a judge and how it is asked."""

    label: Label
    judge: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = None
    output_verbosity: Literal["low", "medium", "high"] | None = None

    _unset = field_validator("reasoning_effort", "output_verbosity", mode="before")(lambda value: _or_none(value))


class MatrixPrompts(Value):
    """A column: the variants a judge reads; None for the program's system prompt and for the assets' judge prompt."""

    label: Label
    system: str | None = None
    rubric: str | None = None

    _unset = field_validator("system", "rubric", mode="before")(lambda value: _or_none(value))


class MatrixFile(Value):
    """A matrix as its file describes it."""

    matrix: Label
    judges: Annotated[tuple[MatrixJudge, ...], Field(min_length=1)]
    prompts: Annotated[tuple[MatrixPrompts, ...], Field(min_length=1)]
    max_comparisons: Annotated[int, Field(ge=1)]
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    max_cost_usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    _unset = field_validator("max_cost_usd", mode="before")(lambda value: _or_none(value))


def _or_none(value: Any) -> Any:
    """`reasoning_effort: null` and an empty value say nothing, like a field left out."""
    return None if value in _NOTHING else value


_KEYS: Final = {
    "": [*MatrixFile.model_fields],
    "judges": [*MatrixJudge.model_fields],
    "prompts": [*MatrixPrompts.model_fields],
}


def read_matrix(path: Path) -> MatrixFile:
    """Read a matrix from its YAML file.

    Raises:
        InputError: there is no such file, or it is no YAML.
        RequestError: fields that are missing, unknown or unusable, labels and rows stated twice, all at once.
    """
    raw = read_text_yaml(path)
    name = shown(path.name)
    if not isinstance(raw, dict):
        raise InputError(f"{name}: must be a mapping of the keys {', '.join(MatrixFile.model_fields)}")
    try:
        matrix = MatrixFile.model_validate(raw)
    except ValidationError as error:
        raise RequestError(f"matrix {name}", _problems(name, error)) from None
    problems = _repetitions(name, matrix)
    if problems:
        raise RequestError(f"matrix {name}", problems)
    return matrix


def _problems(name: str, error: ValidationError) -> list[str]:
    found: list[dict[str, Any]] = [dict(one) for one in error.errors()]
    spoilt = {one["loc"][0] for one in found if len(one["loc"]) > 1}
    # a list none of whose entries can be used is told of by its entries
    return [_problem(name, one) for one in found if one["type"] != "too_short" or one["loc"][0] not in spoilt]


def _problem(name: str, error: dict[str, Any]) -> str:
    place = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    kind = error["type"]
    if kind == "missing":
        return f"{name}: {place}: is missing: add it"
    if kind == "extra_forbidden":
        known = _KEYS.get(str(error["loc"][0]), _KEYS[""])
        return f"{name}: {quoted(place)}: is an unknown key (known: {', '.join(known)})"
    given = quoted(error["input"]) if isinstance(error["input"], str) else "what is given"
    if kind in ("string_pattern_mismatch", "string_too_long") and error["loc"][-1] in ("label", "matrix"):
        return f"{name}: {place}: {given} {_LABEL_HINT}"
    if kind in ("tuple_type", "model_type"):
        shape = "a list, each entry starting with '-'" if kind == "tuple_type" else "a mapping of keys"
        return f"{name}: {place}: must be {shape}"
    if kind == "too_short":
        return f"{name}: {place}: is empty: state at least one"
    return f"{name}: {place}: {given}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _repetitions(name: str, matrix: MatrixFile) -> list[str]:
    """Labels stated twice, and rows or columns that would make the same cells under other labels."""
    problems = []
    for field, entries in (("judges", matrix.judges), ("prompts", matrix.prompts)):
        labels = Counter(entry.label for entry in entries)
        problems += [
            f"{name}: {field}: label {label} is stated {count} times: give each its own"
            for label, count in labels.items()
            if count > 1
        ]
        first: dict[Value, str] = {}
        for entry in entries:
            content = entry.model_copy(update={"label": "same"})
            twin = first.setdefault(content, entry.label)
            if twin != entry.label:
                problems.append(
                    f"{name}: {field}: {twin} and {entry.label} say the same, so their cells would be the same: leave "
                    "one out (repeats judges a cell more than once)"
                )
    return problems
