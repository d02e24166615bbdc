"""What pruning cost and what it bought: counts that are exact, and times that are measured.

A measure of one network is a function of that network. A measure of two says by the order of its arguments
which is which: ``original`` first, then ``pruned``. Shares and accuracies are 0..1, sizes are bytes, times
are seconds. ``pruned`` may be a masked network, one with zeros in it, or a smaller one; each docstring says
which of these the measure can tell from the original. An ``example`` is one input, batch included, or a tuple
of them, on the network's device.
"""

from __future__ import annotations

import copy
import html
import re
import statistics
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from prunelab import planning, plots
from prunelab.basics import evaluating
from prunelab.channels import Example, inputs
from prunelab.data import Split
from prunelab.evidence import Batches
from prunelab.granularity import LAYERS
from prunelab.latency import take_turns
from prunelab.registry import suggestion
from prunelab.storage import storage_report
from prunelab.surgery import pruning_record
from prunelab.training import device_of, evaluate

# --- zeros and parameters ---------------------------------------------------------------------------


def sparsity(model: nn.Module) -> float:
    """Zeros / total, 0..1, over the weights of all convolutions and linear layers (biases and norms are not
    counted).
    """
    per_layer = layer_sparsity(model)
    sizes = {name: module.weight.numel() for name, module in model.named_modules() if name in per_layer}
    return sum(per_layer[name] * size for name, size in sizes.items()) / sum(sizes.values())


def layer_sparsity(model: nn.Module) -> dict[str, float]:
    """Zeros / total, 0..1, of each convolution's and linear layer's weight, by name."""
    layers = _layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer to measure")
    return {name: (module.weight == 0).float().mean().item() for name, module in layers.items()}


def parameters(model: nn.Module) -> int:
    """Number of parameters, zeros included; masks are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_parameters(model: nn.Module) -> int:
    """Number of parameters that are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in planning.plain(model).parameters())


def parameter_reduction(original: nn.Module, pruned: nn.Module) -> float:
    r"""Share of the parameters that is gone:
    :math:`(P_\text{original} - P_\text{pruned}) / P_\text{original}`.

    Zeros count as parameters, so it is 0 for a masked network: only a smaller one has fewer.

    Returns:
        At most 1, larger = fewer parameters.
    """
    return reduction(parameters(original), parameters(pruned))


# --- work -------------------------------------------------------------------------------------------


def flops(model: nn.Module, example: Example) -> int:
    """Floating-point operations of one forward pass of ``example``, two per multiply-accumulate.

    Convolutions and linear layers are counted, as in most papers; norms, activations and additions are not.
    Zeros are counted: a dense kernel multiplies them.
    """
    return planning.count_flops(planning.plain(model), inputs(example))


def macs(model: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one forward pass of ``example``: half of :func:`flops`."""
    return flops(model, example) // 2


def nonzero_flops(model: nn.Module, example: Example) -> int:
    """The part of :func:`flops` that touches a weight which is not zero: of each convolution and linear
    layer, its FLOPs times the density of its weight.

    That is exact, because all weights of such a layer are used equally often (zero padding is multiplied,
    too). Products of two feature maps, as in attention, have no weights and count in full.
    """
    plain = _plain_copy(model)  # so the hooks need not be taken off
    counter = FlopCounterMode(display=False)
    before: dict[nn.Module, int] = {}
    saved: list[int] = []

    def enter(layer: nn.Module, args: Any) -> None:
        before[layer] = counter.get_total_flops()

    def leave(layer: nn.Module, args: Any, output: Any) -> None:
        zeros = int((layer.weight == 0).sum())
        saved.append((counter.get_total_flops() - before[layer]) * zeros // layer.weight.numel())

    for layer in _layers(plain).values():
        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)
    with evaluating(plain), torch.no_grad(), counter:
        plain(*inputs(example))
    return counter.get_total_flops() - sum(saved)


def flops_reduction(original: nn.Module, pruned: nn.Module, example: Example) -> float:
    r"""Share of the FLOPs that is saved: :math:`(F_\text{original} - F_\text{pruned}) / F_\text{original}`.

    Dense FLOPs (:func:`flops`), so it is 0 for a masked network.

    Returns:
        At most 1, larger = less work.
    """
    return reduction(flops(original, example), flops(pruned, example))


def theoretical_speedup(original: nn.Module, pruned: nn.Module, example: Example) -> float:
    r"""Speed-up if time were FLOPs and zeros cost nothing:
    :math:`F_\text{original} / F^{\neq 0}_\text{pruned}`.

    The notes' "total_flops / nonzero_flops"; Blalock et al. (2020) report it under this name. For a smaller
    network it is the ratio of the FLOPs. What a machine makes of it is :func:`speedup`.

    Returns:
        Above 0, larger = faster.
    """
    return _ratio(flops(original, example), nonzero_flops(pruned, example), "nonzero_flops(pruned)")


# --- bytes ------------------------------------------------------------------------------------------


def size(model: nn.Module, encoding: str = "dense") -> int:
    """Bytes that the parameters and buffers take.

    Args:
        encoding: how the weights of convolutions and linear layers are stored, one of
            :func:`prunelab.storage.storage_report`'s: by default as ordinary dense tensors, zeros included;
            ``"bitmask"``, ``"csr"``, … leave zeros out and count the indices that say where the others stand.
            All other tensors are dense in any case.
    """
    plain = planning.plain(model)
    total = sum(tensor.numel() * tensor.element_size() for tensor in plain.state_dict().values())
    if encoding == "dense":
        return total
    stored = storage_report(plain)
    if encoding not in stored:
        raise ValueError(f"encoding={encoding!r}: {suggestion(encoding, list(stored))}")
    return total - stored["dense"].total + stored[encoding].total


def size_ratio(original: nn.Module, pruned: nn.Module, encoding: str = "dense") -> float:
    r"""What is left of the size: :math:`\text{size}_\text{pruned} / \text{size}_\text{original}`, in bytes.

    The notes' "Model Compression Ratio"; the inverse of :func:`compression_ratio`, for which they use the
    same name further down. Stored densely, a masked network is as large as the original.

    Args:
        encoding: how ``pruned`` is stored, see :func:`size`; the original is stored densely.
    Returns:
        Above 0, smaller = better.
    """
    return _ratio(size(pruned, encoding), size(original), "size(original)")


def compression_ratio(original: nn.Module, pruned: nn.Module, encoding: str = "dense") -> float:
    r"""How many times smaller: :math:`\text{size}_\text{original} / \text{size}_\text{pruned}`, in bytes.

    This is what the field calls compression ratio (Blalock et al., 2020). Arguments as in :func:`size_ratio`.

    Returns:
        Above 0, larger = better.
    """
    return _ratio(size(original), size(pruned, encoding), "size(pruned)")


def ideal_compression_ratio(original: nn.Module, pruned: nn.Module) -> float:
    r"""The compression ratio if zeros took no room and their places needed no index:
    :math:`P_\text{original} / P^{\neq 0}_\text{pruned}`.

    The notes' "total_params / nonzero_params". No encoding reaches it unless it removes what is zero.

    Returns:
        Above 0, larger = better.
    """
    return _ratio(parameters(original), nonzero_parameters(pruned), "nonzero_parameters(pruned)")


def memory_reduction(original: nn.Module, pruned: nn.Module, encoding: str = "dense") -> float:
    r"""Share of the bytes that is saved: :math:`(M_\text{original} - M_\text{pruned}) / M_\text{original}`.

    The notes' "Memory Footprint", which is "the memory required to store the model": M is :func:`size`. For
    the memory that *running* it takes, give :func:`reduction` two of :func:`peak_activations`.

    Returns:
        At most 1, larger = better; below 0 where indices take more than the zeros did.
    """
    return reduction(size(original), size(pruned, encoding))


def peak_activations(model: nn.Module, example: Example) -> int:
    """The most bytes of feature maps alive at once in a forward pass of ``example``, its own included.

    A tensor lives from the operator that makes it until Python drops the last reference to it: while an
    operator runs, its inputs and its output are there together, and a shortcut keeps the block's input.
    Tensors that share their memory (views, in-place results) count once. Parameters and buffers do not count,
    nor does what an operator uses inside for itself. In inference mode; training keeps almost all of them.
    """
    plain = planning.plain(model)
    examples = inputs(example)
    alive = _Alive([*plain.parameters(), *plain.buffers()], examples)
    with evaluating(plain), torch.inference_mode(), alive:
        plain(*examples)
    return alive.peak


class _Alive(TorchDispatchMode):
    """Sees every tensor that an operator returns, and counts the bytes of those that are still in memory."""

    def __init__(self, stored: list[Tensor], examples: tuple[Tensor, ...]):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in (*stored, *examples)}
        self.now = self.peak = sum(example.nbytes for example in examples)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self.known:
            return
        self.known.add(address)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, address, storage.nbytes())

    def _drop(self, address: int, count: int) -> None:
        self.known.discard(address)  # the address may be used again
        self.now -= count


def process_peak() -> int:
    """The most bytes of physical memory that this process has held since it began (peak resident set size).

    Python and torch themselves are most of it, and it never falls: to compare networks, give each a process
    of its own.
    """
    if sys.platform == "linux":
        # Not getrusage: its peak is that of the process that started this one, if that was larger.
        (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return int(peak) * 1024
    import resource  # there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS


# --- accuracy and outputs ---------------------------------------------------------------------------


def accuracy_drop(original: nn.Module, pruned: nn.Module, split: Split) -> float:
    r"""What pruning cost on ``split``:
    :math:`\text{accuracy}_\text{original} - \text{accuracy}_\text{pruned}`.

    Returns:
        -1..1, smaller = better; negative if the pruned network is the better one. 0.01 is one percentage
        point.
    """
    return evaluate(original, split).accuracy - evaluate(pruned, split).accuracy


def reconstruction_error(
    original: nn.Module, pruned: nn.Module, data: Batches, *, batch_size: int = 100
) -> float:
    r"""Mean distance of the outputs: :math:`\frac{1}{N} \sum_i \lVert f(x_i) - g(x_i) \rVert_2` over the *N*
    pictures of ``data``, *f* the original network, *g* the pruned one.

    The outputs are logits, the norm is Euclidean; of a network with several heads, over all their numbers.

    Args:
        data: pictures such as ``data.validation``, or batches ``(images, labels)``, as a ``DataLoader`` gives
            them; labels play no part.
        batch_size: pictures per forward pass, of a split; changes speed and memory, not the result.
    Returns:
        0 or more, smaller = better, in the unit of the logits.
    """
    total, count = 0.0, 0
    with evaluating(original, pruned), torch.inference_mode():
        for images in _pictures(data, device_of(original), batch_size):
            total += _distances(original(images), pruned(images), "the output").sum().item()
            count += len(images)
    return _mean(total, count)


def layer_reconstruction_errors(
    original: nn.Module, pruned: nn.Module, data: Batches, *, batch_size: int = 100
) -> dict[str, float]:
    """:func:`reconstruction_error` at the output of each convolution and linear layer, by name.

    Layers are matched by name. Where the pruned one has fewer channels, the surviving ones are compared, as
    its pruning record lists them. Each layer works on what its own network feeds it, so the errors of the
    layers before it are part of its own. Layers differ in scale: compare methods at one layer, not layers.

    Raises:
        ValueError: no layer in common, or fewer channels and no record of which they are.
    """
    theirs, ours = _layers(original), _layers(pruned)
    places = {name: _survivors(original, pruned, name) for name in theirs if name in ours}
    if not places:
        raise ValueError(
            f"original ({type(original).__name__}) and pruned ({type(pruned).__name__}) have no convolution "
            "or linear layer of the same name: there is nothing to compare layer by layer"
        )
    total: dict[str, float] = {}
    count, device = 0, device_of(original)
    with (
        evaluating(original, pruned),
        torch.inference_mode(),
        _outputs(theirs) as before,
        _outputs(ours) as after,
    ):
        for images in _pictures(data, device, batch_size):
            count += len(images)
            original(images), pruned(images)
            for name in [name for name in places if name in before and name in after]:
                channels = -1 if isinstance(theirs[name], nn.Linear) else 1  # the axis
                f = before.pop(name).index_select(channels, torch.tensor(places[name], device=device))
                errors = _distances(f, after.pop(name), f"layer {name!r}")
                total[name] = total.get(name, 0.0) + errors.sum().item()
    return {name: _mean(value, count) for name, value in total.items()}


def _pictures(data: Batches, device: torch.device, batch_size: int) -> Iterator[Tensor]:
    """The images of ``data``, batch by batch, on ``device``."""
    if isinstance(data, Tensor):
        raise TypeError("data must be pictures such as data.test, or batches (images, labels), got a Tensor")
    batches = data.to(device).batches(batch_size) if isinstance(data, Split) else data
    for images, _ in batches:
        yield images.to(device)


def _mean(total: float, count: int) -> float:
    if count == 0:
        raise ValueError("data is empty: there was no picture in it")
    return total / count


def _survivors(original: nn.Module, pruned: nn.Module, name: str) -> list[int]:
    """Where the original's layer ``name`` has the channels that the pruned one still has."""
    kept = pruning_record(pruned).get("kept", {}).get(name)
    # Both records count the channels of the full network; the original may have been pruned before, too.
    numbers = pruning_record(original).get("kept", {}).get(name, range(_filters(_layers(original)[name])))
    left = _filters(_layers(pruned)[name])
    if kept is None and left == len(numbers):
        return list(range(left))
    if kept is None or not set(kept) <= set(numbers):
        raise ValueError(
            f"layer {name!r} has {len(numbers)} output channels in original and {left} in pruned, and no "
            "record of pruning says which those are: give a network that pl.prune made from original"
        )
    return [list(numbers).index(number) for number in kept]


def _filters(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


@contextmanager
def _outputs(layers: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """A dict that always holds the latest output of each layer."""
    latest: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: latest.update({name: output})

    hooks = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    try:
        yield latest
    finally:
        for hook in hooks:
            hook.remove()


def _distances(f: Any, g: Any, where: str) -> Tensor:
    """Euclidean distances, picture by picture: ``(b, …)`` twice to ``(b,)`` float64."""
    parts = []
    for one, other in zip(tree_leaves(f), tree_leaves(g), strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"{where} is {tuple(one.shape)} in original and {tuple(other.shape)} in pruned: only equal "
                "shapes can be compared"
            )
        parts.append((one - other).reshape(len(one), -1).norm(dim=1).double())
    return torch.stack(parts).norm(dim=0)


# --- time -------------------------------------------------------------------------------------------


class Latency(NamedTuple):
    """Seconds for one forward pass: median, and the quartiles around it."""

    median: float
    lower: float
    upper: float


def latencies(
    models: dict[str, nn.Module], example: Example, *, repeats: int = 30, threads: int = 1, fold: bool = False
) -> dict[str, Latency]:
    """Time one forward pass of each network, taking turns, so that a busy moment of the machine hits all of
    them.

    Args:
        example: the input, batch included, on the networks' device (on a GPU each pass is waited for).
        repeats: timed passes each, after three for warming up.
        threads: CPU threads used meanwhile.
        fold: time copies whose batch norms are folded into the convolutions, see :func:`folded`, as a network
            is deployed.
    """
    if not models:
        raise ValueError("models is empty: give at least one network by name")
    if repeats < 3:
        raise ValueError(f"repeats={repeats}: quartiles need at least 3")
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    plain = {name: folded(model) if fold else planning.plain(model) for name, model in models.items()}
    examples = inputs(example)
    runs = [partial(model, *examples) for model in plain.values()]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with evaluating(*plain.values()), torch.inference_mode():
            turns = tqdm(range(repeats), desc="timing", leave=False, delay=2)
            seconds = take_turns(runs, examples[0].device, turns)
    finally:
        torch.set_num_threads(before)
    quartiles = {name: statistics.quantiles(measured, n=4) for name, measured in zip(plain, seconds)}
    return {name: Latency(middle, low, high) for name, (low, middle, high) in quartiles.items()}


def latency(model: nn.Module, example: Example, *, repeats: int = 30, threads: int = 1) -> Latency:
    """Time one forward pass of one network; to compare several use :func:`latencies`."""
    return latencies({"": model}, example, repeats=repeats, threads=threads)[""]


def latency_difference(original: Latency, pruned: Latency) -> float:
    r"""Seconds: :math:`\text{latency}_\text{pruned} - \text{latency}_\text{original}`, of the medians.

    The notes' "Model Latency". It is pruned minus original, so **negative is better**, where in their
    reductions positive is. Both come from one call of :func:`latencies`, which measured them in turns.
    """
    return pruned.median - original.median


def speedup(original: Latency, pruned: Latency) -> float:
    r"""How many times faster: :math:`\text{latency}_\text{original} / \text{latency}_\text{pruned}`, of the
    medians; above 1 = faster. What counting promised is :func:`theoretical_speedup`.
    """
    return _ratio(original.median, pruned.median, "pruned.median")


def folded(model: nn.Module) -> nn.Module:
    r"""A copy for inference in which each batch norm is part of the convolution or linear layer before it:
    :math:`w' = w \gamma / \sqrt{v + \epsilon}` and :math:`b' = (b - m) \gamma / \sqrt{v + \epsilon} + \beta`.

    It computes the same and is timed without the passes over the feature maps that batch norm costs. A batch
    norm stays if it does not directly follow such a layer, or follows a transposed convolution.

    Raises:
        ValueError: ``torch.fx`` cannot trace the network, or a layer to fold is used more than once.
    """
    plain = _plain_copy(model).eval()
    try:
        graph = fx.symbolic_trace(plain)
    except Exception as error:  # whatever the network's forward raises when its input has no values
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{type(model).__name__} cannot be traced to fold its batch norms ({reason})"
        ) from error
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for name, layer in graph.named_modules():
        if calls[name] > 1 and isinstance(layer, LAYERS):
            raise ValueError(f"layer {name!r} is used {calls[name]} times: no single batch norm fits into it")
    return optimization.fuse(graph, inplace=True, no_trace=True)


# --- efficiency -------------------------------------------------------------------------------------


def reduction(original: float, pruned: float) -> float:
    r"""Share of any cost that is saved: :math:`(c_\text{original} - c_\text{pruned}) / c_\text{original}`.

    Returns:
        At most 1, larger = cheaper; below 0 if the cost has grown.
    """
    return _ratio(original - pruned, original, "original")


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points ``(cost, accuracy)`` that no other beats: none that costs as little is as accurate.

    Returns:
        In rising order of cost, and so of accuracy; equal points once.
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def area_under_front(points: Iterable[tuple[float, float]], low: float, high: float) -> float:
    r"""Mean of the best accuracy that a budget buys, over all budgets from ``low`` to ``high``:

    .. math:: A = \frac{1}{h - l} \int_l^h \max \{ a_i : c_i \le b \} \, \mathrm{d} b

    The area under the Pareto front, a staircase, over the interval [*l*, *h*] of the cost axis (linear, in
    the costs' own unit), divided by the interval's length. It is a staircase, and no line from point to
    point, because a budget between two networks only buys the cheaper one.

    Args:
        points: ``(cost, accuracy)`` of each network, such as the share of the dense network's FLOPs.
        low, high: the interval. Methods are compared over the same one.
    Returns:
        In the unit of the accuracies, larger = better.
    Raises:
        ValueError: nothing is as cheap as ``low``, so that the best accuracy there is not known.
    """
    front = pareto_front(points)
    if not low < high:
        raise ValueError(f"low={low:g}, high={high:g}: low must be the smaller one")
    if not front or front[0][0] > low:
        cheapest = f"the cheapest costs {front[0][0]:g}" if front else "there are no points"
        raise ValueError(f"low={low:g} buys no network: {cheapest}")
    stairs = [(max(cost, low), accuracy) for cost, accuracy in front if cost < high]
    edges = [cost for cost, _ in stairs] + [high]
    return sum(
        accuracy * (end - start) for (_, accuracy), (start, end) in zip(stairs, pairwise(edges), strict=True)
    ) / (high - low)


# --- a table of networks ----------------------------------------------------------------------------


class _Bench:
    """What the columns of one comparison are measured on. What is slow is measured once."""

    def __init__(self, models: dict[str, nn.Module], split: Split, batch_size: int):
        self.models, self.split = models, split
        self.first = next(iter(models.values()))
        self.example = split.normalise(split.images[:1]).to(device_of(self.first))
        self.pictures = split.images[:batch_size]
        self.accuracy = cache(lambda model: evaluate(model, split).accuracy)

    @cached_property
    def times(self) -> dict[nn.Module, Latency]:
        example = self.split.normalise(self.pictures).to(device_of(self.first))
        timed = latencies(self.models, example)
        return {model: timed[name] for name, model in self.models.items()}


class Column(NamedTuple):
    """A column of a comparison: its heading, how a value is written, and how it is measured."""

    heading: str
    write: Callable[[float], str]
    measure: Callable[[_Bench, nn.Module], float]


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


def _count(value: float) -> str:
    return f"{value:,}"


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f} M"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"


COLUMNS: dict[str, Column] = {
    "accuracy": Column("accuracy", _percent, lambda bench, model: bench.accuracy(model)),
    "accuracy_drop": Column(
        "accuracy drop",
        lambda value: f"{100 * value:.1f} points",
        lambda bench, model: bench.accuracy(bench.first) - bench.accuracy(model),
    ),
    "reconstruction_error": Column(
        "reconstruction error",
        lambda value: f"{value:.3g}",
        lambda bench, model: reconstruction_error(bench.first, model, bench.split),
    ),
    "sparsity": Column("sparsity", _percent, lambda bench, model: sparsity(model)),
    "parameters": Column("parameters", _count, lambda bench, model: parameters(model)),
    "parameter_reduction": Column(
        "fewer parameters", _percent, lambda bench, model: parameter_reduction(bench.first, model)
    ),
    "nonzero": Column("non-zero", _count, lambda bench, model: nonzero_parameters(model)),
    "ideal_compression_ratio": Column(
        "ideal compression", _times, lambda bench, model: ideal_compression_ratio(bench.first, model)
    ),
    "macs": Column("MACs", _millions, lambda bench, model: macs(model, bench.example)),
    "flops": Column("FLOPs", _millions, lambda bench, model: flops(model, bench.example)),
    "nonzero_flops": Column(
        "non-zero FLOPs", _millions, lambda bench, model: nonzero_flops(model, bench.example)
    ),
    "flops_reduction": Column(
        "fewer FLOPs", _percent, lambda bench, model: flops_reduction(bench.first, model, bench.example)
    ),
    "theoretical_speedup": Column(
        "theoretical speed-up",
        _times,
        lambda bench, model: theoretical_speedup(bench.first, model, bench.example),
    ),
    "bytes": Column("size", _megabytes, lambda bench, model: size(model)),
    "bitmask": Column("size, bit mask", _megabytes, lambda bench, model: size(model, "bitmask")),
    "csr": Column("size, CSR", _megabytes, lambda bench, model: size(model, "csr")),
    "size_ratio": Column("size ratio", _times, lambda bench, model: size_ratio(bench.first, model)),
    "compression_ratio": Column(
        "compression", _times, lambda bench, model: compression_ratio(bench.first, model)
    ),
    "memory_reduction": Column(
        "less memory", _percent, lambda bench, model: memory_reduction(bench.first, model)
    ),
    "peak_activations": Column(
        "peak activations", _megabytes, lambda bench, model: peak_activations(model, bench.example)
    ),
    "latency": Column(
        "latency", lambda value: f"{value * 1e3:.2f} ms", lambda bench, model: bench.times[model].median
    ),
    "latency_difference": Column(
        "latency difference",
        lambda value: f"{value * 1e3:+.2f} ms",
        lambda bench, model: latency_difference(bench.times[bench.first], bench.times[model]),
    ),
    "speedup": Column(
        "speed-up", _times, lambda bench, model: speedup(bench.times[bench.first], bench.times[model])
    ),
}
DEFAULT_COLUMNS = ("accuracy", "sparsity", "parameters", "nonzero", "macs", "bytes")


@dataclass(frozen=True)
class Comparison:
    """A table of networks: ``rows[name][measure]``; the first row is what the others are compared with."""

    rows: dict[str, dict[str, float]]

    def _cells(self) -> list[list[str]]:
        measures = list(next(iter(self.rows.values())))
        head = ["network", *(COLUMNS[measure].heading for measure in measures)]
        body = [
            [name, *(COLUMNS[measure].write(row[measure]) for measure in measures)]
            for name, row in self.rows.items()
        ]
        return [head, *body]

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
                ]
            )
            for row in cells
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            # The style stands in each cell, because a stored output brings no style sheet with it.
            style = "padding: 0.2em 0.5em; white-space: nowrap; text-align: "
            name, *numbers = (html.escape(cell) for cell in cells)
            first = f"<{tag} style='{style}left'>{name}</{tag}>"
            return first + "".join(f"<{tag} style='{style}right'>{number}</{tag}>" for number in numbers)

        head, *body = self._cells()
        rows = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in body)
        head_row = f"<thead><tr>{row(head, 'th')}</tr></thead>"
        return f"<table style='font-size: 85%'>{head_row}<tbody>{rows}</tbody></table>"

    def plot(self) -> Figure:
        """Bars of every measure, relative to the first network."""
        named = {
            name: {COLUMNS[measure].heading: value for measure, value in row.items()}
            for name, row in self.rows.items()
        }
        return plots.comparison(named)

    def plot_front(self, cost: str = "macs") -> Figure:
        """Accuracy of each network against its cost relative to the first one's, and the Pareto front.

        Args:
            cost: a measure in the table of which less is better, such as ``"macs"``, ``"bytes"`` or
                ``"latency"``.
        """
        first, reference = next(iter(self.rows.items()))
        for needed in ("accuracy", cost):
            if needed not in reference:
                raise ValueError(f"{needed!r} was not compared: {suggestion(needed, list(reference))}")
        points = {
            name: (_ratio(row[cost], reference[cost], f"{cost} of {first!r}"), row["accuracy"])
            for name, row in self.rows.items()
        }
        xlabel = f"{COLUMNS[cost].heading}, relative to {first}"
        series = {name: ([share], [accuracy]) for name, (share, accuracy) in points.items()}
        return plots.front(series, pareto_front(points.values()), xlabel=xlabel)


def compare(
    models: dict[str, nn.Module],
    split: Split,
    *,
    columns: Sequence[str] = DEFAULT_COLUMNS,
    latency: bool = False,
    batch_size: int = 1,
) -> Comparison:
    """Measure networks side by side; the first is the one that the others are compared with.

    Args:
        models: by the name that the table shows.
        split: pictures for the accuracy; the test split only for a final report.
        columns: what to measure, names of :data:`COLUMNS`: the functions of this module, and ``"nonzero"``,
            ``"bytes"``, ``"bitmask"`` and ``"csr"`` for sizes.
        latency: also the column ``"latency"`` (median of a forward pass on one thread), which takes a few
            seconds and varies from run to run.
        batch_size: pictures per forward pass when timing.
    """
    if not models:
        raise ValueError("models is empty: give at least one network by name")
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"models[{name!r}] must be a network (nn.Module), got {type(model).__name__}")
    _check_split(split)
    wanted = list(dict.fromkeys([*columns, "latency"] if latency else columns))
    if not wanted:
        raise ValueError("columns is empty: name at least one, such as 'accuracy'")
    for column in wanted:
        if column not in COLUMNS:
            raise ValueError(f"columns: {column!r}: {suggestion(column, list(COLUMNS))}")
    if not 1 <= batch_size <= len(split):
        raise ValueError(f"batch_size={batch_size}: split has {len(split)} pictures, give 1 to {len(split)}")
    bench = _Bench(models, split, batch_size)
    return Comparison(
        {name: {key: COLUMNS[key].measure(bench, model) for key in wanted} for name, model in models.items()}
    )


# --- shared -----------------------------------------------------------------------------------------


def _layers(model: nn.Module) -> dict[str, Any]:
    """All convolutions and linear layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy without masks and gates."""
    plain = planning.plain(model)
    return copy.deepcopy(plain) if plain is model else plain


def _check_split(split: Split) -> None:
    if not isinstance(split, Split):
        raise TypeError(f"split must be pictures such as data.test, got {type(split).__name__}")
    if not len(split):
        raise ValueError("split has no pictures")


def _ratio(upper: float, lower: float, name: str) -> float:
    if lower == 0:
        raise ValueError(f"{name} is 0: there is no ratio to it")
    return upper / lower
