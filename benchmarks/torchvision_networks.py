"""Is physical pruning exact on other people's networks? Every network of torchvision that classifies or
segments pictures, and the backbone of every one that detects objects, checked.

    python benchmarks/torchvision_networks.py             # all of them, about half an hour on one core
    python benchmarks/torchvision_networks.py --missing   # those that the stored table lacks
    python benchmarks/torchvision_networks.py resnet18    # some

Each network is filled with random numbers, in float64; 30 % and 60 % of its channels, drawn at random, are
removed; and what the smaller network answers is compared with what the full one answers when the same
channels are silenced by hooks behind every layer. Writes results/torchvision_networks.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import prunelab as pl
from prunelab import basics
from prunelab.channels import trace
from prunelab.surgery import pruning_record, silenced

RESULTS = Path(__file__).parents[1] / "results" / "torchvision_networks.json"
AMOUNTS = (0.3, 0.6)
# Pictures of 64x64 where a network takes any size; these have a size built in, or need more rows.
SIZES = {
    "vit": 224,
    "maxvit": 224,
    "inception": 299,
    "ssd": 300,
    "googlenet": 96,
    "alexnet": 96,
    "squeezenet": 96,
}
# A detector as a whole takes lists of pictures of any size and cannot be traced; what it looks with can.
KINDS = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "detection backbone": torchvision.models.detection,
}


def names() -> dict[str, str]:
    """What kind each network is of."""
    return {name: kind for kind, module in KINDS.items() for name in torchvision.models.list_models(module)}


def picture(name: str) -> Tensor:
    size = next((size for start, size in SIZES.items() if name.startswith(start)), 64)
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def build(name: str, x: Tensor) -> nn.Module:
    """An untrained network in float64, in evaluation mode, whose batch norms have seen ``x``.

    Without that, a hundred layers of random weights blow rounding errors up to any size. The networks' own
    initialisation is left out, because it would take minutes.
    """
    with ExitStack() as stack:
        for function in [function for function in dir(nn.init) if re.fullmatch(r"[a-z]\w*_", function)]:
            stack.enter_context(mock.patch.object(nn.init, function, lambda tensor, *args, **options: tensor))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        kind = names()[name]
        backbone = {} if kind == "classification" else {"weights_backbone": None}
        model: nn.Module = torchvision.models.get_model(name, weights=None, **backbone)
    if kind == "detection backbone":
        model = model.backbone
    model = model.double().eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for kind, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_floating_point() or kind == "relative_coords_table":
                continue
            if kind == "running_var" or (tensor.dim() == 1 and kind == "weight"):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() > 1:  # so that values keep their size from layer to layer
                tensor.data.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            else:
                tensor.data.normal_(0, 0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def check(name: str) -> dict:
    """Prune one network at each amount, and say how far the answers are apart."""
    x = picture(name)
    model = build(name, x)
    row: dict = {
        "network": name, "kind": names()[name], "parameters": pl.metrics.parameters(model), "pruned": {},
    }  # fmt: skip
    try:
        channels = trace(model, x[:1])
        row["groups"] = int(channels.free.sum())
        row["pinned"] = sorted({pin.reason.partition(" [")[0] for pin in channels.pins})
        for amount in AMOUNTS:
            started = time.perf_counter()
            small = pl.prune(model, x[:1], criterion="random", amount=amount)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                with silenced(model, channels, pruning_record(small)["kept"]):
                    expected = tree_leaves(model(x))
                found = tree_leaves(small(x))
            assert all(part.abs().max() > 1e-3 for part in expected), "an answer of zeros shows nothing"
            row["pruned"][str(amount)] = {
                "parameters": pl.metrics.parameters(small),
                "error": max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found)),
                "seconds": seconds,
            }
            del small
        exact = all(pruned["error"] < 1e-9 for pruned in row["pruned"].values())
        row["verdict"] = "exact" if exact else "WRONG"
    except ValueError as error:
        row["verdict"] = f"refused: {str(error).splitlines()[0]}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("networks", nargs="*", help="names as in torchvision.models.list_models()")
    parser.add_argument("--missing", action="store_true", help="only those that the stored table lacks")
    options = parser.parse_args()
    rows: dict[str, dict] = {}
    if RESULTS.exists():
        rows = {row["network"]: row for row in json.loads(RESULTS.read_text())["networks"]}
    wanted = options.networks or [name for name in names() if not (options.missing and name in rows)]
    for name in tqdm(wanted):
        rows[name] = row = check(name)
        tqdm.write(line(row))
        result = {
            "command": "python benchmarks/torchvision_networks.py",
            "versions": basics.versions("torchvision"),
            "amounts": AMOUNTS,
            "networks": [rows[name] for name in names() if name in rows],
        }
        with basics.whole_file(RESULTS) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")
        gc.collect()


def line(row: dict) -> str:
    sizes = "  ".join(
        f"{pruned['parameters'] / row['parameters']:6.1%} {pruned['seconds']:5.2f} s {pruned['error']:.0e}"
        for pruned in row["pruned"].values()
    )
    return (
        f"{row['network']:<37} {row.get('groups', 0):>7,} groups {row['parameters'] / 1e6:>7.1f} M  {sizes}  "
        f"{row['verdict']}"
    )


if __name__ == "__main__":
    sys.exit(main())
