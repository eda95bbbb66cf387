"""Pictures of one batch as PNG bytes: the scale, the comparison graph, the wave history, judge against experts.

Here lives how results are drawn, a picture per module on the page that `sheet` lays out. What they are lives
elsewhere: the numbers come finished in the frames of `workflow.frames` or the values of `core`, and nothing is
estimated, rounded for later use or decided here. No picture shows essay text or a justification.

The same frames give the same bytes. matplotlib is imported inside the functions (its import is slow) and used through
its object interface only, so no display is needed and pictures may be drawn in several threads at once.
"""

from cj_pipeline.reports.figures.forest import forest_plot
from cj_pipeline.reports.figures.graph import comparison_graph_picture
from cj_pipeline.reports.figures.sheet import SIMULATED_MARK
from cj_pipeline.reports.figures.waves import wave_history_picture

__all__ = ["SIMULATED_MARK", "comparison_graph_picture", "forest_plot", "wave_history_picture"]
