"""Grade scales: their labels from low to high, how common each grade is expected to be, and the built-in ones.

Here: `GradeScale`, the scales that need no definition, and the reading of a user's own scale. Not here: what grade a
score stands for (`grades`), and any reading of files.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from cj_pipeline.core.errors import GradeScaleError

_PRIOR_SUM_TOLERANCE = 0.01
_SCALE_FIELDS = ("name", "grades", "below_lowest", "priors")


@dataclass(frozen=True)
class GradeScale:
    """The grades of an assignment, low to high, and how common each is expected to be.

    Args:
        name: the scale's name, as assignments refer to it.
        grades: at least two different grades, low to high; no `|`, no blank ones.
        below_lowest: the label for work under the lowest grade, or None if the lowest grade has no floor.
        priors: expected share of each grade, positive, adding up to 1 (within 0.01, then normalised); empty means
            equal shares.

    Raises:
        GradeScaleError: naming the scale, the field and the remedy.
    """

    name: str
    grades: tuple[str, ...]
    below_lowest: str | None = None
    priors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "grades", tuple(self.grades))
        self._check_labels()
        self._check_priors()
        weights = self.priors or (1.0,) * len(self.grades)
        total = math.fsum(weights)
        object.__setattr__(self, "priors", tuple(weight / total for weight in weights))

    def _check_labels(self) -> None:
        if not self.name.strip():
            raise GradeScaleError("grade scale without a name: give it one in 'name'")
        if len(self.grades) < 2:
            raise self._error("grades", f"{len(self.grades)} given; list at least two, low to high")
        for label in self.labels:
            if not label.strip() or "|" in label:
                raise self._error("grades", f"{label!r} cannot be a grade; use a label that is not blank, without '|'")
        duplicates = [label for label, count in Counter(self.labels).items() if count > 1]
        if duplicates:
            raise self._error("grades", f"{', '.join(duplicates)} given more than once; list each label once")

    def _check_priors(self) -> None:
        if not self.priors:
            return
        if len(self.priors) != len(self.grades):
            raise self._error(
                "priors", f"{len(self.priors)} given for {len(self.grades)} grades; give one per grade, or none at all"
            )
        if not all(math.isfinite(prior) and prior > 0 for prior in self.priors):
            raise self._error("priors", "every prior must be above 0; give a rare grade a small one, such as 0.01")
        total = math.fsum(self.priors)
        if abs(total - 1.0) > _PRIOR_SUM_TOLERANCE:
            raise self._error("priors", f"they add up to {total:.4g}; make them add up to 1")

    def _error(self, field: str, problem: str) -> GradeScaleError:
        return GradeScaleError(f"grade scale {self.name!r}, {field}: {problem}")

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label an essay can get, low to high: `below_lowest` first if the scale has one."""
        return self.grades if self.below_lowest is None else (self.below_lowest, *self.grades)

    @property
    def label_priors(self) -> tuple[float, ...]:
        """One prior per label, summing to 1: `below_lowest` gets the smallest prior, then all are normalised."""
        if self.below_lowest is None:
            return self.priors
        weights = (min(self.priors), *self.priors)
        total = math.fsum(weights)
        return tuple(weight / total for weight in weights)

    @property
    def lowest_pass(self) -> str:
        """The lowest passing label: the first that does not begin with F where the lowest does, else the second."""
        if not self.labels[0].startswith("F"):
            return self.labels[1]
        return next((label for label in self.labels if not label.startswith("F")), self.labels[1])

    def index(self, grade: str) -> int:
        """Return the place of `grade` among `labels`, 0 for the lowest.

        Raises:
            GradeScaleError: the scale has no such grade; the message lists the ones it has.
        """
        try:
            return self.labels.index(grade)
        except ValueError:
            known = ", ".join(self.labels)
            raise GradeScaleError(
                f"grade {grade!r} is not on the scale {self.name!r}; its grades are, low to high: {known}"
            ) from None


BUILTIN_SCALES: Final[Mapping[str, GradeScale]] = MappingProxyType(
    {
        scale.name: scale
        for scale in (
            GradeScale("eng5_np_legacy_9_step", ("F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A"), "F"),
            GradeScale("eng5_np_national_9_step", tuple("123456789"), "0"),
            GradeScale(
                "swedish_8_anchor",
                ("F", "E", "D", "D+", "C", "C+", "B", "A"),
                priors=(0.02, 0.08, 0.15, 0.20, 0.25, 0.15, 0.10, 0.05),
            ),
        )
    }
)
"""The scales that need no definition: the two of ENG5 and the Swedish one with anchors at eight grades."""


def get_grade_scale(name: str, user_scales: Mapping[str, GradeScale] | None = None) -> GradeScale:
    """Return the scale called `name`, built in or the user's own.

    Raises:
        GradeScaleError: no such scale (the message lists the known ones), or a user's scale that takes the name of
            a built-in one and differs from it.
    """
    own = user_scales or {}
    if name in own and name in BUILTIN_SCALES and own[name] != BUILTIN_SCALES[name]:
        raise GradeScaleError(f"grade scale {name!r} is built in; give your own scale another name")
    scale = own.get(name) or BUILTIN_SCALES.get(name)
    if scale is None:
        known = ", ".join(sorted({*BUILTIN_SCALES, *own}))
        raise GradeScaleError(f"unknown grade scale {name!r}; known scales: {known}")
    return scale


def parse_grade_scale(raw: Mapping[str, Any], where: str) -> GradeScale:
    """Read a user's scale as YAML gives it: keys `name`, `grades`, and optionally `below_lowest` and `priors`.

    Whole numbers are accepted as grades and become text.

    Args:
        raw: the mapping as parsed.
        where: what the mapping was read from, for the message, e.g. `assignment.yaml`.

    Raises:
        GradeScaleError: naming `where`, the field and the remedy.
    """
    if not isinstance(raw, Mapping):
        raise GradeScaleError(f"{where}: a grade scale must be a mapping with the keys {', '.join(_SCALE_FIELDS)}")
    unknown = [str(key) for key in raw if key not in _SCALE_FIELDS]
    if unknown:
        raise GradeScaleError(
            f"{where}: unknown key {', '.join(unknown)} in a grade scale; the keys are {', '.join(_SCALE_FIELDS)}"
        )
    for field in ("name", "grades"):
        if raw.get(field) is None:
            raise GradeScaleError(f"{where}: a grade scale needs {field!r}; add it")
    below = raw.get("below_lowest")
    try:
        return GradeScale(
            name=_read_label(raw["name"], "name"),
            grades=tuple(_read_label(grade, "grades") for grade in _read_list(raw["grades"], "grades")),
            below_lowest=None if below is None else _read_label(below, "below_lowest"),
            priors=_read_priors(raw.get("priors")),
        )
    except GradeScaleError as error:
        raise GradeScaleError(f"{where}: {error}") from None


def _read_list(value: object, field: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise GradeScaleError(f"{field}: must be a list, such as [E, D, C, B, A]")
    return list(value)


def _read_label(value: object, field: str) -> str:
    # YAML reads an unquoted No as false and 1.0 as a number: neither shows the label that was meant
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise GradeScaleError(f"{field}: {value!r} is not a label; put it in quotes")
    return str(value).strip()


def _read_priors(value: object) -> tuple[float, ...]:
    if value is None:
        return ()
    priors = _read_list(value, "priors")
    if not priors:
        raise GradeScaleError("priors: the list is empty; give one number per grade, or leave the key out")
    for prior in priors:
        if isinstance(prior, bool) or not isinstance(prior, int | float):
            raise GradeScaleError(f"priors: {prior!r} is not a number; give one number per grade, such as 0.1")
    return tuple(float(prior) for prior in priors if isinstance(prior, int | float))
