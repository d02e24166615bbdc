"""The capstone's score, by hand, and what it measures."""

import copy

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab.leaderboard import BUDGET, FLOOR, Entry, measure


def entry(**changed):
    return Entry(
        **{"accuracy": 0.90, "dense_accuracy": 0.91, "size_ratio": 0.25, "time_ratio": 0.64} | changed
    )


def test_score_is_the_geometric_mean_of_compression_and_speedup():
    assert entry().score == pytest.approx(2.5)  # the root of 4 times 1.5625


@pytest.mark.parametrize(
    "changed", [{"accuracy": 0.91 - FLOOR - 1e-6}, {"time_ratio": BUDGET + 1e-6}], ids=["floor", "budget"]
)
def test_a_broken_rule_scores_nothing(changed):
    assert entry(**changed).score == 0
    assert not entry(**changed).counts


def test_rules_are_met_at_their_limits():
    assert entry(accuracy=0.5, dense_accuracy=0.5 + FLOOR - 1e-9).counts
    assert entry(time_ratio=BUDGET).counts


def test_measured_beside_the_dense_network(monkeypatch):
    seconds = {"dense": 0.08, "network": 0.02}
    timed = {name: pl.metrics.Latency(median, median, median) for name, median in seconds.items()}
    monkeypatch.setattr(
        pl.metrics, "latencies", lambda models, *rest, **options: {n: timed[n] for n in models}
    )
    torch.manual_seed(0)
    data = pl.data.load("embedded")
    dense = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip
    few = data.validation.subset(128)
    twin = measure(copy.deepcopy(dense), dense, few)
    assert (twin.size_ratio, twin.accuracy) == (1, twin.dense_accuracy)
    assert twin.accuracy == pl.evaluate(dense, few, progress=False).accuracy
    small = pl.prune(dense, data.example, amount=0.75)
    found = measure(small, dense, few)
    assert found.size_ratio == pl.metrics.parameters(small) / pl.metrics.parameters(dense)
    assert found.time_ratio == 0.25
    assert found.row()["score"] == found.score
