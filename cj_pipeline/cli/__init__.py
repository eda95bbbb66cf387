"""`cj`, the console command: a thin face over the workflow and the Dagster definitions.

Exit codes: 0 ok, 1 the job failed, 2 bad input. A `CJError` is printed without a traceback.
"""

from cj_pipeline.cli.app import main

__all__ = ["main"]
