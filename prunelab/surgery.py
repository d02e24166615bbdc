"""Prune: physically remove channels. What comes out is a smaller, ordinary network that computes what the
full one computes when the removed channels are silenced (their outputs, after batch norm, set to zero)."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelab import planning
from prunelab.basics import Network, evaluating
from prunelab.channels import Channels, Example, inputs, trace
from prunelab.evidence import Batches
from prunelab.planning import Plan


def prune(
    model: Network,
    example: Example,
    *,
    plan: Plan | None = None,
    data: Batches | None = None,
    zeroed: bool = False,
    optimiser: torch.optim.Optimizer | None = None,
    **choice: Any,
) -> Network:
    """Remove the least important channels, with everything that made or used them.

    Args:
        model: any network that ``torch.fx`` can trace; left untouched. If it is masked, its zeros are kept as
            weights; gates are folded into what they gate.
        example: one input, such as ``data.example`` ``(1, 3, 32, 32)``, or a tuple of them.
        plan: what :func:`prunelab.plan` decided; instead of everything below.
        data: what the criterion measures on, if it needs data; never the test split.
        zeroed: what the smaller network equals: false, the full one with the removed channels *silenced*
            (zero behind their batch norm); true, the one with their filters *zeroed*, as
            :func:`~prunelab.sparsify` does it. A zeroed filter still sends on a constant, its bias or its
            batch norm's shift, which moves into the biases of the layers that read it. At a zero-padded
            border that cannot be exact: channels that a padded layer reads stay (``plan(...).pinned``).
        optimiser: of ``model``; it goes on with the smaller network, and with the momentum (or whatever it
            remembers) of the weights that stay.
        choice: all that :func:`prunelab.planning.decide` takes: ``criterion="l1"``, ``amount=0.5`` or
            ``params=``, ``flops=``, ``latency=``, ``scope="local"``, ``reduce=``, ``round_to=``, ``most=``,
            ``exclude=``, ``seed=``.
    Returns:
        A smaller network of the same class.
    Raises:
        ValueError: an unknown name, a number out of range, data missing, nothing to remove, a plan for
            another network.
        TraceError: the network cannot be traced. It is unchanged, whatever happens.
    """
    if plan is None:
        decision = planning.decide(model, example, data=data, zeroed=zeroed, **choice)
        source, channels, keep = decision.source, decision.channels, decision.keep
    elif choice:
        raise TypeError(f"plan= says what goes: leave out {', '.join(choice)}")
    else:
        source = planning.plain(model)
        channels = trace(source, example, zeroed=zeroed)
        keep = _decision(channels, plan)
    if optimiser is not None and source is not model:
        raise ValueError("optimiser= trains masked or gated weights: finalize them, and give it those")
    small = rebuild(source, channels, keep)
    pruning_record(small)["example"] = planning.shapes(example)
    _check(small, example)
    if optimiser is not None:
        _rebind(optimiser, model, small, channels, keep)
    return small


def _decision(channels: Channels, plan: Plan) -> Tensor:
    """The plan's decision per class of channels, if it fits the network and its own ties."""
    makers = channels.makers()
    if set(makers) != set(plan.kept) or any(
        not plan.kept[name] or max(plan.kept[name]) >= len(filters) for name, filters in makers.items()
    ):
        raise ValueError("the plan is for another network: its layers are not those of this one")
    keep = planning.keep_from(channels, plan.kept)
    for name, filters in makers.items():
        if (gone := ~keep[filters]).any() and not channels.free[filters[gone]].all():
            raise ValueError(f"the plan removes filters of {name!r} that the network needs")
        if keep[filters].nonzero().flatten().tolist() != sorted(plan.kept[name]):
            raise ValueError(f"the plan keeps filters of {name!r} whose partners in tied layers it removes")
    return keep


def rebuild(model: Network, channels: Channels, keep: Tensor) -> Network:
    """A copy of ``model`` with only the classes of channels that ``keep`` says, ``(classes,)`` bool.

    What is cut away is never copied: each parameter's smaller version is put in its place before copying.
    """
    rows = _rows_that_stay(keep[channels.classes])
    modules = dict(model.named_modules(remove_duplicate=False))
    smaller: dict[int, Any] = {}  # what the copy has instead of the tensor with this id()
    for name, dimensions in channels.slices.items():
        owner, _, kind = name.rpartition(".")
        tensor = getattr(modules[owner], kind)
        sliced = _cut(tensor.detach(), dimensions, rows)
        if sliced.shape != tensor.shape:  # else the copy is made with the rest of the network
            parameter = isinstance(tensor, nn.Parameter)
            smaller[id(tensor)] = nn.Parameter(sliced, tensor.requires_grad) if parameter else sliced
    small = _copy(model, smaller)
    for (owner, attribute), ids in channels.counts.items():
        setattr(smaller[id(modules[owner])], attribute, len(rows(ids)))
    for name, (front, back) in channels.pads.items():
        pad: Any = small.get_submodule(name)
        pad.padding = (*pad.padding[:-2], len(rows(front)), len(rows(back)))
    given = _fold_constants(model, small, channels, keep[channels.classes])
    # Which of the original's filters are left: enough to build this network again from a full one (see
    # files.py).
    earlier: dict[str, list[int]] = pruning_record(model).get("kept", {})
    record: dict[str, list[int]] = {}
    for name, layer in channels.layers.items():
        if layer.makes:
            stay = rows(layer.outputs).tolist()
            record[name] = [earlier[name][row] for row in stay] if name in earlier else stay
    biases = [*pruning_record(model).get("biases", []), *given]
    set_pruning_record(small, {"kept": record, "biases": biases})
    return small


Rows = Callable[[Tensor], Tensor]


def _rows_that_stay(kept: Tensor) -> Rows:
    """A function of a vector of ids that says at which places stand those that stay.

    Args:
        kept: ``(ids,)`` bool.
    """
    return functools.cache(lambda ids: kept[ids].nonzero().flatten())  # few vectors run along many tensors


def _cut(tensor: Tensor, dimensions: dict[int, Tensor], rows: Rows) -> Tensor:
    """The entries of a tensor whose ids, along each of ``dimensions``, stay."""
    for dimension, ids in dimensions.items():
        if rows(ids).numel() < ids.numel():
            tensor = tensor.index_select(dimension, rows(ids).to(tensor.device))
    return tensor


PLAIN = frozenset([bool, int, float, str, type(None)])


def _copy(module: Any, known: dict[int, Any]) -> Any:
    """``copy.deepcopy(module, known)``, several times as fast: most of what a module holds is empty."""
    if id(module) in known:
        return known[id(module)]
    if hasattr(module, "__deepcopy__"):
        return copy.deepcopy(module, known)
    result = known[id(module)] = module.__new__(type(module))
    for key, value in module.__dict__.items():
        if key in ("_parameters", "_buffers"):
            copied: Any = {name: _copy_tensor(tensor, known) for name, tensor in value.items()}
        elif key == "_modules":
            copied = {name: item if item is None else _copy(item, known) for name, item in value.items()}
        elif type(value) in PLAIN or (type(value) is tuple and PLAIN.issuperset(map(type, value))):
            copied = value
        elif type(value) in (OrderedDict, dict, set) and not value:
            copied = type(value)()
        else:
            copied = copy.deepcopy(value, known)
        result.__dict__[key] = copied
    return result


def _copy_tensor(tensor: Any, known: dict[int, Any]) -> Any:
    if id(tensor) not in known and type(tensor) in (Tensor, nn.Parameter) and tensor.is_leaf:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return copy.deepcopy(tensor, known) if id(tensor) not in known else known[id(tensor)]


def _fold_constants(model: nn.Module, small: nn.Module, channels: Channels, kept: Tensor) -> list[str]:
    """Add what removed channels sent on as a constant to the biases of the layers that read them.

    Only layers for which that is exact have such inputs: elsewhere :func:`~prunelab.channels.trace` pins.

    Returns:
        The layers that had no bias and got one.
    """
    given = []
    sent = channels.constants * ~kept  # by id
    layers = channels.layers if sent.any() else {}
    for name, layer in layers.items():
        constants = sent[layer.inputs]
        if layer.reads is None or not constants.any():
            continue
        full: Any = model.get_submodule(name)
        after: Any = small.get_submodule(name)
        constants = constants.to(full.weight)
        with torch.no_grad():
            if isinstance(full, nn.Linear):
                sums = full.weight @ constants
            else:  # a filter's answer to a constant picture that it covers once
                sums = (full.weight * _per_group(constants, full.groups, full.weight)).flatten(1).sum(1)
            sums = sums[kept[layer.outputs].to(sums.device)]
            if after.bias is None:
                given.append(name)
            bias = torch.zeros_like(sums) if after.bias is None else after.bias
            after.bias = nn.Parameter(bias + sums, full.weight.requires_grad)
    return given


def _per_group(constants: Tensor, groups: int, weight: Tensor) -> Tensor:
    """The constant that each filter's channels meet, ``(out, in / groups, 1, …)``."""
    rows = constants.view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
    return rows.view(*rows.shape, *[1] * (weight.dim() - 2))


def _rebind(
    optimiser: torch.optim.Optimizer, model: nn.Module, small: nn.Module, channels: Channels, keep: Tensor
) -> None:
    """Give an optimiser the parameters of the smaller network, and cut what it remembers of each as they were
    cut.
    """
    rows = _rows_that_stay(keep[channels.classes])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    now = dict(small.named_parameters())
    for group in optimiser.param_groups:
        for place, old in enumerate(group["params"]):
            if id(old) not in names:
                continue  # it trains more than this network
            name = names[id(old)]
            group["params"][place] = new = now.pop(name)
            state = optimiser.state.pop(old, {})
            optimiser.state[new] = {
                key: _cut(value, channels.slices.get(name, {}), rows).clone()
                if isinstance(value, Tensor) and value.shape == old.shape
                else value
                for key, value in state.items()
            }
    biases = {f"{name}.bias" for name in pruning_record(small)["biases"]}  # given for constants: new to it
    optimiser.param_groups[0]["params"] += [now[name] for name in biases & now.keys()]


@contextmanager
def silenced(model: nn.Module, channels: Channels, kept: dict[str, list[int]]) -> Iterator[None]:
    """For a while, ``model`` answers as if the other channels were zero behind every layer: what the network
    that :func:`prune` makes must answer, too.

    Args:
        channels: what :func:`~prunelab.channels.trace` found in ``model``.
        kept: the filters that stay, by layer, as in a plan or a pruning record.
    """
    stays = planning.keep_from(channels, kept)[channels.classes]

    def hook(name: str) -> Callable:
        factors = stays[channels.layers[name].outputs]

        def silence(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            last = isinstance(module, nn.Linear)
            return output * factors.to(output).view(-1, *[1] * (0 if last else output.dim() - 2))

        return silence

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in channels.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def pruning_record(model: nn.Module) -> dict[str, Any]:
    """What pruning has left of the full network as plain lists: ``kept`` filters by layer, the shapes of the
    inputs (``example``), and the layers to which it gave a bias (``biases``).

    Empty for a network that was not pruned. It travels with the network as an ordinary attribute.
    """
    return getattr(model, "_pruned", {})


def set_pruning_record(model: nn.Module, record: dict[str, Any]) -> None:
    model._pruned = record


def _check(small: nn.Module, example: Example) -> None:
    """Run it once: what is written into the forward function in a way that tracing does not see shows here,
    not at the user's next call.
    """
    parameter = next(small.parameters())
    try:
        with evaluating(small), torch.no_grad():
            small(*(item[:1].to(parameter) for item in inputs(example)))
    except RuntimeError as error:
        raise ValueError(
            f"the smaller {type(small).__name__} does not run: sizes are fixed in its forward ({error})"
        ) from error
