"""`cj diagnose`: how far a batch's scale can be trusted."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from cj_pipeline.cli.context import open_ledger, print_json, say

_WORDS = {
    "expected_r2": "reliability: expected r²",
    "expected_r2_low": "  with probability .9 at least",
    "split_half": "  split-half (misleading unless pairing ignored the results)",
    "shrunken_reliability": "  var / (var + error) (likewise)",
    "prior_sd": "spread of the scale σ (logits)",
    "normal_share": "probability that scores are normally spread",
    "order_effect": "advantage of the essay read first (logits)",
    "first_wins": "share won by the essay read first",
    "repeat_agreement_same_order": "agreement when asked again, same order",
    "repeat_agreement_other_order": "agreement when asked again, other order",
    "transitivity": "transitive triads",
    "upsets": "upsets among essays far apart",
}

_GROUPS_SHOWN = 20


def diagnose(
    batch: Annotated[str, typer.Argument(help="The batch id, as `cj status` lists it.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of posterior draws and simulated judges.", min=0)] = 1,
    replications: Annotated[
        int, typer.Option(help="Simulated judges to compare with; 200 or more tell which essays fit unusually.", min=20)
    ] = 200,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="CSV with essay_id and columns of groups (school, first language): are they scored differently at "
            "the same expert grade?"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """Reliability, intervals, misfit, position bias, validity and surprises of a batch, from its judgments.

    Nothing is judged, paid or stored; it may be asked at any time, also of a batch at work.
    """
    from cj_pipeline.workflow.diagnosis import diagnose as run
    from cj_pipeline.workflow.diagnosis import read_groups

    with open_ledger() as (_settings, ledger):
        found = run(ledger, batch, groups=read_groups(groups) if groups else None, seed=seed, replications=replications)
    if as_json:
        print_json(asdict(found))
        return
    _print(found.summary, found.essays, found.surprises)
    _print_judges(found.judges)
    _print_drift(found.drift)
    _print_validity(found.validity)
    for note in found.notes:
        say(note)
    alike = [group for group in found.groups if len(group) > 1]
    if alike:
        say("essays that cannot be told apart (all pairs at once), from the best to the worst of each group:")
        for group in alike[:_GROUPS_SHOWN]:
            say(f"  {group[0]} to {group[-1]} ({len(group)} essays)")
        if len(alike) > _GROUPS_SHOWN:
            say(f"  and {len(alike) - _GROUPS_SHOWN} more groups: --json has them all")


def _print(summary: dict[str, Any], essays: list[dict[str, Any]], surprises: list[dict[str, Any]]) -> None:
    from cj_pipeline.cli.render import console, plain_table

    for name, words in _WORDS.items():
        value = summary[name]
        if name == "normal_share" and value is None:
            continue
        line = "unknown" if value is None else f"{value:.3f}"
        if name == "prior_sd":
            line += f" (95 %: {summary['prior_sd_low']:.2f} to {summary['prior_sd_high']:.2f})"
        if name == "order_effect":
            line += f" ± {summary['order_effect_se']:.3f}"
        expected = summary.get(f"{name}_expected")
        if value is not None and expected is not None:
            low, high, p = (summary.get(f"{name}_{end}") for end in ("low", "high", "p"))
            line += f" (a perfect judge: {expected:.3f}"
            line += ")" if p is None else f", 95 %: {low:.3f} to {high:.3f}; p {p:.2f})"
        say(f"{words}: {line}")
    console.print(
        plain_table(
            [
                {
                    "rank": row["rank"],
                    "95 %": f"{row['rank_low']}-{row['rank_high']}",
                    "essay": row["essay_id"],
                    "score": f"{row['score']:+.2f}",
                    "95 % ": f"{row['score_low']:+.2f} to {row['score_high']:+.2f}",
                    "n": row["judgments"],
                    "infit (p)": _with_p(row, "infit"),
                    "outfit (p)": _with_p(row, "outfit"),
                }
                for row in essays
            ]
        )
    )
    if surprises:
        say("judgments to look at first (the chance their winner had):")
        for row in surprises[:5]:
            say(f"  {row['comparison_id']}: {row['winner_id']} beat {row['loser_id']} ({row['chance']:.2f})")


def _with_p(row: dict[str, Any], name: str) -> str:
    return "" if row[name] is None else f"{row[name]:.2f} ({row[f'{name}_p']:.2f})"


def _print_judges(judges: list[dict[str, Any]]) -> None:
    for row in judges:
        say(
            f"judge {row['judge']}: {row['judgments']} judgments, "
            + ", ".join(
                f"{name} {row[name]:.2f} (a perfect judge: {row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f}; "
                f"p {row[f'{name}_p']:.2f})"
                for name in ("infit", "outfit")
            )
        )


def _print_drift(drift: list[dict[str, Any]]) -> None:
    for row in drift:
        if row["drift"] is None:
            say(f"anchor {row['anchor']} against the anchor bank: cannot be told")
        else:
            say(
                f"anchor {row['anchor']} against the anchor bank: {row['drift']:+.2f} ± {row['se']:.2f} logits; one "
                f"batch would find a shift of {row['detectable']:.2f}"
            )


def _print_validity(validity: list[dict[str, Any]]) -> None:
    for row in validity:
        name = "longer essays, per doubling of length" if row["trait"] == "length" else f"{row['trait']} {row['value']}"
        if row["logits"] is None:
            say(f"{name}, at the same expert grade: cannot be told, too few essays with expert grades differ in it")
        else:
            say(
                f"{name}, at the same expert grade: {row['logits']:+.2f} logits "
                f"(95 %: {row['low']:+.2f} to {row['high']:+.2f}; {row['essays']} essays)"
            )
