import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex

from cj_pipeline_tests.reports.figures.seen import (
    all_text,
    assert_legible,
    heading,
    history,
    legend_handles,
    legend_texts,
    part,
    parts,
)
from cj_pipeline_tests.reports.made import EMPTY_WAVES, made_waves


@pytest.mark.parametrize("count", [1, 2, 13, 150])
def test_no_text_of_a_wave_history_is_cropped_or_overlaps_another(count: int) -> None:
    changes = [None, *(2.0 * 0.97**wave for wave in range(1, count))]
    assert_legible(history(made_waves(changes), budget=12_345, simulated=True))


def test_each_panel_draws_its_column_wave_by_wave() -> None:
    figure = history(made_waves([None, 0.8, 0.3, 0.04]).reverse(), threshold=0.05, budget=60)
    assert part(figure, "change").get_xydata().tolist() == [[2, 0.8], [3, 0.3], [4, 0.04]]
    assert part(figure, "mean_se").get_xydata() == pytest.approx(np.array([[w, 1 / w] for w in (1, 2, 3, 4)]))
    assert part(figure, "max_se").get_xydata() == pytest.approx(np.array([[w, 2 / w] for w in (1, 2, 3, 4)]))
    assert list(part(figure, "threshold").get_ydata()) == [0.05, 0.05]
    assert list(part(figure, "budget").get_ydata()) == [60, 60]


def test_outcomes_add_up_over_waves_with_failures_on_top() -> None:
    figure = history(made_waves([None, 0.8, 0.3]), budget=60)
    judged, failed = parts(figure, "judged"), parts(figure, "failed")
    assert [bar.get_height() for bar in judged] == [11, 22, 33]
    assert [(bar.get_y(), bar.get_height()) for bar in failed] == [(11, 1), (22, 2), (33, 3)]
    assert [bar.get_x() + bar.get_width() / 2 for bar in judged] == pytest.approx([1, 2, 3])


def test_the_budget_stays_in_sight_and_an_absent_one_is_not_drawn() -> None:
    figure = history(made_waves([None, 0.8]), budget=5000)
    assert figure.axes[3].get_ylim()[1] > 5000
    assert "budget 5000" in all_text(figure)
    assert not parts(history(made_waves([None, 0.8]), budget=0), "budget")


def test_bands_tell_coverage_from_resampling_in_every_panel() -> None:
    figure = history(made_waves([None, 0.8, 0.3, 0.1, 0.1]))
    handles = dict(zip(legend_texts(figure), legend_handles(figure), strict=True))
    coverage, resampling = (to_hex(handles[mode].get_facecolor()) for mode in ("coverage", "resampling"))
    assert coverage != resampling
    for axes in figure.axes:
        spans = {
            to_hex(patch.get_facecolor()): (patch.get_x(), patch.get_x() + patch.get_width())
            for patch in axes.patches
            if to_hex(patch.get_facecolor()) in (coverage, resampling)
        }
        assert spans == {coverage: (0.5, 2.5), resampling: (2.5, 5.5)}


def test_decisions_are_marked_at_their_waves() -> None:
    figure = history(made_waves([None, 0.8, 0.04], decision="FINALIZE_SCORING", reason="stable"))
    assert part(figure, "REQUEST_MORE_COMPARISONS").get_offsets()[:, 0].tolist() == [1, 2]
    assert part(figure, "FINALIZE_SCORING").get_offsets()[:, 0].tolist() == [3]
    assert {"more comparisons", "stop and score"} <= set(legend_texts(figure))
    assert "stop as failed" not in legend_texts(figure)


@pytest.mark.parametrize(
    ("decision", "reason", "told"),
    [
        ("FINALIZE_SCORING", "stable", "Stopped after wave 3: the scores are stable."),
        ("FINALIZE_SCORING", "budget_spent", "Stopped after wave 3: the budget is spent."),
        ("FINALIZE_SCORING", "a new reason", "Stopped after wave 3: a new reason."),
        ("FINALIZE_FAILURE", "low_success_rate", "Failed after wave 3: too few comparisons were judged successfully."),
        ("FINALIZE_FAILURE", None, "Failed after wave 3: no reason recorded."),
        ("REQUEST_MORE_COMPARISONS", "resampling", "Last decision, after wave 3: more comparisons (resampling)."),
        ("WAIT_FOR_CALLBACKS", "pending", "Last decision, after wave 3: wait for answers."),
        (None, None, "Wave 3 has not been decided."),
    ],
)
def test_the_subtitle_tells_what_was_decided_last_and_why(decision: str | None, reason: str | None, told: str) -> None:
    assert told in heading(history(made_waves([None, 0.8, 0.04], decision=decision, reason=reason)))


@pytest.mark.parametrize(
    ("changes", "threshold", "scale"),
    [
        ([None, 2.0, 0.5, 0.04], 0.05, "log"),
        ([None, 0.10, 0.08, 0.06], 0.05, "linear"),
        ([None, 2.0, 0.5, 0.04], 0.0, "linear"),
        ([None, 0.0, 0.0, 0.0], 0.05, "linear"),
        ([None, None, None], 0.05, "linear"),
    ],
)
def test_changes_get_a_log_axis_when_they_span_a_factor_of_ten(
    changes: list[float | None], threshold: float, scale: str
) -> None:
    axes = history(made_waves(changes), threshold=threshold).axes[1]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    shown = [value for value in (*changes, threshold) if value is not None]
    assert low <= min(shown) and max(shown) <= high


def test_a_wave_that_moved_no_score_is_marked_on_a_log_axis_instead_of_dropped() -> None:
    figure = history(made_waves([None, 2.0, 0.0, 0.1]))
    assert part(figure, "unmoved").get_offsets()[:, 0].tolist() == [3]
    assert "no change" in all_text(figure)
    drawn = part(figure, "change").get_ydata()
    assert np.isnan(drawn).tolist() == [False, True, False]


def test_a_history_without_values_says_so_in_its_panels() -> None:
    waves = made_waves([None]).with_columns(
        mean_se=pl.lit(None, pl.Float64), max_se=pl.lit(None, pl.Float64), judged=pl.lit(None, pl.Int64)
    )
    written = all_text(history(waves))
    assert "no change has been recorded" in written
    assert "no standard error has been recorded" in written


@pytest.mark.parametrize("waves", [EMPTY_WAVES, pl.DataFrame()])
def test_without_a_wave_the_history_says_so(waves: pl.DataFrame) -> None:
    figure = history(waves)
    assert "no wave has been planned" in all_text(figure)
    assert not figure.axes
