"""Which channels of a network stand or fall together: every channel has a name, and names flow through the
network.

The network is run once, but its tensors hold **ids** instead of values. A convolution makes a fresh id for
each of its filters; batch norm, activations and pooling pass ids on; an addition unites the ids that meet in
it (what is added must be removed together); concatenation, slicing and reshaping arrange ids as they arrange
values. United ids form a **class**: the smallest thing that can be removed. No id tensor takes memory for its
rows and columns: a channel's id is one number, expanded.

Nothing is guessed. Where an operation mixes channels so that none of them can leave without a trace (softmax,
attention, layer norm), or is not known here, the channels that go into it are **pinned**: they stay, and
:attr:`Channels.pins` says at which operation and why.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from prunelab import operations as ops
from prunelab.basics import evaluating
from prunelab.tracing import Constant, Runner, TraceError, flat

Example = Tensor | tuple[Tensor, ...]


def inputs(example: Example) -> tuple[Tensor, ...]:
    """What the network is called with."""
    return example if isinstance(example, tuple) else (example,)


class Pin(NamedTuple):
    """Channels that stay whatever a criterion says: the operation that they go into, ``view in 'head'`` (in
    the forward function of that module) or ``'head.0' (Softmax)``, and why it needs all of them.
    """

    where: str
    reason: str
    ids: Tensor


@dataclass
class Layer:
    """A module that has one slice of parameters per channel.

    Attributes:
        inputs: ``(in,)`` id of each input channel (of each input feature for a linear layer).
        outputs: ``(out,)`` id of each output channel; for a norm the same as ``inputs``.
        makes: its filters make (or, if depthwise, remake) the channels, so they count when a channel is
            scored.
        reads: the dimension of its weight that runs over input channels, none for norms and depthwise layers.
        macs: multiply-accumulates of its part of one forward pass of one picture.
    """

    inputs: Tensor
    outputs: Tensor
    makes: bool
    reads: int | None = None
    macs: int = 0


@dataclass
class Channels:
    """What :func:`trace` found.

    Attributes:
        layers: by module name, in the order in which the network uses them.
        slices: for each parameter and buffer that has channels, by name: the ids along a dimension.
        counts: for each module attribute that is a number of channels, ``(module, attribute)``: what it
            counts.
        pads: for each padding module that adds constant channels, the ids of (front, back).
        classes: ``(ids,)`` the class of each id, numbered from 0.
        free: ``(classes,)`` bool, true where the class may be removed: it has a maker, is neither input nor
            output, and is not pinned.
        pins: what is pinned, where and why.
        constants: ``(ids,)`` float64, the value that a channel has wherever it carries this id once its
            filter is silenced: 0, except behind operations that turn 0 into something else (a sigmoid).
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    slices: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    counts: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    pads: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    classes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    free: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    pins: list[Pin] = field(default_factory=list)
    constants: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def makers(self) -> dict[str, Tensor]:
        """For each layer that makes channels, ``(out,)`` the class of each of its filters."""
        return {name: self.classes[layer.outputs] for name, layer in self.layers.items() if layer.makes}

    def pinned(self) -> str:
        """One line for each operation that pins channels, for messages."""
        return "\n".join(f"  {pin.where}: {pin.reason} ({len(pin.ids)} channels)" for pin in self.pins)


def trace(model: nn.Module, example: Example, *, zeroed: bool = False) -> Channels:
    """Follow the channels of ``model`` from input to output.

    Args:
        model: any network that ``torch.fx`` can trace.
        example: one input, such as ``(1, 3, 32, 32)``, or a tuple of them; only shapes matter.
        zeroed: what a removed filter is taken for: false, *silenced* (its output is zero, behind its batch
            norm); true, *zeroed*, as :func:`~prunelab.sparsify` zeroes it: its bias and its batch norm's
            shift still arrive behind it, as a constant.
    Raises:
        TraceError: the forward function branches on data.
    """
    shapes = [(1, *item.shape[1:]) for item in inputs(example)]
    follower = _Follower(model, zeroed)
    follower.follow(shapes)
    if follower.unreached():  # heads that only training uses (Inception's) read channels, too
        try:
            follower.follow(shapes, training=True)
        except TraceError:  # such a head cannot be followed, and half of its way is no use
            follower = _Follower(model, zeroed)
            follower.follow(shapes)
    return follower.result()


class _Size(int):
    """A size that shrinks with the channels that it counts, and the ids of these."""

    ids: Tensor

    @classmethod
    def of(cls, size: int, ids: Tensor) -> _Size:
        result = cls(size)
        result.ids = ids
        return result


NEEDED = "the operation needs all of them"
FIXED = 0  # the one id of everything that is never removed: pictures, positions, mixtures


class _Follower(Runner):
    """Runs a network on ids, and knows what each operation does to them.

    Every value is an integer tensor of the shape that the network's value would have (for one picture) and
    says which channel stands where.
    """

    def __init__(self, model: nn.Module, zeroed: bool):
        super().__init__(model)
        self.zeroed = zeroed
        self.found = Channels()
        self.ids = 1  # how many there are; the first is FIXED
        self.united = [(self.fixed([1]), self.fixed([1]))]  # ids of one class, pair by pair
        self.constants = torch.zeros(1024, dtype=torch.float64)  # by id: a channel whose filter is gone
        self.all_zero = True
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.tensors: dict[int, Constant] = {}  # by id(): where a parameter was met first
        self.outside: set[int] = set()  # parameters that are used by themselves, too
        self.reached: set[str] = set()  # names of modules and parameters
        self.needed = [self.fixed([1])]  # ids that stay: what the network returns
        self.again = False  # in training mode, behind evaluation: what counts was counted

    @torch.no_grad()
    def follow(self, shapes: Iterable[Sequence[int]], *, training: bool = False) -> None:
        self.again = training
        results = self.run([self.fixed(shape) for shape in shapes], training=training)
        self.needed += [_narrowed(ids)[0].flatten() for ids in _tensors(results)]

    def unreached(self) -> bool:
        """Whether there are parameters that evaluation does not use."""
        for name, _ in self.model.named_parameters(remove_duplicate=False):
            while name and name not in self.reached:  # nor the module around it
                name = name.rpartition(".")[0]
            if not name:
                return True
        return False

    def constant(self, tensor: Tensor) -> Constant:
        """A tensor that the network's own code uses."""
        result = super().constant(tensor)
        self.reached.add(result.name)
        return result

    def result(self) -> Channels:
        found = self.found
        for name, dimensions in found.slices.items():
            if id(self.tensor(name)) in self.outside:
                owner = name.rpartition(".")[0]
                self.at = owner, self.modules[owner]
                for ids in dimensions.values():
                    self.pin(ids, f"{name} is also used outside its layer")
        count, classes = _components(self.ids, self.united)
        found.classes = torch.from_numpy(classes)
        found.constants = self.constants[: self.ids]
        found.free = torch.zeros(count, dtype=torch.bool)
        made = [layer.outputs for layer in found.layers.values() if layer.makes]
        stay = [*self.needed, *(pin.ids for pin in found.pins)]
        found.free[found.classes[torch.cat([self.fixed([0]), *made])]] = True
        found.free[found.classes[torch.cat(stay)]] = False
        return found

    # -- ids

    def fresh(self, count: int) -> Tensor:
        self.ids += count
        if self.ids > len(self.constants):
            self.constants = F.pad(self.constants, (0, self.ids + len(self.constants)))
        return torch.arange(self.ids - count, self.ids)

    @staticmethod
    def fixed(shape: Iterable[int]) -> Tensor:
        return torch.full((), FIXED).expand(tuple(shape))

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Put the ids that stand at equal places into one class."""
        if left is not right:
            if left.shape != right.shape:
                left, right = torch.broadcast_tensors(left, right)
            left, right = _narrowed(left, right)
            self.united.append((left.flatten(), right.flatten()))

    def pin(self, ids: Tensor, reason: str) -> None:
        ids = _narrowed(ids)[0].unique()
        ids = ids[ids != FIXED]
        if self.again:
            ids = ids[~torch.isin(ids, torch.cat([pin.ids for pin in self.found.pins] or [ids[:0]]))]
        if len(ids):
            self.found.pins.append(Pin(self.where(), reason, ids))

    def vector(self, ids: Tensor, dimension: int = 1) -> Tensor:
        """The id of each channel, ``(channels,)``. Where its positions come from several channels, these can
        only go together.
        """
        if hasattr(ids, "channels") and dimension == 1:
            return ids.channels
        whole = ids
        for other in range(ids.dim()):
            if other != dimension % ids.dim():
                ids = ids.narrow(other, 0, 1)
        if _varies_beside(whole, dimension):
            self.unite(whole, ids.expand_as(whole))
            if not torch.equal(*(self.values(_narrowed(item)[0]) for item in (whole, ids.expand_as(whole)))):
                self.pin(whole, "its positions come from different channels")
        return ids.flatten()

    # -- what a channel is worth once its filter is gone

    def values(self, ids: Tensor) -> Tensor:
        """The constant of each id, float64."""
        return self.constants[ids]

    def valued(self, ids: Tensor, values: Tensor) -> Tensor:
        """The same channels with other constants: other ids of the same classes."""
        if torch.equal(values, self.values(ids)):
            return ids
        if not values.isfinite().all():
            self.pin(ids, "a removed channel would have no finite value behind it")
            return self.fixed(ids.shape)
        self.all_zero = False
        olds, news = ids.flatten(), values.flatten()
        if ids.dim() > 1:  # a channel at several places, not always with the same constant
            pairs, places = torch.stack([olds.double(), news]).unique(dim=1, return_inverse=True)
            olds, news = pairs[0].long(), pairs[1]
        fresh = self.fresh(len(olds))
        self.constants[fresh] = news
        self.unite(olds, fresh)
        fresh = fresh[places].view(ids.shape) if ids.dim() > 1 else fresh
        return torch.where(ids == FIXED, FIXED, fresh)

    def silent(self, ids: Tensor) -> Tensor:
        """The same channels where they are zero once their filter is gone."""
        return ids if self.all_zero else self.valued(ids, torch.zeros_like(ids, dtype=torch.float64))

    def elementwise(self, function: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
        if self.all_zero and function(torch.zeros((), dtype=torch.float64)) == 0:
            return ids
        if hasattr(ids, "channels"):
            return _spread(self.valued(ids.channels, function(self.values(ids.channels))), ids.shape[2:])
        small = _narrowed(ids)[0]
        return self.valued(small, function(self.values(small))).expand(ids.shape)

    def need(self, value: float, ids: Tensor, reason: str) -> None:
        """Pin the channels that are not ``value`` when their filter is gone, where that would be seen."""
        if value or not self.all_zero:
            small = _narrowed(ids)[0]
            other = small[self.values(small) != value]
            if len(other):
                self.pin(other, reason)

    # -- operations

    def module(self, name: str, module: Any, args: tuple, kwargs: dict) -> Any:
        self.reached.add(name)
        ids = args[0] if args else None
        if not isinstance(ids, Tensor):
            self.outside.update(map(id, module.parameters()))
            return self.whole(module, args, kwargs, "the module needs all of them")
        if isinstance(module, (*ops.CONVOLUTIONS, *ops.TRANSPOSED)):
            transposed = isinstance(module, ops.TRANSPOSED)
            arguments = (module.stride, module.padding, module.dilation)
            extra = module.output_padding if transposed else ()
            zeros = module.padding_mode == "zeros"
            weight, bias = self.parameters(name, module)
            return self.convolution(ids, weight, bias, module.groups, *arguments, extra, transposed, zeros)
        if isinstance(module, nn.Linear):
            return self.linear(ids, *self.parameters(name, module))
        if ops.normalises(module) or isinstance(module, nn.PReLU | nn.GroupNorm):
            return self.norm(name, module, ids)
        if ops.passes(module):
            return ids
        if isinstance(module, ops.ACTIVATIONS):
            return self.elementwise(module, ids)
        if isinstance(module, ops.POOLS):
            return self.resized(ids, module)
        if isinstance(module, ops.AVERAGE_POOLS):
            self.need(0, ids, "its padding counts as zeros")
            return self.resized(ids, module)
        if isinstance(module, ops.PADS):
            return self.pad(ids, module.padding, module.value, name)
        if isinstance(module, nn.Flatten):
            return module(ids)
        if isinstance(module, nn.Unflatten):
            return self.unflatten(ids, module.dim, tuple(module.unflattened_size))
        if isinstance(module, nn.ChannelShuffle):
            return self.channel_shuffle(ids, module.groups)
        if isinstance(module, nn.PixelShuffle):
            return self.pixel_shuffle(ids, module.upscale_factor)
        return self.whole(module, args, kwargs, f"a {type(module).__name__} needs all of them")

    def operation(self, name: str, target: Callable, args: tuple, kwargs: dict) -> Any:
        items = flat((args, kwargs))
        sizes = [item for item in items if isinstance(item, _Size)]
        if not any(isinstance(item, Tensor) for item in items):
            if sizes and name in ops.SIZE_ARITHMETIC and not kwargs:
                return _Size.of(target(*map(int, args)), torch.cat([size.ids for size in sizes]))
            if name == "getitem" and not isinstance(args[0], Constant):  # one of several sizes
                return operator.getitem(*args)
            return self.whole(target, args, kwargs)
        handler = getattr(self, f"op_{name}", None)
        if handler is not None:
            return handler(*args, **kwargs)
        ids = args[0] if args else None
        if name in ops.PASS_FUNCTIONS:
            return ids
        if name in ops.ARITHMETIC:
            self.pin_sizes(sizes)
            return self.merge(target, name, *args, **kwargs)
        if not isinstance(ids, Tensor):
            return self.whole(target, args, kwargs)
        if name in ops.ELEMENTWISE:
            if all(isinstance(item, (int, float, type(None))) for item in items[1:]):
                self.pin_sizes(sizes)
                return self.elementwise(lambda values: target(values, *args[1:], **kwargs), ids)
        elif name in ops.POOL_FUNCTIONS | ops.AVERAGE_POOL_FUNCTIONS:
            if name in ops.AVERAGE_POOL_FUNCTIONS:
                self.need(0, ids, "its padding counts as zeros")
            return self.resized(ids, lambda x: target(x, *args[1:], **kwargs))
        elif name in ops.MOVES:
            return target(*args, **kwargs)
        elif name in ops.CONVOLUTION_FUNCTIONS and self.is_layer(*args[1:3]):
            return self.functional_convolution(*args, **kwargs)
        return self.whole(target, args, kwargs)

    def whole(self, target: Callable, args: Any, kwargs: Any, reason: str = NEEDED) -> Any:
        """An operation that mixes channels, or is not known: what goes in stays, and what comes out is fixed.
        What does not depend on the picture is computed as it is.
        """
        items = flat((args, kwargs))
        followed = [item for item in items if isinstance(item, Tensor)]
        for ids in followed:
            self.pin(ids, reason)
        self.pin_sizes(items)
        self.outside.update(id(item.tensor) for item in items if isinstance(item, Constant))
        parameters = (item for item in self.model.parameters() if item.is_floating_point())
        like = next(parameters, torch.zeros(()))

        def given(item: Any) -> Any:  # of a picture, only the shape of what comes out matters
            return like.new_zeros(item.shape) if isinstance(item, Tensor) else _plain(item)

        def found(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            return self.fixed(item.shape) if followed else Constant("", item)

        plain, named = _map((args, kwargs), given)
        return _map(target(*plain, **named), found)

    def pin_sizes(self, items: Iterable[Any]) -> None:
        for item in items:
            if isinstance(item, _Size):
                self.pin(item.ids, "how many there are enters into the values")

    # -- layers

    def tensor(self, name: str) -> Any:
        owner, _, kind = name.rpartition(".")
        return getattr(self.modules[owner], kind)

    @staticmethod
    def parameters(name: str, module: nn.Module) -> tuple[Any, Any]:
        """A layer's weight, and its bias if it has one."""
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        return Constant(f"{name}.weight", weight), None if bias is None else Constant(f"{name}.bias", bias)

    def slice(self, item: Constant | None, dimensions: dict[int, Tensor]) -> None:
        """Note which ids run along a parameter. One that is used again, or that two layers share, ties what
        it meets now to what it met first.
        """
        if item is None:
            return
        first = self.tensors.setdefault(id(item.tensor), item).name
        self.found.slices.setdefault(item.name, dimensions)
        for dimension, ids in dimensions.items():
            self.unite(self.found.slices[first][dimension], ids)

    def layer(
        self, weight: Constant, inputs: Tensor, outputs: Tensor, reads: int | None, macs: int
    ) -> Tensor:
        """Note a layer, and return its outputs: those of its first use, if this is another."""
        name = weight.name.removesuffix(".weight")
        layer = self.found.layers.setdefault(name, Layer(inputs, outputs, True, reads))
        layer.macs += 0 if self.again else macs
        return layer.outputs

    def linear(self, ids: Tensor, weight: Constant, bias: Constant | None) -> Tensor:
        inputs = self.vector(ids, -1)
        macs = weight.tensor.numel() * (ids[..., 0].numel())
        outputs = self.layer(weight, inputs, self.made(weight, 0, bias), 1, macs)
        self.slice(weight, {0: outputs, 1: inputs})
        self.slice(bias, {0: outputs})
        self.count(weight, in_features=inputs, out_features=outputs)
        return outputs.expand(*ids.shape[:-1], -1)

    def made(self, weight: Constant, dimension: int, bias: Constant | None, groups: int = 1) -> Tensor:
        """Fresh ids for what a layer makes."""
        outputs = self.fresh(weight.tensor.shape[dimension] * groups)
        return self.left_behind(outputs, bias)

    def left_behind(self, outputs: Tensor, bias: Constant | None) -> Tensor:
        """What a layer's filters leave when they are gone: nothing, or, if only zeroed, their bias."""
        if self.zeroed and bias is not None:
            return self.valued(outputs, bias.tensor.detach().double().cpu())
        return self.silent(outputs)

    def count(self, weight: Constant, **attributes: Tensor) -> None:
        owner = weight.name.rpartition(".")[0]
        for attribute, ids in attributes.items():
            self.found.counts.setdefault((owner, attribute), ids)

    def is_layer(self, weight: Any, bias: Any = None) -> bool:
        """Whether a functional layer is the body of a module of its kind, with the module's own tensors."""
        owner, _, kind = weight.name.rpartition(".") if isinstance(weight, Constant) else ("", "", "")
        module = self.modules[owner]
        kinds = (*ops.CONVOLUTIONS, nn.Linear)
        return kind == "weight" and isinstance(module, kinds) and (bias is None or bias.tensor is module.bias)

    def functional_convolution(
        self, ids: Tensor, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        def each(value: Any) -> Any:
            return (value,) * (ids.dim() - 2) if isinstance(value, int) else value

        arguments = (each(stride), each(padding), each(dilation))
        return self.convolution(ids, weight, bias, groups, *arguments)

    def convolution(
        self, ids: Tensor, weight: Constant, bias: Constant | None, groups: int, stride: Any, padding: Any,
        dilation: Any, extra: Any = (), transposed: bool = False, zeros: bool = True,
    ) -> Tensor:  # fmt: skip
        inputs = self.vector(ids)
        kernel = weight.tensor.shape[2:]
        depthwise = groups == len(inputs) > 1
        if depthwise:  # a filter remakes the one channel that it sees
            count = weight.tensor.shape[1] if transposed else weight.tensor.shape[0] // groups
            outputs = self.left_behind(inputs.repeat_interleave(count), bias)
        else:
            outputs = self.made(weight, 1, bias, groups) if transposed else self.made(weight, 0, bias)
            padded = zeros and padding != "valid" and any(pad != 0 for pad in padding)
            if transposed or padded:
                self.need(0, inputs, "at the border, where it pads, no bias makes up for a constant")
        if groups > 1 and not depthwise:  # every group keeps as many: equal places of all go together
            for channels in (inputs, outputs):
                places = channels.view(groups, -1)
                self.unite(places[:1], places)
        if transposed:
            area = [
                (size - 1) * hop - 2 * pad + step * (width - 1) + more + 1
                for size, hop, pad, step, width, more in zip(
                    ids.shape[2:], stride, padding, dilation, kernel, extra
                )
            ]
            positions = ids[0, 0].numel()
        else:
            area = ops.space(ids.shape[2:], kernel, stride, padding, dilation)
            positions = math.prod(area)
        into = None if depthwise else int(not transposed)
        outputs = self.layer(weight, inputs, outputs, into, weight.tensor.numel() * positions)
        if depthwise:
            self.slice(weight, {0: inputs if transposed else outputs})
        elif transposed:
            self.slice(weight, {0: inputs, 1: outputs[: len(outputs) // groups]})
        else:
            self.slice(weight, {0: outputs, 1: inputs[: len(inputs) // groups]})
        self.slice(bias, {0: outputs})
        self.count(
            weight, in_channels=inputs, out_channels=outputs, **({"groups": inputs} if depthwise else {})
        )
        return _spread(outputs, area)

    def norm(self, name: str, module: Any, ids: Tensor) -> Any:
        channels = self.vector(ids)
        outputs = channels
        if isinstance(module, nn.GroupNorm):
            places = channels.view(module.num_groups, -1)
            self.unite(places[:, :1], places)  # statistics are those of a group: it goes whole
            self.found.counts.setdefault((name, "num_groups"), places[:, 0])
        tensors = {**module._parameters, **module._buffers}
        for kind, tensor in tensors.items():
            if tensor is not None and tensor.shape[:1] == channels.shape:
                self.slice(Constant(f"{name}.{kind}", tensor), {0: channels})
        for attribute in ("num_features", "num_channels", "num_parameters"):
            if module.__dict__.get(attribute) == channels.numel() > 1:
                self.found.counts.setdefault((name, attribute), channels)
        if isinstance(module, nn.PReLU):
            self.need(0, ids, "a PReLU turns its constant into another")
            if len(module.weight) == 1:
                return ids
        elif self.zeroed and tensors.get("running_mean") is not None:
            with evaluating(module):
                shape = (1, -1, *[1] * (ids.dim() - 2))
                values = self.values(channels).to(tensors["running_mean"]).view(shape)
                outputs = self.valued(channels, module(values).flatten().double().cpu())
        elif self.zeroed:
            self.pin(channels, "what its zeros become depends on the picture")
        else:
            outputs = self.silent(channels)
        self.found.layers.setdefault(name, Layer(channels, outputs, makes=False))
        return ids if outputs is channels else _spread(outputs, ids.shape[2:])

    # -- operations that combine or move channels

    def merge(self, target: Callable, name: str, left: Any, right: Any, **named: Any) -> Any:
        """Sums, products and quotients of two values, or of a value and a number."""
        args = (left, right)
        numbers = [None if isinstance(item, Tensor) else _number(item) for item in args]
        if numbers[1] is not None and not named:
            return self.elementwise(lambda values: target(values, numbers[1]), left)
        if numbers[0] is not None and not named:
            return self.elementwise(lambda values: target(numbers[0], values), right)
        if named or name in ops.QUOTIENTS or not all(isinstance(item, Tensor) for item in args):
            return self.whole(target, args, named)
        plain = all(hasattr(item, "channels") for item in args) and left.dim() == right.dim()
        if plain and left.shape[1] == right.shape[1] > 1:  # the common case, without further ado
            one, other = left.channels, right.channels
            self.unite(one, other)
            if not self.all_zero:
                one = self.valued(one, target(self.values(one), self.values(other)))
            return _spread(one, [max(sizes) for sizes in zip(left.shape[2:], right.shape[2:])])
        left, right = torch.broadcast_tensors(*args)
        covers = [True, True]
        for dimension in range(-left.dim(), 0):
            varies = [_varies(item, dimension) for item in (left, right)]
            if varies[0] == varies[1]:
                continue
            one, other = (left, right) if varies[0] else (right, left)
            covers[0 if one is right else 1] = False
            source = args[1 if one is left else 0]
            alone = source.dim() < -dimension or source.shape[dimension] == 1
            self.pin(other, "one channel meets many")
            if not (alone and name in ops.PRODUCTS):
                self.pin(one, "many channels meet one")
        if not any(covers):
            return self.whole(target, args, {})
        if all(covers):
            self.unite(left, right)
        small = _narrowed(left, right)
        kept = small[0] if covers[0] else small[1]
        if not self.all_zero:
            kept = self.valued(kept, target(*(self.values(item) for item in small)))
        return kept.expand(left.shape)

    def op_cat(self, tensors: Any, dim: int = 0, **named: Any) -> Tensor:
        dim = named.get("axis", dim)
        tensors = [self.fixed(item.tensor.shape) if isinstance(item, Constant) else item for item in tensors]
        if dim == 1 and all(hasattr(item, "channels") for item in tensors):  # the common case
            return _spread(torch.cat([item.channels for item in tensors]), tensors[0].shape[2:])
        for item in tensors[1:]:
            self.alike(tensors[0], item, beside=dim)
        return torch.cat(tensors, dim)

    op_concat = op_concatenate = op_cat

    def op_stack(self, tensors: Any, dim: int = 0) -> Tensor:
        for item in tensors[1:]:
            self.unite(tensors[0], item)
        return torch.stack(list(tensors), dim)

    def alike(self, one: Tensor, other: Tensor, beside: int) -> None:
        """Tensors that are put side by side must keep equal sizes along the other dimensions."""
        first, second = one.narrow(beside, 0, 1), other.narrow(beside, 0, 1)
        if any(_varies(item, d) for item in (first, second) for d in range(item.dim())):
            self.unite(first, second)

    def op_chunk(self, ids: Tensor, chunks: int, dim: int = 0) -> Any:
        if _varies(ids, dim):
            self.places(ids, -(-ids.shape[dim] // chunks), dim)
        return torch.chunk(ids, chunks, dim)

    def op_split(self, ids: Tensor, split_size: Any, dim: int = 0, **named: Any) -> Any:
        sizes = named.get("split_size_or_sections", split_size)
        if _varies(ids, dim):
            listed = list(sizes) if isinstance(sizes, tuple | list) else [sizes]
            if all(isinstance(size, _Size) for size in listed) and len({int(size) for size in listed}) == 1:
                self.places(ids, int(listed[0]), dim)
            else:
                self.pin(ids, f"its parts have the fixed sizes {[int(size) for size in listed]}")
        return torch.split(ids, sizes, dim)

    def places(self, ids: Tensor, size: int, dim: int) -> None:
        """Cut into parts of ``size``: each keeps as many, so equal places of all parts go together."""
        if ids.shape[dim] % size:
            self.pin(ids, f"{ids.shape[dim]} channels cannot be cut into equal parts of {size}")
            return
        first, *rest = torch.split(ids, size, dim)
        for part in rest:
            self.unite(first, part)

    def op_getitem(self, ids: Any, index: Any) -> Any:
        if not isinstance(ids, Tensor):
            return operator.getitem(ids, index)
        indices = list(index) if isinstance(index, tuple) else [index]
        if any(isinstance(item, Tensor | Constant | list) for item in indices):
            return self.whole(operator.getitem, (ids, index), {}, "they are picked by an index")
        consumed = sum(item is not None and item is not Ellipsis for item in indices)
        dimension = 0
        for item in indices:
            if item is None:
                continue
            if item is Ellipsis:
                dimension += ids.dim() - consumed
                continue
            if item != slice(None) and _varies(ids, dimension):
                self.cut(ids, item, dimension)
            dimension += 1
        return ids[index]

    def cut(self, ids: Tensor, item: Any, dimension: int) -> None:
        """A part of the channels: equal halves and the like can shrink, fixed numbers cannot."""
        if isinstance(item, slice) and item.step is None:
            bounds = [bound for bound in (item.start, item.stop) if bound is not None and bound != 0]
            if bounds and all(isinstance(bound, _Size) for bound in bounds):
                self.places(ids, min(int(bound) for bound in bounds), dimension)
                return
        self.pin(ids, "they are picked by fixed numbers")

    def op_view(self, ids: Tensor, *sizes: Any, shape: Any = None) -> Any:
        sizes = shape if shape is not None else sizes
        if len(sizes) == 1 and not isinstance(sizes[0], int):
            sizes = sizes[0]
        if len(sizes) == 1 and isinstance(sizes[0], torch.dtype):
            return ids
        moved = ids.reshape(tuple(int(size) for size in sizes))
        varying = [d for d in range(moved.dim()) if _varies(moved, d)]
        rigid = [d for d in varying if not (isinstance(sizes[d], _Size) or sizes[d] == -1)]
        if rigid == varying and rigid:
            self.pin(moved, f"it is given the fixed sizes {[int(size) for size in sizes]}")
        else:  # the other dimensions shrink, equally at every place of the rigid ones
            for d in rigid:
                self.unite(moved, moved.narrow(d, 0, 1))
        return moved

    op_reshape = op_view

    def op_flatten(self, ids: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        return torch.flatten(ids, start_dim, end_dim)

    def unflatten(self, ids: Tensor, dim: int, sizes: tuple) -> Tensor:
        dim %= ids.dim()
        return self.op_view(ids, (*self.op_size(ids)[:dim], *sizes, *self.op_size(ids)[dim + 1 :]))

    op_unflatten = unflatten

    def channel_shuffle(self, ids: Tensor, groups: int) -> Tensor:
        self.places(ids, ids.shape[1] // groups, 1)
        parts = ids.reshape(1, groups, -1, *ids.shape[2:]).transpose(1, 2)
        return parts.reshape(ids.shape)

    op_channel_shuffle = channel_shuffle

    def pixel_shuffle(self, ids: Tensor, upscale_factor: int) -> Tensor:
        channels = self.vector(ids).view(-1, upscale_factor**2)
        self.unite(channels, channels[:, :1])  # they become the pixels of one channel
        return _spread(channels[:, 0], [size * upscale_factor for size in ids.shape[2:]])

    op_pixel_shuffle = pixel_shuffle

    def op_roll(self, ids: Tensor, shifts: Any, dims: Any = None) -> Any:
        listed = dims if isinstance(dims, tuple | list) else [dims]
        if dims is None or any(_varies(ids, d) for d in listed):
            return self.whole(torch.roll, (ids, shifts, dims), {}, "they are rolled by a fixed number")
        return ids

    def op_expand(self, ids: Tensor, *sizes: Any) -> Tensor:
        sizes = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        for d in range(-ids.dim(), 0):
            if _varies(ids, d) and not (isinstance(sizes[d], _Size) or sizes[d] == -1):
                self.pin(ids, f"it is given the fixed sizes {[int(size) for size in sizes]}")
        return ids.expand(*(int(size) for size in sizes))

    def op_mean(self, ids: Tensor, dim: Any = None, keepdim: bool = False, **named: Any) -> Any:
        dim = named.pop("axis", dim)
        listed = range(ids.dim()) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        if any(_varies(ids, d) for d in listed) or named:
            return self.whole(torch.mean, (ids, dim, keepdim), named, "they are averaged")
        for d in sorted((d % ids.dim() for d in listed), reverse=True):
            ids = ids.narrow(d, 0, 1) if keepdim else ids.select(d, 0)
        return ids

    def op_sum(self, ids: Tensor, dim: Any = None, keepdim: bool = False, **named: Any) -> Any:
        self.need(0, ids, "a sum of constants depends on how many there are")
        return self.op_mean(ids, dim, keepdim, **named)

    def op_prelu(self, ids: Tensor, weight: Any) -> Any:
        if isinstance(weight, Constant) and weight.tensor.numel() == 1:
            self.outside.add(id(weight.tensor))
            return ids
        return self.whole(F.prelu, (ids, weight), {})

    def op_pad(self, ids: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
        return self.pad(ids, pad, value or 0.0, mode=mode)

    def pad(self, ids: Tensor, padding: Any, value: float, name: str = "", mode: str = "constant") -> Tensor:
        """Constant channels in front and behind (they can go, where the padding is a module's), and borders,
        which are seen as the same everywhere.
        """
        channels, spatial = self.vector(ids), 2 * (ids.dim() - 2)
        if mode == "constant" and any(padding[:spatial]):
            self.need(value, channels, f"it is padded with {value:g}, no longer one constant")
        if len(padding) > spatial and any(padding[spatial:]):
            front, back = (self.fresh(padding[spatial + side]) for side in (0, 1))
            if value or not name:  # only zeros are zero when they are gone, only a module's number can change
                front, back = torch.zeros_like(front), torch.zeros_like(back)
            else:
                self.found.pads[name] = (front, back)
            channels = torch.cat([front, channels, back])
        borders = torch.zeros(1, 1, *ids.shape[2:])
        return _spread(channels, F.pad(borders, tuple(padding[:spatial]), mode).shape[2:])

    def resized(self, ids: Tensor, pool: Callable) -> Any:
        pooled = pool(torch.zeros(1, 1, *ids.shape[2:]))  # only its size matters: one channel will do
        if not isinstance(pooled, Tensor):
            return self.whole(pool, (ids,), {})
        return _spread(self.vector(ids), pooled.shape[2:])

    def op_linear(self, ids: Tensor, weight: Any, bias: Any = None) -> Any:
        if isinstance(ids, Tensor) and self.is_layer(weight, bias):
            return self.linear(ids, weight, bias)
        return self.whole(F.linear, (ids, weight, bias), {})

    # -- facts about a value

    def op_size(self, ids: Tensor, dim: int | None = None) -> Any:
        def size(d: int) -> int:
            channels = _narrowed(ids.movedim(d, 0))[0].flatten().unique() if _varies(ids, d) else None
            return ids.shape[d] if channels is None else _Size.of(ids.shape[d], channels)

        return size(dim) if dim is not None else tuple(size(d) for d in range(ids.dim()))

    def op_getattr(self, ids: Tensor, attribute: str) -> Any:
        if attribute == "shape":
            return self.op_size(ids)
        tensor = next(self.model.parameters())
        facts = {"ndim": ids.dim(), "device": tensor.device, "dtype": tensor.dtype, "is_cuda": tensor.is_cuda}
        if attribute not in facts:
            raise TraceError(f"the attribute {attribute!r} of a value is not understood (at {self.where()})")
        return facts[attribute]

    def op_dim(self, ids: Tensor) -> int:
        return ids.dim()


def _components(count: int, pairs: list[tuple[Tensor, Tensor]]) -> tuple[int, np.ndarray]:
    """Which ids are united by ``pairs`` of vectors, directly or by way of others: how many classes there are,
    and the class of each id, ``(count,)``.
    """
    left, right = (torch.cat(side).numpy() for side in zip(*pairs))
    root = np.arange(count)  # a smaller id of the same class; in the end, the smallest
    while (root[left] != root[right]).any():
        one, other = root[left], root[right]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while (root != root[root]).any():
            root = root[root]
    numbers = np.cumsum(root == np.arange(count)) - 1
    return numbers[-1] + 1, numbers[root]


def _varies(ids: Tensor, dimension: int) -> bool:
    """Whether different channels stand along this dimension, so that it shrinks when some are removed."""
    if ids.shape[dimension] == 1 or ids.stride(dimension) == 0:
        return False
    ids = _narrowed(ids)[0]
    return bool((ids != ids.narrow(dimension, 0, 1)).any())


def _varies_beside(ids: Tensor, dimension: int) -> bool:
    return any(_varies(ids, other) for other in range(ids.dim()) if other != dimension % ids.dim())


def _narrowed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Without the copies: where all of these are expanded, one place stands for all."""
    for dimension in range(tensors[0].dim()):
        if all(item.stride(dimension) == 0 for item in tensors):
            tensors = tuple(item.narrow(dimension, 0, 1) for item in tensors)
    return tensors


def _spread(channels: Tensor, space: Sequence[int]) -> Tensor:
    """``(channels,)`` to ``(1, channels, *space)`` without copies; what it was made from stays at hand."""
    result: Any = channels.view(1, -1, *[1] * len(space)).expand(1, -1, *space)
    result.channels = channels
    return result


_map: Callable[[Any, Callable[[Any], Any]], Any] = fx.node.map_aggregate  # mypy: our values are not fx's


def _plain(item: Any) -> Any:
    if isinstance(item, Constant):
        return item.tensor
    return int(item) if isinstance(item, _Size) else item


def _number(item: Any) -> Any:
    """A number that does not depend on how many channels there are, or nothing."""
    if isinstance(item, Constant):
        return item.tensor.detach().double() if item.tensor.numel() == 1 else None
    return int(item) if isinstance(item, _Size) else item if isinstance(item, int | float) else None


def _tensors(args: Any) -> list[Tensor]:
    return [item for item in flat(args) if isinstance(item, Tensor)]
