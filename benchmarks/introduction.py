"""The measurements behind the introduction: what sparsifying and pruning cost and buy, without retraining.

    python benchmarks/introduction.py

measures the package's trained ResNet-20 on the test set of the data that ``prunelab.data.load`` finds (set
PRUNELAB_DATA to use your copy of CIFAR-10) and writes ``results/introduction.json``: the accuracy against
the amount, and parameters, bytes, multiply-accumulates (MACs), feature maps and latency of three networks.
Nothing is chosen on the test set: every method, amount and seed is fixed below.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab.basics import processor, versions

RESULTS = Path(__file__).parent.parent / "results" / "introduction.json"
SPARSITIES = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]
FILTERS = [0, 0.05, 0.1, 0.2, 0.3, 0.5]
SEEDS = [0, 1, 2]  # for what is drawn at random
BATCH_SIZES = [1, 128]
REPEATS = 60
THREADS = 1


def silence(sparse: nn.Module) -> nn.Module:
    """Also zero the batch norm behind each filter that is zero, so that no constant goes on in its place."""
    plain = pl.finalize(sparse)
    modules = dict(plain.named_modules())
    with torch.no_grad():
        for name, module in modules.items():
            if isinstance(module, nn.Conv2d):
                gone = (module.weight == 0).flatten(1).all(1)
                norm = modules[name.replace("conv", "bn")]  # as a ResNet's layers are named: conv1, bn1
                norm.weight[gone] = 0
                norm.bias[gone] = 0
    return plain


def measure_accuracy(model: nn.Module, data: pl.data.Data) -> dict:
    dense = pl.evaluate(model, data.test).accuracy

    def curve(amounts: list[float], change: Callable[[float], nn.Module]) -> list[float]:
        return [pl.evaluate(change(amount), data.test).accuracy if amount else dense for amount in amounts]

    def weights(scope: str) -> list[float]:
        return curve(SPARSITIES, lambda amount: pl.sparsify(model, amount=amount, scope=scope))

    def without_filters(amount: float, criterion: str, seed: int) -> nn.Module:
        return pl.sparsify(model, granularity="filter", criterion=criterion, amount=amount, seed=seed)

    def zeroed(criterion: str, seed: int = 0) -> list[float]:
        return curve(FILTERS, lambda amount: without_filters(amount, criterion, seed))

    def silenced(criterion: str, seed: int = 0) -> list[float]:
        return curve(FILTERS, lambda amount: silence(without_filters(amount, criterion, seed)))

    def removed(criterion: str, seed: int = 0) -> list[float]:
        choice = {"criterion": criterion, "seed": seed}
        return curve(FILTERS, lambda amount: pl.prune(model, data.example, amount=amount, **choice))

    return {
        "dense": dense,
        "weights": {"amounts": SPARSITIES, "global": weights("global"), "local": weights("local")},
        "filters": {
            "amounts": FILTERS,
            "zeroed": {"l1": zeroed("l1"), "random": [zeroed("random", seed) for seed in SEEDS]},
            "silenced": {"l1": silenced("l1"), "random": [silenced("random", seed) for seed in SEEDS]},
            "removed": {"l1": removed("l1"), "random": [removed("random", seed) for seed in SEEDS]},
        },
    }


def feature_map_bytes(model: nn.Module, example: Tensor) -> int:
    """Bytes of all feature maps that the convolutions make of ``example``."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: sizes.append(output.nbytes))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return sum(sizes)


def measure_cost(models: dict[str, nn.Module], data: pl.data.Data) -> dict:
    costs: dict[str, dict] = {
        name: {
            "accuracy": pl.evaluate(model, data.test).accuracy,
            "sparsity": pl.metrics.sparsity(model),
            "parameters": pl.metrics.parameters(model),
            "nonzero": pl.metrics.nonzero_parameters(model),
            "bytes": pl.metrics.size(model),
            "macs": pl.metrics.macs(model, data.example),
            "feature_map_bytes": feature_map_bytes(model, data.example),
            "latency": {},
        }
        for name, model in models.items()
    }
    for batch_size in BATCH_SIZES:
        pictures = data.test.normalise(data.test.images[:batch_size])
        times = pl.metrics.latencies(models, pictures, repeats=REPEATS, threads=THREADS)
        for name, seconds in times.items():
            costs[name]["latency"][str(batch_size)] = seconds._asdict()
    return costs


def main() -> None:
    data = pl.data.load("auto")
    model = pl.models.resnet20(weights=data.name).eval()
    models = {
        "dense": model,
        "half of the weights zeroed": pl.finalize(pl.sparsify(model, amount=0.5, scope="global")),
        "half of the filters removed": pl.prune(model, data.example, criterion="l1", amount=0.5),
    }
    result = {
        "command": "python benchmarks/introduction.py",
        "network": "resnet20",
        "data": pl.models.checkpoints()[f"resnet20-{data.name}"]["source"],
        "test_pictures": len(data.test),
        "seeds": SEEDS,
        "versions": versions(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": THREADS},
        "latency_repeats": REPEATS,
        "accuracy": measure_accuracy(model, data),
        "cost": measure_cost(models, data),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
