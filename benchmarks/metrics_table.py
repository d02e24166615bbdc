"""Every measure of pruning, taken of one trained network: a ResNet-56 pruned to half of its FLOPs.

    python benchmarks/metrics_table.py

The networks, on CIFAR-10 (set PRUNELAB_DATA to your copy):

dense               the package's checkpoint, as it is
masked              single weights of least magnitude are zero, until the rest comes to half of the FLOPs
pruned              channels are removed until half of the FLOPs are left: Taylor expansion, global ranking
pruned, tuned       the same, and an epoch of training
random, tuned       channels drawn at random instead, and as much training

Nothing is chosen on the test pictures; they are read for the accuracies of the table. Trainings are stored in
``runs/metrics_table/`` after every epoch: stopped, the same command continues; run again, it only measures.
The results go to ``results/metrics_table.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import prunelab as pl
from prunelab import metrics
from prunelab.basics import processor, versions, whole_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "metrics_table.json"
RUNS = ROOT / "runs" / "metrics_table"
FLOPS = 0.5  # of the dense network's
TAYLOR = {"criterion": "taylor_gate", "scope": "global", "most": 0.8}
EPOCHS, LR, WEIGHT_DECAY, SEED = 1, 0.05, 5e-4, 0
BATCH_SIZES = (1, 64)
THREADS, REPEATS = 1, 40
PICTURES = 400  # validation pictures for reconstruction errors, sensitivity and the front
BUDGETS = (0.85, 0.7, 0.5, 0.35)  # shares of the FLOPs, without training
AMOUNTS = (0.25, 0.5)  # of each layer's filters
PARTS = ("counts", "process", "sensitivity", "efficiency", "latency")
ENCODINGS = ("dense", "bitmask", "csr")


def masked(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """As few zeros as make the theoretical speed-up 1 / FLOPS, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(10):
        amount = (low + high) / 2
        sparse = pl.sparsify(model, amount=amount, scope="global")
        if metrics.theoretical_speedup(model, sparse, example) < 1 / FLOPS:
            low = amount
        else:
            high = amount
    return sparse


def tuned(network: nn.Module, name: str, data: pl.data.Data) -> nn.Module:
    checkpoint = RUNS / f"{name}.pt"
    options = {"lr": LR, "weight_decay": WEIGHT_DECAY, "seed": SEED, "checkpoint": checkpoint}
    if pl.fit(network, data, EPOCHS, **options).interrupted:
        sys.exit("stopped: the same command continues")
    return network


def networks(data: pl.data.Data) -> dict[str, nn.Module]:
    dense = pl.models.resnet56(weights="cifar10").eval()
    RUNS.mkdir(parents=True, exist_ok=True)

    def pruned(**choice) -> nn.Module:
        return pl.prune(dense, data.example, flops=FLOPS, data=data.train, seed=SEED, **choice)

    def taylor() -> nn.Module:
        return pruned(**TAYLOR)

    return {
        "dense": dense,
        "masked": masked(dense, data.example),
        "pruned": taylor(),
        "pruned, tuned": tuned(taylor(), "taylor", data),
        "random, tuned": tuned(pruned(criterion="random"), "random", data),
    }


def counts(dense: nn.Module, model: nn.Module, data: pl.data.Data, pictures: pl.data.Split) -> dict:
    """What needs no clock."""
    example = data.example
    return {
        "sparsity": metrics.sparsity(model),
        "parameters": metrics.parameters(model),
        "nonzero_parameters": metrics.nonzero_parameters(model),
        "parameter_reduction": metrics.parameter_reduction(dense, model),
        "flops": metrics.flops(model, example),
        "flops_reduction": metrics.flops_reduction(dense, model, example),
        "theoretical_speedup": metrics.theoretical_speedup(dense, model, example),
        "size": {encoding: metrics.size(model, encoding) for encoding in ENCODINGS},
        "size_ratio": {encoding: metrics.size_ratio(dense, model, encoding) for encoding in ENCODINGS},
        "compression_ratio": {e: metrics.compression_ratio(dense, model, e) for e in ENCODINGS},
        "ideal_compression_ratio": metrics.ideal_compression_ratio(dense, model),
        "memory_reduction": {e: metrics.memory_reduction(dense, model, e) for e in ENCODINGS},
        "peak_activations": {
            str(count): metrics.peak_activations(model, example.expand(count, -1, -1, -1))
            for count in BATCH_SIZES
        },
        "reconstruction_error": metrics.reconstruction_error(dense, model, pictures),
        "layer_reconstruction_errors": metrics.layer_reconstruction_errors(dense, model, pictures),
    }


def times(found: dict[str, nn.Module], data: pl.data.Data) -> dict[str, dict]:
    """For each network, by how it is timed: median, quartiles, and what that is beside the dense one's."""
    rows: dict[str, dict] = {name: {} for name in found}
    for count in BATCH_SIZES:
        pictures = data.validation.normalise(data.validation.images[:count])
        for fold in (False, True):
            measured = metrics.latencies(found, pictures, repeats=REPEATS, threads=THREADS, fold=fold)
            for name, seconds in measured.items():
                rows[name][f"batch {count}" + (", folded" if fold else "")] = {
                    **seconds._asdict(),
                    "difference": metrics.latency_difference(measured["dense"], seconds),
                    "speedup": metrics.speedup(measured["dense"], seconds),
                }
    return rows


def process_peaks(found: dict[str, nn.Module]) -> dict[str, int]:
    """Bytes that a process of its own holds at most when it loads a network and runs it on a batch."""
    peaks = {}
    for name, model in found.items():
        path = RUNS / "network.safetensors"
        pl.save(metrics.planning.plain(model), path)
        command = [sys.executable, __file__, "--peak", str(path)]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peaks


def peak(path: str) -> None:
    torch.set_num_threads(THREADS)
    model = pl.load(path, pl.models.resnet56()).eval()
    with torch.inference_mode():
        model(torch.zeros(max(BATCH_SIZES), 3, 32, 32))
    print(metrics.process_peak())


def efficiency(dense: nn.Module, data: pl.data.Data, pictures: pl.data.Split) -> dict:
    """Accuracy by FLOPs, without training: the points, the Pareto front and the area under it."""
    choices = {"taylor": [TAYLOR], "random": [{"criterion": "random", "seed": seed} for seed in range(3)]}
    points: dict[str, list[list[tuple[float, float]]]] = {}
    for name, runs in choices.items():
        points[name] = []
        for choice in runs:
            smaller = [
                pl.prune(dense, data.example, flops=budget, data=data.train, **choice) for budget in BUDGETS
            ]
            shares = [1 - metrics.flops_reduction(dense, model, data.example) for model in (dense, *smaller)]
            accuracies = [pl.evaluate(model, pictures).accuracy for model in (dense, *smaller)]
            points[name].append(list(zip(shares, accuracies)))
    low = max(min(run)[0] for runs in points.values() for run in runs)  # every run has a network for that
    return {
        "interval": [low, 1.0],
        "runs": {
            name: [
                {"front": metrics.pareto_front(run), "area": metrics.area_under_front(run, low, 1.0)}
                for run in runs
            ]
            for name, runs in points.items()
        },
        "points": points,
    }


def sensitivity(dense: nn.Module, data: pl.data.Data) -> dict:
    scan = pl.sensitivity.scan(dense, data, amounts=AMOUNTS, pictures=PICTURES)
    return {"dense": scan.dense, "rows": scan.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=PARTS, help="measure one part again, and keep the others")
    parser.add_argument("--peak", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return peak(options.peak)
    parts = PARTS if options.only is None else (options.only,)
    data = pl.data.load("cifar10")
    pictures = data.validation.subset(PICTURES)
    found = networks(data)
    dense = found["dense"]
    kept = json.loads(RESULTS.read_text()) if options.only else {"networks": {name: {} for name in found}}
    rows = kept["networks"]
    if "counts" in parts:
        table = pl.compare(found, data.test, columns=["accuracy", "accuracy_drop"]).rows
        for name, model in found.items():
            rows[name] |= table[name] | counts(dense, model, data, pictures)
    if "process" in parts:
        for name, bytes_held in process_peaks(found).items():
            rows[name]["process_peak"] = bytes_held
    if "sensitivity" in parts:
        kept["sensitivity"] = sensitivity(dense, data)
    if "efficiency" in parts:
        kept["efficiency"] = efficiency(dense, data, pictures)
    if "latency" in parts:
        for name, latency in times(found, data).items():
            rows[name]["latency"] = latency
    result = {
        "command": "python benchmarks/metrics_table.py",
        "versions": versions(),
        "machine": {
            "system": platform.system(), "processor": processor(), "cores": os.cpu_count(),
            "threads": THREADS,
        },
        "data": data.source,
        "settings": {
            "flops": FLOPS, "epochs": EPOCHS, "lr": LR, "weight_decay": WEIGHT_DECAY, "seed": SEED,
            "batch_sizes": BATCH_SIZES, "repeats": REPEATS, "pictures": PICTURES,
        },
        **{key: kept[key] for key in ("networks", "sensitivity", "efficiency")},
    }  # fmt: skip
    with whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
