"""What do the pictures cost? An epoch fed by `Split.batches`, by ready-made tensors, and by torchvision.

    python benchmarks/data_loading.py                       # a few minutes on two idle cores
    python benchmarks/data_loading.py --pictures 45000      # a whole epoch of CIFAR-10 each time: hours
    python benchmarks/data_loading.py --precision float32   # a slower network, so that pictures weigh less

Three ways to feed the same ResNet-20, forward and backward as `fit` does it (channels-last, in the precision
that is faster on this machine), with the same augmentation:

- ready-made: augmented, normalised batches that lie in memory already, which no data layer can beat;
- prunelab: `Split.batches(shuffle=True, augment=True)`;
- torchvision: its `CIFAR10` (here on pictures in memory), RandomCrop, RandomHorizontalFlip, ToTensor,
  Normalize and a `DataLoader` with 0, 1 or 2 workers, which stay alive: their start is not counted.

Each is timed with the network and without it ("pictures only"). The ways take turns, in another order each
time, and a ratio is made of times of the same turn, so that a machine that is busy is busy for all of them.

Writes results/data_loading.json.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import prunelab as pl
from prunelab import basics
from prunelab.training import fastest_precision

RESULTS = Path(__file__).parents[1] / "results" / "data_loading.json"
BATCH_SIZE = 128
WORKERS = (0, 1, 2)
Batches = Iterable[tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2560, help="per epoch (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="repetitions (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--precision", default=fastest_precision("cpu"), choices=("float32", "bfloat16"))
    parser.add_argument("--data", default="auto", choices=("auto", "cifar10", "embedded"))
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train = pl.data.load(options.data).train
    train = train.subset(min(options.pictures, len(train)))
    ready = list(train.batches(BATCH_SIZE, shuffle=True, augment=True))
    loaders = {f"torchvision, {workers} workers": torchvision_loader(train, workers) for workers in WORKERS}
    ways: dict[str, Callable[[int], Batches]] = {
        "ready-made": lambda turn: ready,
        "prunelab": lambda turn: train.batches(BATCH_SIZE, shuffle=True, augment=True, seed=turn),
        **{name: lambda turn, loader=loader: loader for name, loader in loaders.items()},
    }
    step = training_step(options.precision)
    print(
        f"{len(train):,} pictures, batches of {BATCH_SIZE}, ResNet-20 in {options.precision}, "
        f"{torch.get_num_threads()} threads, {options.turns} turns; median (quartiles)\n"
    )
    pictures_only = take_turns(ways, lambda images, labels: None, options.turns)
    with_network = take_turns(ways, step, options.turns)

    print(f"{'':24}{'pictures only, ms/batch':>28}{'with the network, ms/batch':>32}")
    for name in ways:
        print(f"{name:24}{spread(pictures_only[name], ready):>28}{spread(with_network[name], ready):>32}")

    overhead = [100 * (ratio - 1) for ratio in ratios(with_network, "prunelab", "ready-made")]
    print(f"\nan epoch against ready-made tensors: {quartiles(overhead, '+.1f')} % longer (goal: at most 10)")
    result = {"overhead": statistics.median(overhead) / 100, "faster": {}}
    for what, times in (("pictures only", pictures_only), ("with the network", with_network)):
        best = min(loaders, key=lambda name: statistics.median(times[name]))
        faster = ratios(times, best, "prunelab")
        result["faster"][what] = {"than": best, "times": statistics.median(faster)}
        print(f"{what}: {quartiles(faster, '.2f')} times as fast as {best} (goal: 2)")
    best = result["faster"]["with the network"]["than"]
    at_most = statistics.median(ratios(with_network, best, "ready-made"))
    print(
        f"with the network, pictures that cost nothing would be {at_most:.2f} times as fast: "
        "the rest is the network's own time"
    )
    result |= {
        "command": "python benchmarks/data_loading.py",
        "pictures": len(train),
        "batch_size": BATCH_SIZE,
        "precision": options.precision,
        "at_most": at_most,
        "machine": {
            "cores": os.cpu_count(),
            "processor": basics.processor(),
            "threads": torch.get_num_threads(),
        },
        "versions": basics.versions("torchvision"),
    }
    with basics.whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def torchvision_loader(split: pl.data.Split, workers: int) -> DataLoader:
    """torchvision's own way: one picture at a time, through Pillow."""
    augmentation = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=pl.data.PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(split.mean, split.std),
        ]
    )
    # Made without its constructor, which reads files: so the pictures may be the embedded ones, too.
    dataset = datasets.CIFAR10.__new__(datasets.CIFAR10)
    datasets.VisionDataset.__init__(dataset, "", transform=augmentation)
    dataset.data = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    dataset.targets = split.labels.tolist()
    return DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def training_step(precision: str) -> Callable[[Tensor, Tensor], None]:
    """Forward and backward through a ResNet-20, as `prunelab.fit` does it."""
    model: nn.Module = pl.models.resnet20()

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        model.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()

    return step


def take_turns(
    ways: dict[str, Callable[[int], Batches]], step: Callable[[Tensor, Tensor], None], turns: int
) -> dict[str, list[float]]:
    """Seconds per epoch for each way, turn by turn; one turn before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for turn in range(turns + 1):
        random.Random(turn).shuffle(order)
        for name in order:
            started = time.perf_counter()
            for images, labels in ways[name](turn):
                step(images, labels)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(seconds: dict[str, list[float]], upper: str, lower: str) -> list[float]:
    return [a / b for a, b in zip(seconds[upper], seconds[lower])]


def spread(seconds: list[float], batches: list) -> str:
    return quartiles([1000 * time / len(batches) for time in seconds], ".1f")


def quartiles(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main()
