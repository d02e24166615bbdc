"""Write the table of README.md that says how prunelab does beside other libraries, from the stored results.

The book shows the same table (chapters/evaluation/peers.md includes it). `make benchmarks` measures all of it
anew and then calls this; a test fails if the README says anything else than the results do.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- beside other libraries: written by tools/summary.py -->\n", "<!-- end of the table -->\n"


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def table() -> str:
    surgery, peers, evidence = map(load, ("surgery", "peers", "evidence"))
    accuracy = peers["accuracy"]
    gains = [
        100 * (statistics.mean(row["prunelab"]["after"]) - statistics.mean(row["torch_pruning"]["after"]))
        for row in accuracy["rows"].values()
    ]
    sparse = list(peers["sparsify"]["amounts"].values())
    low, middle, high = min(gains), statistics.median(gains), max(gains)
    rows = [
        (
            f"accuracy after a cut to {accuracy['flops']:.0%} of the FLOPs and the same fine-tuning",
            f"Torch-Pruning, {len(gains)} criteria that both have",
            f"{low:+.1f} to {high:+.1f} points, median {middle:+.1f}",
        ),
        (
            "time to cut channels physically",
            f"Torch-Pruning, {len(surgery['networks'])} networks",
            f"{surgery['geometric_mean']:.1f} times as fast (geometric mean)",
        ),
    ]
    for name, label in (("torch", "torch.nn.utils.prune"), ("fasterai", "fasterai")):
        if all(name in row for row in sparse):
            times = statistics.geometric_mean(r[name]["seconds"] / r["prunelab"]["seconds"] for r in sparse)
            ours, theirs = (sparse[0][who]["bytes"] for who in ("prunelab", name))
            bytes_ = f"the masked network takes {ours:.2f} times the dense bytes, theirs {theirs:.2f}"
            rows.append(
                ("time to mask single weights globally", label, f"{times:.2f} times as fast; {bytes_}")
            )
    if (ROOT / "results" / "data_loading.json").exists():  # not measured on every machine
        loading = load("data_loading")
        pictures, epoch = (loading["faster"][what]["times"] for what in ("pictures only", "with the network"))
        rows.append(
            (
                "augmented training pictures",
                "torchvision with a DataLoader",
                f"{pictures:.1f} times as fast; a whole epoch {epoch:.2f} times "
                f"(pictures that cost nothing: {loading['at_most']:.2f})",
            )
        )
    alone = sum(evidence["alone"].values())
    rows.append(
        (
            f"evidence and scores of {len(evidence['alone'])} criteria in one pass",
            "one criterion after the other",
            f"{alone / evidence['together']['passes']:.1f} times as fast",
        )
    )
    lines = [("what", "beside", "found"), ("---",) * 3, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def written(readme: str) -> str:
    """The README with the table as it has to be."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
    print(table())


if __name__ == "__main__":
    main()
