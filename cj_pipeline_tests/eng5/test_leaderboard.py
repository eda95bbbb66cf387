"""The leaderboard says what the ledger says: counted by hand, asked of DuckDB, and fair to rows that only had luck."""

import duckdb
import pytest
from scipy.stats import kendalltau

from cj_pipeline.core.alignment import AlignmentTargets
from cj_pipeline.core.models import BatchStatus, ComparisonStatus
from cj_pipeline.eng5.anchor_align import align_request
from cj_pipeline.eng5.batches import eng5_scale
from cj_pipeline.eng5.inventory import read_inventory
from cj_pipeline.eng5.leaderboard import ALIGNMENT_LEADERBOARD, ledger_leaderboard
from cj_pipeline.eng5.leaderboard_report import (
    group_notes,
    leaderboard_markdown,
    leaderboard_png,
    rebuild_leaderboard,
)
from cj_pipeline.eng5.prompt_variants import PromptVariant
from cj_pipeline.ledger import Lease, Ledger
from cj_pipeline.workflow.registration import submit_batch
from cj_pipeline_tests.eng5.folders import assets_in
from cj_pipeline_tests.workflow.scenes import advance, batch_request, settings

GRADES = ("F+", "E-", "D-", "B", "A")
DRAWS = 60
TARGETS = AlignmentTargets()


def inventory_of(folder, grades=GRADES):
    return read_inventory(assets_in(folder, grades), eng5_scale())


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    return inventory_of(tmp_path_factory.mktemp("assets"))


def submit(ledger, inventory, batch_id, *, judge="cj-generic", rubric="Prefer the clearer one.", **overrides):
    variant = PromptVariant("rubric", f"of-{batch_id}", inventory.root / "rubric.txt", rubric)
    overrides = {"max_comparisons": 10} | overrides
    request = align_request(
        inventory, eng5_scale(), batch_id=batch_id, judge=judge, system=None, rubric=variant, overrides=overrides
    )
    submit_batch(ledger, settings(), request)


def judged(ledger, inventory, batch_id, **stated):
    submit(ledger, inventory, batch_id, **stated)
    advance(ledger, batch_id)


@pytest.fixture(scope="module")
def ledger(inventory, tmp_path_factory):
    """Three rows of the same anchors, one of them in two batches, and batches that count for nothing."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite'}")
    judged(ledger, inventory, "fair")
    judged(ledger, inventory, "fair-again", pair_generation_seed=7)
    judged(ledger, inventory, "fair-echo")
    judged(ledger, inventory, "short", rubric="Prefer the shorter one.")
    judged(ledger, inventory, "sharp", judge="eng5-anchor")
    submit(ledger, inventory, "waiting")
    submit(ledger, inventory, "failed")
    with Lease.acquire(ledger, "failed", owner="test", seconds=30) as lease:
        lease.finalise(BatchStatus.FAILED, "provider_rejected")
    yield ledger
    ledger.close()


def made_from(ledger):
    return ledger_leaderboard(ledger, eng5_scale(), TARGETS, n_draws=DRAWS)


@pytest.fixture(scope="module")
def made(ledger):
    return made_from(ledger)


def row_with(made, batch_id):
    (row,) = [row for group in made.groups for row in group.rows if batch_id in row.batches]
    return row


def test_every_configuration_is_one_row_with_all_its_batches(made):
    (group,) = made.groups
    assert {row.batches for row in group.rows} == {("fair", "fair-again"), ("short",), ("sharp",)}
    assert group.grades == GRADES
    # the same text under another name is the same rubric, and the name shown is the first batch's
    assert row_with(made, "fair-again").configuration.prompts["Rubric"].name == "of-fair"


def test_what_counts_for_nothing_is_told_with_the_reason(made):
    reasons = dict(made.left_out)
    assert set(reasons) == {"fair-echo", "waiting", "failed"}
    assert "same seed as fair" in reasons["fair-echo"]
    assert "SUBMITTED" in reasons["waiting"] and "provider_rejected" in reasons["failed"]


def test_a_rows_figures_are_those_counted_by_hand_over_all_its_batches(ledger, made):
    row = row_with(made, "fair")
    batches = ("fair", "fair-again")
    comparisons = [c for batch in batches for c in ledger.comparisons(batch) if c.status is ComparisonStatus.JUDGED]
    order = {f"a{number}": number for number in range(1, 6)}
    assert row.alignment.judgments == len(comparisons) == 20
    inverted = {(c.winner_id, c.loser_id) for c in comparisons if order[c.winner_id] < order[c.loser_id]}
    assert len(row.alignment.inversions) == len(inverted)
    for anchor in row.alignment.anchors:
        assert anchor.wins == sum(c.winner_id == anchor.essay_id for c in comparisons)
    scores = {anchor.essay_id: anchor.score for anchor in row.alignment.anchors}
    expected = kendalltau([scores[essay] for essay in order], list(order.values())).statistic
    assert row.alignment.tau.tau_b == pytest.approx(expected)
    first = sum(c.winner_id == c.essay_a for c in comparisons)
    assert row.alignment.position.first_wins.count == first
    records = [record for batch in batches for record in ledger.comparison_records(batch)]
    assert row.tokens_in == sum(record.tokens_in for record in records) == 20 * 1200
    assert row.cost_usd == 0.0


def test_rows_are_ordered_by_what_is_known_of_their_true_agreement(made):
    (group,) = made.groups
    means = [row.standing.mean for row in group.rows]
    assert means == sorted(means, reverse=True)
    assert [row.standing.leads for row in group.rows] == [True, False, False]
    assert sum(row.standing.p_best for row in group.rows) == pytest.approx(1.0)


def test_the_same_ledger_gives_the_same_leaderboard(ledger, made):
    assert made_from(ledger) == made


def test_rows_with_the_very_same_answers_are_equals_and_not_copies(tmp_path):
    """Rows drawn with the same random numbers would tie in every draw, and any tiny difference would look certain."""
    two = inventory_of(tmp_path / "two", ("F+", "A"))
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    answers: dict[str, list[object]] = {}
    # which essay is read first follows from the batch id: some id gives the same order, and so the same answer
    for number in range(8):
        judged(ledger, two, f"b{number}", judge="eng5-anchor", max_comparisons=1, llm_max_tokens=500 + number)
        answers[f"b{number}"] = [(c.essay_a, c.essay_b, c.winner) for c in ledger.comparisons(f"b{number}")]
        if number and answers[f"b{number}"] == answers["b0"]:
            break
    assert answers[f"b{number}"] == answers["b0"]
    made = made_from(ledger)
    assert row_with(made, "b0").standing.mean != row_with(made, f"b{number}").standing.mean
    ledger.close()


def test_other_anchors_are_another_group_and_renamed_ones_are_not(inventory, tmp_path):
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    judged(ledger, inventory, "here")
    judged(ledger, inventory_of(tmp_path / "regraded", ("E-", *GRADES[1:-1], "B")), "regraded")
    renamed = tmp_path / "renamed"
    assets_in(renamed, GRADES)
    table = renamed / "ANCHOR_ESSAYS_BAYESIAN_INFERENCE_DATA.csv"
    # the ids run the other way, so that a mix-up of essays would show
    text = table.read_text(encoding="utf-8")
    for number in range(1, 6):
        text = text.replace(f"\na{number},", f"\nz{9 - number},")
    table.write_text(text, encoding="utf-8")
    judged(ledger, read_inventory(renamed, eng5_scale()), "renamed", pair_generation_seed=5)
    made = ledger_leaderboard(ledger, eng5_scale(), TARGETS, n_draws=DRAWS)
    assert {tuple(row.batches for row in group.rows) for group in made.groups} == {
        (("here", "renamed"),),
        (("regraded",),),
    }
    row = row_with(made, "here")
    wins = dict.fromkeys((f"a{number}" for number in range(1, 6)), 0)
    for batch_id in ("here", "renamed"):
        for comparison in ledger.comparisons(batch_id):
            winner = comparison.winner_id
            wins[winner if batch_id == "here" else f"a{9 - int(winner[1:])}"] += 1
    assert {anchor.essay_id: anchor.wins for anchor in row.alignment.anchors} == wins
    assert "cannot be compared" in leaderboard_markdown(made)
    ledger.close()


def test_batches_of_other_kinds_are_not_even_mentioned(tmp_path):
    from cj_pipeline_tests.workflow.scenes import assignment_request, register_assignment

    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    register_assignment(ledger, assignment_request())
    submit_batch(ledger, settings(), batch_request("b"))
    made = made_from(ledger)
    assert made.groups == () and made.left_out == ()
    assert "cj eng5 matrix FILE" in leaderboard_markdown(made)
    assert leaderboard_png(made).startswith(b"\x89PNG")
    ledger.close()


# --- what is told ------------------------------------------------------------------------------------------------


def test_the_worth_of_one_swap_is_that_of_swapping_two_neighbours(made):
    (group,) = made.groups
    best = list(range(5))
    for place in range(4):
        swapped = best.copy()
        swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
        assert kendalltau(best, swapped).statistic == pytest.approx(1 - group.one_swap)
    assert group.one_swap == pytest.approx(0.2)
    assert "by 0.2 among five essays" in group_notes(group)[0] and "0.200 among these 5" in group_notes(group)[0]


def test_simulated_judges_are_said_to_read_no_prompts(made):
    (group,) = made.groups
    assert any("simulated" in note and "chance alone" in note for note in group_notes(group))
    assert "SIMULATED JUDGE" in leaderboard_markdown(made)


def test_every_row_is_said_to_lead_to_be_behind_or_not_to_be_told_apart(made):
    markdown = leaderboard_markdown(made, picture="p.png")
    (group,) = made.groups
    abreast = sum(row.standing.may_be_best and not row.standing.leads for row in group.rows)
    assert markdown.count("| cannot be told apart |") == abreast
    assert markdown.count("| leads |") == 1
    assert markdown.count("| behind |") == 2 - abreast
    for words in ("of-fair", "of-short", "eng5-anchor", "fair-echo: is simulated with the same seed", "](p.png)"):
        assert words in markdown


def test_no_essay_and_no_justification_is_in_any_of_it(ledger, made, inventory):
    told = leaderboard_markdown(made)
    for anchor in inventory.anchors:
        assert anchor.document.text not in told
    for record in ledger.comparison_records("fair"):
        assert record.justification and record.justification not in told


# --- the files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(ledger, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return rebuild_leaderboard(ledger, eng5_scale(), TARGETS, outputs, n_draws=DRAWS)


def asked(path, query):
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_the_table_can_be_asked_by_plain_duckdb_and_says_the_same(kept):
    made, files = kept
    rows = asked(
        files.database,
        "SELECT place, judge, rubric, len(batches), judgments, tau_b, p_best, may_be_best, simulated "
        "FROM alignment_leaderboard ORDER BY anchor_group, place",
    )
    (group,) = made.groups
    assert rows == [
        (
            place,
            row.configuration.judge,
            row.configuration.prompt_name("Rubric"),
            len(row.batches),
            row.alignment.judgments,
            row.alignment.tau.tau_b,
            row.standing.p_best,
            row.standing.may_be_best,
            True,
        )
        for place, row in enumerate(group.rows, start=1)
    ]
    unnested = asked(files.database, "SELECT unnest(batches) AS batch FROM alignment_leaderboard ORDER BY batch")
    assert unnested == [("fair",), ("fair-again",), ("sharp",), ("short",)]


def test_every_column_of_the_table_is_explained_in_the_file(kept):
    comments = asked(
        kept[1].database,
        "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'alignment_leaderboard'",
    )
    assert dict(comments) == {column.name: column.description for column in ALIGNMENT_LEADERBOARD.columns}


def test_a_rebuild_replaces_the_files_whole_and_a_reader_keeps_the_one_it_opened(ledger, kept):
    made, files = kept
    before = {path: path.read_bytes() for path in (files.markdown, files.picture)}
    assert files.database.stat().st_mode & 0o777 == 0o444
    stray = files.database.with_name(files.database.name + ".wal")
    stray.write_bytes(b"left by an analyst who died")
    with duckdb.connect() as connection:
        again, _ = rebuild_leaderboard(ledger, eng5_scale(), TARGETS, files.database.parent, n_draws=DRAWS)
        connection.execute(f"ATTACH '{files.database}' AS board (READ_ONLY)")
        rebuild_leaderboard(ledger, eng5_scale(), TARGETS, files.database.parent, n_draws=DRAWS)
        assert connection.execute("SELECT count(*) FROM board.alignment_leaderboard").fetchall() == [(3,)]
    assert again == made
    assert {path: path.read_bytes() for path in before} == before
    assert not stray.exists()
    leftovers = [path.name for path in files.database.parent.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_a_row_is_found_again_by_its_configuration(kept):
    made, files = kept
    for row in made.groups[0].rows:
        found = asked(
            files.database,
            f"SELECT batches FROM alignment_leaderboard WHERE configuration = '{row.configuration.key}'",
        )
        assert found == [(list(row.batches),)]
