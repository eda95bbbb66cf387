import numpy as np
import pytest
from matplotlib.figure import Figure

from cj_pipeline.core.alignment import Alignment
from cj_pipeline.reports.figures import SIMULATED_MARK
from cj_pipeline.reports.figures.alignment import alignment_figure, alignment_picture
from cj_pipeline_tests.reports.figures.seen import all_text, assert_legible, decoded, part, parts
from cj_pipeline_tests.reports.made import made_alignment

GRADES = ["F+", "E-", "E+", "D-", "D+", "C-", "C+", "B", "A"]


@pytest.fixture(scope="module")
def alignment() -> Alignment:
    return made_alignment()


@pytest.fixture(scope="module")
def figure(alignment: Alignment) -> Figure:
    return alignment_figure(alignment, title="T", simulated=False)


def test_it_is_a_white_page_1200_pixels_wide_and_the_same_each_time(alignment: Alignment) -> None:
    picture = alignment_picture(alignment, title="T", simulated=True)
    assert decoded(picture).shape[1] == 1200
    assert (decoded(picture)[:, :10] == 255).all()
    assert alignment_picture(alignment, title="T", simulated=True) == picture


def test_points_stand_at_score_and_grade_with_bars_of_1_96_standard_errors(
    alignment: Alignment, figure: Figure
) -> None:
    offsets = np.asarray(part(figure, "anchors").get_offsets())
    assert offsets[:, 1].tolist() == [anchor.score for anchor in alignment.anchors]
    assert [GRADES[round(x)] for x in offsets[:, 0]] == [anchor.grade for anchor in alignment.anchors]
    bars = np.array(part(figure, "intervals").get_segments())
    assert bars[:, 0, 1] == pytest.approx([anchor.score - 1.96 * anchor.se for anchor in alignment.anchors])
    assert bars[:, 1, 1] == pytest.approx([anchor.score + 1.96 * anchor.se for anchor in alignment.anchors])


def test_every_inversion_is_a_line_between_its_anchors(alignment: Alignment) -> None:
    figure = alignment_figure(made_alignment(inverted=2), title="T", simulated=False)
    places = {tuple(place) for place in np.asarray(part(figure, "anchors").get_offsets()).tolist()}
    lines = parts(figure, "inversions")
    assert len(lines) == 2
    assert all(tuple(end) in places for line in lines for end in line.get_xydata().tolist())
    assert not parts(alignment_figure(made_alignment(inverted=0), title="T", simulated=False), "inversions")


@pytest.mark.parametrize(
    "ids", [None, [f"{'very_long_names_' * 3}{number:03}{'_of_anchors' * 3}" for number in range(12)]]
)
def test_no_text_is_cropped_or_overlaps_another(ids: list[str] | None) -> None:
    assert_legible(alignment_figure(made_alignment(ids), title="A title " * 20, simulated=True))


def test_labels_leave_out_what_all_ids_begin_with(figure: Figure) -> None:
    assert " 001 " in all_text(figure) and "vt_001" not in all_text(figure)


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulated_judge_is_called_so(alignment: Alignment, simulated: bool) -> None:
    assert (SIMULATED_MARK in all_text(alignment_figure(alignment, title="T", simulated=simulated))) is simulated
