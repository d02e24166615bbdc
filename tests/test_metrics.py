"""Counts against hand counts, times against a network that is slow on purpose."""

import time

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab.data import Split


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 10)
    )


def split(count=20):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 10, (0.5,) * 3, (0.25,) * 3)


def test_sparsity_counts_zeros_of_weights_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0]]))
        model[0].bias.zero_()
    assert pl.metrics.layer_sparsity(model) == {"0": 0.5, "2": 1.0}
    assert pl.metrics.sparsity(model) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        pl.metrics.sparsity(nn.ReLU())


def test_parameters_flops_and_size_by_hand(model):
    weights = 4 * 27 + 4 + 4 + 4 + 3600 * 10 + 10
    example = torch.zeros(1, 3, 32, 32)
    assert pl.metrics.parameters(model) == weights
    assert pl.metrics.macs(model, example) == 900 * 4 * 27 + 36000
    assert pl.metrics.flops(model, example) == 2 * pl.metrics.macs(model, example)
    assert pl.metrics.flops(model, example.expand(3, -1, -1, -1)) == 3 * pl.metrics.flops(model, example)
    assert (
        pl.metrics.size(model) == 4 * (weights + 4 + 4) + 8
    )  # batch norm's mean, variance and 64-bit counter


def test_masks_change_what_is_zero_and_nothing_else(model):
    example = torch.zeros(1, 3, 32, 32)
    sparse = pl.sparsify(model, amount=0.5)
    for measure in (pl.metrics.parameters, pl.metrics.size, lambda m: pl.metrics.macs(m, example)):
        assert measure(sparse) == measure(model)
    removed = sum(int((~mask).sum()) for mask in pl.masks(sparse).values())
    assert pl.metrics.nonzero_parameters(model) - pl.metrics.nonzero_parameters(sparse) == removed
    assert pl.metrics.sparsity(sparse) == pytest.approx(0.5, abs=0.01)


def test_measuring_leaves_training_mode_as_it_was(model):
    model.train()
    statistics = model[1].running_mean.clone()
    pl.metrics.flops(model, torch.ones(1, 3, 32, 32))
    pl.metrics.latency(model, torch.ones(1, 3, 32, 32), repeats=2)
    pl.compare({"model": model}, split())
    assert model.training and model[1].training
    assert torch.equal(statistics, model[1].running_mean)


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.02)
        return x


def test_latency_tells_slow_from_fast_and_orders_its_quartiles():
    threads = torch.get_num_threads()
    timed = pl.metrics.latencies({"fast": nn.ReLU(), "slow": Slow()}, torch.zeros(1), repeats=5)
    assert timed["slow"].median >= 0.02 > timed["fast"].median
    assert all(times.lower <= times.median <= times.upper for times in timed.values())
    assert torch.get_num_threads() == threads


def test_compare_measures_what_the_single_functions_measure(model):
    pictures = split()
    example = pictures.normalise(pictures.images[:1])
    sparse = pl.sparsify(model, amount=0.5)
    table = pl.compare({"dense": model, "sparse": sparse}, pictures, latency=True)
    for name, network in (("dense", model), ("sparse", sparse)):
        row = table.rows[name]
        assert row["accuracy"] == pl.evaluate(network, pictures).accuracy
        assert row["sparsity"] == pl.metrics.sparsity(network)
        assert row["parameters"] == pl.metrics.parameters(network)
        assert row["macs"] == pl.metrics.macs(network, example)
        assert row["bytes"] == pl.metrics.size(network)
        assert row["latency"] > 0
    text, page = repr(table), table._repr_html_()
    assert all(name in text and name in page for name in ("dense", "sparse", "accuracy", "MACs"))
    assert len({len(line) for line in text.splitlines()}) == 1, "columns line up"
    assert "<b>" not in pl.compare({"<b>": model}, pictures)._repr_html_()
    assert table.plot().axes
    with pytest.raises(ValueError, match="models is empty"):
        pl.compare({}, pictures)
