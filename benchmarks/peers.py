"""The same work with prunelab and with other libraries, in one run.

    python benchmarks/peers.py                       # both parts, half an hour on two busy cores
    python benchmarks/peers.py --part sparsify

- accuracy: VGG-16-BN (width 0.25) on CIFAR-10, channels cut to half of the FLOPs, every layer by the same
  share, by criteria that prunelab and Torch-Pruning have both, then the same short fine-tuning. Validation
  pictures, seeds 0 to 2. Torch-Pruning is asked for a share of the channels, so the share is searched that
  leaves half of the FLOPs. Also whether Torch-Pruning and torch.ao.pruning can cut a ResNet-20 and this VGG.
- sparsify: all weights of a ResNet-56 in one global ranking by magnitude, with torch.nn.utils.prune and with
  fasterai where it is installed: how long, how many bytes the masked network takes, and how much is zero.

Peers: `pip install torch-pruning fasterai`; one that is missing is left out and named. Writes
results/peers.json.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from tqdm import tqdm

import prunelab as pl
from prunelab import basics

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
FLOPS, SEEDS, PICTURES = 0.5, (0, 1, 2), 5000
FINETUNE = {"epochs": 1, "lr": 0.02, "batch_size": 64}
AMOUNTS, REPEATS = (0.5, 0.9), 7
PEERS = {"accuracy": ("torch_pruning",), "sparsify": ()}

# -------------------------------------------------------------------------------------------- accuracy

PAIRS = {  # what prunelab calls it, and Torch-Pruning
    "random": "RandomImportance",
    "l1": "MagnitudeImportance",
    "geometric_median": "FPGMImportance",
    "snip": "TaylorImportance",  # magnitudes of weight times gradient, summed: SNIP's, once trained
    "obd": "HessianImportance",
    "bn_scale": "BNScaleImportance",
    "lamp": "LAMPImportance",
}


def accuracy(progress: tqdm) -> dict:
    import torch_pruning as tp

    data = pl.data.load("cifar10", quiet=True)
    dense = pl.models.vgg16(weights="cifar10", width=0.25).eval()
    few = replace(data, train=data.train.subset(PICTURES))
    whole = pl.metrics.flops(dense, data.example)
    share = share_for(dense, data.example)
    rows: dict[str, dict] = {}
    for seed in SEEDS:
        batches = list(data.train.subset(512).batches(64, shuffle=True, seed=seed))
        for ours, theirs in PAIRS.items():
            for who in ("prunelab", "torch_pruning"):
                started = time.process_time()
                if who == "prunelab":
                    how = {"criterion": ours, "data": batches, "seed": seed}
                    small = pl.prune(dense, data.example, flops=FLOPS, **how)
                else:
                    torch.manual_seed(seed)
                    options = {"p": 1} if ours == "l1" else {}
                    importance = getattr(tp.importance, theirs)(**options)
                    small = torch_pruning(dense, data.example, importance, batches, share)
                spent = time.process_time() - started
                row = rows.setdefault(ours, {"torch_pruning_name": theirs}).setdefault(
                    who, {name: [] for name in ("flops", "before", "after", "seconds")}
                )
                row["flops"].append(pl.metrics.flops(small, data.example) / whole)
                row["before"].append(pl.evaluate(small, data.validation, progress=False).accuracy)
                pl.fit(small, few, **FINETUNE, seed=seed, validate=False, progress=False)
                row["after"].append(pl.evaluate(small, data.validation, progress=False).accuracy)
                row["seconds"].append(spent)
                progress.update()
                progress.write(f"{seed} {ours:<18}{who:<15}{row['before'][-1]:8.1%}{row['after'][-1]:8.1%}")
    networks = {"VGG-16-BN": dense, "ResNet-20": pl.models.resnet20(weights="cifar10").eval()}
    return {
        "dense": pl.evaluate(dense, data.validation, progress=False).accuracy,
        "data": data.source.removeprefix("data: "),
        "finetune": FINETUNE | {"pictures": PICTURES},
        "flops": FLOPS,
        "seeds": list(SEEDS),
        "rows": rows,
        "runs": {name: runs(network, data.example) for name, network in networks.items()},
    }


def cut(model: nn.Module, example: Tensor, importance: object, share: float) -> Callable[[], None]:
    """Torch-Pruning's uniform cut of ``model``, ready to be made."""
    import torch_pruning as tp

    heads = [module for module in model.modules() if isinstance(module, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=share, ignored_layers=heads
    )
    return pruner.step


def share_for(dense: nn.Module, example: Tensor) -> float:
    """The share of the channels that Torch-Pruning has to cut for the FLOPs that are wanted."""
    import torch_pruning as tp

    tried = {}
    for share in [number / 100 for number in range(20, 41)]:  # the same for every criterion
        small = copy.deepcopy(dense)
        cut(small, example, tp.importance.MagnitudeImportance(p=1), share)()
        tried[share] = pl.metrics.flops(small, example) / pl.metrics.flops(dense, example)
    return min(tried, key=lambda share: abs(tried[share] - FLOPS))


def torch_pruning(
    dense: nn.Module, example: Tensor, importance: object, batches: list, share: float
) -> nn.Module:
    small = copy.deepcopy(dense)
    make = cut(small, example, importance, share)
    gather(small, importance, batches)
    make()
    small.zero_grad()
    return small


def gather(model: nn.Module, importance: object, batches: list) -> None:
    """What the peer's criteria read: gradients; for the Hessian's diagonal those of single pictures, each
    from a backward pass of its own.
    """
    import torch_pruning as tp

    if isinstance(importance, tp.importance.HessianImportance):
        importance.zero_grad()
        for images, labels in batches:
            losses = F.cross_entropy(model(images), labels, reduction="none")
            for loss in losses:
                model.zero_grad()
                loss.backward(retain_graph=True)
                importance.accumulate_grad(model)
    elif isinstance(importance, tp.importance.TaylorImportance):
        model.zero_grad()
        for images, labels in batches:
            F.cross_entropy(model(images), labels).backward()


def runs(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Whether each library can cut channels of this network at all: "yes", or what it says."""
    import torch_pruning as tp
    from torch.ao.pruning._experimental.pruner import SaliencyPruner

    def by_torch_pruning(network: nn.Module) -> nn.Module:
        cut(network, example, tp.importance.MagnitudeImportance(p=1), 0.3)()
        return network

    def by_torch_ao(network: nn.Module) -> nn.Module:
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
        pruner = SaliencyPruner({})
        pruner.prepare(network, [{"tensor_fqn": f"{name}.weight", "sparsity_level": 0.3} for name in layers])
        pruner.enable_mask_update = True
        pruner.step()
        return pruner.prune()

    def by_prunelab(network: nn.Module) -> nn.Module:
        return pl.prune(network, example, amount=0.3)

    said = {}
    ways = {"prunelab": by_prunelab, "torch_pruning": by_torch_pruning, "torch.ao": by_torch_ao}
    for name, way in ways.items():
        try:
            way(copy.deepcopy(model)).eval()(example)
            said[name] = "yes"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {' '.join(str(error).split())[-160:]}"
    return said


# -------------------------------------------------------------------------------------------- sparsify


def with_prunelab(model: nn.Module, amount: float) -> nn.Module:
    return pl.sparsify(model, granularity="weight", criterion="l1", amount=amount, scope="global")


def with_torch(model: nn.Module, amount: float) -> nn.Module:
    model = copy.deepcopy(model)
    layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=amount)
    return model


def with_fasterai(model: nn.Module, amount: float) -> nn.Module:
    from fasterai.core.criteria import large_final
    from fasterai.sparse.all import Sparsifier

    model = copy.deepcopy(model)
    Sparsifier(model, "weight", "global", large_final, layer_type=(nn.Conv2d, nn.Linear)).sparsify_model(
        100 * amount
    )
    return model


def zeros(model: nn.Module) -> float:
    """Share of zeros in what the layers compute with."""
    weights = [m.weight.detach() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def held(model: nn.Module) -> int:
    """Bytes of all tensors that a network holds: parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def sparsify(progress: tqdm) -> dict:
    ways: dict[str, Callable[[nn.Module, float], nn.Module]] = {
        "prunelab": with_prunelab,
        "torch": with_torch,
    }
    if importlib.util.find_spec("fasterai"):
        ways["fasterai"] = with_fasterai
    model = pl.models.resnet56(weights="cifar10").eval()
    rows = {}
    for amount in AMOUNTS:
        times: dict[str, list[float]] = {name: [] for name in ways}
        row: dict[str, dict] = {name: {} for name in ways}
        for turn in range(-1, REPEATS):  # the first turn warms up
            for name, way in ways.items():
                started = time.process_time()
                sparse = way(model, amount)
                if turn >= 0:
                    times[name].append(time.process_time() - started)
                row[name] = {"zeros": zeros(sparse), "bytes": held(sparse) / held(model)}
            progress.update()
        for name in ways:
            row[name]["seconds"] = statistics.median(times[name])
        rows[f"{amount:g}"] = row
        progress.write(f"{amount:g} {row}")
    return {"repeats": REPEATS, "amounts": rows, "missing": [] if "fasterai" in ways else ["fasterai"]}


def main() -> None:
    parts = {"sparsify": sparsify, "accuracy": accuracy}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=parts, help="only this one; the other stays as it is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [options.part] if options.part else parts:
        total = len(AMOUNTS) * (REPEATS + 1) if name == "sparsify" else 2 * len(PAIRS) * len(SEEDS)
        with tqdm(total=total, desc=name) as progress:
            result[name] = parts[name](progress)
        result |= {
            "command": "python benchmarks/peers.py",
            "machine": {"cores": os.cpu_count(), "processor": basics.processor(), "threads": 1},
            "versions": result.get("versions", {}) | basics.versions(*PEERS[name]),
        }
        with basics.whole_file(RESULTS) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
