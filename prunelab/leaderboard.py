"""The capstone: how a small and fast network that still knows its pictures is measured and scored.

Everybody starts from the same trained network. What counts is measured beside it, in one run, so that entries
from different machines can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor, nn

from prunelab import metrics, plots
from prunelab.data import Split
from prunelab.training import evaluate

FLOOR = 0.05  # how much accuracy may be lost, 0.05 = five percentage points
BUDGET = 0.9  # share of the dense network's time that the small one may take
BATCH = 64  # pictures in a forward pass, which is timed on one thread


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
    def broken(self) -> list[str]:
        """The rules that it breaks: ``"accuracy"``, ``"time"``, both or none."""
        kept = {
            "accuracy": self.accuracy >= self.dense_accuracy - FLOOR,
            "time": self.time_ratio <= BUDGET,
        }
        return [rule for rule, holds in kept.items() if not holds]

    @property
    def score(self) -> float:
        r"""Geometric mean of compression ratio and speed-up, 0 if a rule is broken:

        .. math:: S = \sqrt{\frac{M_\text{dense}}{M} \cdot \frac{t_\text{dense}}{t}}

        Returns:
            0 or above, larger = better. The dense network itself would have 1, but it is over the budget.
        """
        return 0.0 if self.broken else (self.size_ratio * self.time_ratio) ** -0.5


def measure(network: nn.Module, dense: nn.Module, split: Split, *, repeats: int = 30) -> Entry:
    """Measure ``network`` beside ``dense``.

    Args:
        split: pictures for the accuracies: ``data.validation`` while you try, ``data.test`` once, at the end.
        repeats: timed passes of each, in turns, with batch norms folded where that can be done.
    """
    batch: Tensor = next(split.batches(BATCH))[0]
    times = metrics.latencies({"dense": dense, "network": network}, batch, repeats=repeats, fold=True)
    accuracy, dense_accuracy = (
        evaluate(model, split, batch_size=BATCH, progress=False).accuracy for model in (network, dense)
    )
    return Entry(
        accuracy=accuracy,
        dense_accuracy=dense_accuracy,
        size_ratio=metrics.size_ratio(dense, network),
        time_ratio=times["network"].median / times["dense"].median,
    )


def plot(entries: Mapping[str, Entry]) -> Figure:
    """Size against time, relative to the dense network, with lines of equal score.

    Entries that break a rule are hollow; right of the vertical line they take too much time.
    """
    if not entries:
        raise ValueError("entries is empty: there is nothing to draw")
    figure, ax = plots.panels(height=3.8)
    for j, (name, entry) in enumerate(entries.items()):
        colour = plots.COLOURS[j % 7]
        ax.plot(
            entry.time_ratio,
            entry.size_ratio,
            plots.MARKERS[j % 5],
            color=colour,
            markerfacecolor="none" if entry.broken else colour,
            label=f"{name} (no score)" if entry.broken else name,
        )
    times = [entry.time_ratio for entry in entries.values()]
    sizes = [entry.size_ratio for entry in entries.values()]
    left, right = 0.85 * min(times), 1.1 * max(1.0, *times)
    low, high = 0.8 * min(sizes), 1.1 * max(1.0, *sizes)
    for score in (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5):
        area = score**-2  # size times time; on logarithmic axes a straight line
        ends = max(left, area / high), min(right, area / low)
        if ends[0] < ends[1]:
            ax.plot(ends, [area / end for end in ends], ":", color="grey", linewidth=0.8, zorder=0)
            where = (ends[1], area / ends[1])
            ax.annotate(f"{score:g}", where, (3, 2), textcoords="offset points", color="dimgrey", fontsize=8)
    ax.axvline(BUDGET, color="grey", linewidth=0.8)
    ax.annotate("budget", (BUDGET, high), (-3, -3), textcoords="offset points", ha="right", va="top")
    ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    ax.set(xlabel="time, relative to dense", ylabel="size, relative to dense")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=3, frameon=False, fontsize=9)
    return figure
