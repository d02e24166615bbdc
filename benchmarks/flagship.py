"""How small without a loss: a trained network is pruned gradually and learns from what it was.

    python benchmarks/flagship.py resnet20
    python benchmarks/flagship.py resnet56
    python benchmarks/flagship.py vgg16                        # a quarter of the width
    python benchmarks/flagship.py vgg16-uniform                # the same, every layer cut alike
    python benchmarks/flagship.py vgg16-full --device cuda     # trains the dense network first

Everything that the course teaches, put together: a criterion that looks at data, taken globally and
physically; several rounds, each of which removes a part and trains a little; the dense network as a teacher
all the while; and a long training at the end. CIFAR-10. Settings are chosen on validation pictures; the test
pictures are read once, at the end, for the dense and for the pruned network. Every training is stored after
every epoch: stopped, the same command continues. Results go to results/flagship.json, an entry for each
network and seed. On two CPU cores a network takes hours, on a GPU minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import prunelab as pl
from prunelab.basics import processor, versions, whole_file
from prunelab.experiments import accelerator
from prunelab.training import Distillation

RESULTS = Path(__file__).parents[1] / "results" / "flagship.json"


@dataclass(frozen=True)
class Settings:
    """How one network is pruned.

    Attributes:
        flops: share of the dense network's FLOPs that is kept in the end.
        most_lost: how many points of accuracy may be lost.
        criterion, scope, most: as in :func:`prunelab.prune`; measured on 512 of 1,024 training pictures.
        width: of the network, where it has one.
        dense_epochs: how long to train the dense network, where no trained one is part of the package.
        rounds: prunings, each by the same factor.
        round_epochs, epochs: training after each pruning but the last, and in the end.
        lr, round_lr, weight_decay: of :func:`prunelab.fit`.
        temperature, strength: of :class:`prunelab.training.Distillation`.
    """

    flops: float
    most_lost: float
    width: float | None = None
    dense_epochs: int | None = None
    criterion: str = "taylor_gate"
    scope: str = "global"
    most: float = 0.8
    rounds: int = 4
    round_epochs: int = 2
    epochs: int = 30
    round_lr: float = 0.03
    lr: float = 0.1
    weight_decay: float = 5e-4
    temperature: float = 4.0
    strength: float = 1.0


NETWORKS = {
    "resnet20": Settings(flops=0.46, most_lost=0.009, epochs=50),
    "resnet56": Settings(flops=1 / 2.1, most_lost=0.0),
    "vgg16": Settings(flops=0.35, most_lost=0.003, width=0.25),
    # One ranking of all layers makes some of a VGG's too thin to pass anything on, as in
    # results/sweeps/scope-vgg16.toml. So every layer is cut alike, by scores that need no rounds.
    "vgg16-uniform": Settings(
        flops=0.35,
        most_lost=0.003,
        width=0.25,
        criterion="l1",
        scope="local",
        rounds=1,
        epochs=60,
    ),
    "vgg16-full": Settings(flops=0.35, most_lost=0.003, width=1, dense_epochs=40),
}


def dense(name: str, data: pl.data.Data, settings: Settings, folder: Path, precision: str) -> nn.Module:
    """The trained network that everything begins with, on the data's device."""
    device, network = data.train.images.device, getattr(pl.models, name.split("-")[0])
    width = {} if settings.width is None else {"width": settings.width}
    if settings.dense_epochs is None:
        return network(weights="cifar10", **width).to(device).eval()
    torch.manual_seed(0)
    model = network(**width).to(device)
    pl.fit(
        model,
        data,
        settings.dense_epochs,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        checkpoint=folder / f"flagship-{name}-dense.pt",
        precision=precision,
    )
    return model.eval()


def pruned(
    name: str,
    teacher: nn.Module,
    data: pl.data.Data,
    settings: Settings,
    seed: int,
    folder: Path,
    precision: str,
) -> tuple[nn.Module, list[dict]]:
    """``teacher``, pruned in rounds and trained; and of each round the FLOPs, and the validation accuracy
    after each of its epochs.
    """
    dense, small, course = pl.metrics.flops(teacher, data.example), teacher, []
    for number in range(1, settings.rounds + 1):
        # Stored: another machine, on which an interrupted run goes on, could
        # choose another one of two filters that are as good as equal.
        file = folder / f"flagship-{name}-{seed}-{number}.safetensors"
        if not file.exists():
            wanted = settings.flops ** (number / settings.rounds) * dense
            decided = pl.prune(
                small,
                data.example,
                criterion=settings.criterion,
                flops=wanted / pl.metrics.flops(small, data.example),
                scope=settings.scope,
                most=settings.most,
                data=data.train.subset(1024),
            )
            pl.save(decided, file)
        small = pl.load(file, copy.deepcopy(teacher).cpu()).to(data.train.images.device)
        last = number == settings.rounds
        history = pl.fit(
            small,
            data,
            settings.epochs if last else settings.round_epochs,
            lr=settings.lr if last else settings.round_lr,
            weight_decay=settings.weight_decay,
            callbacks=[Distillation(teacher, settings.temperature, settings.strength)],
            checkpoint=file.with_suffix(".pt"),
            precision=precision,
            seed=seed,
        )
        accuracies = [epoch["validation_accuracy"] for epoch in history.epochs]
        course.append({"flops": pl.metrics.flops(small, data.example), "validation_accuracy": accuracies})
    return small, course


def measured(model: nn.Module, data: pl.data.Data) -> dict:
    return {
        "parameters": pl.metrics.parameters(model),
        "flops": pl.metrics.flops(model, data.example),
        "validation_accuracy": pl.evaluate(model, data.validation).accuracy,
        "test_accuracy": pl.evaluate(model, data.test).accuracy,
    }


def worked_on(file: Path, machine: dict) -> list[dict]:
    """All machines that a run was worked on, this one included, in order; kept beside its trainings."""
    machines = json.loads(file.read_text()) if file.exists() else []
    if machine not in machines:
        machines.append(machine)
        with whole_file(file) as partial:
            partial.write_text(json.dumps(machines))
    return machines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where unfinished trainings are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.runs.mkdir(parents=True, exist_ok=True)
    data, settings = pl.data.load("cifar10").to(options.device), NETWORKS[options.network]
    machine = {"processor": processor(), "threads": options.threads, **accelerator(options.device)}
    machines = worked_on(options.runs / f"flagship-{options.network}-{options.seed}-machines.json", machine)
    teacher = dense(options.network, data, settings, options.runs, options.precision)
    torch.manual_seed(options.seed)
    small, course = pruned(
        options.network, teacher, data, settings, options.seed, options.runs, options.precision
    )
    row = {
        "network": options.network,
        "seed": options.seed,
        "data": data.source.removeprefix("data: "),
        "settings": asdict(settings),
        "precision": options.precision,
        "machines": machines,
        "versions": versions(),
        "dense": measured(teacher, data),
        "pruned": measured(small, data),
        "course": course,
    }
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    runs = [old for old in runs if (old["network"], old["seed"]) != (row["network"], row["seed"])] + [row]
    result = {
        "command": "python benchmarks/flagship.py NETWORK --seed SEED",
        "data": row["data"],
        "versions": versions(),
        "runs": sorted(runs, key=lambda run: (run["network"], run["seed"])),
    }
    with whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")
    before, after = row["dense"], row["pruned"]
    drop = 100 * (before["test_accuracy"] - after["test_accuracy"])
    print(
        f"{options.network}: {before['test_accuracy']:.2%} -> {after['test_accuracy']:.2%} "
        f"(drop {drop:.2f} points, allowed {100 * settings.most_lost:.1f}) "
        f"at {1 - after['flops'] / before['flops']:.1%} fewer FLOPs"
    )


if __name__ == "__main__":
    main()
