"""What the playground shows beside the sweep: masks of one layer, and times.

    python benchmarks/playground.py

takes every configuration of ``results/sweeps/granularity.toml`` with seed 0, decides its masks anew, as the
sweep did before it trained, and stores those of one layer. Then it times, in turns, batch norms folded:

dense   the network as it is
masked  half of its weights are zero. Any mask runs through the same code, so this time is that of all of them
pruned  filters are removed physically, until as many parameters are left as a mask with this amount keeps;
        every layer loses the same share, so the shapes, and the time, are the same for every criterion

The results go to ``results/playground.json``, masks as bits, eight weights a byte, in base64. It wants
CIFAR-10 (``prunelab data --download``, or ``PRUNELAB_DATA``) and takes two minutes.
"""

import base64
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab import experiments
from prunelab.basics import processor, versions, whole_file
from prunelab.sparsify import Ranking

ROOT = Path(__file__).parent.parent
SWEEP = ROOT / "results" / "sweeps" / "granularity.toml"
RESULTS = ROOT / "results" / "playground.json"
LAYER = "stage1.1.conv1"  # 16 x 16 x 3 x 3
SEED = 0
BATCH_SIZES = [1, 64]
REPEATS = 60
THREADS = 1


def packed(keep: Tensor) -> str:
    """Booleans, eight of them a byte, in base64."""
    return base64.b64encode(np.packbits(keep.flatten().numpy()).tobytes()).decode()


def masks(model: nn.Module, look: pl.data.Split, configurations: list[dict]) -> list[dict]:
    """The layer's mask for every configuration; a criterion is asked once for all amounts."""
    rankings: dict[str, Ranking] = {}
    rows = []
    for configuration in configurations:
        asked = {name: value for name, value in configuration["sparsify"].items() if name != "amount"}
        ranking = rankings.setdefault(str(asked), Ranking(model, data=look, seed=SEED, **asked))
        amount = configuration["sparsify"].get("amount")
        rows.append({**asked, "amount": amount, "mask": packed(ranking.masks(amount)[LAYER])})
    return rows


def times(model: nn.Module, data: pl.data.Data, amounts: list[float]) -> dict:
    """Parameters, FLOPs and latency of the networks that are timed."""
    networks = {"dense": model, "masked": pl.sparsify(model, amount=0.5)}
    networks |= {f"{amount}": pl.prune(model, data.example, params=1 - amount) for amount in amounts}
    found: dict[str, dict] = {
        name: {
            "parameters": pl.metrics.parameters(network),
            "flops": pl.metrics.flops(network, data.example),
            "latency": {},
        }
        for name, network in networks.items()
    }
    for batch_size in BATCH_SIZES:
        pictures = data.validation.normalise(data.validation.images[:batch_size])
        pictures = pictures.contiguous(memory_format=torch.channels_last)  # dense convolutions are faster so
        latencies = pl.metrics.latencies(networks, pictures, repeats=REPEATS, threads=THREADS, fold=True)
        for name, seconds in latencies.items():
            found[name]["latency"][str(batch_size)] = seconds._asdict()
    return {"dense": found.pop("dense"), "masked": found.pop("masked"), "pruned": found}


def main() -> None:
    torch.set_num_threads(THREADS)
    configurations = [one for one in experiments.read(SWEEP).configurations if one["seed"] == SEED]
    first = configurations[0]
    data = pl.data.load(first["data"])
    model = getattr(pl.models, first["network"])(weights=first["data"]).eval()
    sparsifying = [one for one in configurations if "sparsify" in one]
    rows = masks(model, data.train.subset(first["pictures"]), sparsifying)
    weight = model.get_submodule(LAYER).weight.detach()
    result = {
        "command": "python benchmarks/playground.py",
        "data": first["data"],
        "network": first["network"],
        "seeds": [SEED],
        "versions": versions(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": THREADS},
        "repeats": REPEATS,
        **times(model, data, sorted({row["amount"] for row in rows} - {None})),
        "layer": {"name": LAYER, "shape": list(weight.shape)},
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps(result, indent=1).removesuffix("\n}")
    with whole_file(RESULTS) as partial:
        partial.write_text(f'{head},\n "masks": [\n  {lines}\n ]\n}}\n')
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
