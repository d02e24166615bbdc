"""Networks that are sparse while they train: lottery tickets with their controls, and recipes without a dense
training, on the 8x8 digits that come with scikit-learn.

    python benchmarks/tickets.py

writes ``results/tickets.json``. The network is the one of Frankle & Carbin's first experiments, 300 and 100
hidden units. A training takes a second, so that all of it, with five seeds, takes some minutes on one core.
Nothing is chosen by the test pictures: every run is reported.
"""

import copy
import json
import math
import sys
from pathlib import Path
from statistics import mean

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import prunelab as pl
from prunelab.basics import processor, versions
from prunelab.data import Data, Split

RESULTS = Path(__file__).parent.parent / "results" / "tickets.json"
SEEDS = list(range(5))  # each draws initial weights, order of pictures and random masks
AMOUNTS = (0.8, 0.9, 0.95, 0.98, 0.99)
EPOCHS, LR, BATCH = 15, 0.1, 64
PER_ROUND = 0.3  # of what is left, about: so many rounds that each removes no more
TRAIN, VALIDATION = 1000, 200  # the other 597 pictures are for testing
FORK_AFTER = (0, 1, 2, 4, 8)  # epochs, for the stability
TRAINING: dict = {
    "lr": LR,
    "batch_size": BATCH,
    "augment": False,
    "validate": False,
    "progress": False,
    "precision": "float32",
}


def digits() -> Data:
    """Grey pictures, three times the same channel, in a fixed random order."""
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(raw.images) * 255 / 16).round().to(torch.uint8)[order]
    images = images[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(raw.target).long()[order]
    scaled = images[:TRAIN].double() / 255
    statistics = (float(scaled.mean()),) * 3, (float(scaled.std()),) * 3
    parts = [(0, TRAIN), (TRAIN, TRAIN + VALIDATION), (TRAIN + VALIDATION, len(labels))]
    splits = [Split(images[start:end], labels[start:end], *statistics) for start, end in parts]
    return Data("digits", tuple("0123456789"), *splits, source="scikit-learn's digits")


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [
        nn.Flatten(),
        nn.Linear(192, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ]
    return nn.Sequential(*layers)


def accuracy(model: nn.Module, data: Data) -> float:
    return pl.evaluate(model, data.test, progress=False).accuracy


def trainings(data: Data, seed: int) -> dict[str, dict[str, float]]:
    """Test accuracy by method and amount."""
    start = network(seed)
    how = {**TRAINING, "epochs": EPOCHS, "seed": seed}
    dense = copy.deepcopy(start)
    pl.fit(dense, data, **how)
    found: dict[str, dict[str, float]] = {"dense": {"0": accuracy(dense, data)}}

    def note(method: str, model: nn.Module) -> None:
        found.setdefault(method, {})[str(amount)] = accuracy(model, data)

    for amount in AMOUNTS:
        rounds = math.ceil(math.log(1 - amount) / math.log(1 - PER_ROUND))
        tickets = pl.recipes.lottery_ticket(start, data, amount=amount, rounds=rounds, controls=True, **how)
        note("ticket", tickets.model)
        for name, model in tickets.controls.items():
            note(name, model)
        once = pl.recipes.lottery_ticket(start, data, amount=amount, rounds=1, **how)
        note("ticket, one round", once.model)
        note("synflow", pl.recipes.synflow(start, data, amount=amount, **how).model)
        moving = {"amount": amount, **how}
        note(
            "sparse_evolutionary_training",
            pl.recipes.sparse_evolutionary_training(start, data, **moving).model,
        )
        for name, fraction in (("rigl", 0.3), ("static random mask", 0.0)):
            note(name, pl.recipes.rigl(start, data, every=16, fraction=fraction, **moving).model)
    return found


def between(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """The network on the straight line from one to the other."""
    ends = first.state_dict(), second.state_dict()
    middle = copy.deepcopy(first)
    middle.load_state_dict({name: torch.lerp(ends[0][name], ends[1][name], share) for name in ends[0]})
    return middle


def barriers(data: Data, seed: int) -> list[float]:
    """How far the error between two networks rises above the mean of theirs, where the two have the first
    epochs in common and see the pictures in different orders from then on (Frankle et al., 2020, section 2).
    """
    heights = []
    for after in FORK_AFTER:
        common = network(seed)
        if after:
            pl.fit(common, data, after, seed=seed, **TRAINING)
        ends = [copy.deepcopy(common) for _ in range(2)]
        for number, end in enumerate(ends):
            pl.fit(end, data, EPOCHS - after, seed=1000 + 2 * seed + number, **TRAINING)
        errors = [1 - accuracy(between(*ends, share), data) for share in torch.linspace(0, 1, 11).tolist()]
        heights.append(max(errors) - mean((errors[0], errors[-1])))
    return heights


def main() -> None:
    torch.set_num_threads(1)
    data = digits()
    methods: dict[str, dict[str, list[float]]] = {}
    for seed in SEEDS:
        for method, row in trainings(data, seed).items():
            for amount, value in row.items():
                methods.setdefault(method, {}).setdefault(amount, []).append(round(value, 4))
    forks = Tensor([barriers(data, seed) for seed in SEEDS])
    result = {
        "command": "python benchmarks/tickets.py",
        "seeds": SEEDS,
        "versions": versions("scikit-learn"),
        "machine": {"processor": processor(), "threads": 1},
        "data": "scikit-learn's digits",
        "pictures": {"train": TRAIN, "test": len(data.test)},
        "training": {"epochs": EPOCHS, "lr": LR, "batch_size": BATCH},
        "amounts": AMOUNTS,
        "test_accuracy": methods,
        "fork_after": FORK_AFTER,
        "barrier": [[round(value, 4) for value in row] for row in forks.T.tolist()],
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
