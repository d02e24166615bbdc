"""Other people's networks: one of each family of torchvision, pruned exactly.

The whole list is checked by benchmarks/torchvision_networks.py, whose table is stored.
"""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("networks", ROOT / "benchmarks" / "torchvision_networks.py")
networks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(networks)

SMALLEST = [
    "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
]  # fmt: skip
WHOLE = {"convnext_tiny": 0.5, "swin_t": 0.7}  # whose residual streams stay


@pytest.mark.parametrize("name", SMALLEST)
def test_pruning_is_exact_on(name):
    row = networks.check(name)
    assert row["verdict"] == "exact", row
    left = row["pruned"]["0.6"]["parameters"] / row["parameters"]
    assert left < WHOLE.get(name, 0.45)


def test_the_stored_table_has_no_wrong_answer():
    table = json.loads(networks.RESULTS.read_text())
    assert [row["network"] for row in table["networks"] if row["verdict"] == "WRONG"] == []
    assert {row["network"] for row in table["networks"]} >= set(SMALLEST)
