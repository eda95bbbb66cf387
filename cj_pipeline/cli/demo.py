"""The demo: the shipped assignment, twelve anchors and twelve student essays, judged by a simulated judge."""

from cj_pipeline.cli.context import dagster_instance, open_ledger, say
from cj_pipeline.cli.render import show_text
from cj_pipeline.cli.run import run_batch
from cj_pipeline.core.errors import InputError
from cj_pipeline.defs.partitions import add_partitions
from cj_pipeline.workflow.intake import read_assignment
from cj_pipeline.workflow.registration import read_and_submit, register_assignment
from cj_pipeline.workflow.results import collect_results


def run_demo() -> None:
    """Register, submit, run to a stop, and print what came of it. Running it again resumes, or says that it is done.

    Raises:
        InputError: the demo material is not where `CJ_DATA_DIR` says.
    """
    with open_ledger(quiet=True) as (settings, ledger):
        folder = settings.data_dir / "inputs" / "demo"
        if not folder.is_dir():
            raise InputError(f"no demo material in {folder}: run from the project's folder, or set CJ_DATA_DIR")
        registered = register_assignment(ledger, read_assignment(folder / "assignment"))
        say(f"assignment {registered.assignment_id}: {registered.anchors} anchors registered")
        submitted = read_and_submit(ledger, settings, folder / "batch")
        with dagster_instance() as instance:
            add_partitions(instance, [submitted.batch_id])
        say(
            f"batch {submitted.batch_id}: {submitted.students} students, {submitted.anchors} anchors, budget "
            f"{submitted.total_budget} comparisons, judge {submitted.judge}"
        )
    run_batch(submitted.batch_id, wait=0.0, verbose=False)
    with open_ledger(quiet=True) as (settings, ledger):
        say()
        say(show_text(collect_results(ledger, submitted.batch_id)))
        say("where to look next:")
        say(f"  cj show {submitted.batch_id} --format json     everything, for machines")
        say(f"  cj positions {submitted.batch_id}              who was read first how often")
        say("  make ui                        the asset graph and its pictures, http://127.0.0.1:3000")
        say(f"  {settings.graph_path}   for analysts (docs/analyst-cookbook.md)")
