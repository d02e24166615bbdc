"""What does it cost to judge a ResNet-20: by each criterion alone, and by all criteria in one pass?

    python benchmarks/evidence.py       # about ten minutes on two cores

512 training pictures. The time of a criterion is that of gathering what it needs and of scoring all
convolutions, as a multiple of one plain forward and backward pass over the same pictures in the same run.
Left out are the oracle, which by its nature runs the network once for every group, and the gates, which have
to be trained first. Times are the processor's, which other programs disturb less. Writes
results/evidence.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import prunelab as pl
from prunelab import basics, evidence, granularity, registry
from prunelab.metrics import process_peak

RESULTS = Path(__file__).parents[1] / "results" / "evidence.json"
THREADS, PICTURES = 2, 512


def main() -> None:
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    data = pl.data.load("auto", quiet=True)
    model = pl.models.resnet20(weights=data.name).eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    methods = [method for method in pl.methods("criterion") if method.name not in ("oracle", "gate")]
    few = data.train.subset(PICTURES)
    a_pass = min(forward_and_backward(model, few) for _ in range(3))

    before = process_peak()
    started, used = time.perf_counter(), time.process_time()
    together = evidence.collect(methods, model, layers, few, progress=False)
    gathered = time.perf_counter() - started
    for method in methods:
        score_all(together, method, layers)
    everything = {
        "seconds": gathered,
        "passes": (time.process_time() - used) / a_pass,
        "peak_bytes": process_peak(),
        "peak_bytes_before": before,
    }
    print(f"all {len(methods)} criteria at once: {everything}")

    alone = {}
    for method in tqdm(methods):
        used = time.process_time()
        score_all(evidence.collect([method], model, layers, few, progress=False), method, layers)
        alone[method.name] = (time.process_time() - used) / a_pass
    for name in sorted(alone, key=alone.get, reverse=True):
        print(f"{name:<26}{alone[name]:8.2f} passes")
    result = {
        "command": "python benchmarks/evidence.py",
        "data": data.source.removeprefix("data: "),
        "pictures": PICTURES,
        "machine": {
            "cores": os.cpu_count(),
            "processor": basics.processor(),
            "threads": torch.get_num_threads(),
        },
        "versions": basics.versions(),
        "pass_seconds": a_pass,
        "together": everything,
        "alone": alone,
    }
    with basics.whole_file(RESULTS) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n")


def forward_and_backward(model: nn.Module, pictures: pl.data.Split) -> float:
    """Processor seconds of one pass over the pictures, as a training step has it."""
    used = time.process_time()
    for images, labels in pictures.batches(64):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
    model.zero_grad()
    return time.process_time() - used


def score_all(found: evidence.Evidence, method: registry.Method, layers: dict[str, nn.Module]) -> None:
    shapes = method.granularities
    shape = "filter" if not shapes or "filter" in shapes else shapes[0]
    for name, layer in layers.items():
        found.score(method, name, granularity.positions(registry.find("granularity", shape), layer))


if __name__ == "__main__":
    sys.exit(main())
