"""Nights of an assignment, as the ledger has them, and the anchor bank they make.

A night is a finished batch of kind `calibration`. Here: which batches are nights of the same thing (same judge, same
prompts, same anchors), what each says of its anchors, why others are left out, and the bank. Not here: the model of a
bank (`core.anchor_bank`), how nights are watched over time (`calibration_history`), and how one is submitted
(`nightly`).
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

from cj_pipeline.core.anchor_bank import AnchorBank, NightScores, estimate_bank, night_scores
from cj_pipeline.core.errors import InputError, listed
from cj_pipeline.core.models import BatchKind, Value
from cj_pipeline.core.score_prior import KnownItems
from cj_pipeline.core.scoring import BTScoringResult, compute_bt_scores_and_se
from cj_pipeline.judges.models import JudgeOptions
from cj_pipeline.judges.prompts import JudgeInstructions
from cj_pipeline.ledger import Ledger
from cj_pipeline.ledger.records import AnchorRecord, AssignmentRecord, BatchRecord
from cj_pipeline.settings import BatchTunables
from cj_pipeline.workflow.essays import anchor_node_id
from cj_pipeline.workflow.judging import batch_instructions, judge_instructions, judge_options

NIGHT_PREFIX: Final = "eng5-calibration-"
"""How the batch of a night is called; the night's date, as YYYYMMDD, follows."""

MIN_ANCHORS: Final = 3
"""Anchors a night must share with the assignment: an anchor's drift is seen against a line through two others."""

_NIGHT_ID: Final = re.compile(re.escape(NIGHT_PREFIX) + r"(\d{8})")


class JudgeConfiguration(Value):
    """What must be the same for two nights to be of the same judge: who judged, asked what, and with what prompts.

    Attributes:
        profile: the judge's name, as a batch states it.
        provider, model: what it stands for.
        options: what the batch asked of the model.
        instructions_sha256: of everything the judge reads beside two essays.
    """

    profile: str
    provider: str
    model: str
    options: JudgeOptions
    instructions_sha256: str

    def differences(self, other: "JudgeConfiguration") -> list[str]:
        """What another configuration has otherwise, in words; empty if it is the same."""
        found = [
            f"its judge's {name} is {theirs!r}, not {ours!r}"
            for name in ("profile", "provider", "model")
            if (theirs := getattr(other, name)) != (ours := getattr(self, name))
        ]
        found += [
            f"its {name} is {theirs!r}, not {ours!r}"
            for name in JudgeOptions.model_fields
            if (theirs := getattr(other.options, name)) != (ours := getattr(self.options, name))
        ]
        if other.instructions_sha256 != self.instructions_sha256:
            found.append("its judge read other prompts")
        return found


@dataclass(frozen=True, eq=False)
class Night:
    """A finished calibration batch of one assignment and one judge configuration. Made by `calibration_nights`.

    Attributes:
        batch: as the ledger has it.
        date: which night it is, see `night_of`.
        scores: what its judgments, and nothing else, say of the anchors; these go by their `anchor_ref`.
        scored: the batch's own fit, by essay id.
        grades: expert grade of each anchor, by `anchor_ref`.
    """

    batch: BatchRecord
    date: date
    scores: NightScores
    scored: BTScoringResult
    grades: dict[str, str]


@dataclass(frozen=True)
class NightLeftOut:
    """A calibration batch of the assignment that is not one of its nights, and why."""

    batch_id: str
    date: date
    reason: str


@dataclass(frozen=True, eq=False)
class Nights:
    """The nights of an assignment and a judge configuration, oldest first, and what was left out."""

    assignment_id: str
    configuration: JudgeConfiguration
    nights: tuple[Night, ...]
    left_out: tuple[NightLeftOut, ...]


def judge_configuration(
    *, profile: str, provider: str, model: str, instructions: JudgeInstructions, tunables: BatchTunables
) -> JudgeConfiguration:
    """The configuration that a batch with this judge, these instructions and these settings has, or would have."""
    return JudgeConfiguration(
        profile=profile,
        provider=provider,
        model=model,
        options=judge_options(tunables),
        instructions_sha256=hashlib.sha256(instructions.model_dump_json().encode()).hexdigest(),
    )


def configuration_of(ledger: Ledger, batch: BatchRecord) -> JudgeConfiguration:
    """The configuration that a batch was submitted with."""
    return judge_configuration(
        profile=batch.judge_profile,
        provider=batch.provider,
        model=batch.model,
        instructions=batch_instructions(ledger, batch),
        tunables=BatchTunables.model_validate(batch.settings),
    )


def assignment_configuration(
    assignment: AssignmentRecord, tunables: BatchTunables, *, profile: str, provider: str, model: str
) -> JudgeConfiguration:
    """The configuration that a batch of an assignment would have, if it were submitted now."""
    instructions = judge_instructions(assignment, tunables)
    return judge_configuration(
        profile=profile, provider=provider, model=model, instructions=instructions, tunables=tunables
    )


def night_id(night: date) -> str:
    """The batch id of the scheduled calibration of a night."""
    return f"{NIGHT_PREFIX}{night:%Y%m%d}"


def night_of(batch: BatchRecord) -> date:
    """The night a calibration batch belongs to: by its id if it has a night's, else the UTC day it was submitted."""
    found = _NIGHT_ID.fullmatch(batch.batch_id)
    if found:
        try:
            return datetime.strptime(found[1], "%Y%m%d").date()
        except ValueError:
            pass
    return batch.created_at.astimezone(UTC).date()


def calibration_batches(ledger: Ledger, assignment_id: str | None = None) -> list[BatchRecord]:
    """All calibration batches, of one assignment if named, in the order of their nights."""
    found = [
        batch
        for batch in ledger.batches()
        if batch.kind is BatchKind.CALIBRATION and assignment_id in (None, batch.assignment_id)
    ]
    return sorted(found, key=lambda batch: (night_of(batch), batch.created_at, batch.batch_id))


def calibration_nights(
    ledger: Ledger, assignment_id: str, configuration: JudgeConfiguration, *, since: date | None = None
) -> Nights:
    """Read the nights of an assignment, as its anchors are registered now.

    Nights of older revisions count too: an anchor is the same if its reference and its text are. Anchors that the
    newest revision does not have, or has with another text, are left out of such a night.

    Args:
        ledger: to read.
        assignment_id: whose anchors.
        configuration: of the judge; nights of others are left out.
        since: the first night that counts (`CJ_CALIBRATION_FROM`); None: all do.

    Raises:
        UnknownAssignmentError: the assignment is not registered.
    """
    anchors = ledger.anchors(ledger.assignment(assignment_id))
    nights: list[Night] = []
    left_out: list[NightLeftOut] = []
    for batch in calibration_batches(ledger, assignment_id):
        try:
            if since is not None and night_of(batch) < since:
                raise InputError(f"it is before {since}, the first night that counts (CJ_CALIBRATION_FROM)")
            nights.append(_night(ledger, batch, anchors, configuration))
        except InputError as error:
            left_out.append(NightLeftOut(batch.batch_id, night_of(batch), str(error)))
    return Nights(assignment_id, configuration, tuple(nights), tuple(left_out))


def anchor_bank(nights: Nights, *, without: str | None = None) -> AnchorBank:
    """The bank that nights make.

    Args:
        nights: see `calibration_nights`.
        without: a batch whose judgments are not to be in it, because they are to be held against it.

    Raises:
        InputError: no night remains, with the reasons for those left out.
    """
    used = [night.scores for night in nights.nights if night.batch.batch_id != without]
    if not used:
        reasons = "; ".join(f"{one.batch_id}: {one.reason}" for one in nights.left_out[-3:])
        besides = f" beside {without}" if without is not None and nights.nights else ""
        raise InputError(
            f"assignment {nights.assignment_id} has no finished calibration night{besides} of judge "
            f"{nights.configuration.profile}, so there is no anchor bank: `cj eng5 calibrate` makes a night"
            + (f" (left out: {reasons})" if reasons else "")
        )
    return estimate_bank(used)


def known_anchors(batch: BatchRecord, essay_ids: Sequence[str]) -> KnownItems | None:
    """The anchors of a batch that its bank has placed, as items of the ascending essay ids; None without a bank.

    Args:
        batch: with the bank it was submitted with.
        essay_ids: all essays of the batch, in any order.

    Raises:
        InputError: the bank has none of the batch's anchors, or knows the batch.
    """
    if batch.anchor_bank is None:
        return None
    bank = AnchorBank.model_validate(batch.anchor_bank)
    return bank.known_items(anchor_items(batch, bank, essay_ids), len(essay_ids), batch=batch.batch_id)


def anchor_items(batch: BatchRecord, bank: AnchorBank, essay_ids: Sequence[str]) -> dict[str, int]:
    """What the bank calls an anchor → its item among the ascending essay ids of a batch, for those it has."""
    place = {essay_id: item for item, essay_id in enumerate(sorted(essay_ids))}
    nodes = {ref: anchor_node_id(batch.batch_id, ref) for ref in bank.anchors}
    return {ref: place[node] for ref, node in nodes.items() if node in place}


def _night(
    ledger: Ledger, batch: BatchRecord, registered: Sequence[AnchorRecord], configuration: JudgeConfiguration
) -> Night:
    """One batch as a night.

    Raises:
        InputError: it is none, and why.
    """
    if not batch.status.is_final:
        raise InputError(f"it is not finished: {batch.status.value}")
    if not batch.status.has_grades:
        raise InputError(f"it ended without a scale: {batch.status.value} ({batch.stop_reason})")
    if differences := configuration.differences(configuration_of(ledger, batch)):
        raise InputError("; ".join(differences))
    nodes = _same_anchors(ledger, batch, registered)
    essay_ids = [essay.essay_id for essay in ledger.essays(batch.batch_id)]
    tunables = BatchTunables.model_validate(batch.settings)
    scored = compute_bt_scores_and_se(ledger.comparisons(batch.batch_id), essay_ids, tunables, anchor_ids=essay_ids)
    item = {essay_id: index for index, essay_id in enumerate(scored.essay_ids)}
    return Night(
        batch=batch,
        date=night_of(batch),
        scores=night_scores(batch.batch_id, {ref: item[node] for ref, node in nodes.items()}, scored.fit),
        scored=scored,
        grades={anchor.anchor_ref: anchor.grade for anchor in registered if anchor.anchor_ref in nodes},
    )


def _same_anchors(ledger: Ledger, batch: BatchRecord, registered: Sequence[AnchorRecord]) -> dict[str, str]:
    """Reference → essay id in the batch, of the anchors that are registered with the same text.

    Raises:
        InputError: fewer than `MIN_ANCHORS`.
    """
    texts = {essay.essay_id: essay.text_sha256 for essay in ledger.essays(batch.batch_id)}
    nodes = {anchor.anchor_ref: anchor_node_id(batch.batch_id, anchor.anchor_ref) for anchor in registered}
    same = {
        anchor.anchor_ref: nodes[anchor.anchor_ref]
        for anchor in registered
        if texts.get(nodes[anchor.anchor_ref]) == anchor.text_sha256
    }
    if len(same) < MIN_ANCHORS:
        changed = [ref for ref, node in nodes.items() if node in texts and ref not in same]
        because = f"; another text since: {listed(changed)}" if changed else ""
        raise InputError(
            f"it shares {len(same)} anchors, with reference and text, with the assignment as registered now, and "
            f"{MIN_ANCHORS} are the least{because}"
        )
    return same
