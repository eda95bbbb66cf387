"""What the ledger refuses, keeps and counts, and what people may do to a batch; on SQLite and on PostgreSQL alike."""

import random
import traceback
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from cj_pipeline.core.errors import InputError, RequestError
from cj_pipeline.core.models import BatchStatus, EssayRole, PairMode, Winner
from cj_pipeline.ledger import (
    BatchBusyError,
    BudgetExceededError,
    UnknownAssignmentError,
    UnknownBatchError,
)
from cj_pipeline.ledger import tables as t
from cj_pipeline.ledger.engine import read_transaction, write_transaction
from cj_pipeline.ledger.ledger import LAUNCH_GRACE
from cj_pipeline_tests.builders import (
    acquire,
    all_pairs,
    anchor_essay,
    at_once,
    failed,
    judged,
    new_anchor,
    new_assignment,
    new_batch,
    new_student,
    rows,
    start,
    submit,
    update_batch,
    wave_end,
    wave_plan,
)

C1, C2 = "w00001-c00001", "w00001-c00002"
AT = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def insert(ledger, table, row):
    with write_transaction(ledger.engine) as connection:
        connection.execute(table.insert().values(**row))


def judge_one_more(ledger, wave, batch_id="b1"):
    """A wave of one comparison, judged, by a holder that comes and goes."""
    lease = acquire(ledger, batch_id)
    plan = wave_plan(wave, [("s1", "s2")])
    lease.plan_wave(plan)
    (attempt,) = lease.record([start(plan.comparison_id(0))])
    lease.record([judged(attempt, plan.comparison_id(0))])
    lease.release()


def finish(ledger, status=BatchStatus.COMPLETE_STABLE, batch_id="b1"):
    lease = acquire(ledger, batch_id)
    lease.finalise(status, "because")
    return lease


def events(ledger, batch_id="b1"):
    return [event["event"] for event in ledger.events(batch_id)]


# --- constraints -----------------------------------------------------------------------------------------------------

BATCH = {
    "batch_id": "b2",
    "kind": "assessment",
    "request_sha256": "r" * 64,
    "judge_profile": "p",
    "provider": "p",
    "model": "m",
    "simulated": True,
    "overrides": {},
    "settings": {},
    "total_budget": 5,
    "status": "SUBMITTED",
    "code_version": "1",
    "correlation_id": "c",
    "processing_metadata": {},
    "created_at": AT,
}
ESSAY = {"batch_id": "b1", "essay_id": "s9", "role": "student", "known_grade": None, "text_sha256": None}
WAVE = {"batch_id": "b1", "wave": 2, "pair_mode": "coverage", "cut_by_budget": False, "started_at": AT}
COMPARISON = {
    "batch_id": "b1",
    "comparison_id": "w00001-c00003",
    "wave": 1,
    "essay_a": "s1",
    "essay_b": "s3",
    "pair_mode": "coverage",
    "status": "planned",
}
JUDGED = {"status": "judged", "winner": "a", "confidence": 3}
ATTEMPT = {
    "batch_id": "b1",
    "comparison_id": C1,
    "number": 1,
    "lease_epoch": 1,
    "provider": "p",
    "model": "m",
    "prompt_sha256": "x" * 64,
    "queued_at": AT,
    "sent_at": AT,
}
ANCHOR = {"assignment_id": "letters", "revision": 1, "anchor_ref": "k9", "grade": "A", "created_at": AT}
FOREIGN, UNIQUE = "(?i)foreign key", "(?i)unique"

REFUSED = {
    "a budget of zero": (t.batches, BATCH | {"total_budget": 0}, "budget_positive"),
    "a negative budget": (t.batches, BATCH | {"total_budget": -1}, "budget_positive"),
    "a batch id twice": (t.batches, BATCH | {"batch_id": "b1"}, UNIQUE),
    "a batch of an unknown assignment": (
        t.batches,
        BATCH | {"assignment_id": "unknown", "assignment_revision": 1},
        FOREIGN,
    ),
    "a batch of an unknown revision": (
        t.batches,
        BATCH | {"assignment_id": "letters", "assignment_revision": 2},
        FOREIGN,
    ),
    "an essay of an unknown batch": (t.batch_essays, ESSAY | {"batch_id": "unknown"}, FOREIGN),
    "an essay without a text": (t.batch_essays, ESSAY | {"text_sha256": "unknown"}, FOREIGN),
    "an essay of an unknown role": (t.batch_essays, ESSAY | {"role": "teacher"}, "role_known"),
    "an anchor without a grade": (t.batch_essays, ESSAY | {"role": "anchor"}, "anchor_has_grade"),
    "an essay id twice": (t.batch_essays, ESSAY | {"essay_id": "s1"}, UNIQUE),
    "an anchor of an unknown assignment": (t.anchor_essays, ANCHOR | {"assignment_id": "unknown"}, FOREIGN),
    "an anchor without a text": (t.anchor_essays, ANCHOR | {"text_sha256": "unknown"}, FOREIGN),
    "an anchor twice": (t.anchor_essays, ANCHOR | {"anchor_ref": "k1"}, UNIQUE),
    "a wave of an unknown batch": (t.waves, WAVE | {"batch_id": "unknown"}, FOREIGN),
    "a wave twice": (t.waves, WAVE | {"wave": 1}, UNIQUE),
    "a wave zero": (t.waves, WAVE | {"wave": 0}, "wave_positive"),
    "a wave of an unknown mode": (t.waves, WAVE | {"pair_mode": "random"}, "pair_mode_known"),
    "a comparison id twice": (t.comparisons, COMPARISON | {"comparison_id": C1}, UNIQUE),
    "a comparison of an essay with itself": (t.comparisons, COMPARISON | {"essay_b": "s1"}, "two_essays"),
    "a comparison of an unknown essay A": (t.comparisons, COMPARISON | {"essay_a": "unknown"}, FOREIGN),
    "a comparison of an unknown essay B": (t.comparisons, COMPARISON | {"essay_b": "unknown"}, FOREIGN),
    "a comparison of another batch's essay": (t.comparisons, COMPARISON | {"essay_b": "x1"}, FOREIGN),
    "a comparison of an unknown wave": (t.comparisons, COMPARISON | {"wave": 2}, FOREIGN),
    "a comparison of an unknown mode": (t.comparisons, COMPARISON | {"pair_mode": "random"}, "pair_mode_known"),
    "a comparison of an unknown status": (t.comparisons, COMPARISON | {"status": "odd"}, "status_known"),
    "a winner that is neither a nor b": (t.comparisons, COMPARISON | JUDGED | {"winner": "c"}, "winner_known"),
    "a winner in capitals": (t.comparisons, COMPARISON | JUDGED | {"winner": "A"}, "winner_known"),
    "a judged comparison without a winner": (
        t.comparisons,
        COMPARISON | JUDGED | {"winner": None},
        "judged_has_winner",
    ),
    "a planned comparison with a winner": (t.comparisons, COMPARISON | {"winner": "a"}, "judged_has_winner"),
    "a failed comparison with a winner": (
        t.comparisons,
        COMPARISON | {"status": "failed", "winner": "b"},
        "judged_has_winner",
    ),
    "a confidence of zero": (t.comparisons, COMPARISON | JUDGED | {"confidence": 0}, "confidence_range"),
    "a confidence of six": (t.comparisons, COMPARISON | JUDGED | {"confidence": 6}, "confidence_range"),
    "a call for an unknown comparison": (t.attempts, ATTEMPT | {"comparison_id": "unknown"}, FOREIGN),
    "a call for another batch's comparison": (t.attempts, ATTEMPT | {"batch_id": "other"}, FOREIGN),
    "a second open call": (t.attempts, ATTEMPT | {"comparison_id": C2}, UNIQUE),
    "a second judged call": (t.attempts, ATTEMPT | {"outcome": "judged"}, UNIQUE),
    "a call of an unknown outcome": (t.attempts, ATTEMPT | {"outcome": "odd"}, "outcome_known"),
    "a call number zero": (t.attempts, ATTEMPT | {"number": 0}, "number_positive"),
    "an event of an unknown batch": (
        t.batch_events,
        {"batch_id": "unknown", "at": AT, "event": "held", "detail": ""},
        FOREIGN,
    ),
}
ACCEPTED = {
    "a batch": (t.batches, BATCH),
    "a batch whose budget is missing": (t.batches, BATCH | {"total_budget": None}),
    "a batch of a registered assignment": (t.batches, BATCH | {"assignment_id": "letters", "assignment_revision": 1}),
    "an essay": (t.batch_essays, ESSAY),
    "an anchor of a batch": (t.batch_essays, ESSAY | {"role": "anchor", "known_grade": "A"}),
    "an anchor": (t.anchor_essays, ANCHOR),
    "a wave": (t.waves, WAVE),
    "a planned comparison": (t.comparisons, COMPARISON),
    "a judged comparison": (t.comparisons, COMPARISON | JUDGED),
    "a judged comparison without confidence": (t.comparisons, COMPARISON | JUDGED | {"confidence": None}),
    "the least confidence": (t.comparisons, COMPARISON | JUDGED | {"winner": "b", "confidence": 1}),
    "the greatest confidence": (t.comparisons, COMPARISON | JUDGED | {"confidence": 5}),
    "a failed comparison": (t.comparisons, COMPARISON | {"status": "failed"}),
    "a withdrawn comparison": (t.comparisons, COMPARISON | {"status": "withdrawn"}),
    "an open call beside a judged one": (t.attempts, ATTEMPT),
    "several failed calls": (t.attempts, ATTEMPT | {"outcome": "error"}),
    "several lost calls": (t.attempts, ATTEMPT | {"outcome": "lost"}),
}


@pytest.fixture
def furnished(ledger):
    """An assignment, two batches, and in `b1` a wave with a judged comparison and one whose call is open."""
    ledger.register_assignment(new_assignment())
    submit(ledger)
    submit(ledger, "other", essays=(new_student("x1"), new_student("x2")))
    lease = acquire(ledger)
    lease.plan_wave(wave_plan())
    first, _second = lease.record([start(C1), start(C2)])
    lease.record([judged(first, C1)])
    return ledger


def with_a_text(table, row):
    if "text_sha256" in table.c and row.get("text_sha256") is None:
        return row | {"text_sha256": new_student("s1").text_sha256}
    return row


def test_the_database_itself_refuses_every_bad_row(furnished, subtests):
    before = rows(furnished)
    for name, (table, row, constraint) in REFUSED.items():
        with subtests.test(name), pytest.raises(sa.exc.IntegrityError, match=constraint):
            insert(furnished, table, with_a_text(table, row))
    assert rows(furnished) == before


def test_the_database_accepts_each_good_row_that_the_bad_ones_differ_from(furnished, subtests):
    for name, (table, row) in ACCEPTED.items():
        with subtests.test(name), furnished.engine.connect() as connection:
            assert connection.execute(table.insert().values(**with_a_text(table, row))).rowcount == 1
            connection.rollback()


def test_what_is_referred_to_cannot_be_deleted(furnished):
    for table in (t.texts, t.assignments, t.batches, t.batch_essays, t.waves, t.comparisons):
        with pytest.raises(sa.exc.IntegrityError, match=FOREIGN), write_transaction(furnished.engine) as connection:
            connection.execute(table.delete())


# --- assignments -----------------------------------------------------------------------------------------------------


def test_registering_an_assignment_stores_it_with_its_anchors(ledger):
    done = ledger.register_assignment(
        new_assignment(grade_scale_definition={"grades": ["x", "y"]}, system_prompt="Be fair.")
    )
    assert (done.revision, done.changed, done.anchors) == (1, True, 2)
    found = ledger.assignment("letters")
    assert (found.title, found.system_prompt) == ("A letter to a friend", "Be fair.")
    assert found.grade_scale_definition == {"grades": ["x", "y"]}
    anchors = ledger.anchors(found)
    assert [(a.anchor_ref, a.grade, a.word_count) for a in anchors] == [("k1", "A", 6), ("k2", "C+", 6)]


def test_registering_the_same_content_again_changes_nothing(ledger):
    ledger.register_assignment(new_assignment())
    before = rows(ledger)
    shuffled = new_assignment(anchors=tuple(reversed(new_assignment().anchors)))
    for again in (new_assignment(), shuffled):
        for replace_it in (False, True):
            done = ledger.register_assignment(again, replace=replace_it)
            assert (done.revision, done.changed) == (1, False)
    assert rows(ledger) == before


def test_a_changed_grade_is_refused_with_both_grades_and_the_remedy(ledger):
    ledger.register_assignment(new_assignment())
    before = rows(ledger)
    changed = new_assignment(anchors=(new_anchor("k1", "B"), new_anchor("k2", "C+")))
    with pytest.raises(RequestError, match="anchor k1 has grade A, the folder says B: use --replace") as caught:
        ledger.register_assignment(changed)
    assert len(caught.value.problems) == 1
    assert rows(ledger) == before


def test_every_difference_is_listed_at_once(ledger):
    ledger.register_assignment(new_assignment())
    changed = new_assignment(
        title="Another",
        judge_rubric="Other",
        grade_scale_definition={"grades": []},
        anchors=(new_anchor("k1", "A", "another text"), new_anchor("k3", "B")),
    )
    with pytest.raises(RequestError) as caught:
        ledger.register_assignment(changed)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "title differs",
        "judge_rubric differs",
        "grade_scale_definition differs",
        "anchor k1 has another text",
        "anchor k2 is registered but not in the folder",
        "anchor k3 is new",
    ]
    assert "another text" not in str(caught.value).replace("has another text", "")


def test_replacing_adds_a_revision_and_submitted_batches_keep_their_anchors_and_grades(ledger):
    old = new_assignment()
    ledger.register_assignment(old)
    essays = (new_student("s1"), new_student("s2"), *(anchor_essay(anchor) for anchor in old.anchors))
    submit(ledger, assignment_id="letters", assignment_revision=1, essays=essays)
    before, texts = ledger.essays("b1"), ledger.texts("b1")

    new = new_assignment(
        judge_rubric="Stricter.", anchors=(new_anchor("k1", "B", "Another text."), new_anchor("k3", "E+"))
    )
    done = ledger.register_assignment(new, replace=True)
    assert (done.revision, done.changed) == (2, True)

    assert ledger.essays("b1") == before
    assert {e.essay_id: e.known_grade for e in before if e.role is EssayRole.ANCHOR} == {
        "ANCHOR_k1": "A",
        "ANCHOR_k2": "C+",
    }
    assert ledger.texts("b1") == texts
    assert texts["ANCHOR_k1"] == old.anchors[0].text
    record = ledger.batch("b1")
    first = ledger.assignment("letters", record.assignment_revision)
    assert first.judge_rubric == old.judge_rubric
    assert [(a.anchor_ref, a.grade) for a in ledger.anchors(first)] == [("k1", "A"), ("k2", "C+")]
    assert [(a.anchor_ref, a.grade) for a in ledger.anchors(ledger.assignment("letters"))] == [
        ("k1", "B"),
        ("k3", "E+"),
    ]
    assert [(a.assignment_id, a.revision) for a in ledger.assignments()] == [("letters", 2)]


def test_registrations_of_one_assignment_at_the_same_time_make_one_revision(open_ledger):
    ledgers = [open_ledger() for _ in range(4)]
    done = at_once([lambda ledger=ledger: ledger.register_assignment(new_assignment()) for ledger in ledgers])
    assert sorted(result.changed for result in done) == [False, False, False, True]
    assert ledgers[0].assignment("letters").revision == 1


def test_an_unknown_assignment_is_an_error_that_names_the_known_ones(ledger):
    with pytest.raises(UnknownAssignmentError, match="registered: none yet"):
        ledger.assignment("essays")
    ledger.register_assignment(new_assignment())
    with pytest.raises(UnknownAssignmentError, match=r"no assignment 'essays' .*registered: letters.*`cj assignments"):
        ledger.assignment("essays")


# --- submission ------------------------------------------------------------------------------------------------------


def test_a_submitted_batch_is_read_back_as_it_was_given(ledger):
    essays = (new_student("s2", quality=1.5), new_student("s10"), new_student("S1"))
    new = new_batch(essays=essays, overrides={"max_comparisons": 20}, simulated=False)
    assert ledger.submit_batch(new) is True
    record = ledger.batch("b1")
    for name in ("kind", "judge_profile", "provider", "model", "simulated", "overrides", "settings", "total_budget"):
        assert getattr(record, name) == getattr(new, name), name
    assert (record.status, record.lease_epoch, record.lease_live, record.launch) == (BatchStatus.SUBMITTED, 0, False, 0)
    assert [(e.essay_id, e.quality) for e in ledger.essays("b1")] == [("S1", None), ("s10", None), ("s2", 1.5)]
    assert ledger.texts("b1") == {essay.essay_id: essay.text for essay in essays}
    assert [(e["event"], e["detail"]) for e in ledger.events("b1")] == [("submitted", "3 essays, budget 20")]


def test_submitting_the_same_batch_again_changes_nothing(ledger):
    submit(ledger)
    before = rows(ledger)
    surroundings = {"code_version": "newer", "correlation_id": "another", "settings": {"batch_timeout_hours": 9.0}}
    assert ledger.submit_batch(new_batch()) is False
    assert ledger.submit_batch(new_batch(**surroundings)) is False
    assert ledger.submit_batch(new_batch(essays=tuple(reversed(new_batch().essays)))) is False
    assert rows(ledger) == before


@pytest.mark.parametrize(
    "change",
    [
        {"students": 5},
        {"essays": (new_student("s1", "Another text."), *new_batch().essays[1:])},
        {"essays": (new_student("s1", quality=2.0), *new_batch().essays[1:])},
        {"overrides": {"max_comparisons": 7}},
        {"judge_profile": "eng5-anchor"},
        {"assignment_id": "letters", "assignment_revision": 1},
    ],
    ids=["one essay more", "another text", "another quality", "another override", "another judge", "an assignment"],
)
def test_a_batch_id_that_exists_with_other_content_is_refused_and_nothing_is_stored(ledger, change):
    ledger.register_assignment(new_assignment())
    submit(ledger)
    before = rows(ledger)
    with pytest.raises(InputError, match=r"batch b1 exists with other content .*choose another batch id"):
        ledger.submit_batch(new_batch(**change))
    assert rows(ledger) == before


@pytest.mark.parametrize(
    "change",
    [
        {"total_budget": 0},
        {"assignment_id": "unknown", "assignment_revision": 1},
        {"essays": (new_student("s1"), new_student("s1"))},
        {"essays": (new_student("s1"), anchor_essay(new_anchor("k1", "A")))},
    ],
    ids=["no budget", "unknown assignment", "the same essay twice", "an anchor nobody registered"],
)
def test_a_batch_the_database_refuses_leaves_nothing_behind(ledger, change):
    before = rows(ledger)
    with pytest.raises(sa.exc.IntegrityError):
        ledger.submit_batch(new_batch(**change))
    assert rows(ledger) == before


def test_batches_may_share_texts(ledger):
    submit(ledger, "b1")
    submit(ledger, "b2")
    assert ledger.texts("b1") == ledger.texts("b2")
    assert len(rows(ledger)["texts"]) == 4


def test_of_the_same_submission_made_at_once_one_is_new(open_ledger):
    ledgers = [open_ledger() for _ in range(4)]
    done = at_once([lambda ledger=ledger: ledger.submit_batch(new_batch()) for ledger in ledgers])
    assert sorted(done) == [False, False, False, True]
    assert len(ledgers[0].essays("b1")) == 4


@pytest.mark.parametrize("read", ["batch", "state", "hold", "resume", "claim_launch"])
def test_an_unknown_batch_is_an_error_that_says_how_to_find_the_known_ones(ledger, read):
    call = getattr(ledger, read)
    with pytest.raises(UnknownBatchError, match=r"no batch 'b1' .*`cj status`"):
        call("b1", "reason") if read == "hold" else call("b1")


def test_an_error_of_the_database_quotes_no_text_and_no_justification(furnished):
    secret = "My secret dog is called Zorro"
    writes = [
        lambda: furnished.submit_batch(new_batch("b9", essays=(new_student("s1", secret), new_student("s1", secret)))),
        lambda: insert(furnished, t.comparisons, COMPARISON | JUDGED | {"justification": secret, "confidence": 6}),
        lambda: insert(furnished, t.texts, {"text_sha256": "x", "text": secret, "word_count": None, "created_at": AT}),
        lambda: insert(furnished, t.comparisons, COMPARISON | {"comparison_id": C1, "justification": secret}),
    ]
    for write in writes:
        with pytest.raises(sa.exc.IntegrityError) as caught:
            write()
        assert "Zorro" not in "".join(traceback.format_exception(caught.value))


def test_neither_texts_nor_justifications_show_in_a_repr():
    secret = "My secret dog is called Zorro"
    shown = [new_student("s1", secret), new_anchor("k1", "A", secret), judged(1, C1, justification=secret)]
    shown.append(new_assignment(anchors=(new_anchor("k1", "A", secret),), student_prompt=secret, judge_rubric=secret))
    shown.append(new_batch(essays=(new_student("s1", secret),)))
    assert secret not in repr(shown)


# --- counters are counted --------------------------------------------------------------------------------------------


class Recount:
    """What must be in the ledger, kept in plain dictionaries."""

    def __init__(self, budget):
        self.budget = budget
        self.statuses, self.pairs, self.waves_of, self.modes = {}, {}, {}, {}
        self.attempts = {}  # attempt id → (comparison id, outcome)

    def count(self, status):
        return sum(found == status for found in self.statuses.values())

    @property
    def submitted(self):
        return len(self.statuses) - self.count("withdrawn")

    def open_attempts(self):
        return {attempt: comparison for attempt, (comparison, outcome) in self.attempts.items() if outcome == "open"}

    def sendable(self):
        busy = set(self.open_attempts().values())
        return [name for name, status in self.statuses.items() if status == "planned" and name not in busy]

    def check(self, ledger):
        state = ledger.state("b1")
        assert state.total_budget == self.budget
        assert state.submitted == self.submitted <= self.budget
        assert (state.judged, state.failed, state.pending) == tuple(map(self.count, ("judged", "failed", "planned")))
        covered = {frozenset(self.pairs[name]) for name, status in self.statuses.items() if status == "judged"}
        assert (state.max_possible_pairs, state.successful_pairs) == (10, len(covered))
        unfinished = {self.waves_of[name] for name, status in self.statuses.items() if status == "planned"}
        passes = [wave for wave, mode in self.modes.items() if mode is PairMode.RESAMPLING and wave not in unfinished]
        assert state.resampling_passes == len(passes)
        outcomes = [outcome for _comparison, outcome in self.attempts.values()]
        assert ledger.attempt_counts("b1") == {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
        assert {c.comparison_id: c.status.value for c in ledger.comparisons("b1")} == self.statuses
        for record in ledger.comparison_records("b1"):
            own = [outcome for comparison, outcome in self.attempts.values() if comparison == record.comparison_id]
            counted = (record.attempts, record.lost_attempts, record.failed_attempts)
            assert counted == (len(own), own.count("lost"), own.count("error"))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_counts_equal_a_recount_after_every_operation_of_a_random_history(ledger, seed):
    rng = random.Random(seed)
    model = Recount(budget=30)
    submit(ledger, students=5, total_budget=model.budget)
    lease = acquire(ledger)
    done = set()
    for _ in range(70):
        operation = rng.choice(["plan", "start", "start", "start", "end", "end", "end", "stop", "take over"])
        if operation == "plan":
            number = len(model.modes) + 1
            pairs = rng.choices(all_pairs(5), k=rng.randint(1, 6))
            plan = wave_plan(number, pairs, mode=rng.choice(list(PairMode)))
            if model.submitted + len(pairs) > model.budget:
                operation = "plan beyond the budget"
                with pytest.raises(BudgetExceededError):
                    lease.plan_wave(plan)
            else:
                lease.plan_wave(plan)
                model.modes[number] = plan.pair_mode
                for index, pair in enumerate(pairs):
                    name = plan.comparison_id(index)
                    model.statuses[name], model.pairs[name], model.waves_of[name] = "planned", pair, number
        elif operation == "start" and model.sendable():
            name = rng.choice(model.sendable())
            (attempt,) = lease.record([start(name)])
            model.attempts[attempt] = (name, "open")
        elif operation == "end" and model.open_attempts():
            attempt, name = rng.choice(list(model.open_attempts().items()))
            how = rng.choice(["judged", "judged", "failed", "retried"])
            answer = judged(attempt, name) if how == "judged" else failed(attempt, name, final=how == "failed")
            lease.record([answer])
            model.attempts[attempt] = (name, "judged" if how == "judged" else "error")
            model.statuses[name] = "planned" if how == "retried" else how
        elif operation == "stop" and model.modes and not model.open_attempts() and rng.random() < 0.5:
            tried = {name for name, _outcome in model.attempts.values()}
            lease.stop_wave(len(model.modes))
            for name in model.sendable():
                model.statuses[name] = "failed" if name in tried else "withdrawn"
        elif operation == "take over":
            update_batch(ledger, lease_expires_at=0.0)
            lease = acquire(ledger, owner="host:2")
            for attempt, name in model.open_attempts().items():
                model.attempts[attempt] = (name, "lost")
        else:
            continue
        done.add(operation)
        model.check(ledger)
    assert done >= {"plan", "start", "end", "take over"}


def test_a_batch_without_comparisons_counts_nothing(ledger):
    submit(ledger)
    state = ledger.state("b1")
    assert (state.node_count, state.submitted, state.pending, state.callbacks) == (4, 0, 0, 0)
    assert state.success_rate is None
    assert ledger.attempt_counts("b1") == {}


def test_the_state_tells_the_last_wave_and_not_an_earlier_one(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, cut_by_budget=True))
    lease.stop_wave(1, provider_rejected=True)
    lease.end_wave(wave_end(1, max_score_change=0.5))
    state = ledger.state("b1")
    assert (state.wave_cut_by_budget, state.provider_rejected, state.max_score_change) == (True, True, 0.5)
    lease.plan_wave(wave_plan(2))
    state = ledger.state("b1")
    assert (state.wave_cut_by_budget, state.provider_rejected, state.max_score_change) == (False, False, None)


def test_comparisons_come_in_the_order_of_planning(ledger):
    submit(ledger, students=6, total_budget=100)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(1, all_pairs(6)[:12]))
    lease.plan_wave(wave_plan(2, all_pairs(6)[12:]))
    expected = [f"w00001-c{i:05d}" for i in range(1, 13)] + [f"w00002-c{i:05d}" for i in range(1, 4)]
    assert [c.comparison_id for c in ledger.comparisons("b1")] == expected
    assert [c.comparison_id for c in ledger.comparison_records("b1")] == expected
    assert [(c.essay_a, c.essay_b) for c in ledger.comparisons("b1")] == all_pairs(6)


def test_a_batch_sees_nothing_of_another(ledger):
    submit(ledger, "b1")
    submit(ledger, "b2")
    judge_one_more(ledger, 1, "b1")
    assert ledger.comparisons("b2") == ledger.comparison_records("b2") == ledger.waves("b2") == []
    acquire(ledger, "b2").plan_wave(wave_plan(1, [("s1", "s2")]))  # under the same comparison id as in b1
    (record,) = ledger.comparison_records("b2")
    assert (record.status, record.attempts, record.tokens_in, record.submitted_at) == ("planned", 0, 0, None)
    state = ledger.state("b2")
    assert (state.submitted, state.judged, state.pending) == (1, 0, 1)
    assert ledger.attempt_counts("b2") == {}
    assert ledger.orphan_results("b2") == []
    assert ledger.cost_usd("b2") == 0.0


# --- cost ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def priced(ledger):
    """A judged call (0.25), a failed one (0.125) and a lost one (at most 0.5) of two comparisons; and the lease."""
    submit(ledger)
    lease = acquire(ledger)
    lease.plan_wave(wave_plan())
    first, second = lease.record([start(C1), start(C2)])
    lease.record([judged(first, C1), failed(second, C2, final=False)])
    lease.record([start(C2, 2)])
    lease.release()
    return ledger


def test_the_cost_of_a_batch_is_over_all_calls_with_lost_ones_at_their_upper_bound(priced):
    assert priced.cost_usd("b1") == 0.25 + 0.125 + 0.5
    first, second = priced.comparison_records("b1")
    assert (first.cost_usd, first.tokens_in, first.tokens_out) == (0.25, 100, 10)
    assert (second.cost_usd, second.tokens_in, second.tokens_out) == (0.625, 100, 1)


def test_a_call_in_flight_costs_nothing_yet(priced):
    acquire(priced).record([start(C2, 3)])
    assert priced.cost_usd("b1") == 0.875


def test_one_unknown_price_makes_the_cost_unknown(priced):
    lease = acquire(priced)
    (attempt,) = lease.record([start(C2, 3)])
    lease.record([failed(attempt, C2, final=True, cost_usd=None)])
    assert priced.cost_usd("b1") is None
    first, second = priced.comparison_records("b1")
    assert (first.cost_usd, second.cost_usd) == (0.25, None)


def test_a_lost_call_without_an_upper_bound_makes_the_cost_unknown(priced):
    lease = acquire(priced)
    lease.record([start(C2, 3, upper_bound_usd=None)])
    lease.release()
    assert priced.cost_usd("b1") is None


def test_an_orphan_result_is_kept_with_its_cost_and_changes_no_count(priced):
    before, counts = priced.state("b1"), priced.attempt_counts("b1")
    lost = next(row for row in attempts(priced) if row.outcome == "lost")
    late = {"reason": "late", "source": "lease_lost", "winner": Winner.B, "confidence": 2, "tokens_input": 100}
    priced.record_orphan("b1", C2, attempt_id=lost.attempt_id, lease_epoch=1, cost_usd=0.3, request_id="req-9", **late)
    assert (priced.state("b1"), priced.attempt_counts("b1")) == (before, counts)
    assert priced.cost_usd("b1") == 0.875  # the lost call is costed already, at its upper bound
    priced.record_orphan("b1", "unknown-comparison", reason="unknown", source="bundle", cost_usd=0.0625)
    assert priced.cost_usd("b1") == 0.9375
    first, second = priced.orphan_results("b1")
    kept = ("comparison_id", "attempt_id", "lease_epoch", "reason", "source", "winner", "confidence", "cost_usd")
    assert [first[name] for name in kept] == [C2, lost.attempt_id, 1, "late", "lease_lost", "b", 2, 0.3]
    assert (second["comparison_id"], second["reason"], second["winner"]) == ("unknown-comparison", "unknown", None)
    priced.record_orphan("b1", C2, reason="duplicate", source="bundle", cost_usd=None)
    assert priced.cost_usd("b1") is None


def attempts(ledger):
    with read_transaction(ledger.engine) as connection:
        return connection.execute(sa.select(t.attempts).order_by(t.attempts.c.attempt_id)).all()


# --- hold, resume, reopen --------------------------------------------------------------------------------------------


def test_a_hold_keeps_launches_away_until_it_is_resumed(ledger):
    submit(ledger)
    ledger.hold("b1", "the rubric is wrong")
    assert ledger.batch("b1").hold_reason == "the rubric is wrong"
    assert ledger.claim_launch("b1") is None
    assert ledger.resume("b1") is True
    assert ledger.batch("b1").hold_reason is None
    assert ledger.claim_launch("b1") == 1
    assert events(ledger) == ["submitted", "held", "resumed"]


def test_resuming_a_batch_that_is_not_held_changes_nothing(ledger):
    submit(ledger)
    before = rows(ledger)
    assert ledger.resume("b1") is False
    assert rows(ledger) == before


def test_a_published_batch_cannot_be_held(ledger):
    submit(ledger)
    finish(ledger).mark_published(0)
    with pytest.raises(InputError, match="batch b1 is COMPLETE_STABLE: there is nothing left to hold"):
        ledger.hold("b1", "why not")
    assert ledger.batch("b1").hold_reason is None


@pytest.mark.parametrize("status", [BatchStatus.FAILED, BatchStatus.CANCELLED])
def test_reopening_returns_an_ended_batch_to_work_and_records_why(ledger, status):
    submit(ledger)
    judge_one_more(ledger, 1)
    lease = finish(ledger, status)
    lease.mark_published(1)
    lease.release()
    assert ledger.open_batches() == []
    ledger.reopen("b1", "the key was renewed")
    record = ledger.batch("b1")
    assert record.status is BatchStatus.JUDGING
    assert (record.completed_at, record.published_at, record.stop_reason) == (None, None, None)
    assert ledger.state("b1").judged == 1
    assert ledger.events("b1")[-1]["event"] == "reopened"
    assert ledger.events("b1")[-1]["detail"] == f"was {status.value}: the key was renewed"
    assert [batch.batch_id for batch in ledger.open_batches()] == ["b1"]
    assert ledger.claim_launch("b1") == 1
    lease = acquire(ledger)
    lease.plan_wave(wave_plan(2))
    lease.finalise(BatchStatus.COMPLETE_STABLE, "stable")
    assert ledger.batch("b1").completed_at is not None


def test_reopening_leaves_the_budget_a_wall(ledger):
    submit(ledger, total_budget=3)
    judge_one_more(ledger, 1)
    finish(ledger, BatchStatus.FAILED).release()
    ledger.reopen("b1", "again")
    lease = acquire(ledger)
    with pytest.raises(BudgetExceededError, match="3 more comparisons after 1 would exceed the budget of 3"):
        lease.plan_wave(wave_plan(2, all_pairs(3)))
    lease.plan_wave(wave_plan(2, all_pairs(3)[:2]))


def test_reopening_a_held_batch_takes_it_off_hold_and_keeps_where_it_stands(ledger):
    submit(ledger)
    judge_one_more(ledger, 1)
    ledger.hold("b1", "pause")
    ledger.reopen("b1", "go on")
    assert ledger.batch("b1").hold_reason is None
    assert ledger.batch("b1").status is BatchStatus.JUDGING
    assert ledger.claim_launch("b1") == 1


def test_reopening_lifts_a_wait_and_forgets_idle_launches(ledger):
    submit(ledger)
    for _ in range(3):
        ledger.claim_launch("b1")
    lease = acquire(ledger)
    lease.wait_until(datetime.now(UTC) + timedelta(hours=1))
    lease.release()
    ledger.hold("b1", "pause")
    ledger.reopen("b1", "go on")
    assert [ledger.claim_launch("b1") for _ in range(4)] == [4, 5, 6, None]


def test_a_batch_that_neither_failed_nor_was_cancelled_nor_held_cannot_be_reopened(ledger):
    submit(ledger)
    for status in set(BatchStatus) - {BatchStatus.FAILED, BatchStatus.CANCELLED}:
        update_batch(ledger, status=status.value)
        before = rows(ledger)
        with pytest.raises(InputError, match=f"batch b1 is {status.value}: only a failed, cancelled or held batch"):
            ledger.reopen("b1", "please")
        assert rows(ledger) == before


def test_a_batch_that_is_being_written_cannot_be_reopened(ledger):
    submit(ledger)
    ledger.hold("b1", "pause")
    lease = acquire(ledger)
    with pytest.raises(BatchBusyError, match="batch b1 is being written by another process"):
        ledger.reopen("b1", "go on")
    assert ledger.batch("b1").hold_reason == "pause"
    lease.release()
    ledger.reopen("b1", "go on")
    assert ledger.batch("b1").hold_reason is None


# --- launches --------------------------------------------------------------------------------------------------------


def test_launches_are_counted_from_one(ledger):
    submit(ledger)
    assert ledger.claim_launch("b1") == 1
    assert ledger.claim_launch("b1") == 2
    record = ledger.batch("b1")
    assert (record.launch, record.idle_launches) == (2, 2)
    assert abs(record.launched_at - datetime.now(UTC)) < timedelta(seconds=10)


def test_three_launches_without_a_new_judgment_put_the_batch_on_hold_with_the_reason(ledger):
    submit(ledger)
    assert [ledger.claim_launch("b1") for _ in range(4)] == [1, 2, 3, None]
    record = ledger.batch("b1")
    assert record.launch == 3
    assert "3 launches in a row brought no new judgment or publication" in record.hold_reason
    assert "`cj resume`" in record.hold_reason
    assert events(ledger) == ["submitted", "held"]
    assert ledger.claim_launch("b1") is None
    assert events(ledger) == ["submitted", "held"]
    ledger.resume("b1")
    assert [ledger.claim_launch("b1") for _ in range(4)] == [4, 5, 6, None]


def test_a_new_judgment_starts_the_count_of_idle_launches_again(ledger):
    submit(ledger)
    for wave in range(1, 4):
        assert [ledger.claim_launch("b1") is not None for _ in range(3)] == [True] * 3
        judge_one_more(ledger, wave)
    assert ledger.claim_launch("b1") == 10
    assert ledger.batch("b1").idle_launches == 1


def test_a_failed_comparison_is_no_progress(ledger):
    submit(ledger)
    for launch in range(1, 4):
        assert ledger.claim_launch("b1") == launch
        lease = acquire(ledger)
        plan = wave_plan(launch, [("s1", "s2")])
        lease.plan_wave(plan)
        (attempt,) = lease.record([start(plan.comparison_id(0))])
        lease.record([failed(attempt, plan.comparison_id(0), final=True)])
        lease.release()
    assert ledger.claim_launch("b1") is None
    assert ledger.batch("b1").hold_reason is not None


def test_a_publication_starts_the_count_of_idle_launches_again(ledger):
    submit(ledger)
    judge_one_more(ledger, 1)
    for _ in range(3):
        ledger.claim_launch("b1")
    lease = acquire(ledger)
    lease.mark_published(1)
    lease.release()
    assert ledger.claim_launch("b1") == 4
    assert ledger.batch("b1").idle_launches == 1


def test_a_batch_under_a_live_lease_is_not_launched(ledger):
    submit(ledger)
    lease = acquire(ledger)
    assert ledger.claim_launch("b1") is None
    lease.release()
    assert ledger.claim_launch("b1") == 1


def test_a_batch_whose_lease_ran_out_is_launched(ledger):
    submit(ledger)
    acquire(ledger)
    update_batch(ledger, lease_expires_at=0.0)
    assert ledger.claim_launch("b1") == 1


def test_a_batch_asked_to_wait_is_launched_when_its_time_has_come(ledger):
    submit(ledger)
    lease = acquire(ledger)
    lease.wait_until(datetime.now(UTC) + timedelta(minutes=5))
    lease.release()
    assert ledger.claim_launch("b1") is None
    assert (ledger.batch("b1").launch, ledger.batch("b1").hold_reason) == (0, None)
    update_batch(ledger, not_before=datetime.now(UTC) - timedelta(seconds=1))
    assert ledger.claim_launch("b1") == 1


def test_a_final_batch_is_launched_until_it_is_published(ledger):
    submit(ledger)
    lease = finish(ledger)
    lease.release()
    assert [batch.batch_id for batch in ledger.open_batches()] == ["b1"]
    assert ledger.claim_launch("b1") == 1
    lease = acquire(ledger)
    lease.mark_published(0)
    lease.release()
    assert ledger.open_batches() == []
    assert ledger.claim_launch("b1") is None
    assert ledger.batch("b1").hold_reason is None


def test_a_launch_gets_a_number_above_the_highest_known_to_be_used(ledger):
    submit(ledger)
    assert ledger.claim_launch("b1", after=41) == 42
    assert ledger.claim_launch("b1", after=42) == 43


def test_while_the_run_of_a_launch_is_still_being_made_no_other_launch_is_claimed(ledger):
    submit(ledger)
    assert ledger.claim_launch("b1", after=0) == 1
    assert ledger.claim_launch("b1", after=0) is None
    assert ledger.claim_launch("b1", after=0, job_over=True) is None
    assert ledger.claim_launch("b1", after=1) == 2  # the run of launch 1 is there, and has ended
    with write_transaction(ledger.engine) as connection:
        connection.execute(t.batches.update().values(launched_at=datetime.now(UTC) - LAUNCH_GRACE))
    assert ledger.claim_launch("b1", after=1) == 3  # the run of launch 2 never came


def test_of_launches_claimed_at_once_each_gets_a_number_of_its_own(open_ledger):
    ledgers = [open_ledger() for _ in range(3)]
    submit(ledgers[0])
    numbers = at_once([lambda ledger=ledger: ledger.claim_launch("b1") for ledger in ledgers])
    assert sorted(numbers) == [1, 2, 3]


def test_open_batches_come_oldest_first(ledger):
    for batch_id in ("z", "m", "a"):
        submit(ledger, batch_id)
    assert [batch.batch_id for batch in ledger.open_batches()] == ["z", "m", "a"]
    assert [batch.batch_id for batch in ledger.batches()] == ["z", "m", "a"]


# --- silence ---------------------------------------------------------------------------------------------------------

ALMOST, OVER = timedelta(hours=3, minutes=59), timedelta(hours=4, minutes=1)  # of a timeout of four hours


def silent(ledger, after):
    return [batch.batch_id for batch in ledger.silent_batches(datetime.now(UTC) + after)]


def test_a_launched_batch_is_silent_once_its_timeout_is_over(ledger):
    submit(ledger)
    ledger.claim_launch("b1")
    assert silent(ledger, ALMOST) == []
    assert silent(ledger, OVER) == ["b1"]


def test_each_batch_has_the_timeout_it_was_submitted_with(ledger):
    submit(ledger, settings=new_batch().settings | {"batch_timeout_hours": 0.5})
    ledger.claim_launch("b1")
    assert silent(ledger, timedelta(minutes=29)) == []
    assert silent(ledger, timedelta(minutes=31)) == ["b1"]


def test_a_batch_never_launched_is_not_silent(ledger):
    submit(ledger)
    assert silent(ledger, timedelta(days=9)) == []


def test_a_batch_that_moved_since_its_launch_is_not_silent_until_it_is_launched_again(ledger):
    submit(ledger)
    ledger.claim_launch("b1")
    judge_one_more(ledger, 1)
    assert silent(ledger, timedelta(days=9)) == []
    ledger.claim_launch("b1")
    assert silent(ledger, OVER) == ["b1"]


def test_a_batch_launched_after_a_long_time_off_has_its_whole_timeout_before_it(ledger):
    submit(ledger)
    with write_transaction(ledger.engine) as connection:
        connection.execute(t.batches.update().values(created_at=AT))
        connection.execute(t.batch_events.update().values(at=AT))
    assert ledger.last_activity("b1") == AT
    ledger.claim_launch("b1")
    assert silent(ledger, timedelta(minutes=1)) == []
    assert silent(ledger, OVER) == ["b1"]


def test_a_batch_that_is_held_final_or_being_written_is_not_silent(ledger):
    for batch_id in ("held", "final", "written", "silent"):
        submit(ledger, batch_id)
    finish(ledger, batch_id="final").release()
    for batch_id in ("held", "final", "written", "silent"):
        assert ledger.claim_launch(batch_id) == 1
    with write_transaction(ledger.engine) as connection:
        # so that it is the hold that counts, and not the event it leaves
        connection.execute(t.batches.update().where(t.batches.c.batch_id == "held").values(hold_reason="pause"))
    acquire(ledger, "written")
    assert silent(ledger, OVER) == ["silent"]


def test_everything_that_happens_to_a_batch_is_activity(ledger):
    submit(ledger)
    moments = [ledger.last_activity("b1")]
    lease = acquire(ledger)

    def happened():
        moments.append(ledger.last_activity("b1"))
        assert moments[-1] > moments[-2]

    lease.plan_wave(wave_plan(1, [("s1", "s2")]))
    happened()
    (attempt,) = lease.record([start(C1)])
    happened()
    lease.record([judged(attempt, C1)])
    happened()
    lease.end_wave(wave_end())
    happened()
    ledger.hold("b1", "pause")
    happened()
    ledger.resume("b1")
    happened()
    lease.renew()
    assert ledger.last_activity("b1") == moments[-1]


# --- time ------------------------------------------------------------------------------------------------------------


def test_every_moment_comes_back_aware_and_in_utc_wherever_the_database_lives(ledger, database):
    if database == "postgresql":
        with write_transaction(ledger.engine) as connection:
            connection.execute(sa.text(f"ALTER DATABASE {ledger.engine.url.database} SET timezone TO 'Asia/Tokyo'"))
        ledger.engine.dispose()
    began = datetime.now(UTC)
    ledger.register_assignment(new_assignment())
    submit(ledger)
    ledger.claim_launch("b1")
    judge_one_more(ledger, 1)
    lease = acquire(ledger)
    lease.end_wave(wave_end(status=BatchStatus.COMPLETE_STABLE))
    lease.mark_published(1)
    ledger.record_orphan("b1", C1, reason="late", source="test")
    record, (wave,) = ledger.batch("b1"), ledger.waves("b1")
    (comparison,) = ledger.comparison_records("b1")
    moments = [
        ledger.assignment("letters").created_at,
        *(record.created_at, record.launched_at, record.completed_at, record.published_at),
        *(wave.started_at, wave.ended_at, comparison.submitted_at, comparison.completed_at),
        *(event["at"] for event in ledger.events("b1")),
        *(orphan["received_at"] for orphan in ledger.orphan_results("b1")),
        ledger.last_activity("b1"),
    ]
    assert all(moment.utcoffset() == timedelta(0) for moment in moments)
    assert all(began <= moment <= datetime.now(UTC) for moment in moments)


def test_a_moment_given_in_another_zone_is_the_same_moment(ledger):
    submit(ledger)
    moment = datetime(2026, 7, 1, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    acquire(ledger).wait_until(moment)
    found = ledger.batch("b1").not_before
    assert found == moment
    assert found.isoformat() == "2026-06-30T23:30:00.123456+00:00"


def test_a_moment_without_a_zone_is_refused(ledger):
    submit(ledger)
    lease = acquire(ledger)
    with pytest.raises(sa.exc.StatementError, match="a naive datetime cannot be recorded"):
        lease.wait_until(datetime(2026, 7, 1, 1, 30))
    assert ledger.batch("b1").not_before is None


def test_a_ledger_is_safe_to_share_between_threads(ledger):
    names = [f"b{number}" for number in range(8)]
    done = at_once([lambda name=name: ledger.submit_batch(new_batch(name)) for name in names])
    assert done == [True] * 8
    assert sorted(batch.batch_id for batch in ledger.batches()) == names
