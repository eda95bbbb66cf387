"""Group eng5_across_batches: what all batches together say of judges and prompts. Unpartitioned, made from the ledger.

Kept out of the jobs that advance a batch: it is about all of them, and `alignment_leaderboard_sensor` brings it up to
date when batches of anchors have finished.
"""

from typing import TYPE_CHECKING, Any

from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, asset

from cj_pipeline.defs.assets.common import CODE_VERSION, OWNERS, asset_metadata, picture
from cj_pipeline.defs.resources import CJResource, plain_errors
from cj_pipeline.eng5.leaderboard import ALIGNMENT_LEADERBOARD, Leaderboard
from cj_pipeline.reports.markdown import markdown_table

if TYPE_CHECKING:
    from cj_pipeline.eng5.leaderboard_report import LeaderboardFiles

ACROSS_BATCHES = "eng5_across_batches"


@asset(
    group_name=ACROSS_BATCHES,
    kinds={"python", "duckdb"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    deps=["alignment_report"],
    metadata=asset_metadata(ALIGNMENT_LEADERBOARD),
)
def alignment_leaderboard(context: AssetExecutionContext, cj: CJResource) -> MaterializeResult[None]:
    """Judges and prompts against the experts, best first, with intervals: DuckDB table, Markdown and picture."""
    from cj_pipeline.core.alignment import AlignmentTargets
    from cj_pipeline.eng5.batches import eng5_scale
    from cj_pipeline.eng5.leaderboard_report import rebuild_leaderboard

    settings = cj.settings()
    with plain_errors(), cj.ledger() as ledger:
        made, files = rebuild_leaderboard(ledger, eng5_scale(), AlignmentTargets(), settings.outputs_dir)
    return MaterializeResult(metadata=leaderboard_metadata(made, files))


def leaderboard_metadata(made: Leaderboard, files: "LeaderboardFiles") -> dict[str, Any]:
    """What a materialisation of the leaderboard shows; also one that `cj eng5 leaderboard` reports."""
    from cj_pipeline.eng5.leaderboard_report import group_notes, leaderboard_png, standings_table

    metadata: dict[str, Any] = {
        "dagster/row_count": made.rows,
        "batches_left_out": len(made.left_out),
        "path": MetadataValue.path(str(files.markdown.resolve())),
        "database": MetadataValue.path(str(files.database.resolve())),
    }
    if not made.groups:
        return metadata
    newest = made.groups[0]
    leader = newest.rows[0]
    table = markdown_table(standings_table(newest), limit=20)
    return metadata | {
        "leader": leader.configuration.judge_text,
        "tau_b_mean_of_leader": leader.standing.mean,
        "told_apart_from_leader": sum(not row.standing.may_be_best for row in newest.rows),
        "standings": MetadataValue.md("\n\n".join([*group_notes(newest), table])),
        "picture": picture(leaderboard_png(made), "τ-b of judges and prompts with its interval"),
    }
