"""Neural-network pruning, one readable function per method.

Pruning is four questions: what is removed together (granularity), how much it matters (criterion), when
(schedule), and what it cost and bought (metrics). The rooms of this package have the same names as the
parts of the course.
"""

from prunelab import (
    channels,
    criteria,
    data,
    evidence,
    granularity,
    merging,
    metrics,
    models,
    planning,
    plots,
    recipes,
    regularisers,
    schedules,
    sensitivity,
    storage,
    training,
)
from prunelab.channels import TraceError
from prunelab.criteria import criterion
from prunelab.files import load, save
from prunelab.metrics import compare
from prunelab.planning import Plan, plan
from prunelab.registry import methods
from prunelab.sparsify import finalize, masks, sparsify
from prunelab.surgery import prune
from prunelab.training import Callback, evaluate, fit, recalibrate

__version__ = "0.1.0"

__all__ = [
    "Callback", "Plan", "TraceError", "channels", "compare", "criteria", "criterion", "data", "evaluate",
    "evidence", "finalize", "fit", "granularity", "load", "masks", "merging", "methods", "metrics",
    "models", "plan", "planning", "plots", "prune", "recalibrate", "recipes", "regularisers", "save",
    "schedules", "sensitivity", "sparsify", "storage", "training",
]  # fmt: skip
