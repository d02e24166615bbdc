"""The capstone: the smallest and fastest network that still knows its pictures, and its score.

Everybody starts from the same trained network. What counts is measured beside it, in one run, so that entries
from different machines can be compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from prunelab import metrics
from prunelab.data import Split
from prunelab.training import evaluate

FLOOR = 0.03  # how much accuracy may be lost, 0.03 = three percentage points
BUDGET = 0.9  # share of the dense network's time that the small one may take
BATCH = 64  # pictures in a forward pass that is timed, on one thread


@dataclass(frozen=True)
class Entry:
    """What was measured of a network, and of the dense one beside it.

    Attributes:
        accuracy, dense_accuracy: share of right answers on the same pictures, 0..1.
        size_ratio: bytes of the network over those of the dense one.
        time_ratio: median time of a forward pass over that of the dense one.
    """

    accuracy: float
    dense_accuracy: float
    size_ratio: float
    time_ratio: float

    @property
    def counts(self) -> bool:
        """Whether it keeps both rules: accuracy above the floor, time within the budget."""
        return self.accuracy >= self.dense_accuracy - FLOOR and self.time_ratio <= BUDGET

    @property
    def score(self) -> float:
        r"""Geometric mean of compression ratio and speed-up, 0 if a rule is broken:

        .. math:: S = \sqrt{\frac{M_\text{dense}}{M} \cdot \frac{t_\text{dense}}{t}}

        Returns:
            0, or above 1; larger = better. The dense network itself would have 1, and is over the budget.
        """
        return (self.size_ratio * self.time_ratio) ** -0.5 if self.counts else 0.0

    def row(self) -> dict[str, Any]:
        """All of it as plain numbers."""
        return {**asdict(self), "score": self.score}


def measure(network: nn.Module, dense: nn.Module, split: Split, *, repeats: int = 30) -> Entry:
    """Measure ``network`` beside ``dense``.

    Args:
        split: pictures for the accuracies: ``data.validation`` while you try, ``data.test`` once, at the end.
        repeats: timed passes of each, in turns, with batch norms folded where that can be done.
    """
    batch: Tensor = next(split.batches(BATCH))[0]
    times = metrics.latencies({"dense": dense, "network": network}, batch, repeats=repeats, fold=True)
    return Entry(
        accuracy=evaluate(network, split, progress=False).accuracy,
        dense_accuracy=evaluate(dense, split, progress=False).accuracy,
        size_ratio=metrics.size_ratio(dense, network),
        time_ratio=times["network"].median / times["dense"].median,
    )
