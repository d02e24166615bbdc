"""The leaderboard of the capstone: measures the course's own entries, or adds one of yours.

    python benchmarks/leaderboard.py                                       # the course's own entries, anew
    python benchmarks/leaderboard.py --add "Ada" --how "magic" small.safetensors

A file is a pruned ResNet-20 as pl.save writes it. Needs CIFAR-10. Accuracy is that on all test pictures, so
add an entry once, when nothing is left to choose. Times are ratios to the dense network in the same run.
Writes results/leaderboard.json, which the book shows.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from torch import nn

import prunelab as pl
from prunelab.basics import processor, versions, whole_file
from prunelab.leaderboard import measure
from prunelab.training import Distillation

RESULTS = Path(__file__).parents[1] / "results" / "leaderboard.json"
PICTURES, EPOCHS = 20000, 5  # of the training pictures, for the course's own entries
OURS = {
    "random": {"criterion": "random"},
    "l1": {"criterion": "l1"},
    "taylor": {"criterion": "taylor_gate", "scope": "global"},
}
FLOPS = 0.7


def ours(dense: nn.Module, data: pl.data.Data, choice: dict) -> nn.Module:
    """The plainest way: prune once, train a little with the dense network as a teacher."""
    calibration = list(data.train.subset(512).batches(64))
    small = pl.prune(dense, data.example, flops=FLOPS, data=calibration, seed=0, **choice)
    few = replace(data, train=data.train.subset(PICTURES))
    pl.fit(small, few, EPOCHS, lr=0.05, callbacks=[Distillation(dense)], seed=0, validate=False)
    return small.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", nargs="?", type=Path, help="a pruned ResNet-20, as pl.save writes it")
    parser.add_argument("--add", metavar="NAME", help="whose entry it is")
    parser.add_argument("--how", default="", help="how it was made, in a few words")
    options = parser.parse_args()
    if bool(options.add) != bool(options.network):
        parser.error("an entry needs both --add NAME and the file of its network")
    data = pl.data.load("cifar10")
    dense = pl.models.resnet20(weights="cifar10").eval()
    if options.add:
        found = {options.add: (options.how, pl.load(options.network, dense))}
    else:
        found = {
            f"the course: {name}": (
                f"{FLOPS:.0%} of the FLOPs, {EPOCHS} epochs on {PICTURES:,} pictures",
                ours(dense, data, choice),
            )
            for name, choice in OURS.items()
        }
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"entries": {}}
    for name, (how, network) in found.items():
        entry = measure(network, dense, data.test)
        stored["entries"][name] = {"how": how, **entry.row(), "processor": processor()}
        print(f"{name}: accuracy {entry.accuracy:.2%}, score {entry.score:.2f}")
    stored |= {
        "command": "python benchmarks/leaderboard.py",
        "data": data.source.removeprefix("data: "),
        "seeds": [0],
        "versions": versions(),
    }
    with whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
