"""The networks of the course, for 32x32 pictures: ResNet, VGG with batch norm, MobileNetV2, DenseNet.

Each is built as its paper describes it for CIFAR (or as the field adapted it), out of ordinary
modules, so that pruning has nothing to guess. ``weights="cifar10"`` or ``weights="embedded"`` loads a
checkpoint that ships with the package; a card beside each says how it was trained and how good it is.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunelab.basics import Network
from prunelab.files import load
from prunelab.registry import suggestion

CHECKPOINTS = Path(__file__).parent / "checkpoints"
NETWORKS = (
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg11", "vgg16", "vgg19", "mobilenetv2",
    "densenet40",
)  # fmt: skip


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


# ------------------------------------------------------------------------------------------ ResNet


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride == 1 and inputs == outputs:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "A":
            # Every second pixel, and zeros for the new channels: no parameters. ConstantPad3d pads (channels,
            # rows, columns) of a batch of pictures; a 1x1 max pooling with stride 2 is x[:, :, ::2, ::2].
            front = (outputs - inputs) // 2
            back = outputs - inputs - front
            self.shortcut = nn.Sequential(
                nn.MaxPool2d(1, stride), nn.ConstantPad3d((0, 0, 0, 0, front, back), 0.0)
            )
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet of depth ``6 blocks + 2`` for CIFAR (He et al., 2016, section 4.2): stages of 16, 32, 64
    filters.
    """

    def __init__(self, blocks: int, num_classes: int = 10, shortcut: str = "A"):
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r}: use 'A' (zero padding) or 'B' (1x1 convolution)")
        self.conv = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = self._stage(blocks, 16, 16, 1, shortcut)
        self.stage2 = self._stage(blocks, 16, 32, 2, shortcut)
        self.stage3 = self._stage(blocks, 32, 64, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        initialise(self)

    @staticmethod
    def _stage(blocks: int, inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def _resnet(depth: int, weights: str | None, num_classes: int, shortcut: str) -> ResNet:
    name = f"resnet{depth}" if shortcut == "A" else f"resnet{depth}-{shortcut}"
    return _with_weights(ResNet((depth - 2) // 6, num_classes, shortcut), name, weights)


def resnet20(weights: str | None = None, num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-20: 269,722 parameters, 40,551,040 MACs. Shortcuts ``"A"`` (zero padding) or ``"B"`` (1x1
    convolution).

    Source: He et al. (2016), section 4.2 and table 6.
    """
    return _resnet(20, weights, num_classes, shortcut)


def resnet32(weights: str | None = None, num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-32 (He et al., 2016, table 6): 0.46 million parameters."""
    return _resnet(32, weights, num_classes, shortcut)


def resnet44(weights: str | None = None, num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-44 (He et al., 2016, table 6): 0.66 million parameters."""
    return _resnet(44, weights, num_classes, shortcut)


def resnet56(weights: str | None = None, num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-56 (He et al., 2016, table 6): 0.85 million parameters."""
    return _resnet(56, weights, num_classes, shortcut)


def resnet110(weights: str | None = None, num_classes: int = 10, shortcut: str = "A") -> ResNet:
    """ResNet-110 (He et al., 2016, table 6): 1.7 million parameters."""
    return _resnet(110, weights, num_classes, shortcut)


# --------------------------------------------------------------------------------------------- VGG

VGG_LAYERS: dict[int, tuple[int | str, ...]] = {  # filters of each 3x3 convolution; "M" halves the picture
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    19: (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M"),
}


class VGG(nn.Module):
    """VGG with batch norm and one linear layer, as the pruning literature uses it on CIFAR (Li et al.,
    2017).
    """

    def __init__(self, depth: int, num_classes: int = 10, width: float = 1.0):
        super().__init__()
        _check_width(width)
        layers: list[nn.Module] = []
        inputs = 3
        for item in VGG_LAYERS[depth]:
            if item == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = max(1, round(int(item) * width))
            layers += [conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def _vgg(depth: int, weights: str | None, num_classes: int, width: float) -> VGG:
    return _with_weights(VGG(depth, num_classes, width), f"vgg{depth}", weights, width)


def vgg11(weights: str | None = None, num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-11 with batch norm; every layer has ``width`` times its filters (Simonyan & Zisserman, 2015, column
    A).
    """
    return _vgg(11, weights, num_classes, width)


def vgg16(weights: str | None = None, num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-16 with batch norm; every layer has ``width`` times its filters (Simonyan & Zisserman, 2015, column
    D).
    """
    return _vgg(16, weights, num_classes, width)


def vgg19(weights: str | None = None, num_classes: int = 10, width: float = 1.0) -> VGG:
    """VGG-19 with batch norm; every layer has ``width`` times its filters (Simonyan & Zisserman, 2015, column
    E).
    """
    return _vgg(19, weights, num_classes, width)


# ------------------------------------------------------------------------------------- MobileNetV2


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter each channel with 3x3 (depthwise), project with 1x1 (Sandler et al., 2018,
    figure 3).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [
                nn.Conv2d(inputs, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
            ]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018, table 2), with the strides of its first stages at 1 because 32x32 is
    small.
    """

    # expansion, filters, blocks, stride of the first block
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int = 10, width: float = 1.0):
        super().__init__()
        _check_width(width)
        inputs = max(1, round(32 * width))
        layers: list[nn.Module] = [conv3x3(3, inputs), nn.BatchNorm2d(inputs), nn.ReLU6(inplace=True)]
        for expansion, filters, blocks, stride in self.STAGES:
            outputs = max(1, round(filters * width))
            for block in range(blocks):
                layers.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
        last = max(1280, round(1280 * width))  # as in the paper: the last layer shrinks with no width below 1
        layers += [nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def mobilenetv2(weights: str | None = None, num_classes: int = 10, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2 for 32x32 pictures; every layer but the last has ``width`` times its filters.

    Source: Sandler et al. (2018), table 2.
    """
    return _with_weights(MobileNetV2(num_classes, width), "mobilenetv2", weights, width)


# ---------------------------------------------------------------------------------------- DenseNet


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3x3 convolution; what comes out is put behind what came in (Huang et al., 2017,
    section 3).
    """

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = conv3x3(inputs, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class DenseNet(nn.Module):
    """DenseNet without bottlenecks or compression (Huang et al., 2017, section 3): three dense blocks."""

    def __init__(self, depth: int = 40, growth: int = 12, num_classes: int = 10):
        super().__init__()
        layers_per_block = (depth - 4) // 3
        channels = 16
        layers: list[nn.Module] = [conv3x3(3, channels)]
        for block in range(3):
            for _ in range(layers_per_block):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            if block < 2:
                transition = nn.Conv2d(channels, channels, 1, bias=False)
                layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), transition, nn.AvgPool2d(2)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


def densenet40(weights: str | None = None, num_classes: int = 10) -> DenseNet:
    """DenseNet-40 with growth rate 12 (Huang et al., 2017, table 2): 1.0 million parameters."""
    return _with_weights(DenseNet(40, 12, num_classes), "densenet40", weights)


# ------------------------------------------------------------------------------------------ shared


def initialise(model: nn.Module) -> None:
    """He et al.'s (2015) normal initialisation for convolutions, zero biases; draws from torch's global
    generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)


def _check_width(width: float) -> None:
    if not width > 0:
        raise ValueError(f"width={width}: must be above 0; 0.25 gives every layer a quarter of its filters")


def checkpoint_name(model: str, width: float, data: str) -> str:
    """How the checkpoint of a network is called: ``resnet20-cifar10``, ``vgg16-w0.25-embedded``."""
    return f"{model}-{data}" if width == 1 else f"{model}-w{width:g}-{data}"


def checkpoints() -> dict[str, dict]:
    """The cards of all checkpoints that ship with the package, by name (``"resnet20-cifar10"``…)."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(CHECKPOINTS.glob("*.json"))}


def _with_weights(model: Network, name: str, weights: str | None, width: float = 1.0) -> Network:
    if weights is None:
        return model
    wanted = checkpoint_name(name, width, weights)
    if wanted not in checkpoints():
        hint = suggestion(wanted, list(checkpoints()))
        raise ValueError(f"weights={weights!r}: there is no checkpoint {wanted!r}; {hint}")
    return load(CHECKPOINTS / f"{wanted}.safetensors", model)
