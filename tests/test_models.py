"""The networks have the published sizes."""

import pytest
import torch
from torch import nn

import prunelab as pl

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("make", "parameters", "macs"),
    [
        # He et al. (2016), table 6, prints 0.27, 0.46, 0.66, 0.85 and 1.7 million; the exact numbers are
        # those of the widely used reimplementation with zero-padded shortcuts.
        (lambda: pl.models.resnet20(), 269_722, 40_551_040),
        (lambda: pl.models.resnet20(shortcut="B"), 272_474, 40_813_184),
        (lambda: pl.models.resnet32(), 464_154, 68_862_592),
        (lambda: pl.models.resnet44(), 658_586, 97_174_144),
        (lambda: pl.models.resnet56(), 853_018, 125_485_696),
        (lambda: pl.models.resnet110(), 1_727_962, 252_887_680),
        # Convolutions without biases, which batch norm makes idle: 4,224 fewer than versions that keep them.
        (lambda: pl.models.vgg16(), 14_728_266 - 4_224, 313_201_664),
        # Huang et al. (2017), table 2, prints 1.0 million for depth 40, growth 12.
        (lambda: pl.models.densenet40(), 1_019_722, 264_812_928),
    ],
)  # fmt: skip
def test_parameters_and_macs_are_the_published_ones(make, parameters, macs):
    model = make()
    assert pl.metrics.parameters(model) == parameters
    assert pl.metrics.macs(model, EXAMPLE) == macs


def test_macs_of_resnet20_by_hand():
    pixels, stages = (32 * 32, 16 * 16, 8 * 8), (16, 32, 64)
    total = pixels[0] * 9 * 3 * 16 + 64 * 10
    for index, (area, width) in enumerate(zip(pixels, stages, strict=True)):
        narrow = stages[max(0, index - 1)]
        total += area * 9 * (narrow * width + 5 * width * width)
    assert pl.metrics.macs(pl.models.resnet20(), EXAMPLE) == total


@pytest.mark.parametrize(("depth", "layers"), [(11, 8), (16, 13), (19, 16)])
def test_vgg_has_its_layers_and_width_scales_them(depth, layers):
    make = getattr(pl.models, f"vgg{depth}")
    filters = [module.out_channels for module in make().modules() if isinstance(module, nn.Conv2d)]
    narrow = [module.out_channels for module in make(width=0.25).modules() if isinstance(module, nn.Conv2d)]
    assert len(filters) == layers and max(filters) == 512
    assert narrow == [count // 4 for count in filters]


def test_mobilenetv2_has_17_blocks_and_scales():
    model = pl.models.mobilenetv2()
    depthwise = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(depthwise) == 17
    assert depthwise[-1].groups == 960
    # Sandler et al. (2018), table 2, counted by hand for the body, with our ten classes.
    assert pl.metrics.parameters(model) == 2_236_682
    assert pl.metrics.parameters(pl.models.mobilenetv2(width=0.5)) == 697_258
    assert pl.models.mobilenetv2(width=0.5).classifier.in_features == 1280


@pytest.mark.parametrize(
    "make",
    [pl.models.resnet20, pl.models.vgg11, pl.models.mobilenetv2, pl.models.densenet40],
    ids=lambda make: make.__name__,
)
def test_any_number_of_classes_and_a_repeatable_start(make):
    torch.manual_seed(3)
    model = make(num_classes=7).eval()
    torch.manual_seed(3)
    twin = make(num_classes=7).eval()
    assert model(EXAMPLE.expand(2, -1, -1, -1)).shape == (2, 7)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_shortcut_a_is_every_second_pixel_and_zeros():
    block = pl.models.ResNet(1).stage2[0]
    x = torch.randn(2, 16, 8, 8)
    out = block.shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any() and not out[:, 24:].any()


def test_clear_errors():
    with pytest.raises(ValueError, match="shortcut='C'"):
        pl.models.resnet20(shortcut="C")
    with pytest.raises(ValueError, match="width=0: must be above 0"):
        pl.models.vgg16(width=0)
    with pytest.raises(ValueError, match="no checkpoint 'densenet40-cifar10'"):
        pl.models.densenet40(weights="cifar10")
    with pytest.raises(ValueError, match="no checkpoint 'resnet20-cifar'; did you mean 'resnet20-cifar10'"):
        pl.models.resnet20(weights="cifar")
