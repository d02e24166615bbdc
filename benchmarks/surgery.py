"""How long physical pruning takes, beside Torch-Pruning: trace, score (L2) and remove half of the channels.

    python benchmarks/surgery.py

Both prune the same random weights, in turn, in one run on one thread; Torch-Pruning (``pip install
torch-pruning``) changes its model in place, so that copying it is not counted, while ours leaves its argument
alone and copies what stays. Times are medians of the processor's time, which other programs disturb less, and
are to be read as ratios. Writes results/surgery.json.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import prunelab as pl
from prunelab import basics

RESULTS = Path(__file__).parents[1] / "results" / "surgery.json"
REPEATS = 7
AMOUNT = 0.5
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-20 (B)": (lambda: pl.models.resnet20(shortcut="B"), 32),
    "ResNet-56 (B)": (lambda: pl.models.resnet56(shortcut="B"), 32),
    "VGG-16-BN": (lambda: pl.models.vgg16(), 32),
    "DenseNet-121": (torchvision.models.densenet121, 224),
    "ResNet-50": (torchvision.models.resnet50, 224),
    "MobileNetV2": (torchvision.models.mobilenet_v2, 224),
    "EfficientNet-B0": (torchvision.models.efficientnet_b0, 224),
    "Inception-v3": (lambda: torchvision.models.inception_v3(init_weights=False), 299),
    "RegNet-Y-400MF": (torchvision.models.regnet_y_400mf, 224),
}


def ours(model: nn.Module, example: Tensor) -> nn.Module:
    return pl.prune(model, example, criterion="l2", amount=AMOUNT)


def theirs(model: nn.Module, example: Tensor) -> nn.Module:
    classifiers = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    if hasattr(model, "AuxLogits"):
        classifiers.append(model.AuxLogits.fc)
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=AMOUNT,
        ignored_layers=classifiers,
    )  # fmt: skip
    pruner.step()
    return model


Prune = Callable[[nn.Module, Tensor], nn.Module]


def seconds(prune: Prune, model: nn.Module, example: Tensor) -> tuple[float, nn.Module]:
    model = copy.deepcopy(model)
    gc.collect()
    started = time.process_time()
    small = prune(model, example)
    return time.process_time() - started, small


def measure(build: Callable[[], nn.Module], size: int) -> dict:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build().eval()
    example = torch.zeros(1, 3, size, size)
    times: dict[str, list[float]] = {"prunelab": [], "torch_pruning": []}
    parameters: dict[str, int] = {"dense": pl.metrics.parameters(model)}
    trains: dict[str, bool] = {}
    for turn in range(-1, REPEATS):  # the first turn warms up
        for name, prune in (("prunelab", ours), ("torch_pruning", theirs)):
            spent, small = seconds(prune, model, example)
            parameters[name] = pl.metrics.parameters(small)
            trains[name] = runs_in_training(small, size)
            if turn >= 0:
                times[name].append(spent)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratio = medians["torch_pruning"] / medians["prunelab"]
    return {"seconds": medians, "parameters": parameters, "ratio": ratio, "runs_in_training": trains}


def runs_in_training(model: nn.Module, size: int) -> bool:
    """Whether heads that only training uses fit what was cut, too."""
    try:
        with torch.no_grad():
            model.train()(torch.zeros(2, 3, size, size))
    except RuntimeError:
        return False
    return True


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for name, (build, size) in tqdm(NETWORKS.items()):
        rows[name] = row = measure(build, size)
        left = {who: f"{count / row['parameters']['dense']:.2%}" for who, count in row["parameters"].items()}
        tqdm.write(f"{name:<16} {row['ratio']:5.2f}x  {row['seconds']}  {left}")
    mean = statistics.geometric_mean(row["ratio"] for row in rows.values())
    print(f"Torch-Pruning's time / ours, geometric mean: {mean:.2f}")
    result = {
        "command": "python benchmarks/surgery.py",
        "machine": {"cores": os.cpu_count(), "processor": basics.processor(), "threads": 1},
        "versions": basics.versions("torch_pruning"),
        "repeats": REPEATS,
        "amount": AMOUNT,
        "networks": rows,
        "geometric_mean": mean,
    }
    with basics.whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
