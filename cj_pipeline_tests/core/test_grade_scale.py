"""Grade scales: the built-in ones, priors, and what is refused."""

import math

import pytest

from cj_pipeline.core.errors import GradeScaleError
from cj_pipeline.core.grade_scale import BUILTIN_SCALES, GradeScale, get_grade_scale, parse_grade_scale

LEGACY = BUILTIN_SCALES["eng5_np_legacy_9_step"]
SWEDISH = BUILTIN_SCALES["swedish_8_anchor"]
FIVE = GradeScale("five", ("E", "D", "C", "B", "A"))


def test_the_builtin_scales_have_the_grades_and_priors_of_the_programme():
    assert LEGACY.labels == ("F", "F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A")
    assert BUILTIN_SCALES["eng5_np_national_9_step"].labels == tuple("0123456789")
    assert SWEDISH.labels == SWEDISH.grades == ("F", "E", "D", "D+", "C", "C+", "B", "A")
    assert SWEDISH.priors == pytest.approx((0.02, 0.08, 0.15, 0.20, 0.25, 0.15, 0.10, 0.05), abs=1e-12)
    assert LEGACY.priors == pytest.approx([1 / 9] * 9)
    for scale in BUILTIN_SCALES.values():
        assert math.fsum(scale.priors) == pytest.approx(1, abs=1e-9)
        assert math.fsum(scale.label_priors) == pytest.approx(1, abs=1e-9)


def test_the_label_below_the_lowest_grade_gets_the_smallest_prior_before_normalisation():
    scale = GradeScale("s", ("E", "C", "A"), below_lowest="F", priors=(0.5, 0.3, 0.2))
    assert scale.label_priors == pytest.approx([0.2 / 1.2, 0.5 / 1.2, 0.3 / 1.2, 0.2 / 1.2])


def test_a_grade_off_the_scale_is_refused_with_the_grades_that_are_on_it():
    assert [LEGACY.index(label) for label in ("F", "F+", "A")] == [0, 1, 9]
    with pytest.raises(GradeScaleError, match=r"'Q' is not on the scale 'five'.*E, D, C, B, A"):
        FIVE.index("Q")


def test_the_lowest_pass_is_the_first_label_that_is_not_a_kind_of_f():
    assert LEGACY.lowest_pass == "E-"
    assert SWEDISH.lowest_pass == "E"
    assert BUILTIN_SCALES["eng5_np_national_9_step"].lowest_pass == "1"
    assert FIVE.lowest_pass == "D"
    assert GradeScale("odd", ("F", "F+")).lowest_pass == "F+"


def test_a_scale_is_found_by_name_among_builtin_and_own_ones():
    assert get_grade_scale("swedish_8_anchor") is SWEDISH
    assert get_grade_scale("five", {"five": FIVE}) is FIVE
    with pytest.raises(GradeScaleError, match=r"unknown grade scale 'six'.*eng5_np_legacy_9_step.*five"):
        get_grade_scale("six", {"five": FIVE})
    impostor = GradeScale("swedish_8_anchor", ("E", "A"))
    with pytest.raises(GradeScaleError, match="is built in; give your own scale another name"):
        get_grade_scale("swedish_8_anchor", {"swedish_8_anchor": impostor})


def test_a_scale_from_yaml_keeps_its_grades_as_text_and_its_priors_normalised():
    raw = {"name": "points", "grades": [1, 2, 3], "below_lowest": 0, "priors": [0.2, 0.299, 0.5]}
    scale = parse_grade_scale(raw, "assignment.yaml")
    assert scale.labels == ("0", "1", "2", "3")
    assert scale.priors == pytest.approx([0.2 / 0.999, 0.299 / 0.999, 0.5 / 0.999], abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grades": ["E", "E", "A"]}, "grades: E given more than once; list each label once"),
        ({"below_lowest": "A"}, "grades: A given more than once"),
        ({"grades": ["E"]}, "grades: 1 given; list at least two"),
        ({"grades": "EA"}, "grades: must be a list"),
        ({"grades": None}, "needs 'grades'; add it"),
        ({"grades": ["E", False]}, "grades: False is not a label; put it in quotes"),
        ({"grades": ["E", "A|B"]}, "without '|'"),
        ({"grades": ["E", " "]}, "not blank"),
        ({"name": None}, "needs 'name'; add it"),
        ({"priors": [0.5, 0.3, 0.2]}, "priors: 3 given for 2 grades; give one per grade"),
        ({"priors": [0.5, 0.4]}, "priors: they add up to 0.9; make them add up to 1"),
        ({"priors": [0.0, 1.0]}, "priors: every prior must be above 0"),
        ({"priors": [-0.5, 1.5]}, "priors: every prior must be above 0"),
        ({"priors": [float("nan"), 1.0]}, "priors: every prior must be above 0"),
        ({"priors": ["half", 0.5]}, "priors: 'half' is not a number"),
        ({"priors": []}, "priors: the list is empty"),
        ({"prior": [0.5, 0.5]}, "unknown key prior in a grade scale; the keys are name, grades"),
    ],
)
def test_a_badly_formed_scale_is_refused_with_place_field_and_remedy(change, message):
    raw = {"name": "own", "grades": ["E", "A"]} | change
    with pytest.raises(GradeScaleError) as caught:
        parse_grade_scale(raw, "folder/assignment.yaml")
    assert str(caught.value).startswith("folder/assignment.yaml: ")
    assert message in str(caught.value)
