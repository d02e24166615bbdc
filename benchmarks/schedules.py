"""When to prune: every schedule at the same training cost, on the embedded pictures.

    python benchmarks/schedules.py

writes ``results/schedules.json``. A trained VGG-16 of a quarter of the width sees 3,000 more pictures,
however they are divided, while 95 % of its weights (ranked together) or 40 % of the filters of each layer go.
Three seeds; about seven minutes on one core. Nothing is chosen by the test pictures: every run is reported,
as it is and with fresh statistics in the batch norms.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import prunelab as pl
from prunelab.basics import processor, versions

RESULTS = Path(__file__).parent.parent / "results" / "schedules.json"
SEEDS = [0, 1, 2]
PICTURES, EPOCHS, LR, BATCH = 1000, 3, 0.01, 32
WEIGHTS = {"granularity": "weight", "amount": 0.95, "scope": "global"}
FILTERS = {"granularity": "filter", "amount": 0.4, "scope": "local"}
GRADUAL = ("linear", "cosine", "agp", "one_cycle")
EVERY, END = 10, 0.6  # steps between two prunings; the last two fifths recover
ROUNDS = 3
DSD_AMOUNT, DSD_LAYER = 0.3, "features.17"  # whose weights are stored
TRAINING = {"batch_size": BATCH, "validate": False, "progress": False, "precision": "bfloat16"}
CLIFF = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # amounts of weights, nothing retrained


def three_phases(dense: nn.Module, few: pl.data.Data) -> dict[str, list[float]]:
    """Weights of one layer when dense, after the sparse training and after the second dense one: the same
    thousand places each time.
    """
    how = {**TRAINING, "epochs": EPOCHS // ROUNDS}
    sparse = pl.sparsify(dense, criterion="l1", amount=DSD_AMOUNT)
    pl.fit(sparse, few, lr=LR, **how)
    again = pl.finalize(sparse)
    pl.fit(again, few, lr=LR / 10, **how)
    phases = {"dense": dense, "sparse": sparse, "dense again": again}
    weights = {
        name: model.get_submodule(DSD_LAYER).weight.detach().flatten() for name, model in phases.items()
    }
    places = torch.randperm(len(weights["dense"]), generator=torch.Generator().manual_seed(0))[:1000]
    return {name: [round(value, 5) for value in weight[places].tolist()] for name, weight in weights.items()}


def main() -> None:
    torch.set_num_threads(1)
    data = pl.data.load("embedded", quiet=True)
    few = replace(data, train=data.train.subset(PICTURES))
    dense = pl.models.vgg16(weights="embedded", width=0.25)
    recipes = pl.recipes
    found: dict[str, list[float]] = {}
    anew: dict[str, list[float]] = {}

    def accuracy(model: nn.Module) -> float:
        return pl.evaluate(model, data.test, progress=False).accuracy

    def note(name: str, model: nn.Module) -> None:
        found.setdefault(name, []).append(round(accuracy(model), 4))
        anew.setdefault(name, []).append(round(accuracy(pl.recalibrate(model, few.train)), 4))
        print(name, found[name], file=sys.stderr, flush=True)

    before = accuracy(dense)
    cliff: dict[str, list[list[float]]] = {}
    cliff_anew: dict[str, list[list[float]]] = {}
    for criterion, seeds in (("l1", [0]), ("random", SEEDS)):
        for seed in seeds:
            cut = [
                pl.sparsify(dense, criterion=criterion, amount=amount, scope="global", seed=seed)
                for amount in CLIFF
            ]
            cliff.setdefault(criterion, []).append([accuracy(model) for model in cut])
            anew_here = [accuracy(pl.recalibrate(model, data.train)) for model in cut]
            cliff_anew.setdefault(criterion, []).append(anew_here)
    phases = three_phases(dense, few)
    for seed in SEEDS:
        how = {**TRAINING, "seed": seed, "lr": LR}
        long, short = {**how, "epochs": EPOCHS}, {**how, "epochs": EPOCHS // ROUNDS}
        trained_on = recipes.one_shot(dense, few, amount=0.0, **long)
        note("dense, trained on", trained_on.model)
        for kind, what in (("weights", WEIGHTS), ("filters", FILTERS)):
            note(f"{kind}: random", recipes.one_shot(dense, few, criterion="random", **what, **long).model)
            note(f"{kind}: one_shot", recipes.one_shot(dense, few, **what, **long).model)
            note(f"{kind}: iterative", recipes.iterative(dense, few, rounds=ROUNDS, **what, **short).model)
            for schedule in GRADUAL:
                gradual = recipes.gradual(dense, few, schedule=schedule, every=EVERY, end=END, **what, **long)
                note(f"{kind}: {schedule}", gradual.model)
        soft = recipes.soft_filter_pruning(dense, few, amount=FILTERS["amount"], **long)
        note("filters: soft_filter_pruning", soft.model)
        again = recipes.dense_sparse_dense(dense, few, amount=DSD_AMOUNT, **{**short, "lr": LR})
        note("dense_sparse_dense", again.model)
    result = {
        "command": "python benchmarks/schedules.py",
        "seeds": SEEDS,
        "versions": versions(),
        "machine": {"processor": processor(), "threads": 1},
        "data": "embedded",
        "network": "vgg16, width 0.25",
        "pictures": PICTURES,
        "training": {
            "epochs": EPOCHS,
            "lr": LR,
            "batch_size": BATCH,
            "every": EVERY,
            "end": END,
            "rounds": ROUNDS,
        },
        "weights": WEIGHTS,
        "filters": FILTERS,
        "test_pictures": len(data.test),
        "dense": round(before, 4),
        "cliff": {"amounts": CLIFF, "test_accuracy": cliff, "fresh_statistics": cliff_anew},
        "dsd": {"amount": DSD_AMOUNT, "layer": DSD_LAYER, "weights": phases},
        "test_accuracy": found,
        "fresh_statistics": anew,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
