"""`cj`, the console command: a thin face over the workflow and the Dagster definitions.

Exit codes: 0 ok, 1 the job failed, 2 bad input. A `CJError` is printed without a traceback.
"""

import os

# threads of the linear algebra library fight over the cores with each other and with the judge's calls
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from cj_pipeline.cli.app import main

__all__ = ["main"]
