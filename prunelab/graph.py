"""What stands behind each layer: its batch norm, and the place where its feature maps are finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import fx, nn

from prunelab import operations as ops
from prunelab.tracing import TraceError, Tracer, tracing


@dataclass(frozen=True)
class Behind:
    """What follows a layer.

    Attributes:
        norm: name of the batch norm that reads the layer's output (and nothing else does), or none.
        features: name of the graph node whose value is the layer's feature maps: behind its batch norm,
            addition and activation, as far as it has them. Where the output goes two ways before that (into a
            concatenation, say), the walk ends.
    """

    norm: str | None
    features: str


def behind(model: nn.Module, layers: list[str]) -> tuple[fx.Graph, dict[str, Behind]]:
    """Trace ``model`` and find what follows each of ``layers``, at its last use.

    Raises:
        TraceError: ``torch.fx`` cannot trace the network, or it does not call one of the layers.
    """
    with tracing(model):
        graph = _Recorder().trace(model)
    modules = dict(model.named_modules())
    found = {
        node.target: _walk(node, modules)
        for node in graph.nodes
        if node.op == "call_module" and node.target in layers
    }
    for name in layers:
        if name not in found:
            raise TraceError(f"layer {name!r} is not called as a module in {type(model).__name__}'s forward")
    return graph, found


def _walk(node: fx.Node, modules: dict[str, nn.Module]) -> Behind:
    norm: str | None = None
    summed = False
    while len(node.users) == 1:
        (after,) = node.users
        is_module = after.op == "call_module"
        module, function = (
            (modules[str(after.target)], "") if is_module else (None, ops.name_of(after.target))
        )
        if isinstance(module, ops.ACTIVATIONS) or function in ops.ACTIVATION_FUNCTIONS:
            return Behind(norm, after.name)
        if isinstance(module, ops.BATCH_NORMS):
            if norm is None and not summed:
                norm = str(after.target)
        elif function in ops.SUMS:
            summed = True
        elif not (ops.passes(module) or function in ops.PASS_FUNCTIONS):
            break
        node = after
    return Behind(norm, node.name)


class _Recorder(Tracer):
    """Records a network; ``list(x.chunk(2, 1))`` asks how many there are, which is known."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def iter(self, obj: Any) -> Iterator:
        return iter([obj[i] for i in range(_chunks(obj))]) if _chunks(obj) else super().iter(obj)


class _Value(fx.Proxy):
    def __len__(self) -> int:
        return _chunks(self) or super().__len__()


def _chunks(value: fx.Proxy) -> int:
    """Into how many parts ``chunk`` cut, 0 if the value is not from there."""
    parts = value.node.args[1:2]
    known = ops.name_of(value.node.target) == "chunk" and parts and isinstance(parts[0], int)
    return cast(int, parts[0]) if known else 0
