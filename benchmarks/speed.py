"""The truth about speed: what zeros, sparse products and missing channels do to the time of a forward pass.

    python benchmarks/speed.py

takes the package's trained ResNet-20 (another one with ``--network``), removes a share of its weights in
several ways and times all of them in turns, batch norms folded into the convolutions as for deployment:

masked    single weights of least magnitude are zero, in ordinary dense convolutions
unfolded  the same, each convolution as one dense matrix product of its weight (filters, channels x places)
          with the unfolded pictures (channels x places, pixels): what CSR and BSR do, without their sparsity
CSR       the same zeros and the same product, the weight as ``torch.sparse_csr``
BSR       zeros in blocks of 8 x 8 of that matrix instead of single ones, the weight as ``torch.sparse_bsr``
pruned    no zeros: channels are removed until as large a share of the weights is gone

The first convolution (whose 27 columns are no multiple of 8) and the linear layer stay dense in all but the
last. Nothing is retrained and no accuracy is measured: time depends on where zeros are, not on values.
The results go to ``results/speed.json``.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.basics import processor, versions

RESULTS = Path(__file__).parent.parent / "results" / "speed.json"
SPARSITIES = [0.5, 0.7, 0.8, 0.9, 0.95]
BATCH_SIZES = [1, 64]
THREADS = 1
BLOCK = 8  # rows and columns: PyTorch's CPU product of BSR takes square blocks only


def block(w: Tensor) -> Tensor:
    """A granularity: squares of the matrix that the unfolded convolution multiplies with."""
    return rearrange(w.flatten(1), "(ob bo) (cb bc) -> (ob cb) (bo bc)", bo=BLOCK, bc=BLOCK)


class Unfolded(nn.Module):
    """A convolution as a matrix product for each picture: one at a time, because the patches of one fit into
    the processor's cache, those of a batch do not.

    Args:
        encode: what stores the weight ``(o, i h w)``: densely, as CSR or as BSR.
    """

    def __init__(self, conv: nn.Conv2d, encode: Callable[[Tensor], Tensor]):
        super().__init__()
        self.how = {"kernel_size": conv.kernel_size, "padding": conv.padding, "stride": conv.stride}
        self.weight = encode(conv.weight.detach().flatten(1))
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.weight @ F.unfold(picture, **self.how) for picture in x])
        height = -(-x.shape[2] // self.how["stride"][0])  # 3x3 with padding 1
        return (y + self.bias[:, None]).unflatten(2, (height, -1))


def unfolded(network: nn.Module, layers: list[str], encode: Callable[[Tensor], Tensor]) -> nn.Module:
    """A folded copy of ``network`` in which ``layers`` are matrix products."""
    result = pl.metrics.folded(network)
    for name in layers:
        result.set_submodule(name, Unfolded(result.get_submodule(name), encode))
    return result


def pruned(model: nn.Module, example: Tensor, sparsity: float) -> nn.Module:
    """The network with channels removed until its share of the weights is ``1 - sparsity``, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(8):
        amount = (low + high) / 2
        small = pl.prune(model, example, amount=amount)
        if pl.metrics.parameter_reduction(model, small) < sparsity:
            low = amount
        else:
            high = amount
    return small


def networks(model: nn.Module, example: Tensor, sparsity: float) -> dict[str, tuple[nn.Module, dict]]:
    """Each method's network, ready to be timed, and what is known of it without a clock."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][1:]
    masked = pl.sparsify(model, amount=sparsity, layers=layers)
    blocks = pl.sparsify(model, granularity=block, amount=sparsity, layers=layers)
    small = pruned(model, example, sparsity)
    found = {
        "masked": (masked, pl.metrics.folded(masked)),
        "unfolded": (masked, unfolded(masked, layers, lambda weight: weight)),
        "CSR": (masked, unfolded(masked, layers, Tensor.to_sparse_csr)),
        "BSR": (blocks, unfolded(blocks, layers, lambda weight: weight.to_sparse_bsr((BLOCK, BLOCK)))),
        "pruned": (small, pl.metrics.folded(small)),
    }
    rows = {}
    for method, (source, network) in found.items():
        with torch.no_grad(), pl.basics.evaluating(source):
            torch.testing.assert_close(network(example), source(example), rtol=1e-3, atol=1e-3)
        left = pl.metrics.nonzero_flops(source, example)
        rows[method] = (
            network,
            {
                "method": method,
                "sparsity": sparsity,
                "removed": 1 - pl.metrics.nonzero_parameters(source) / pl.metrics.parameters(model),
                "theory": left / pl.metrics.flops(model, example),  # the time if it were non-zero FLOPs
            },
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time masked, sparse and smaller networks.")
    parser.add_argument("--network", default="resnet20", choices=("resnet20", "resnet56"))
    parser.add_argument("--repeats", type=int, default=30, help="timed passes of each network")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    warnings.filterwarnings("ignore", "Sparse BSR tensor support is in beta")
    data = pl.data.load("auto")
    model = getattr(pl.models, options.network)(weights=data.name).eval()
    timed: dict[str, nn.Module] = {"dense": pl.metrics.folded(model)}
    rows: dict[str, dict] = {"dense": {"method": "dense", "sparsity": 0, "removed": 0, "theory": 1}}
    for sparsity in SPARSITIES:
        for method, (network, row) in networks(model, data.example, sparsity).items():
            timed[f"{method} {sparsity}"], rows[f"{method} {sparsity}"] = network, {**row, "latency": {}}
    rows["dense"]["latency"] = {}
    for batch_size in BATCH_SIZES:
        pictures = data.validation.normalise(data.validation.images[:batch_size])
        pictures = pictures.contiguous(memory_format=torch.channels_last)  # dense convolutions are faster so
        times = pl.metrics.latencies(timed, pictures, repeats=options.repeats, threads=THREADS)
        for name, seconds in times.items():
            rows[name]["latency"][str(batch_size)] = seconds._asdict()
    result = {
        "command": " ".join(["python benchmarks/speed.py", *sys.argv[1:]]),
        "network": options.network,
        "versions": versions(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": THREADS},
        "repeats": options.repeats,
        "block": [BLOCK, BLOCK],
        "rows": list(rows.values()),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
