"""`cj simulate` as a person calls it."""

import json

import pytest
from PIL import Image

from cj_pipeline_tests.cli.test_cli import cj


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CJ_DATA_DIR", str(tmp_path / "data"))
    few = ("--students", 8, "--anchors", 6, "--budget", 40, "--replications", 2, "--points", 2)
    return lambda *more: cj("simulate", *few, *more, capsys=capsys)


def test_a_table_says_what_each_number_of_judgments_buys_and_where_the_stop_rule_would_end(run, tmp_path):
    code, out, err = run(
        "--usd-per-judgment", 0.01, "--picture", tmp_path / "p.png", "--override", "stop_rule=precision"
    )
    assert code == 0, err
    for words in ("τ-b", "0.20", "0.40", "stop rule precision", "8 students, 6 anchors", "±"):
        assert words in out
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width == 1200
    assert not (tmp_path / "data").exists(), "nothing is stored"


def test_json_has_means_with_margins_by_judgments(run):
    code, out, _ = run("--json", "--seed", 5)
    assert code == 0
    told = json.loads(out)
    assert [row["judgments"] for row in told["rows"]] == [20, 40]
    assert told["rows"][-1]["usd"] is None
    assert 0 < told["rows"][-1]["rmse"]["mean"] < 10
    assert told["stopped"]["reasons"] == {"budget_spent": 2}
    assert json.loads(run("--json", "--seed", 5)[1]) == told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--override", "stop_rule=never"), "stop_rule"),
        (("--override", "nonsense=1"), "nonsense"),
        (("--grade-scale", "none"), "none"),
        (("--picture", "nowhere/p.png"), "nowhere/p.png"),
        (("--from-batch", "ghost"), "ghost"),
    ],
)
def test_what_cannot_be_simulated_is_bad_input_that_names_it(run, arguments, named):
    code, _, err = run(*arguments)
    assert code == 2
    assert named in err
    assert "Traceback" not in err
