"""The leaderboard of the capstone: measures the course's own entries, or adds one of yours.

    python benchmarks/leaderboard.py                                       # the course's own entries, anew
    python benchmarks/leaderboard.py --add "Ada" --how "magic" small.safetensors

A file is a ResNet-20 made from the course's own, pruned or masked, as pl.save writes it. Needs CIFAR-10.
Accuracy is that on all test pictures, so add an entry once, when nothing is left to choose. Times are ratios
to the dense network in the same run. The course's trainings are stored after every epoch: stopped, the same
command continues. Writes results/leaderboard.json, which the book shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

import prunelab as pl
from prunelab.basics import processor, versions, whole_file
from prunelab.leaderboard import measure
from prunelab.training import Distillation

RESULTS = Path(__file__).parents[1] / "results" / "leaderboard.json"
FLOPS = 0.5  # share that is left
PICTURES, EPOCHS = 20_000, 3  # of the training pictures
CUTS = {
    "Taylor": ("channels by Taylor score, globally", {"criterion": "taylor_gate", "scope": "global"}),
    "L1, eights": ("channels by L1, uniform, in eights", {"criterion": "l1", "round_to": 8}),
    "L1": ("channels by L1, uniform", {"criterion": "l1"}),
    "random": ("channels by chance, uniform", {"criterion": "random"}),
}


def course(dense: nn.Module, data: pl.data.Data, runs: Path) -> Iterator[tuple[str, str, nn.Module]]:
    """The course's own entries: name, how it was made, network.

    The plainest ways: a mask; and channels cut once, then a short training with the dense network as teacher.
    """
    yield (
        "masked",
        "half of the weights are zero, no training",
        pl.sparsify(dense, granularity="weight", amount=0.5, scope="global"),
    )
    look = list(data.train.subset(512).batches(64))
    few = replace(data, train=data.train.subset(PICTURES))
    how = {"lr": 0.02, "seed": 0, "precision": "float32", "validate": False}
    for name, (words, choice) in CUTS.items():
        small = pl.prune(dense, data.example, flops=FLOPS, data=look, seed=0, **choice)
        file = runs / f"leaderboard-{name.replace(', ', '-')}.pt"
        pl.fit(small, few, EPOCHS, callbacks=[Distillation(dense)], checkpoint=file, **how)
        trained = f"{FLOPS:.0%} of the FLOPs, {EPOCHS} x {PICTURES:,} pictures"
        yield name, f"{words}; {trained}", small


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", nargs="?", type=Path, help="a smaller ResNet-20, as pl.save writes it")
    parser.add_argument("--add", metavar="NAME", help="whose entry it is; an older one of this name goes")
    parser.add_argument("--how", default="", help="how it was made, in a few words")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where unfinished trainings are kept")
    options = parser.parse_args()
    if bool(options.add) != bool(options.network):
        parser.error("an entry needs both --add NAME and the file of its network")
    data = pl.data.load("cifar10")
    dense = pl.models.resnet20(weights="cifar10").eval()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"entries": {}}
    if options.add:
        found = iter([(options.add, options.how, pl.load(options.network, dense))])
    else:
        found = ((f"the course: {name}", *rest) for name, *rest in course(dense, data, options.runs))
        stored |= {  # of the course's entries; each entry says itself on which processor it was timed
            "command": "python benchmarks/leaderboard.py",
            "data": data.source.removeprefix("data: "),
            "pictures": len(data.test),
            "seeds": [0],
            "machine": {"processor": processor(), "threads": 1},
            "versions": versions(),
        }
    for name, how, network in found:
        entry = measure(network, dense, data.test)
        stored["entries"][name] = {"how": how, **asdict(entry), "processor": processor()}
        said = f"breaks the rule on {' and '.join(entry.broken)}" if entry.broken else f"{entry.score:.2f}"
        print(f"{name}: accuracy {entry.accuracy:.2%}, score {said}")
        with whole_file(RESULTS) as partial:
            partial.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
