"""What is known of torch's operations: which work value by value, which only move values, and so on.

Functions, methods and in-place methods that do the same go by one name: ``relu`` is ``torch.relu``,
``F.relu``, ``x.relu()`` and ``x.relu_()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # each channel by itself
PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)  # ZeroPad among them
PASSES = (  # nothing, in evaluation mode
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
)  # fmt: skip
# Values of one channel in, values of the same channel out; a constant stays that constant.
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Upsample, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d,
)  # fmt: skip
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)  # their padding counts as zeros
# Every value by itself, whatever its channel.
ACTIVATIONS = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus,
    nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip

ACTIVATION_FUNCTIONS = {
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid",
    "mish", "relu", "relu6", "selu", "silu", "sigmoid", "softplus", "softshrink", "softsign", "tanh",
    "tanhshrink", "threshold",
}  # fmt: skip
ELEMENTWISE = ACTIVATION_FUNCTIONS | {
    "abs", "clamp", "clamp_max", "clamp_min", "cos", "exp", "neg", "pow", "sin", "sqrt", "square",
}  # fmt: skip
PASS_FUNCTIONS = {
    "alpha_dropout", "clone", "contiguous", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "float", "stochastic_depth", "to", "type_as",
}  # fmt: skip
POOL_FUNCTIONS = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate", "max_pool1d", "max_pool2d", "max_pool3d",
}  # fmt: skip
AVERAGE_POOL_FUNCTIONS = {"avg_pool1d", "avg_pool2d", "avg_pool3d"}
SUMS = {"add", "sub"}
PRODUCTS = {"mul", "multiply"}
QUOTIENTS = {"div", "truediv"}
ARITHMETIC = SUMS | PRODUCTS | QUOTIENTS
CONVOLUTION_FUNCTIONS = {"conv1d", "conv2d", "conv3d"}
# Functions that place values anew without looking at which dimension holds the channels.
MOVES = {
    "expand_as", "flip", "movedim", "permute", "repeat", "squeeze", "swapaxes", "t", "transpose",
    "unsqueeze",
}  # fmt: skip
# Arithmetic after which a size is still a size, which shrinks with the channels that it counts.
SIZE_ARITHMETIC = {"add", "floordiv", "mod", "mul", "sub"}


def of_torchvision(module: nn.Module | None, *names: str) -> bool:
    """Whether it is one of these layers of ``torchvision.ops``.

    Their names are compared, as importing torchvision would double the time that importing prunelab takes.
    """
    return any(
        kind.__module__.startswith("torchvision.ops.") and kind.__name__ in names
        for kind in type(module).__mro__
    )


def passes(module: nn.Module | None) -> bool:
    """Whether a module does nothing in evaluation mode."""
    return isinstance(module, PASSES) or of_torchvision(module, "StochasticDepth")


def normalises(module: nn.Module | None) -> bool:
    """Whether a module shifts and scales each channel by itself."""
    return isinstance(module, NORMS) or of_torchvision(module, "FrozenBatchNorm2d")


def name_of(target: Any) -> str:
    """The one name of a function or method of torch, Python's operators among them; ``""`` for others."""
    if isinstance(target, str):
        name = target
    elif (getattr(target, "__module__", None) or "torch").split(".")[0] in ("torch", "_operator", "builtins"):
        name = getattr(target, "__name__", "")
    elif getattr(target, "__module__", "").startswith("torchvision.ops"):
        name = target.__name__
    else:
        return ""
    name = name.removesuffix("_") if not name.startswith("_") else name
    in_place = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "ifloordiv": "floordiv"}
    return in_place.get(name, name)


def space(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
) -> list[int]:
    """Rows and columns behind a convolution; each argument has one number for each of them."""
    if padding == "same":
        return list(sizes)
    pads = [0] * len(sizes) if isinstance(padding, str) else padding
    return [
        (size + 2 * pad - step * (width - 1) - 1) // hop + 1
        for size, width, hop, pad, step in zip(sizes, kernel, stride, pads, dilation, strict=True)
    ]
