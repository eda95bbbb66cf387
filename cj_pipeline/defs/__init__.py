"""The Dagster face, thin: partitions, resources, IO manager, assets, checks, sensors and jobs.

What an asset computes lives below (`workflow`, `analysis`, `reports`); here it is given a key, a partition, metadata
and a place in the UI.
"""

import os
import warnings

from dagster import BetaWarning, PreviewWarning

# threads of the linear algebra library fight over the cores with each other and with the judge's calls
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# in preview and beta in this Dagster version; the version is locked, so the notices help nobody
warnings.filterwarnings("ignore", message="Specifying a partitions_def on an AssetCheckSpec", category=PreviewWarning)
warnings.filterwarnings("ignore", message="Parameter `owners` of initializer `SensorDefinition", category=BetaWarning)
