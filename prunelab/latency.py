"""How long a network would take, from how long its layers take: a table measured on this device.

The time of a convolution is not proportional to its FLOPs, least of all on a processor that works on
channels in blocks. So each layer is timed alone, at a few widths, and the time of a pruned network is read
off the table, without building it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from prunelab.basics import evaluating
from prunelab.channels import Channels

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a layer's channels, going in and coming out
REPEATS = 7
WARM_UP = 3  # passes that are not counted


class LatencyTable:
    """Predicts seconds for one forward pass.

    What lies between the layers (norms, activations, additions) is taken to cost in proportion to the values
    that the layers hand on.

    Args:
        model: the network before pruning.
        examples: its inputs, batch included, on its device; time is that for all of them.
        channels: what :func:`~prunelab.channels.trace` found in ``model``.
        progress: show a bar.
    Attributes:
        dense: measured seconds of ``model``, the median.
    """

    def __init__(
        self, model: nn.Module, examples: tuple[Tensor, ...], channels: Channels, progress: bool = True
    ):
        self.channels = channels
        inputs: dict[str, list[torch.Size]] = {}
        outputs: dict[str, int] = {}

        def note(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
                inputs.setdefault(name, []).append(args[0].shape)
                outputs[name] = outputs.get(name, 0) + output.numel()

            return hook

        names = [name for name, layer in channels.layers.items() if layer.makes]
        hooks = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
        with evaluating(model), torch.inference_mode():
            try:
                model(*examples)
            finally:
                for hook in hooks:
                    hook.remove()
            self.dense = statistics.median(
                take_turns([lambda: model(*examples)], examples[0].device, range(15))[0]
            )
        self.outputs = outputs
        self.tables: dict[str, list[Any]] = {}
        known: dict[tuple, Any] = {}
        for name in tqdm(names, desc="timing layers", leave=False, delay=2, disable=not progress):
            module = model.get_submodule(name)
            for shape in inputs.get(name, []):
                key = (module.extra_repr(), tuple(shape))
                if key not in known:
                    known[key] = _table(module, shape)
                self.tables.setdefault(name, []).append(known[key])
        everything = torch.ones(len(channels.free), dtype=torch.bool)
        self.between = max(self.dense - self._layers(everything), 0.0)

    def seconds(self, keep: Tensor) -> float:
        """Of the network that a decision ``(classes,)`` leaves."""
        makers = self.channels.makers()
        left = sum(size * _share(keep[makers[name]]) for name, size in self.outputs.items())
        return self._layers(keep) + self.between * left / sum(self.outputs.values())

    def _layers(self, keep: Tensor) -> float:
        total = 0.0
        for name, tables in self.tables.items():
            layer = self.channels.layers[name]
            point = [_share(keep[self.channels.classes[ids]]) for ids in (layer.inputs, layer.outputs)]
            total += sum(float(table(point)[0]) for table in tables)
        return total


def _share(kept: Tensor) -> float:
    return float(kept.double().mean())


def _table(module: Any, shape: torch.Size) -> Callable:
    """Seconds of a layer by the share of its channels that go in and come out."""
    linear = isinstance(module, nn.Linear)
    runs = []
    for inputs in SHARES:
        for outputs in SHARES:
            layer, count = _narrow(module, inputs, outputs)
            size = (*shape[:-1], count) if linear else (shape[0], count, *shape[2:])
            runs.append(
                _runner(layer, torch.randn(size, device=module.weight.device, dtype=module.weight.dtype))
            )
    from scipy.interpolate import RegularGridInterpolator  # here, because it takes half a second to load

    with torch.inference_mode():
        medians = [
            statistics.median(times) for times in take_turns(runs, module.weight.device, range(REPEATS))
        ]
    seconds = torch.tensor(medians).view(len(SHARES), -1)
    return RegularGridInterpolator((SHARES, SHARES), seconds.numpy(), bounds_error=False, fill_value=None)


def _narrow(module: Any, inputs: float, outputs: float) -> tuple[nn.Module, int]:
    """A layer of the same kind with these shares of its channels, and how many go in."""
    place: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        count = max(round(module.in_features * inputs), 1)
        return nn.Linear(count, max(round(module.out_features * outputs), 1), bias, **place), count
    groups = module.groups
    if groups == module.in_channels > 1:  # depthwise: as many come out as go in
        groups = count = max(round(module.in_channels * inputs), 1)
        made = count * (module.out_channels // module.groups)
    else:
        count = max(round(module.in_channels * inputs / groups), 1) * groups
        made = max(round(module.out_channels * outputs / groups), 1) * groups
    return type(module)(
        count, made, module.kernel_size, stride=module.stride, padding=module.padding,
        dilation=module.dilation, groups=groups, bias=bias, **place,
    ), count  # fmt: skip


def _runner(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(x)


def take_turns(
    runs: Sequence[Callable[[], Any]], device: torch.device, turns: Iterable[int]
) -> list[list[float]]:
    """Seconds of each of ``runs``, once a turn, so that a busy moment of the machine hits all of them.

    Args:
        device: where they work; a GPU is waited for.
        turns: numbers of the turns; behind three turns for warming up (``tqdm(range(30))`` shows a bar).
    """
    measured: list[list[float]] = [[] for _ in runs]
    for turn in itertools.chain(range(-WARM_UP, 0), turns):
        for times, run in zip(measured, runs, strict=True):
            started = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            if turn >= 0:
                times.append(time.perf_counter() - started)
    return measured
