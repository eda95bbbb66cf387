"""The control charts' picture: every night has its point, by verdict, and nothing to chart is said."""

from collections import Counter

from cj_pipeline.core.control_chart import ChartPoint, Verdict
from cj_pipeline.reports.figures.control_charts import Panel, control_charts_figure, control_charts_picture

NIGHTS = ["1 Mar", "2 Mar", "3 Mar", "4 Mar"]


def point(number, value, verdict, **fields):
    return ChartPoint(night=f"n{number}", value=value, se=0.1, baseline=number, verdict=verdict, **fields)


def points():
    judged = {"centre": 0.0, "low": -1.0, "high": 1.0, "z": 0.5, "ewma": 0.1}
    return [
        point(0, 0.2, Verdict.TOO_FEW),
        point(1, 0.3, Verdict.IN_CONTROL, **judged),
        point(2, 4.0, Verdict.BEYOND, **judged),
        point(3, 0.8, Verdict.DRIFTING, **judged),
    ]


def test_every_night_has_a_point_that_says_its_verdict():
    figure = control_charts_figure(NIGHTS, [Panel("anchor k1", points())], title="t", simulated=False)
    (axes,) = figure.axes
    drawn = Counter(artist.get_gid() for artist in axes.collections if artist.get_gid())
    assert drawn == Counter(verdict.value for verdict in Verdict if verdict is not Verdict.NO_VALUE)
    low, high = axes.get_ylim()
    assert low < -1.0
    assert high > 4.1


def test_a_chart_without_values_says_that_there_is_nothing_to_chart():
    empty = Panel("cost", [point(number, None, Verdict.NO_VALUE) for number in range(4)])
    figure = control_charts_figure(NIGHTS, [empty, Panel("anchor k1", points())], title="t", simulated=True)
    first, second = figure.axes
    assert [text.get_text() for text in first.texts] == ["nothing to chart"]
    assert not second.texts
    # two charts share a row
    assert first.get_position().y0 == second.get_position().y0


def test_without_nights_the_picture_says_so():
    assert control_charts_picture([], [], title="t", simulated=False).startswith(b"\x89PNG")
    figure = control_charts_figure([], [], title="t", simulated=False)
    assert any("no finished calibration night" in text.get_text().replace("\n", " ") for text in figure.texts)
