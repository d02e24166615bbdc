"""Every criterion at work on one network: a share of a ResNet-20's channels is removed, what is left of it?

    python benchmarks/criteria.py
    python benchmarks/criteria.py --examine
    python benchmarks/criteria.py --anew

No retraining, except for the gates, which have to be learned first. Data: the embedded pictures. Criteria
that measure look at 512 training pictures, the accuracy is that on the validation pictures, and the test
pictures are not looked at. Each seed draws other pictures, and other random scores. Writes
results/criteria.json. With ``--examine`` it asks instead why some criteria do no better than random, and
writes results/criteria_reasons.json. With ``--anew`` it measures some of the cut networks with fresh
statistics in their batch norms, and writes results/criteria_anew.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

import prunelab as pl
from prunelab import basics, channels, planning, registry, regularisers, surgery

RESULTS = Path(__file__).parents[1] / "results" / "criteria.json"
REASONS = RESULTS.with_name("criteria_reasons.json")
ANEW = RESULTS.with_name("criteria_anew.json")
SCOPES = ("local", "global")
AMOUNTS = (0.1, 0.2, 0.3)
SEEDS = (0, 1, 2)
SIGNED = ("grasp", "movement", "obd_hutchinson", "hessian_trace")
BLIND_TO_SIZE = ("cosine", "filter_correlation")
MEASURED_ANEW = ("random", "l1", "l2", *BLIND_TO_SIZE, "grasp", "obd_hutchinson", "hessian_trace")
ANEW_AMOUNT, ANEW_PICTURES = 0.2, 500
NEARLY_DEAD = 0.1  # of the largest L1 norm of the filters that it is ranked with
GATES = {"kind": "hard-concrete", "epochs": 3, "lr": 0.2, "strength": 1e-4}
OTHER_GATES = (
    {"kind": "hard-concrete", "epochs": 2, "lr": 0.02, "strength": 1e-6},
    {"kind": "hard-concrete", "epochs": 3, "lr": 0.2, "strength": 1e-3},
    {"kind": "sigmoid", "epochs": 3, "lr": 0.2, "strength": 1e-4},
)


def accuracies(model, data, method: registry.Method, seed: int) -> dict[str, list[float]]:
    """Validation accuracy at each amount, by scope."""
    source = regularisers.fold_gates(model) if method.name == "gate" else model
    found = channels.trace(source, data.example)
    result = {}
    for scope in SCOPES:
        if scope == SCOPES[0] or method.normalise is not None:  # else the scores are the same
            scores = planning.channel_scores(model, found, method, scope=scope, data=data.train, seed=seed)
        result[scope] = [
            remaining(source, data, found, planning.order(found, scores, scope).at(amount))
            for amount in AMOUNTS
        ]
    return result


def remaining(model, data, found: channels.Channels, keep: Tensor) -> float:
    """Validation accuracy of the network that is left."""
    return pl.evaluate(surgery.rebuild(model, found, keep), data.validation, progress=False).accuracy


def gated(model, data, seed: int, kind: str, epochs: int, lr: float, strength: float):
    """The network with gates that were trained for a while."""
    result = regularisers.attach_gates(model, kind)
    torch.manual_seed(seed)
    penalty = regularisers.Gates(strength)
    pl.fit(
        result, data, epochs, lr=lr, seed=seed, callbacks=[penalty], precision="float32", validate=False,
        progress=False,
    )  # fmt: skip
    return result.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="*", help="criteria to measure again; the others stay as they are")
    parser.add_argument("--examine", action="store_true", help="ask why some do no better than random")
    parser.add_argument("--anew", action="store_true", help="measure some with fresh batch-norm statistics")
    arguments = parser.parse_args()
    only = arguments.only
    data = pl.data.load("embedded", quiet=True)
    model = pl.models.resnet20(weights="embedded").eval()
    if arguments.examine:
        write(REASONS, examine(model, data))
        return
    if arguments.anew:
        write(ANEW, measured_anew(model, data))
        return
    judges = [
        method
        for method in pl.methods("criterion")
        if not method.granularities or {"filter", "channel"} & set(method.granularities)
    ]
    result = {
        "command": "python benchmarks/criteria.py",
        "data": data.source,
        "model": "resnet20, weights='embedded'",
        "validation_pictures": len(data.validation),
        "dense": pl.evaluate(model, data.validation, progress=False).accuracy,
        "amounts": AMOUNTS,
        "seeds": SEEDS,
        "gates": GATES,
        "versions": basics.versions(),
        "families": {method.name: method.family for method in judges},
        "accuracy": {scope: {} for scope in SCOPES},
    }
    wanted = [method for method in judges if only is None or method.name in only]
    for method in tqdm(wanted, desc="criteria"):
        if method.name == "gate":
            networks = {seed: gated(model, data, seed, **GATES) for seed in SEEDS}
        else:
            networks = dict.fromkeys(SEEDS, model)
        runs = [
            accuracies(networks[seed], data, method, seed)
            for seed in SEEDS
            if seed == SEEDS[0] or draws(method)
        ]
        if RESULTS.exists() and (only is not None or method is not wanted[0]):
            stored = json.loads(RESULTS.read_text())  # another run may have added to it
            result["accuracy"] = stored["accuracy"]
            result["gates"] = result["gates"] if method.name == "gate" else stored["gates"]
        for scope, rows in result["accuracy"].items():
            rows[method.name] = [run[scope] for run in runs]
        write(RESULTS, result)  # after each, so that little is lost if it is stopped
    show(result)


def draws(method: registry.Method) -> bool:
    """Whether the seed makes a difference."""
    return bool(set(method.needs) - {"norm_scale", "synflow"})


def write(path: Path, result: dict) -> None:
    with basics.whole_file(path) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


# ------------------------------------------------------------------------------- why some of them fail


def examine(model, data) -> dict:
    """What is found when a suspect is put right: signs dropped, size brought back, layers made comparable."""
    found = channels.trace(model, data.example)
    tied = {" + ".join(names): members for names, members in planning.tied(found).items()}

    def scored(method: registry.Method, scope: str = "local", seed: int = 0) -> Tensor:
        return planning.channel_scores(model, found, method, scope=scope, data=data.train, seed=seed)

    def left(scores: Tensor, scope: str) -> list[float]:
        keeps = (planning.order(found, scores, scope).at(amount) for amount in AMOUNTS)
        return [remaining(model, data, found, keep) for keep in keeps]

    def in_both(scores: Tensor) -> dict[str, list[float]]:
        return {scope: left(scores, scope) for scope in SCOPES}

    size = scored(registry.find("criterion", "l1"))
    dead = torch.zeros_like(size, dtype=torch.bool)
    for members in tied.values():
        dead[members] = size[members] < NEARLY_DEAD * size[members].max()

    def dead_first(scores: Tensor) -> Tensor:
        return scores.masked_fill(dead, float(scores.min()) - 1)

    random = registry.find("criterion", "random")
    result = {
        "command": "python benchmarks/criteria.py --examine",
        "data": data.source,
        "amounts": AMOUNTS,
        "seeds": SEEDS,
        "nearly_dead": {
            "threshold": NEARLY_DEAD,
            "channels": int(dead.sum()),
            "of": int(found.free.sum()),
            "accuracy_without": remaining(model, data, found, ~dead),
        },
        "random_dead_first": _by_scope(in_both(dead_first(scored(random, seed=seed))) for seed in SEEDS),
        "gates": [gate_setting(model, data, setting) for setting in (*OTHER_GATES, GATES)],
        "absolute": {},
        "blind_to_size": {},
        "across_layers": {},
    }
    for name in tqdm(BLIND_TO_SIZE, desc="blind to size"):
        method = registry.find("criterion", name)
        scores = scored(method)
        correlations = {layers: _rank_correlation(scores[m], size[m]) for layers, m in tied.items()}
        result["blind_to_size"][name] = {
            "rank_correlation_with_l1": correlations,
            "times_l1": in_both(scored(_changed(method, lambda s, w: s * w.abs().sum(1)))),
            "dead_first": in_both(dead_first(scores)),
        }
    distance = registry.find("criterion", "geometric_median")
    for name, changed in {
        "geometric_median": distance,
        "geometric_median, mean": _changed(distance, lambda s, w: s / (len(w) - 1)),
        "geometric_median, relative": replace(distance, normalise=lambda s: s / s.mean()),
        "redundancy": registry.find("criterion", "redundancy"),
    }.items():
        scores = scored(changed, "global")
        gone = [~planning.order(found, scores, "global").at(amount) for amount in AMOUNTS]
        result["across_layers"][name] = {
            "accuracy": left(scores, "global"),
            "removed": {layers: [g[m].double().mean().item() for g in gone] for layers, m in tied.items()},
        }
    for name in tqdm(SIGNED, desc="absolute values"):
        method = _changed(registry.find("criterion", name), lambda s, w: s.abs())
        result["absolute"][name] = _by_scope(in_both(scored(method, seed=seed)) for seed in SEEDS)
    return result


def measured_anew(model, data) -> dict:
    """What is left in the local ranking, with the old statistics of the batch norms and with fresh ones."""
    found = channels.trace(model, data.example)

    def accuracy(network) -> float:
        return pl.evaluate(network, data.validation, progress=False).accuracy

    def anew(network) -> float:
        return accuracy(pl.recalibrate(network, data.train, pictures=ANEW_PICTURES))

    result = {
        "command": "python benchmarks/criteria.py --anew",
        "data": data.source,
        "amount": ANEW_AMOUNT,
        "pictures": ANEW_PICTURES,
        "versions": basics.versions(),
        "dense": {"as it is": accuracy(model), "anew": anew(model)},
        "accuracy": {},  # of random choice for each seed, of the others for the first one
    }
    for name in tqdm(MEASURED_ANEW, desc="fresh statistics"):
        method = registry.find("criterion", name)
        rows: dict[str, list[float]] = {"as it is": [], "anew": []}
        for seed in SEEDS if name == "random" else SEEDS[:1]:
            scores = planning.channel_scores(model, found, method, scope="local", data=data.train, seed=seed)
            network = surgery.rebuild(model, found, planning.order(found, scores, "local").at(ANEW_AMOUNT))
            rows["as it is"].append(accuracy(network))
            rows["anew"].append(anew(network))
        result["accuracy"][name] = rows
    return result


def gate_setting(model, data, setting: dict) -> dict:
    """What the gates are like after this training, and what they know; with the first seed only."""
    network = gated(model, data, SEEDS[0], **setting)
    values = torch.cat(list(regularisers.gate_values(network).values()))
    dense = pl.evaluate(regularisers.fold_gates(network), data.validation, progress=False).accuracy
    return {
        **setting,
        "fully_open": (values == 1).double().mean().item(),
        "shut": (values == 0).double().mean().item(),
        "dense": dense,
        "accuracy": accuracies(network, data, registry.find("criterion", "gate"), SEEDS[0]),
    }


def _changed(method: registry.Method, change: Callable[[Tensor, Tensor], Tensor]) -> registry.Method:
    """The criterion with its scores changed: ``change(scores, groups)``."""
    original = method.function
    return replace(method, function=lambda groups, **needs: change(original(groups, **needs), groups))


def _by_scope(runs) -> dict[str, list[list[float]]]:
    runs = list(runs)
    return {scope: [run[scope] for run in runs] for scope in SCOPES}


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    ranks = [values.argsort().argsort().double() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def show(result: dict) -> None:
    """The table, mean over the seeds; a dot marks what is not above the best of the random draws."""
    print(
        f"{'criterion':<28}"
        + "".join(f"{scope:>8} {amount:<6g}" for scope in result["accuracy"] for amount in AMOUNTS)
    )
    chance = {
        scope: [max(run[i] for run in rows["random"]) for i in range(len(AMOUNTS))]
        for scope, rows in result["accuracy"].items()
        if "random" in rows
    }
    for name in result["accuracy"]["local"]:
        cells = []
        for scope, rows in result["accuracy"].items():
            for i in range(len(AMOUNTS)):
                mean = statistics.mean(run[i] for run in rows[name])
                mark = "." if scope in chance and mean <= chance[scope][i] else " "
                cells.append(f"{mean:>12.1%} {mark} ")
        print(f"{name:<28}" + "".join(cells))


if __name__ == "__main__":
    sys.exit(main())
