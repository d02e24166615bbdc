"""How a network's own code is run on something else than tensors.

``torch.fx`` calls the forward function with stand-ins and sees every operation that is done to them. It would
record them in a graph; here each is carried out at once, by whoever knows what it does to what the stand-ins
hold: see :mod:`prunelab.channels`.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from prunelab import operations as ops
from prunelab.basics import evaluating


class TraceError(ValueError):
    """The network cannot be followed, so that nothing is known of its channels; the message names where."""


class Tracer(fx.Tracer):
    """What ``torch.fx`` looks into: all but torch's own layers and a few more, which are kept whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        whole = ops.of_torchvision(module, "StochasticDepth", "FrozenBatchNorm2d")
        return whole or super().is_leaf_module(module, name)


@contextmanager
def tracing(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """While ``torch.fx`` looks at a network: evaluation mode, unless ``training``, and errors that help.

    Raises:
        TraceError: the forward function branches on data, or does something else that cannot be traced.
    """
    try:
        with evaluating(model, training=training):
            yield
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be traced by torch.fx{_place(error)}: {error}. Data may not "
            "decide which way the forward function goes. Move that line into a function of its own, outside "
            "the class, and mark it with @torch.fx.wrap: it is then kept whole, and the channels that go "
            "into it stay. Where that line is not yours, prune the parts of the network one by one, as in "
            "model.backbone = prune(model.backbone, example)"
        ) from error


def _place(error: Exception) -> str:
    """The user's line that tracing stumbled over."""
    frames: Sequence[Any] = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if "/torch/" not in frame.filename.replace("\\", "/") and frame.filename != __file__
    ]
    return f" at {own[-1].filename}, line {own[-1].lineno} ({own[-1].line})" if own else ""


@dataclass(eq=False)
class Constant:
    """A parameter or buffer that the forward function uses by itself; ``name`` is empty for other tensors."""

    name: str
    tensor: Tensor


class Value(fx.Proxy):
    """What the network's code has in the place of a tensor.

    A proxy of ``torch.fx`` tells its tracer what is done to it; ours, a :class:`Runner`, does it at once.

    Attributes:
        held: what an operation of the runner returned.
    """

    def __init__(self, held: Any, runner: Runner):
        self.held, self.tracer = held, runner

    # What torch.fx takes for the recorded operation, and asks of it.
    node: Any = property(lambda self: self)
    name: Any = property(lambda self: str(self.held))
    meta: Any = property(lambda self: {})

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = next(item for item in flat((args, kwargs)) if isinstance(item, Value))
        return known.tracer.create_proxy("call_function", function, args, kwargs or {})

    def __iter__(self) -> Iterator:
        each: Any = self
        known = isinstance(self.held, tuple | list)
        return iter([each[place] for place in range(len(self))]) if known else super().__iter__()

    def __len__(self) -> int:
        return len(self.held) if isinstance(self.held, tuple | list) else super().__len__()


class Runner(Tracer):
    """Calls a network's own forward function on :class:`Value` and carries out every operation in it.

    The two methods that do so belong to a subclass. They get what the network's code passes: ``held`` of a
    value, a :class:`Constant` for a tensor, everything else as it is.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.given: Iterator = iter(())  # the network's inputs
        self.results: Any = None  # what it returned
        self.busy = False  # while an operation is carried out, modules and parameters are what they are
        self.at: tuple[str, Any] = ("", None)  # the operation or module that is carried out, and its name,
        self.inside = ""  # and the module whose forward function asks for it

    def operation(self, name: str, target: Callable, args: tuple, kwargs: dict) -> Any:
        """Carry out a function or method: ``target`` does so on tensors, ``name`` is what torch calls it."""
        raise NotImplementedError

    def module(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Carry out a module that is kept whole."""
        raise NotImplementedError

    def run(self, inputs: Iterable[Any], *, training: bool = False) -> Any:
        """What the network returns."""
        self.given = iter(inputs)
        with tracing(self.model, training=training):
            self.trace(self.model)
        return self.results

    def where(self) -> str:
        """What is carried out, for messages."""
        name, target = self.at
        if isinstance(target, nn.Module):
            return f"{name!r} ({type(target).__name__})"
        name = name or getattr(target, "__name__", str(target))
        return f"{name} in {self.inside!r}" if self.inside else name

    @functools.cached_property
    def names(self) -> dict[int, str]:
        """Of parameters and buffers, by id()."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {id(tensor): name for name, tensor in named}

    def constant(self, tensor: Tensor) -> Constant:
        return Constant(self.names.get(id(tensor), ""), tensor)

    def carry_out(self, kind: Callable, name: str, target: Any, args: tuple, kwargs: dict) -> Any:
        self.busy, self.at = True, (name, target)
        try:
            return kind(name, target, args, kwargs)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(f"the network cannot be followed at {self.where()}: {error}") from error
        finally:
            self.busy = False

    # -- where torch.fx asks its tracer

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        if kind == "placeholder":  # an input, or the default of one that is not given
            return Value(next(self.given, *args), self)

        def method(item: Any, *rest: Any, **options: Any) -> Any:
            return getattr(item, target)(*rest, **options)

        function = method if kind == "call_method" else target
        given = self.create_arg((args, kwargs))
        return Value(self.carry_out(self.operation, ops.name_of(target), function, *given), self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        if kind == "output":
            (self.results,) = args
            return None
        return self.carry_out(self.operation, "", target, args, kwargs)  # makes an object to return

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self.busy:
            return forward(*args, **kwargs)
        name, outer = self.path_of_module(m), self.inside
        if self.is_leaf_module(m, name):
            return Value(self.carry_out(self.module, name, m, *self.create_arg((args, kwargs))), self)
        self.inside = name
        result = forward(*args, **kwargs)
        self.inside = outer
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        used = isinstance(attr_val, nn.Parameter) and not self.busy
        return Value(self.constant(attr_val), self) if used else attr_val

    def create_arg(self, a: Any) -> Any:
        if a is None or isinstance(a, (int, float, str)):
            return a
        if isinstance(a, fx.Proxy):  # an attribute of a value, such as its shape, is asked for only now
            value: Any = a.node
            return value.held
        if isinstance(a, Tensor):
            return self.constant(a)
        if isinstance(a, tuple):
            return tuple([self.create_arg(item) for item in a])
        if isinstance(a, list):
            return [self.create_arg(item) for item in a]
        if isinstance(a, dict):
            return {key: self.create_arg(item) for key, item in a.items()}
        if isinstance(a, slice):
            return slice(*(self.create_arg(item) for item in (a.start, a.stop, a.step)))
        return super().create_arg(a)


def flat(args: Any) -> list:
    """What stands in tuples, lists, dictionaries and slices, however deep."""
    if isinstance(args, dict):
        args = args.values()
    elif isinstance(args, slice):
        args = (args.start, args.stop, args.step)
    elif not isinstance(args, (tuple, list)):
        return [args]
    return [item for arg in args for item in flat(arg)]
