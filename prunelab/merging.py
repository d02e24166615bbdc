"""Merging (RED): filters that do the same become one, and the layers behind add up what they did with each.

Pruning forgets what a removed filter did. Merging does not: where two filters are equal, the smaller network
computes exactly what the larger one computes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from prunelab import operations as ops
from prunelab.basics import Network, evaluating
from prunelab.channels import Channels, trace
from prunelab.criteria.correlation import hash_weights
from prunelab.graph import behind
from prunelab.sparsify import finalize, masks
from prunelab.surgery import pruning_record, rebuild


def merge(model: Network, example: Tensor, tolerance: float = 0.0) -> Network:
    r"""Merge filters that are equal: one of them stays, and the weights with which the next layers read the
    others are added to those with which they read it (RED, Yvinec et al., 2021).

    Two channels are equal when everything that makes them is: filter, bias, and the entries of each batch
    norm and depthwise filter that they pass. Channels that are added to others are equal when all filters
    that make the sums are. Merging may make filters of the next layer equal, so it is repeated until nothing
    changes.

    Args:
        model: any network that ``torch.fx`` can trace; left untouched. If it is masked, its zeros are kept as
            weights.
        example: one input, such as ``data.example`` ``(1, 3, 32, 32)``.
        tolerance: two filters, biases, ... count as equal when :math:`\lVert a - b \rVert \le` tolerance
            :math:`\cdot \max(\lVert a \rVert, \lVert b \rVert)`. At 0 the network's function does not change.
    Returns:
        A network of the same class, smaller if there was anything to merge.
    Raises:
        ValueError: the tolerance is not in 0..1.
        TraceError: an operation that is not understood, which is named.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance={tolerance}: must be a relative distance, 0 (exactly equal) to 1")
    result = finalize(model) if masks(model) else copy.deepcopy(model)
    while True:
        channels = trace(result, example)
        into = _representatives(result, channels, tolerance)
        keep = into == torch.arange(len(into))
        if keep.all():
            return result
        _add_columns(result, channels, into)
        channels.constants.zero_()  # nothing is silenced, so no constants are left to make up for
        result = rebuild(result, channels, keep)
        pruning_record(result)["example"] = [[1, *example.shape[1:]]]


def red(model: Network, example: Tensor, tolerance: float = 0.0) -> Network:
    """The data-free compression RED: hash the weights of each layer, then merge the filters that are equal
    (Yvinec et al., 2021).

    A batch norm that directly follows a layer is folded into it first, or its entries would keep filters
    apart whose weights are equal.

    Args:
        model: any network that ``torch.fx`` can trace; left untouched.
        example: one input, such as ``data.example`` ``(1, 3, 32, 32)``.
        tolerance: see :func:`merge`.
    Returns:
        A network of the same class, in which folded batch norms are ``nn.Identity``. Hashing changes its
        function a little, merging at tolerance 0 does not.
    """
    result = fold(finalize(model) if masks(model) else model)
    with torch.no_grad():
        for module in result.modules():
            if isinstance(module, (*ops.CONVOLUTIONS, nn.Linear)):
                tensors = list(module.parameters())
                # weight and bias together: one density of all numbers of a layer
                hashed = hash_weights(torch.cat([tensor.flatten() for tensor in tensors]))
                for tensor, part in zip(tensors, hashed.split([tensor.numel() for tensor in tensors])):
                    tensor.copy_(part.view_as(tensor))
    return merge(result, example, tolerance)


def fold(model: Network) -> Network:
    """A copy in which each batch norm that directly follows a layer has become part of that layer's weights
    and bias; what it computes in evaluation mode stays the same.
    """
    result = copy.deepcopy(model)
    layers = [
        name for name, module in result.named_modules() if isinstance(module, (*ops.CONVOLUTIONS, nn.Linear))
    ]
    graph, found = behind(result, layers)
    uses = [node.target for node in graph.nodes if node.op == "call_module"]
    with evaluating(result):
        for name, after in found.items():
            if after.norm is None or uses.count(name) > 1 or uses.count(after.norm) > 1:
                continue
            layer, norm = result.get_submodule(name), result.get_submodule(after.norm)
            if norm.running_mean is None:  # it measures each batch: there is nothing fixed to fold
                continue
            fuse: Any = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            _replace(result, name, fuse(layer, norm))
            _replace(result, after.norm, nn.Identity())
    for name, module in model.named_modules():  # the new modules were made in evaluation mode
        result.get_submodule(name).training = module.training
    return result


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _representatives(model: nn.Module, channels: Channels, tolerance: float) -> Tensor:
    """For each class of channels the class that it merges into, ``(classes,)``; itself if it stays."""
    into = torch.arange(len(channels.free))
    for members in _alike(channels):
        equal = torch.ones(len(members), len(members), dtype=torch.bool)
        for slices in _slices(model, channels, members):
            distance = torch.cdist(slices, slices, compute_mode="donot_use_mm_for_euclid_dist")
            length = slices.norm(dim=1)
            equal &= (distance <= tolerance * torch.maximum(length, length[:, None])).cpu()
        for j in range(len(members)):
            for i in equal[j, :j].nonzero().flatten().tolist():
                if into[members[i]] == members[i]:  # the first that is equal and stays itself
                    into[members[j]] = members[i]
                    break
    return into


def _alike(channels: Channels) -> list[list[int]]:
    """The removable classes, in sets that appear equally often in each layer: only such can be equal."""
    ids = [ids for layer in channels.layers.values() for ids in (layer.inputs, layer.outputs)]
    ids += [torch.cat(pad) for pad in channels.pads.values()]
    counts = torch.stack([channels.classes[item].bincount(minlength=len(channels.free)) for item in ids], 1)
    sets: dict[tuple[int, ...], list[int]] = {}
    for number in channels.free.nonzero().flatten().tolist():
        sets.setdefault(tuple(counts[number].tolist()), []).append(number)
    return list(sets.values())


def _slices(model: nn.Module, channels: Channels, members: list[int]) -> Iterator[Tensor]:
    """Every tensor's slices that make these classes, ``(members, size)``."""
    for name, layer in channels.layers.items():
        if not torch.isin(channels.classes[layer.outputs], torch.tensor(members)).any():
            continue
        module = model.get_submodule(name)
        for kind, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            for dimension, ids in channels.slices.get(f"{name}.{kind}", {}).items():
                if tensor.dim() == 1 or dimension != layer.reads:
                    classes = channels.classes[ids]
                    rows = torch.stack([(classes == number).nonzero().flatten() for number in members])
                    yield tensor.detach().movedim(dimension, 0)[rows.to(tensor.device)].flatten(1)


def _add_columns(model: nn.Module, channels: Channels, into: Tensor) -> None:
    """Let the layers that read a merged channel read its representative instead."""
    merged = (into != torch.arange(len(into))).nonzero().flatten().tolist()
    for name, layer in channels.layers.items():
        if layer.reads is None:  # a norm, or depthwise: each channel has its own filter, which goes with it
            continue
        weight: Any = model.get_submodule(name).weight
        classes = channels.classes[channels.slices[f"{name}.weight"][layer.reads]]
        with torch.no_grad():
            by_input = weight.movedim(layer.reads, 0)
            for number in merged:
                by_input[classes == into[number]] += by_input[classes == number]
