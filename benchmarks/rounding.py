"""What a cut is worth to the clock, and whether it helps to keep round numbers of channels.

    python benchmarks/rounding.py      # five minutes on an idle core

Each network is cut to the same share of its FLOPs four times: with any number of channels in a layer, and in
multiples of 4, 8 and 16, the sizes of a processor's vectors. All are timed in turns, batch norms folded,
with one picture and with many. Nothing is trained: time depends on shapes, not on values. Writes
results/rounding.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tqdm import tqdm

import prunelab as pl
from prunelab.basics import processor, versions, whole_file

RESULTS = Path(__file__).parents[1] / "results" / "rounding.json"
NETWORKS: dict[str, dict] = {
    "resnet20": {},
    "resnet56": {},
    "vgg16, width 0.25": {"width": 0.25},
    "vgg16, width 1": {"width": 1},
}
SHARES = (0.7, 0.5, 0.3)  # of the FLOPs, to cut to
MULTIPLES = (1, 4, 8, 16)
BATCH_SIZES = (1, 64)
REPEATS, THREADS = 15, 1


def rows(name: str, width: dict) -> list[dict]:
    """One network: the dense one and all its cuts, with their FLOPs and times."""
    torch.manual_seed(0)
    model = getattr(pl.models, name.split(",")[0])(**width).eval()
    example = torch.randn(1, 3, 32, 32)
    found = {(1.0, 1): model}
    for share in SHARES:
        for multiple in MULTIPLES:
            found[share, multiple] = pl.prune(model, example, flops=share, round_to=multiple, scope="local")
    flops = pl.metrics.flops(model, example)
    result = {
        key: {
            "network": name,
            "share": key[0],
            "round_to": key[1],
            "flops": pl.metrics.flops(network, example) / flops,
            "latency": {},
        }
        for key, network in found.items()
    }
    folded = {str(key): pl.metrics.folded(network) for key, network in found.items()}
    for batch_size in BATCH_SIZES:
        pictures = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        times = pl.metrics.latencies(folded, pictures, repeats=REPEATS, threads=THREADS)
        for key in found:
            result[key]["latency"][str(batch_size)] = times[str(key)]._asdict()
    return list(result.values())


def main() -> None:
    result = {
        "command": "python benchmarks/rounding.py",
        "machine": {"processor": processor(), "threads": THREADS},
        "versions": versions(),
        "repeats": REPEATS,
        "rows": [row for name, width in tqdm(NETWORKS.items()) for row in rows(name, width)],
    }
    with whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
