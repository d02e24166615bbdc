"""How evidence is gathered: one batch in the network, and each kind of evidence that watches it.

The kinds and their shapes are listed in :mod:`prunelab.evidence`.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from prunelab.granularity import matrix, positions
from prunelab.graph import Behind, behind
from prunelab.registry import Method, find

PROBES = 1  # random vectors per batch in Hutchinson's estimate
NOISE = 0.1  # standard deviation of the noise on the normalised pictures
PATCHES = 10  # per picture, as in He et al. (2017)
SILENCED_PICTURES = 128  # one forward pass of these for every group
FINE_TUNING = {"batch_size": 32, "lr": 0.01}  # of the copy that movement is measured on


# --------------------------------------------------------------------- the network and one batch in it


class Network:
    """The network that is watched, and the places to look at."""

    def __init__(self, model: nn.Module, layers: dict[str, Any], seed: int, progress: bool = False):
        self.model, self.layers, self.progress = model, layers, progress
        self.generator = torch.Generator().manual_seed(seed)
        self.second_order = False  # set by evidence that differentiates gradients

    @cached_property
    def traced(self) -> tuple[fx.Graph, dict[str, Behind]]:
        return behind(self.model, list(self.layers))

    def norm_behind(self, name: str) -> Any:
        """The batch norm that reads this layer's output, or none."""
        norm = self.traced[1][name].norm
        return None if norm is None else self.model.get_submodule(norm)

    def normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator).to(like)

    def signs(self, like: Tensor) -> Tensor:
        return torch.randint(0, 2, like.shape, generator=self.generator).mul(2).sub(1).to(like)


class Recorder(fx.Interpreter):
    """Runs a traced network and keeps some of its values."""

    def __init__(self, model: nn.Module, graph: fx.Graph, names: set[str]):
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self.names = names
        self.kept: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.name not in self.names:
            return value
        self.kept[node.name] = value
        return value.clone()  # what comes after may work in place


class Batch:
    """One batch; what is asked for is computed once, and nothing else is."""

    def __init__(self, network: Network, images: Tensor, labels: Tensor):
        self.network, self.images, self.labels = network, images, labels

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def weights_and_gradients(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each layer's weight, and the gradient of the summed loss with respect to it."""
        network = self.network
        # Masked layers rebuild their weight from the stored one in each forward pass; with caching on, it is
        # the tensor that was read here, so its gradient can be asked for.
        with parametrize.cached():
            weights = {name: layer.weight for name, layer in network.layers.items()}
            loss = F.cross_entropy(network.model(self.images), self.labels, reduction="sum")
            found = torch.autograd.grad(loss, list(weights.values()), create_graph=network.second_order)
        return weights, dict(zip(weights, found, strict=True))

    @property
    def gradients(self) -> dict[str, Tensor]:
        return {name: gradient.detach() for name, gradient in self.weights_and_gradients[1].items()}

    def hessian_times(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The Hessian of the summed loss, of all layers' weights together, times ``vectors``."""
        weights, gradients = self.weights_and_gradients
        products = [(gradients[name] * vector).sum() for name, vector in vectors.items()]
        found = torch.autograd.grad(torch.stack(products).sum(), list(weights.values()), retain_graph=True)
        return dict(zip(weights, found, strict=True))

    @cached_property
    def _maps_and_loss(self) -> tuple[dict[str, Tensor], Tensor]:
        maps, logits = self._run(self.images)
        return maps, F.cross_entropy(logits, self.labels, reduction="sum")

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """Feature maps ``(b, n, h, w)`` by layer."""
        return {name: _four(found.detach()) for name, found in self._maps_and_loss[0].items()}

    @cached_property
    def map_gradients(self) -> dict[str, Tensor]:
        maps, loss = self._maps_and_loss
        found = torch.autograd.grad(loss, list(maps.values()))
        return {name: _four(gradient) for name, gradient in zip(maps, found, strict=True)}

    @cached_property
    def perturbed_maps(self) -> dict[str, Tensor]:
        with torch.no_grad():
            maps, _ = self._run(self.images + NOISE * self.network.normal(self.images))
        return {name: _four(found) for name, found in maps.items()}

    def _run(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        graph, places = self.network.traced
        recorder = Recorder(self.network.model, graph, {place.features for place in places.values()})
        logits = recorder.run(images)
        return {name: recorder.kept[place.features] for name, place in places.items()}, logits

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What each layer reads."""
        found: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, arguments, name=name: found.__setitem__(name, arguments[0].detach().clone())
            )
            for name, layer in self.network.layers.items()
        ]
        try:
            with torch.no_grad():
                self.network.model(self.images)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _four(maps: Tensor) -> Tensor:
    """Any layer's output as ``(b, n, h, w)``."""
    return maps if maps.dim() == 4 else maps.reshape(*maps.shape[:2], 1, -1)


def _patches(name: str, layer: Any, inputs: Tensor) -> Tensor:
    """``(b, channels, places in a kernel, positions)``: what the filters see."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(len(inputs), -1, 1, layer.in_features).transpose(1, 3)
    if isinstance(layer, nn.Conv1d):
        inputs = inputs[:, :, None]
    elif not isinstance(layer, nn.Conv2d):
        raise ValueError(f"layer {name!r} is a {type(layer).__name__}: input patches are not defined for it")
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ValueError(f"layer {name!r} pads with {layer.padding!r}, {layer.padding_mode}: not supported")

    def both(sizes: tuple, flat: int) -> tuple:
        return sizes if len(sizes) == 2 else (flat, *sizes)

    kernel = both(layer.kernel_size, 1)
    seen = F.unfold(inputs, kernel, both(layer.dilation, 1), both(layer.padding, 0), both(layer.stride, 1))
    return seen.view(len(inputs), inputs.shape[1], kernel[0] * kernel[1], -1)


# -------------------------------------------------------------------------------- kinds of evidence


class Kind:
    """One kind of evidence: sees every batch, then tells what it found."""

    needs_data = True

    def start(self, network: Network) -> None:
        self.network = network

    def see(self, batch: Batch) -> None:
        """Take from a batch what is wanted."""

    def finish(self) -> None:
        """After the last batch."""

    def of(self, name: str, where: Tensor) -> Any:
        """What was found for a layer that is cut at these positions ``(groups, members)``."""
        raise NotImplementedError


class Generator(Kind):
    needs_data = False

    def of(self, name: str, where: Tensor) -> torch.Generator:
        return self.network.generator


class PerBatch(Kind):
    """Read by :class:`MapMeans` while the batch is there."""


class MapMeans(Kind):
    """The mean over all pictures of what a criterion says of their feature maps."""

    def __init__(self, criterion: Method):
        self.criterion = criterion
        self.others = [need for need in criterion.needs if need != "maps"]

    def start(self, network: Network) -> None:
        self.totals: dict[str, Tensor] = {}
        self.pictures = 0

    def see(self, batch: Batch) -> None:
        for name, maps in batch.maps.items():
            others = {need: getattr(batch, need)[name] for need in self.others}
            with torch.no_grad():
                said = self.criterion.function(maps, **others).sum(0)
            self.totals[name] = self.totals.get(name, 0) + said
        self.pictures += len(batch)

    def of(self, name: str, where: Tensor) -> Tensor:
        return self.totals[name] / self.pictures


class WeightShaped(Kind):
    """A number for every weight, summed over pictures and divided by their number."""

    def start(self, network: Network) -> None:
        self.network = network
        self.totals = {name: torch.zeros_like(layer.weight) for name, layer in network.layers.items()}
        self.count = 0

    def add(self, found: dict[str, Tensor], count: int) -> None:
        for name, value in found.items():
            self.totals[name] += value.detach()
        self.count += count

    def of(self, name: str, where: Tensor) -> Tensor:
        return matrix(self.totals[name] / self.count, where)


class Gradients(WeightShaped):
    def see(self, batch: Batch) -> None:
        self.add(batch.gradients, len(batch))


class BatchGradients(Kind):
    def start(self, network: Network) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def see(self, batch: Batch) -> None:
        self.batches.append({name: gradient / len(batch) for name, gradient in batch.gradients.items()})

    def of(self, name: str, where: Tensor) -> Tensor:
        return torch.stack([matrix(gradients[name], where) for gradients in self.batches])


class Fisher(WeightShaped):
    CHUNK = 30_000_000  # gradients held at a time: 120 MB

    def see(self, batch: Batch) -> None:
        model = self.network.model
        stored = {name: _stored_name(name, layer) for name, layer in self.network.layers.items()}
        parameters = dict(model.named_parameters())
        weights = {name: parameters[entry].detach() for name, entry in stored.items()}

        def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            renamed = {stored[name]: weight for name, weight in weights.items()}
            return F.cross_entropy(torch.func.functional_call(model, renamed, (image[None],)), label[None])

        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
        rows = max(1, self.CHUNK // sum(weight.numel() for weight in weights.values()))
        for images, labels in zip(batch.images.split(rows), batch.labels.split(rows), strict=True):
            found = gradients(weights, images, labels)
            self.add({name: each.square().sum(0) for name, each in found.items()}, len(labels))


def _stored_name(name: str, layer: Any) -> str:
    """Name of the parameter that a layer's weight, masked or not, is stored in."""
    entry = "parametrizations.weight.original" if parametrize.is_parametrized(layer, "weight") else "weight"
    return f"{name}.{entry}" if name else entry


class HessianDiagonal(WeightShaped):
    def start(self, network: Network) -> None:
        super().start(network)
        network.second_order = True

    def see(self, batch: Batch) -> None:
        for _ in range(PROBES):
            probe = {name: self.network.signs(layer.weight) for name, layer in self.network.layers.items()}
            product = batch.hessian_times(probe)
            self.add({name: probe[name] * product[name] / PROBES for name in probe}, 0)
        self.count += len(batch)


class HessianGradient(WeightShaped):
    """The gradient is that of all pictures, so it has to be known before the products are taken."""

    def start(self, network: Network) -> None:
        super().start(network)
        network.second_order = True
        self.gradients = Gradients()
        self.gradients.start(network)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def see(self, batch: Batch) -> None:
        self.gradients.see(batch)
        self.seen.append((batch.images, batch.labels))

    def finish(self) -> None:
        gradient = {name: total / self.gradients.count for name, total in self.gradients.totals.items()}
        for images, labels in self.seen:
            self.add(Batch(self.network, images, labels).hessian_times(gradient), len(labels))


class SynFlow(WeightShaped):
    """Of the data it takes the pictures' shape only."""

    def see(self, batch: Batch) -> None:
        if self.count:
            return
        positive = copy.deepcopy(self.network.model).double()
        with torch.no_grad():
            for tensor in [*positive.parameters(), *positive.buffers()]:
                if tensor.is_floating_point():
                    tensor.abs_()
            for module in positive.modules():
                if isinstance(getattr(module, "running_mean", None), Tensor):
                    module.running_mean.zero_()  # it would be subtracted, and could stop the flow
        layers: dict[str, Any] = {name: positive.get_submodule(name) for name in self.network.layers}
        ones = torch.ones_like(batch.images[:1], dtype=torch.float64)
        with parametrize.cached():
            weights = {name: layer.weight for name, layer in layers.items()}
            found = torch.autograd.grad(positive(ones).sum(), list(weights.values()))
        signed = zip(self.network.layers.items(), found, strict=True)
        # dR/dw = dR/d|w| * sign(w)
        self.add({name: value.to(layer.weight) * layer.weight.sign() for (name, layer), value in signed}, 1)


class Movement(WeightShaped):
    """The copy is trained by plain gradient descent; the sum is not divided by the number of its steps."""

    def start(self, network: Network) -> None:
        super().start(network)
        self.count = 1
        self.copy = copy.deepcopy(network.model).train()
        self.optimiser = torch.optim.SGD(self.copy.parameters(), lr=FINE_TUNING["lr"])

    def see(self, batch: Batch) -> None:
        names = list(self.network.layers)
        layers: dict[str, Any] = {name: self.copy.get_submodule(name) for name in names}
        size = int(FINE_TUNING["batch_size"])
        for images, labels in zip(batch.images.split(size), batch.labels.split(size), strict=True):
            self.optimiser.zero_grad()
            with parametrize.cached():
                weights = [layers[name].weight for name in names]
                for weight in weights:
                    weight.retain_grad()
                F.cross_entropy(self.copy(images), labels).backward()
            moved = {
                name: -FINE_TUNING["lr"] * weight.grad * weight
                for name, weight in zip(names, weights, strict=True)
            }
            self.add(moved, 0)
            self.optimiser.step()


class NormScale(Kind):
    needs_data = False

    def of(self, name: str, where: Tensor) -> Tensor:
        norm = self.network.norm_behind(name)
        if norm is None or norm.weight is None:
            raise ValueError(f"layer {name!r} has no batch norm with a scale right behind it: leave it out")
        return norm.weight.detach()


class Gates(Kind):
    needs_data = False

    def start(self, network: Network) -> None:
        from prunelab.regularisers import gate_values  # which builds on sparsify, as sparsify on this

        self.gates = gate_values(network.model)

    def of(self, name: str, where: Tensor) -> Tensor:
        if name not in self.gates:
            raise ValueError(f"layer {name!r} has no gates: attach them with attach_gates and train them")
        return self.gates[name]


class Pooled(Kind):
    def start(self, network: Network) -> None:
        self.found: dict[str, list[Tensor]] = {name: [] for name in network.layers}

    def see(self, batch: Batch) -> None:
        for name, maps in batch.maps.items():
            self.found[name].append(maps.mean((2, 3)))

    def of(self, name: str, where: Tensor) -> Tensor:
        return torch.cat(self.found[name])


class Labels(Kind):
    def start(self, network: Network) -> None:
        self.found: list[Tensor] = []

    def see(self, batch: Batch) -> None:
        self.found.append(batch.labels)

    def of(self, name: str, where: Tensor) -> Tensor:
        return torch.cat(self.found)


class Covariance(Kind):
    def start(self, network: Network) -> None:
        self.sums: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def see(self, batch: Batch) -> None:
        for name, maps in batch.maps.items():
            values = maps.transpose(0, 1).flatten(1).double()
            self.sums[name] = self.sums.get(name, 0) + values.sum(1)
            self.products[name] = self.products.get(name, 0) + values @ values.T
            self.counts[name] = self.counts.get(name, 0) + values.shape[1]

    def of(self, name: str, where: Tensor) -> Tensor:
        mean = self.sums[name] / self.counts[name]
        return self.products[name] / self.counts[name] - mean.outer(mean)


class InputGram(Kind):
    def start(self, network: Network) -> None:
        self.network = network
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def see(self, batch: Batch) -> None:
        for name, inputs in batch.inputs.items():
            layer = self.network.layers[name]
            seen = _patches(name, layer, inputs)
            groups = getattr(layer, "groups", 1)
            rows = rearrange(seen, "b (g i) k l -> g (i k) (b l)", g=groups)
            self.totals[name] = self.totals.get(name, 0) + (rows @ rows.mT).double()
            self.counts[name] = self.counts.get(name, 0) + rows.shape[2]

    def of(self, name: str, where: Tensor) -> Tensor:
        return self.totals[name] / self.counts[name]


class Patches(Kind):
    def start(self, network: Network) -> None:
        self.network = network
        self.found: dict[str, list[Tensor]] = {name: [] for name in network.layers}

    def see(self, batch: Batch) -> None:
        for name, inputs in batch.inputs.items():
            layer = self.network.layers[name]
            if getattr(layer, "groups", 1) > 1:
                raise ValueError(
                    f"layer {name!r} is a grouped convolution: its filters see different patches"
                )
            seen = _patches(name, layer, inputs)
            chosen = torch.randint(
                seen.shape[3], (len(seen), 1, 1, PATCHES), generator=self.network.generator
            ).to(seen.device)
            taken = seen.gather(3, chosen.expand(-1, *seen.shape[1:3], -1))
            self.found[name].append(rearrange(taken, "b i k s -> (b s) i k"))

    def of(self, name: str, where: Tensor) -> Tensor:
        return torch.cat(self.found[name])


class SilencedLoss(Kind):
    """A filter that has lost all its weights is silenced behind its batch norm, too."""

    def start(self, network: Network) -> None:
        self.network = network
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []

    def see(self, batch: Batch) -> None:
        missing = SILENCED_PICTURES - sum(map(len, self.images))
        if missing > 0:
            self.images.append(batch.images[:missing])
            self.labels.append(batch.labels[:missing])

    def of(self, name: str, where: Tensor) -> Tensor:
        # A copy, so that the caller's network is whole if this is stopped half-way.
        model = copy.deepcopy(self.network.model).eval()
        layer, norm = model.get_submodule(name), self.network.traced[1][name].norm
        stored = model.get_parameter(_stored_name(name, layer)).data
        host = None if norm is None else model.get_submodule(norm)
        scale_and_shift = [] if host is None or not host.affine else [host.weight.data, host.bias.data]
        before = [tensor.clone() for tensor in (stored, *scale_and_shift)]
        filters = positions(find("granularity", "filter"), layer)
        images, labels = torch.cat(self.images), torch.cat(self.labels)
        dense = F.cross_entropy(model(images), labels)
        losses = []
        hidden = not self.network.progress
        for group in tqdm(where, desc=f"silencing {name}", leave=False, delay=2, disable=hidden):
            silent = before[0].flatten().clone()  # flatten alone may be a view
            silent[group] = 0
            stored.copy_(silent.view(stored.shape))
            dead = (matrix(layer.weight, filters) == 0).all(1)
            for tensor, value in zip(scale_and_shift, before[1:], strict=True):
                tensor.copy_(value.masked_fill(dead, 0))
            losses.append(F.cross_entropy(model(images), labels))
        return torch.stack(losses) - dense


KINDS: dict[str, type[Kind]] = {
    "generator": Generator,
    "gradients": Gradients,
    "batch_gradients": BatchGradients,
    "fisher": Fisher,
    "hessian_diagonal": HessianDiagonal,
    "hessian_gradient": HessianGradient,
    "synflow": SynFlow,
    "movement": Movement,
    "norm_scale": NormScale,
    "gates": Gates,
    "maps": PerBatch,
    "map_gradients": PerBatch,
    "perturbed_maps": PerBatch,
    "pooled": Pooled,
    "labels": Labels,
    "covariance": Covariance,
    "input_gram": InputGram,
    "patches": Patches,
    "silenced_loss": SilencedLoss,
}
