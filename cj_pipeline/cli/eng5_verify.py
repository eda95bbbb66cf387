"""`cj eng5 verify`: whether a run artefact still says what its files and its judgments say."""

from pathlib import Path
from typing import Annotated

import typer

from cj_pipeline.cli.context import open_ledger, print_json, say
from cj_pipeline.core.words import counted


def verify(
    artefact: Annotated[Path, typer.Argument(help="An assessment_run.*.json, in its batch's folder.")],
    ledger: Annotated[bool, typer.Option("--ledger", help="Compare it with the ledger's record too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """Hash an artefact's files again, score its judgments again, and say what differs. Exit code 1 if anything does.

    Nothing is written, and no judge is called.
    """
    from cj_pipeline.eng5.artefact import RunMode
    from cj_pipeline.eng5.artefact_verification import read_artefact, verify_artefact

    # opening a ledger may make one, and a dry run is in none
    in_no_ledger = ledger and read_artefact(artefact).metadata.mode is RunMode.DRY_RUN
    if ledger and not in_no_ledger:
        with open_ledger(quiet=True) as (_, opened):
            differences = verify_artefact(artefact, opened)
    else:
        differences = verify_artefact(artefact)
    if as_json:
        print_json({"artefact": str(artefact), "agrees": not differences, "differences": differences})
    else:
        for difference in differences:
            say(difference)
        agreement = "files and scores" + (" and the ledger" if ledger and not in_no_ledger else "")
        say(counted(len(differences), "difference") if differences else f"{artefact}: {agreement} agree with it")
        if in_no_ledger:
            say("a dry run is in no ledger, so none was looked at")
    if differences:
        raise typer.Exit(1)
