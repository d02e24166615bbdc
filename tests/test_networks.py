"""Other people's networks: one of each family of torchvision, pruned exactly.

All of them are checked by benchmarks/torchvision_networks.py, whose table is stored.
"""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves

import prunelab as pl
from prunelab.channels import TraceError, trace
from prunelab.surgery import pruning_record, silenced

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("networks", ROOT / "benchmarks" / "torchvision_networks.py")
networks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(networks)

SMALLEST = [
    "convnext_tiny", "densenet121", "efficientnet_b0", "fasterrcnn_mobilenet_v3_large_fpn", "googlenet",
    "lraspp_mobilenet_v3_large", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
]  # fmt: skip
WHOLE = {"convnext_tiny": 0.5, "swin_t": 0.7}  # whose residual streams stay
ATTENTION = ("maxvit", "swin", "vit")


@pytest.mark.parametrize("name", SMALLEST)
def test_pruning_is_exact_on(name):
    row = networks.check(name)
    assert row["verdict"] == "exact", row
    left = row["pruned"]["0.6"]["parameters"] / row["parameters"]
    assert left < WHOLE.get(name, 0.45)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "shufflenet_v2_x0_5"])
def test_networks_that_are_not_ours_are_pruned_again_and_read_back(name, tmp_path):
    x = networks.picture(name)
    model = networks.build(name, x)
    small = pl.prune(pl.prune(model, x[:1], amount=0.3), x[:1], amount=0.3)
    path = pl.save(small, tmp_path / "small.safetensors")
    again = pl.load(path, networks.build(name, x))
    with torch.no_grad():
        for expected, found in zip(tree_leaves(small(x)), tree_leaves(again(x)), strict=True):
            assert torch.equal(expected, found)


@pytest.fixture(scope="module")
def table():
    return json.loads(networks.RESULTS.read_text())["networks"]


def test_the_stored_table_holds_every_network_of_torchvision(table):
    stored = {row["network"] for row in table}
    missing = sorted(set(networks.names()) - stored)
    assert not missing, f"run python benchmarks/torchvision_networks.py --missing: {missing}"
    assert len(stored) == len(table)


def test_every_network_in_the_stored_table_is_exact_and_smaller(table):
    for row in table:
        assert row["verdict"] == "exact", row
        low, high = (row["pruned"][str(amount)] for amount in networks.AMOUNTS)
        assert max(low["error"], high["error"]) < 1e-9
        most = 0.8 if row["network"].startswith((*ATTENTION, "convnext")) else 0.45
        assert high["parameters"] < low["parameters"] < row["parameters"]
        assert high["parameters"] / row["parameters"] < most, row["network"]


def test_of_a_transformer_the_insides_of_its_mlps_are_pruned_and_the_rest_stays():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64, num_classes=5).double().eval()
    nn.init.normal_(model.heads.head.weight)  # it starts with zeros
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    channels = trace(model, x[:1])
    free = {name for name, made in channels.makers().items() if channels.free[made].any()}
    assert free == {f"encoder.layers.encoder_layer_{i}.mlp.0" for i in range(2)}
    reasons = {pin.reason for pin in channels.pins}
    assert {"a LayerNorm needs all of them", "the operation needs all of them"} <= reasons
    small = pl.prune(model, x[:1], amount=0.5)
    with torch.no_grad(), silenced(model, channels, pruning_record(small)["kept"]):
        expected = model(x)
    assert expected.abs().max() > 0.1
    assert torch.allclose(small(x), expected, rtol=0, atol=1e-12)
    assert small.encoder.layers[0].mlp[0].out_features == 32


@pytest.fixture
def detector():
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.0
    )
    return model.double().eval()


def test_a_detector_goes_on_with_a_pruned_backbone(detector):
    pictures = [torch.rand(3, 90, 120, dtype=torch.float64), torch.rand(3, 100, 100, dtype=torch.float64)]
    x = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    full, channels = detector.backbone, trace(detector.backbone, x)
    small = pl.prune(full, x, criterion="random", amount=0.5)
    with torch.no_grad():
        with silenced(full, channels, pruning_record(small)["kept"]):
            expected = detector(pictures)
        detector.backbone = small
        found = detector(pictures)
    for one, other in zip(expected, found, strict=True):
        assert len(one["boxes"]) and torch.equal(one["labels"], other["labels"])
        assert torch.allclose(one["boxes"], other["boxes"], rtol=0, atol=1e-9)


def test_a_whole_detector_is_refused_with_the_line_and_the_way_out(detector):
    said = r"generalized_rcnn\.py, line \d+ \(for img in images:\).*prune the parts of the network"
    with pytest.raises(TraceError, match=said):
        pl.prune(detector, torch.zeros(1, 3, 64, 64))
