"""Is the embedded data set fit to teach with? What a ResNet-20 must do on it, and what it does.

    python benchmarks/embedded_properties.py              # the package's trained network: two minutes
    python benchmarks/embedded_properties.py --train      # train one first: ten minutes more on two cores
    python benchmarks/embedded_properties.py --train --seed 1

prints a table and exits with 1 if a property does not hold. Nothing is chosen by what is measured: every
amount is fixed below. Accuracies are on the test split, without retraining unless it says so.
"""

import argparse
import statistics
import sys
from typing import Any

from torch import nn

import prunelab as pl

# Weight decay is what makes small weights mean something: with 0.0005 so few steps leave many weights about
# where they were drawn, and removing filters by their size is then no better than at random.
RECIPE: dict[str, Any] = {"epochs": 30, "lr": 0.2, "weight_decay": 0.003}
FINETUNING: dict[str, Any] = {"epochs": 5, "lr": 0.05}  # a minute on two cores

FILTERS = 0.3  # the share of the filters of each layer that is silenced
RANDOM_SEEDS = range(5)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--weights", default="embedded", help="the package's checkpoint (default: embedded)")
    source.add_argument("--train", action="store_true", help="train a network from scratch instead")
    parser.add_argument("--seed", type=int, default=0, help="of training and fine-tuning (default: 0)")
    arguments = parser.parse_args()

    data = pl.data.load("embedded")
    model = pl.models.resnet20(weights=None if arguments.train else arguments.weights)
    if arguments.train:
        print(pl.fit(model, data, **RECIPE, seed=arguments.seed))

    def accuracy(network: nn.Module) -> float:
        return 100 * pl.evaluate(network, data.test).accuracy

    def zeroed(amount: float) -> float:
        return accuracy(
            pl.sparsify(model, granularity="weight", criterion="l1", amount=amount, scope="global")
        )

    def silenced(criterion: str, seed: int = 0) -> nn.Module:
        return pl.sparsify(
            model, granularity="filter", criterion=criterion, amount=FILTERS, scope="local", seed=seed
        )

    dense, half, most = accuracy(model), zeroed(0.5), zeroed(0.95)
    at_random = [accuracy(silenced("random", seed)) for seed in RANDOM_SEEDS]
    sparse = silenced("l1")
    by_size = accuracy(sparse)
    pl.fit(sparse, data, **FINETUNING, seed=arguments.seed)  # the masks stay
    finetuned = accuracy(sparse)

    print(f"\naccuracy in %: dense {dense:.1f}")
    print(f"weights zeroed by global magnitude: 50 % {half:.1f}, 95 % {most:.1f}")
    print(
        f"{100 * FILTERS:.0f} % of the filters of each layer silenced: L1 {by_size:.1f}, random "
        f"{statistics.mean(at_random):.1f} ± {statistics.stdev(at_random):.1f} ({len(at_random)} seeds), "
        f"L1 and fine-tuned {finetuned:.1f}\n"
    )
    gain = by_size - statistics.mean(at_random)
    regained = (finetuned - by_size) / max(dense - by_size, 0.1)
    rows = [
        ("dense accuracy", "88 to 96 %", f"{dense:.1f} %", 88 <= dense <= 96),
        ("cost of zeroing 50 % of the weights", "under 2 points", f"{dense - half:.1f}", dense - half < 2),
        ("cost of zeroing 95 % of the weights", "over 40 points", f"{dense - most:.1f}", dense - most > 40),
        ("silencing filters: L1 over random", "at least 20 points", f"{gain:.1f}", gain >= 20),
        ("share of that loss that fine-tuning regains", "over 0.5", f"{regained:.2f}", regained > 0.5),
    ]
    for what, wanted, measured, holds in rows:
        print(f"{what:45} {wanted:20} {measured:>8}  {'holds' if holds else 'FAILS'}")
    return 0 if all(holds for *_, holds in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
