"""What each layer can bear: a scan that prunes one layer at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from prunelab import plots
from prunelab.criteria import Criterion
from prunelab.data import Data
from prunelab.sparsify import Ranking, set_mask
from prunelab.training import evaluate, fit


@dataclass(frozen=True)
class Scan:
    """What each layer can bear: ``rows[layer][amount]`` is the accuracy on validation pictures when a share
    ``amount`` of this layer alone is zero.

    Attributes:
        dense: the accuracy of the whole network (fine-tuned as long, if the others were).
        pictures: on how many pictures all accuracies were measured.
        fine_tune: epochs of fine-tuning before each measurement.
    """

    rows: dict[str, dict[float, float]]
    dense: float
    pictures: int
    fine_tune: int = 0

    @property
    def most_sensitive(self) -> list[str]:
        """The layers, from the lowest mean accuracy to the highest; equal ones in the network's order."""
        return sorted(self.rows, key=lambda layer: sum(self.rows[layer].values()))

    def plot(self, layers: Sequence[str] | None = None) -> Figure:
        """Accuracy by amount, one line for each of ``layers``: by default the seven most sensitive ones, as
        many as there are colours to tell them apart.
        """
        shown = self.most_sensitive[: len(plots.COLOURS)] if layers is None else layers
        for layer in shown:
            if layer not in self.rows:
                raise ValueError(f"layers: {layer!r} was not scanned; there are {list(self.rows)}")
        series = {layer: (list(self.rows[layer]), list(self.rows[layer].values())) for layer in shown}
        return plots.curves(
            series,
            xlabel="amount, of this layer alone",
            ylabel="validation accuracy",
            levels={"dense": self.dense},
        )

    def __repr__(self) -> str:
        width = max(len(layer) for layer in (*self.rows, "layer"))
        amounts = next(iter(self.rows.values()))
        lines = ["  ".join([f"{'layer':<{width}}", *(f"{amount:>6g}" for amount in amounts)])]
        for layer, row in self.rows.items():
            lines.append(
                "  ".join([f"{layer:<{width}}", *(f"{accuracy:>6.1%}" for accuracy in row.values())])
            )
        tuned = f"; epochs of fine-tuning: {self.fine_tune}" if self.fine_tune else ""
        return "\n".join([*lines, f"dense: {self.dense:.1%}; {self.pictures} validation pictures{tuned}"])


def scan(
    model: nn.Module,
    data: Data,
    *,
    criterion: Criterion = "l1",
    granularity: str = "filter",
    amounts: Iterable[float] = (0.25, 0.5, 0.75),
    layers: Iterable[str] | None = None,
    pictures: int = 1000,
    fine_tune: int = 0,
    lr: float = 0.02,
    seed: int = 0,
    progress: bool = True,
) -> Scan:
    """Sparsify one layer at a time and see how the accuracy falls (Li et al., 2017, section 3.2; Han et al.,
    2015).

    A layer that fails at once may recover in an epoch, or never: a scan with fine-tuning tells these apart.
    It trains one network for each layer and amount, and the whole one; to make it shorter, pass
    ``dataclasses.replace(data, train=data.train.subset(2000))``.

    Args:
        model: the network; left untouched.
        data: accuracy is measured on ``data.validation``; a criterion that needs data gets ``data.train``.
        criterion, granularity, layers: as in :func:`prunelab.sparsify`.
        amounts: shares of each layer's groups to zero, 0..1.
        pictures: how many validation pictures to measure on.
        fine_tune: epochs to train each sparse network on ``data.train`` before it is measured, zeros kept.
        lr: highest learning rate of the fine-tuning.
        seed: for criteria that draw random numbers, and for the fine-tuning.
        progress: show a progress bar.
    """
    if fine_tune < 0:
        raise ValueError(f"fine_tune={fine_tune}: must be 0 epochs or more")
    # Ranked layer by layer, the masks of all layers are those that each would get alone.
    ranking = Ranking(
        model, granularity=granularity, criterion=criterion, data=data.train, layers=layers, seed=seed
    )
    decided = {amount: ranking.masks(amount) for amount in amounts}
    if not decided:
        raise ValueError("amounts is empty: name at least one, such as 0.5")
    validation = data.validation.subset(min(pictures, len(data.validation)))

    def accuracy(network: nn.Module) -> float:
        if fine_tune:
            history = fit(network, data, fine_tune, lr=lr, seed=seed, validate=False, progress=False)
            if history.interrupted:
                raise KeyboardInterrupt  # not on to the next network
        return evaluate(network, validation, progress=False).accuracy

    rows: dict[str, dict[float, float]] = {}
    total = 1 + sum(map(len, decided.values()))
    with tqdm(total=total, desc="scan", unit="network", disable=not progress) as bar:
        dense = accuracy(copy.deepcopy(model))
        bar.update()
        for amount, masks in decided.items():
            for name, keep in masks.items():
                alone = copy.deepcopy(model)
                set_mask(alone.get_submodule(name), keep)
                rows.setdefault(name, {})[amount] = accuracy(alone)
                bar.update()
    return Scan(rows, dense, len(validation), fine_tune)
