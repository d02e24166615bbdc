"""What regularisers let go of, and what it costs: a trained VGG-16 (width 0.25) trained on with each.

    python benchmarks/regularisation.py

Every run sees 5,000 embedded training pictures twice, with or without a regulariser; some are cut afterwards
and see them once more. Accuracy is that on the embedded validation pictures; the test pictures are not looked
at. A network that was cut or shrunk is measured once more with fresh statistics in its batch norms. Writes
results/regularisation.json after every seed. About half an hour on one core, in bfloat16.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import prunelab as pl
from prunelab import basics, regularisers

RESULTS = Path(__file__).parents[1] / "results" / "regularisation.json"
SEEDS = (0, 1, 2)
PICTURES = 5000
TRAINING = {"epochs": 2, "lr": 0.05, "batch_size": 64}
FINE_TUNING = {"epochs": 1, "lr": 0.02, "batch_size": 64}
STRENGTHS = {
    "l1": (3e-4, 1e-3, 3e-3),
    "batch_norm_l1": (3e-3, 1e-2, 3e-2),
    "group_lasso": (3e-4, 1e-3),
    "gates": (1e-3,),
}
GROUPS = ("filter", "stripe")
FLOPS = 0.5  # what network slimming cuts to, as a share
GROWING = {"delta": 0.02, "every": 2, "ceiling": 1.0}
GROWING_AMOUNTS = (0.3, 0.5)
EDGES = torch.linspace(-7, 1, 65)  # of the histogram of log10 |w|


class Bench:
    """The network and its data, and what is done with them again and again."""

    def __init__(self, seed: int):
        data = pl.data.load("embedded", quiet=True)
        self.data = replace(data, train=data.train.subset(PICTURES))
        self.model = pl.models.vgg16(weights="embedded", width=0.25).eval()
        self.seed = seed

    def accuracy(self, model: nn.Module) -> float:
        return pl.evaluate(model, self.data.validation, progress=False).accuracy

    def fresh(self, model: nn.Module) -> float:
        return self.accuracy(pl.recalibrate(model, self.data.train))

    def trained(self, model: nn.Module, *callbacks, how: dict = TRAINING) -> nn.Module:
        """A copy that was trained on."""
        result = copy.deepcopy(model)
        pl.fit(
            result, self.data, **how, seed=self.seed, callbacks=callbacks, precision="bfloat16",
            validate=False, progress=False,
        )  # fmt: skip
        return result

    def before_and_after(self, model: nn.Module) -> dict[str, float]:
        """Accuracy before fine-tuning, as it is and with fresh statistics, and after it."""
        return {
            "before": self.accuracy(model),
            "fresh": self.fresh(model),
            "after": self.accuracy(self.trained(model, how=FINE_TUNING)),
        }

    def cut(self, model: nn.Module, criterion: str) -> dict[str, float]:
        small = pl.prune(
            model, self.data.example, criterion=criterion, flops=FLOPS, scope="global", seed=self.seed
        )
        return {"parameters": pl.metrics.parameters(small), **self.before_and_after(small)}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


def lengths(model: nn.Module) -> Tensor:
    """Of all filters."""
    return torch.cat([layer.weight.detach().flatten(1).norm(dim=1) for layer in convolutions(model).values()])


def sizes(model: nn.Module) -> dict:
    """How many weights are exactly zero, and the histogram of the others' log10 |w|."""
    weights = torch.cat([layer.weight.detach().flatten() for layer in convolutions(model).values()])
    logs = weights[weights != 0].abs().log10().clamp(EDGES[0], EDGES[-1])
    return {"zero": int((weights == 0).sum()), "counts": logs.histogram(EDGES).hist.int().tolist()}


def l1(bench: Bench, plain: nn.Module) -> list[dict]:
    """Single weights: what the proximal step zeroes, beside as many of the smallest of the plain network."""
    rows = []
    for strength in STRENGTHS["l1"]:
        shrunk = bench.trained(bench.model, regularisers.L1(strength, proximal=True))
        sparse = pl.sparsify(shrunk, granularity="weight", threshold=1e-30)  # the zeros stay zero
        amount = pl.metrics.sparsity(sparse)
        smallest = pl.sparsify(plain, granularity="weight", amount=amount, scope="global")
        penalty = bench.trained(bench.model, regularisers.L1(strength))
        rows.append(
            {
                "strength": strength,
                "sparsity": amount,
                "proximal": bench.before_and_after(sparse),
                "magnitude": bench.before_and_after(smallest),
                "penalty": bench.accuracy(penalty),
                "sizes": {"proximal": sizes(shrunk), "penalty": sizes(penalty)},
            }
        )
    return rows


def network_slimming(bench: Bench, plain: nn.Module) -> dict:
    """Scales of batch norms with and without a penalty, and what a cut by them leaves."""

    def scales(model: nn.Module) -> list[float]:
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        found = torch.cat([norm.weight.detach().abs() for norm in norms]).sort(descending=True).values
        return [float(f"{value:.3g}") for value in found]

    rows = [{"strength": 0.0, "accuracy": bench.accuracy(plain), "scales": scales(plain)}]
    rows[0] |= {"bn_scale": bench.cut(plain, "bn_scale"), "random": bench.cut(plain, "random")}
    for strength in STRENGTHS["batch_norm_l1"]:
        model = bench.trained(bench.model, regularisers.BatchNormL1(strength))
        row = {"strength": strength, "accuracy": bench.accuracy(model), "scales": scales(model)}
        rows.append(row | {"bn_scale": bench.cut(model, "bn_scale")})
    return rows


def group_lasso(bench: Bench, plain: nn.Module) -> list[dict]:
    """Which share of the groups is exactly zero, and what has become of the filters that are left."""
    rows, usual = [], lengths(plain)
    for granularity in GROUPS:
        for strength in STRENGTHS["group_lasso"]:
            penalty = regularisers.GroupLasso(strength, granularity, proximal=True)
            model = bench.trained(bench.model, penalty)
            groups = [
                pl.granularity.matrix(layer.weight.detach(), penalty.where(name, layer))
                for name, layer in penalty.modules(model).items()
            ]
            now = lengths(model)
            rows.append(
                {
                    "granularity": granularity,
                    "strength": strength,
                    "groups_zero": torch.cat([(group == 0).all(1) for group in groups])
                    .double()
                    .mean()
                    .item(),
                    "sparsity": pl.metrics.sparsity(model),
                    "length_left": (now / usual)[now > 0].median().item(),
                    "accuracy": bench.accuracy(model),
                }
            )
    return rows


def gates(bench: Bench, plain: nn.Module) -> list[dict]:
    """Where the gates of each layer end."""
    rows = []
    for kind in regularisers.OPEN:
        for strength in STRENGTHS["gates"]:
            model = bench.trained(
                regularisers.attach_gates(bench.model, kind), regularisers.Gates(strength)
            ).eval()
            found = regularisers.gate_values(model)
            rows.append(
                {
                    "kind": kind,
                    "strength": strength,
                    "accuracy": bench.accuracy(model),
                    "folded": bench.accuracy(regularisers.fold_gates(model)),
                    "lowest": {name: values.min().item() for name, values in found.items()},
                    "highest": {name: values.max().item() for name, values in found.items()},
                }
            )
    return rows


class Watch(pl.training.Callback):
    """Lengths of the chosen filters and of the others at every step, and the accuracies at one step."""

    def __init__(self, bench: Bench, growing: regularisers.GrowingRegularisation):
        self.bench, self.growing = bench, growing
        self.chosen: list[float] = []
        self.others: list[float] = []
        self.accuracy = self.fresh = 0.0

    @torch.no_grad()
    def after_step(self, run) -> None:
        keep = torch.cat([mask.flatten(1).any(1) for mask in self.growing.keep.values()])
        found = [run.model.get_submodule(name).weight.flatten(1).norm(dim=1) for name in self.growing.keep]
        now = torch.cat(found)
        self.chosen.append(round(now[~keep].mean().item(), 5))
        self.others.append(round(now[keep].mean().item(), 5))
        if run.step == self.growing.removal:
            self.accuracy = self.bench.accuracy(run.model)
            self.fresh = self.bench.fresh(run.model)


def growing(bench: Bench, plain: nn.Module) -> list[dict]:
    """The same filters removed at once or pressed out, with as many steps of training."""
    rows = []
    for amount in GROWING_AMOUNTS:
        grow = regularisers.GrowingRegularisation(amount, **GROWING)
        before, after = Watch(bench, grow), Watch(bench, grow)
        pressed = bench.trained(bench.model, before, grow, after)
        at_once = pl.sparsify(bench.model, granularity="filter", amount=amount)
        rows.append(
            {
                "amount": amount,
                "removal": grow.removal,
                "chosen": before.chosen,
                "others": before.others,
                "growing": {
                    "before": before.accuracy,
                    "fresh_before": before.fresh,
                    "removed": after.accuracy,
                    "fresh_removed": after.fresh,
                    "after": bench.accuracy(pressed),
                },
                "one_shot": {
                    "removed": bench.accuracy(at_once),
                    "fresh_removed": bench.fresh(at_once),
                    "after": bench.accuracy(bench.trained(at_once)),
                },
            }
        )
    return rows


def main() -> None:
    result = {
        "command": "python benchmarks/regularisation.py",
        "model": "vgg16, width=0.25, weights='embedded'",
        "pictures": PICTURES,
        "training": TRAINING,
        "fine_tuning": FINE_TUNING,
        "growth": GROWING,
        "flops": FLOPS,
        "edges": [round(edge.item(), 3) for edge in EDGES],
        "precision": "bfloat16",
        "machine": {"processor": basics.processor()},
        "versions": basics.versions(),
        "seeds": [],
        "runs": [],
    }
    for seed in tqdm(SEEDS, desc="seeds"):
        bench = Bench(seed)
        result["data"] = bench.data.source
        result["validation_pictures"] = len(bench.data.validation)
        result["dense"] = bench.accuracy(bench.model)
        plain = bench.trained(bench.model)
        run = {"plain": bench.accuracy(plain), "plain_sizes": sizes(plain)}
        for part in tqdm((network_slimming, growing, l1, group_lasso, gates), desc="parts", leave=False):
            run[part.__name__] = part(bench, plain)
        result["seeds"].append(seed)
        result["runs"].append(run)
        with basics.whole_file(RESULTS) as partial:
            partial.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
