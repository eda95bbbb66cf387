"""The UI as people see it: a finished batch in a headless Chromium, its pictures drawn."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cj_pipeline_tests.defs.stage import Stage, Webserver

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BATCH = "demo"
PATIENCE = 60_000.0  # milliseconds
GROUPS = ("inputs", "judging", "scoring", "results", "publishing")


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """A webserver that shows one finished batch."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stage = Stage.alone(tmp_path_factory.mktemp("ui") / "home", monkeypatch)
        stage.submit_demo(BATCH, max_comparisons=60)
        with stage.instance() as instance:
            assert stage.run(instance, "assess_batch_job", BATCH).success
        with stage.webserver() as webserver:
            yield webserver


@pytest.fixture(scope="module")
def page(webserver: Webserver) -> "Iterator[Page]":
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        reason = "chromium is not installed (apt-get install chromium): nobody has looked at the UI"
        if os.environ.get("CJ_TESTS_NO_SKIPS"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(base_url=webserver.url, viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def visit(page: "Page", path: str) -> None:
    """Open a page and put away the dialog that a first visit may be met with."""
    from playwright.sync_api import TimeoutError as NotThere

    page.goto(path)
    page.get_by_text("Lineage").first.wait_for()
    with suppress(NotThere):
        page.get_by_role("button", name="Skip").click(timeout=1_000)


def materialisation(page: "Page", asset: str) -> None:
    visit(page, f"/assets/{asset}?view=partitions&partition={BATCH}")
    page.get_by_text("correlation_id", exact=True).wait_for()


def open_picture(page: "Page", entry: str) -> "Locator":
    """Click on the picture of a metadata entry and wait until the browser has drawn it."""
    page.locator("tr", has=page.get_by_text(entry, exact=True)).get_by_text("[Show Markdown]").click()
    image = page.locator("img[src^='data:image/png;base64,']").last
    image.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    return image


def assert_is_a_drawing(image: "Locator") -> None:
    """The image is the picture that was made, and not one colour all over."""
    assert image.evaluate("image => image.naturalWidth") == 1200
    assert image.evaluate("image => image.getBoundingClientRect().width") > 300
    source = image.get_attribute("src") or ""
    assert base64.b64decode(source.split(",")[1], validate=True).startswith(b"\x89PNG")
    colours = image.evaluate(
        """image => {
            const canvas = document.createElement("canvas");
            canvas.width = image.naturalWidth;
            canvas.height = image.naturalHeight;
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const pixels = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
            return new Set(pixels).size;
        }"""
    )
    assert colours > 20


def test_the_asset_graph_shows_every_group_and_opens_to_its_assets(page: "Page", tmp_path: Path) -> None:
    visit(page, "/asset-groups")
    for group in GROUPS:
        page.get_by_text(group, exact=True).last.wait_for()
    page.screenshot(path=tmp_path / "asset-graph.png", animations="disabled")

    visit(page, "/locations/cj_pipeline/asset-groups/scoring/lineage")
    for asset in ("bt_scores", "bt_se_summary", "bt_quality_flags", "batch_state"):
        page.get_by_text(asset, exact=True).first.wait_for()
    page.screenshot(path=tmp_path / "scoring.png", animations="disabled")


def test_a_batch_shows_where_it_stands_and_the_history_of_its_waves_as_a_picture(page: "Page", tmp_path: Path) -> None:
    materialisation(page, "batch_state")
    page.get_by_text("COMPLETE_MAX_COMPARISONS").first.wait_for()
    page.get_by_text("SIMULATED (cj-generic)").first.wait_for()
    page.screenshot(path=tmp_path / "batch-state.png", animations="disabled")

    image = open_picture(page, "wave_history")
    page.screenshot(path=tmp_path / "wave-history.png", animations="disabled")
    assert image.get_attribute("alt") == "wave history"
    assert_is_a_drawing(image)


@pytest.mark.parametrize(("entry", "alternative"), [("scores", "scores with SE"), ("graph", "comparison graph")])
def test_grades_are_shown_with_their_pictures(page: "Page", tmp_path: Path, entry: str, alternative: str) -> None:
    materialisation(page, "grade_projections")
    image = open_picture(page, entry)
    page.screenshot(path=tmp_path / f"{entry}.png", animations="disabled")
    assert image.get_attribute("alt") == alternative
    assert_is_a_drawing(image)


def test_the_grades_are_a_table_people_can_read(page: "Page", tmp_path: Path) -> None:
    materialisation(page, "grade_projections")
    table = page.locator("tr", has=page.get_by_text("grades", exact=True)).locator("table").first
    table.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "grades.png", animations="disabled")
    rows = table.locator("tbody tr")
    assert rows.count() == 12
    assert {row.split("\t")[0].strip() for row in rows.all_inner_texts()} == {
        f"s{number:02d}" for number in range(1, 13)
    }


def test_the_columns_of_a_table_are_explained(page: "Page", tmp_path: Path) -> None:
    visit(page, "/assets/bt_scores?view=overview")
    page.get_by_text("Bradley–Terry score in logits; scores of a batch sum to zero").first.wait_for()
    page.screenshot(path=tmp_path / "columns.png", animations="disabled")
    page.get_by_text("assessment", exact=True).first.wait_for()


def test_the_checks_of_a_batch_are_shown_as_passed(page: "Page", tmp_path: Path) -> None:
    visit(page, "/assets/comparison_graph?view=checks")
    page.get_by_text("batch_succeeded").first.wait_for()
    page.get_by_text("Passed").first.wait_for()
    page.screenshot(path=tmp_path / "checks.png", animations="disabled")
