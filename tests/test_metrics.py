"""Counts against hand counts, times against a clock that the test turns."""

import dataclasses
import math
import statistics
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab.data import Split
from prunelab.surgery import set_pruning_record


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
    pl.metrics.latency(model, torch.ones(1, 3, 32, 32), repeats=3)
    pl.compare({"model": model}, split())
    assert model.training and model[1].training
    assert torch.equal(statistics, model[1].running_mean)


def test_flops_of_nonzero_weights_by_hand():
    """2 x non-zero weights x the places where each is used; a layer that is used twice counts twice."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.depthwise = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4)
            self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
            self.fc = nn.Linear(2 * 64, 3)

        def forward(self, x):
            x = self.depthwise(self.conv(self.conv(x)))
            return self.fc(self.up(x).flatten(1))

    torch.manual_seed(0)
    model, example = Twice(), torch.zeros(5, 4, 8, 8)
    places = {"conv": 2 * 64, "depthwise": 16, "up": 16, "fc": 1}  # a transposed one works at its inputs

    def by_hand(network):
        weights = {name: network.get_submodule(name).weight for name in places}
        return 5 * sum(2 * places[name] * int((w != 0).sum()) for name, w in weights.items())

    assert pl.metrics.nonzero_flops(model, example) == by_hand(model) == pl.metrics.flops(model, example)
    sparse = pl.sparsify(model, amount=0.7)
    for network in (sparse, pl.finalize(sparse)):
        assert pl.metrics.nonzero_flops(network, example) == by_hand(sparse)
        assert pl.metrics.flops(network, example) == by_hand(model)
    assert not any(module._forward_hooks for module in model.modules())


class Siamese(nn.Module):
    """Two inputs, one module used twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, x, z):
        return self.conv(x).mean((2, 3)), self.conv(z)


def test_a_network_with_several_inputs():
    model, pair = Siamese(), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4))
    places = 2 * (64 + 16)
    assert pl.metrics.macs(model, pair) == places * 12
    sparse = pl.sparsify(model, amount=0.75)
    assert pl.metrics.nonzero_flops(sparse, pair) == 2 * places * 3
    assert pl.metrics.theoretical_speedup(model, sparse, pair) == 4
    # Both inputs and what is made of the first; then its mean stays, and what is made of the second comes.
    assert pl.metrics.peak_activations(model, pair) == 4 * (3 * places + 2 * 4 * 64 + 2 * 4)
    assert pl.metrics.latency(model, pair, repeats=3).median > 0


def test_gates_and_masks_count_as_what_they_make_of_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))
    gated = pl.regularisers.attach_gates(model, layers=["0"])
    (gate,) = (module for module in gated.modules() if isinstance(module, pl.regularisers.Gate))
    with torch.no_grad():
        gate.logits[:4] = -99
    assert pl.metrics.size(gated) == pl.metrics.size(model)
    # The first four filters are silent: their batch norm's scale and shift are zero, so its weights can be.
    assert pl.metrics.nonzero_parameters(gated) == pl.metrics.parameters(model) - 8 - 4  # shifts begin at 0
    x = torch.randn(2, 3, 8, 8)
    folded = pl.metrics.folded(gated.eval())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), gated(x))
    weight = folded.get_submodule("0").weight
    assert weight[:4].abs().max() == 0 and weight[4:].abs().min() > 0


@pytest.fixture
def trio():
    """12 weights; the same with 9 zeros; and 6 weights."""
    original, masked, small = (nn.Linear(n, 3, bias=False) for n in (4, 4, 2))
    with torch.no_grad():
        masked.weight.zero_()
        masked.weight[0, :3] = 1
    return original, masked, small


def test_ratios_and_reductions_by_hand(trio):
    m = pl.metrics
    original, masked, small = trio
    csr = 3 * 4 + (3 + 4) * 4  # three values, their columns, four row pointers
    assert [m.size(masked, encoding) for encoding in ("dense", "bitmask", "csr")] == [48, 3 * 4 + 2, csr]
    assert m.size(nn.Sequential(masked, nn.BatchNorm1d(3)), "csr") == csr + 4 * 3 * 4 + 8  # norms stay dense
    assert m.size_ratio(original, masked) == 1 and m.size_ratio(original, small) == 0.5
    assert m.size_ratio(original, masked, "csr") == pytest.approx(csr / 48)
    assert m.compression_ratio(original, masked, "csr") == pytest.approx(48 / csr)
    assert m.compression_ratio(original, small) == 2
    assert m.ideal_compression_ratio(original, masked) == 4
    assert m.ideal_compression_ratio(original, small) == 2
    assert m.memory_reduction(original, small) == 0.5
    assert m.memory_reduction(original, masked, "csr") == pytest.approx(1 - csr / 48)
    assert m.memory_reduction(original, original, "coo") == -2, (
        "two indices for each value: three times as much"
    )
    assert m.parameter_reduction(original, masked) == 0 and m.parameter_reduction(original, small) == 0.5
    assert m.reduction(8, 2) == 0.75 and m.reduction(8, 10) == -0.25
    with pytest.raises(ValueError, match="encoding='crs': did you mean 'csr'"):
        m.size(masked, "crs")
    with pytest.raises(ValueError, match="original is 0"):
        m.reduction(0, 1)
    with pytest.raises(ValueError, match=r"size\(original\) is 0"):
        m.size_ratio(nn.ReLU(), original)


def test_work_saved_by_hand(model):
    m = pl.metrics
    example = torch.zeros(1, 3, 32, 32)
    small = nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(900, 10))
    assert m.flops_reduction(model, small, example) == 0.75
    assert m.theoretical_speedup(model, small, example) == 4
    masked = pl.sparsify(model, amount=0.75)
    assert m.flops_reduction(model, masked, example) == 0
    assert m.theoretical_speedup(model, masked, example) == pytest.approx(4)


class Says(nn.Module):
    """The same class, whatever the picture."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        logits = torch.zeros(len(x), 10)
        logits[:, self.answer] = 1
        return logits


def test_accuracy_drop_is_original_minus_pruned():
    pictures = dataclasses.replace(split(20), labels=torch.tensor([0] * 15 + [1] * 5))
    assert pl.metrics.accuracy_drop(Says(0), Says(1), pictures) == 0.5
    assert pl.metrics.accuracy_drop(Says(1), Says(0), pictures) == -0.5


class Residual(nn.Module):
    """``tidy`` forgets the first feature map as soon as it has the second."""

    def __init__(self, tidy):
        super().__init__()
        self.tidy = tidy
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.one(x)
        if self.tidy:
            y = self.two(y)
            return x + y
        z = self.two(y)
        return x + z


def test_peak_activations_by_hand():
    example = torch.zeros(2, 3, 10, 10)
    picture, features = example.nbytes, 4 * 2 * 4 * 64
    conv = nn.Conv2d(3, 4, 3)
    peak = pl.metrics.peak_activations
    assert peak(nn.Flatten(), example) == picture, "a view of the input takes nothing"
    assert peak(conv, example) == picture + features
    assert peak(nn.Sequential(conv, nn.ReLU()), example) == picture + 2 * features
    assert peak(nn.Sequential(conv, nn.ReLU(inplace=True)), example) == picture + features
    assert peak(nn.Sequential(conv, *(nn.ReLU() for _ in range(9))), example) == picture + 2 * features
    assert peak(nn.Sequential(conv, nn.Flatten(), nn.Unflatten(1, (4, 64))), example) == picture + features
    # The largest two neighbours count, not the sum: 4, 8, 1 feature maps.
    narrow = nn.Sequential(conv, nn.Conv2d(4, 8, 1), nn.Conv2d(8, 1, 1))
    assert peak(narrow, example) == picture + 3 * features
    # x, y, z and the sum; or without y.
    example = torch.zeros(2, 4, 8, 8)
    assert peak(Residual(tidy=False), example) == 4 * features
    assert peak(Residual(tidy=True), example) == 3 * features
    assert peak(pl.sparsify(Residual(tidy=True), amount=0.5), example) == 3 * features, "masks do not count"
    normed = nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(2)).train()
    assert peak(normed, example) == 2 * features + features // 4 and normed.training


def test_process_peak_is_that_of_this_process_in_bytes(monkeypatch):
    """Not that of the one that started it, which getrusage reports on Linux."""
    before = pl.metrics.process_peak()
    assert before > 50e6, "torch alone takes more"
    held = torch.ones(int(300e6) // 4)
    mine = pl.metrics.process_peak()
    assert mine <= before + 400e6 and mine > held.nbytes
    code = "from prunelab import metrics; print(metrics.process_peak())"
    child = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert 50e6 < child < mine - 100e6
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pl.metrics.process_peak() == 3


def test_reconstruction_error_is_the_mean_distance_of_the_outputs():
    torch.manual_seed(0)
    f, g = (nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 2)) for _ in range(2))
    pictures = split(20)
    expected = []
    for image in pictures.normalise(pictures.images).double():
        mean = image.mean((1, 2))
        one, two = (net[2].weight.double() @ mean + net[2].bias.double() for net in (f, g))
        expected.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(one.tolist(), two.tolist(), strict=True))))
    found = pl.metrics.reconstruction_error(f, g, pictures, batch_size=7)
    assert found == pytest.approx(statistics.fmean(expected), rel=1e-5)
    assert pl.metrics.reconstruction_error(f, f, pictures) == 0
    assert pl.metrics.layer_reconstruction_errors(f, g, pictures, batch_size=7) == {"2": pytest.approx(found)}


def test_reconstruction_error_over_a_loader_and_over_several_heads(model):
    pictures, other = split(20), pl.sparsify(model, amount=0.5)
    batches = list(pictures.batches(7))
    loader = torch.utils.data.DataLoader([(image, 0) for images, _ in batches for image in images], 6)
    expected = pl.metrics.reconstruction_error(model, other, pictures)
    by_layer = pl.metrics.layer_reconstruction_errors(model, other, pictures)
    for data in (batches, loader):
        assert pl.metrics.reconstruction_error(model, other, data) == pytest.approx(expected)
        assert pl.metrics.layer_reconstruction_errors(model, other, data) == pytest.approx(by_layer)

    class Heads(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.heads = first, second

        def forward(self, x):
            return {
                "one": x.new_full((len(x), 1), self.heads[0]),
                "two": x.new_full((len(x),), self.heads[1]),
            }

    assert pl.metrics.reconstruction_error(Heads(1.0, 2.0), Heads(4.0, 6.0), pictures) == 5
    for measure in (pl.metrics.reconstruction_error, pl.metrics.layer_reconstruction_errors):
        with pytest.raises(TypeError, match=r"data must be pictures .* or batches \(images, labels\)"):
            measure(model, other, pictures.images)
    with pytest.raises(ValueError, match="data is empty"):
        pl.metrics.reconstruction_error(model, other, [])


def pointwise(values):
    """A 1x1 convolution: each output channel is that multiple of the first input channel."""
    values = torch.tensor(values)
    conv = nn.Conv2d(1, len(values), 1, bias=False)
    with torch.no_grad():
        conv.weight[:, 0, 0, 0] = values
    return conv


class Grey(nn.Module):
    """Pictures of ones, in grey, through ``layers``."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(torch.ones(len(x), 1, 32, 32))


def test_errors_by_layer_compare_the_channels_that_are_left():
    original, pruned = Grey(pointwise([1.0, 2.0, 4.0])), Grey(pointwise([1.0, 5.0]))
    errors = pl.metrics.layer_reconstruction_errors
    with pytest.raises(
        ValueError, match=r"layer 'layers.0' has 3 output channels in original and 2 in pruned"
    ):
        errors(original, pruned, split())
    set_pruning_record(pruned, {"kept": {"layers.0": [0, 2]}})
    assert errors(original, pruned, split()) == {"layers.0": 32.0}  # |5 - 4| at 32 x 32 places
    # The original had been pruned before: its channels are the full network's 3, 5 and 7.
    set_pruning_record(original, {"kept": {"layers.0": [3, 5, 7]}})
    set_pruning_record(pruned, {"kept": {"layers.0": [3, 7]}})
    assert errors(original, pruned, split()) == {"layers.0": 32.0}
    set_pruning_record(pruned, {"kept": {"layers.0": [3, 6]}})
    with pytest.raises(ValueError, match="no record of pruning says which those are"):
        errors(original, pruned, split())
    with pytest.raises(ValueError, match="no convolution or linear layer of the same name"):
        errors(original, nn.Sequential(nn.Linear(2, 2)), split())
    with pytest.raises(
        ValueError, match=r"the output is \(20, 3, 32, 32\) in original and \(20, 2, 32, 32\)"
    ):
        pl.metrics.reconstruction_error(original, pruned, split())


def test_errors_by_layer_of_a_network_that_prune_made(model):
    pictures = split()
    small = pl.prune(model, pictures.normalise(pictures.images[:1]), amount=0.5)
    small = pl.sparsify(small, amount=0.2, layers=["4"])
    found = pl.metrics.layer_reconstruction_errors(model, small, pictures)
    assert list(found) == ["0", "4"]
    assert found["0"] == pytest.approx(0, abs=1e-3), "the filters that are left see the same pictures"
    assert found["4"] == pytest.approx(pl.metrics.reconstruction_error(model, small, pictures))
    assert found["4"] > 0.01
    assert not any(module._forward_hooks for network in (model, small) for module in network.modules())


class Clock:
    """Stands still unless a network takes its time."""

    now = 0.0

    def __call__(self):
        return self.now


class Takes(nn.Module):
    def __init__(self, clock, log, name, seconds):
        super().__init__()
        self.clock, self.log, self.name, self.seconds = clock, log, name, iter(seconds)

    def forward(self, x):
        self.log.append(self.name)
        self.clock.now += next(self.seconds)
        return x


def test_latencies_take_turns_and_leave_the_warm_up_out(monkeypatch):
    clock, log = Clock(), []
    monkeypatch.setattr(pl.latency.time, "perf_counter", clock)
    threads = torch.get_num_threads()
    networks = {
        "a": Takes(clock, log, "a", [100, 100, 100, 7, 6, 1, 2, 3, 5, 4]),
        "b": Takes(clock, log, "b", [100, 100, 100, *[0.5] * 7]),
    }
    timed = pl.metrics.latencies(networks, torch.zeros(1), repeats=7)
    assert log == ["a", "b"] * 10
    assert timed["a"] == (4, 2, 6), "median, lower and upper quartile of 1..7"
    assert timed["b"] == (0.5, 0.5, 0.5)
    assert torch.get_num_threads() == threads
    assert pl.metrics.latency_difference(timed["a"], timed["b"]) == -3.5
    assert pl.metrics.speedup(timed["a"], timed["b"]) == 8
    for wrong, message in [
        ({"repeats": 2}, "repeats=2: quartiles need at least 3"),
        ({"threads": 0}, "threads=0: must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            pl.metrics.latencies(networks, torch.zeros(1), **wrong)
    with pytest.raises(ValueError, match="models is empty"):
        pl.metrics.latencies({}, torch.zeros(1))


def test_a_gpu_is_waited_for(monkeypatch):
    """There, a call only hands over work; the time is that until the work is done."""
    clock, waited = Clock(), []
    monkeypatch.setattr(pl.latency.time, "perf_counter", clock)

    def wait(device):
        waited.append(device)
        clock.now += 2

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    gpu = torch.device("cuda", 0)
    assert pl.latency.take_turns([lambda: None, lambda: None], gpu, range(4)) == [[2] * 4] * 2
    assert waited == [gpu] * 2 * (pl.latency.WARM_UP + 4)
    assert pl.latency.take_turns([lambda: None], torch.device("cpu"), range(4)) == [[0] * 4]


def test_threads_are_set_back_when_a_network_fails():
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        pl.metrics.latency(nn.Linear(3, 3), torch.zeros(1, 2), threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_folding_computes_the_same_without_batch_norm():
    torch.manual_seed(0)
    model = pl.models.resnet20()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # something to fold
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    sparse = pl.sparsify(model.train(), amount=0.3)
    x = torch.randn(2, 3, 32, 32)
    for network in (model, sparse):
        small = pl.metrics.folded(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
        with torch.no_grad(), pl.basics.evaluating(network):
            torch.testing.assert_close(small(x), network(x), rtol=1e-3, atol=1e-3)
    assert model.training and isinstance(model.bn, nn.BatchNorm2d)


def test_latencies_fold_on_demand(model):
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    example = torch.zeros(1, 3, 32, 32)
    pl.metrics.latencies({"model": model}, example, repeats=3, fold=True)
    assert not calls
    pl.metrics.latencies({"model": model}, example, repeats=3)
    assert len(calls) == 6


def test_what_cannot_be_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.two(self.conv(self.one(self.conv(x))))

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="layer 'conv' is used 2 times"):
        pl.metrics.folded(Shared())
    with pytest.raises(ValueError, match="Branches cannot be traced"):
        pl.metrics.folded(Branches())


def test_pareto_front_and_the_area_under_it_by_hand():
    points = [(4, 0.8), (3, 0.8), (1, 0.5), (3, 0.7), (2, 0.4), (1, 0.5)]
    assert pl.metrics.pareto_front(points) == [(1, 0.5), (3, 0.8)]
    assert pl.metrics.pareto_front([]) == []
    area = pl.metrics.area_under_front
    assert area(points, 1, 5) == pytest.approx((2 * 0.5 + 2 * 0.8) / 4)
    assert area(points, 1, 3) == pytest.approx(0.5)
    assert area(points, 1, 2) == pytest.approx(0.5), "what costs more than every budget does not count"
    assert area(points, 2.5, 4) == pytest.approx((0.5 * 0.5 + 1 * 0.8) / 1.5)
    assert area(points, 3, 3.5) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="low=0.5 buys no network: the cheapest costs 1"):
        area(points, 0.5, 3)
    with pytest.raises(ValueError, match="low=1 buys no network: there are no points"):
        area([], 1, 3)
    with pytest.raises(ValueError, match="low=3, high=3: low must be the smaller one"):
        area(points, 3, 3)


def test_the_area_is_the_mean_over_budgets():
    generator = torch.Generator().manual_seed(0)
    points = [(0.1, 0.2), *torch.rand(9, 2, generator=generator).tolist()]
    budgets = [0.1 + 0.8 * (step + 0.5) / 20000 for step in range(20000)]
    best = [max(accuracy for cost, accuracy in points if cost <= budget) for budget in budgets]
    assert pl.metrics.area_under_front(points, 0.1, 0.9) == pytest.approx(statistics.fmean(best), abs=1e-4)


def test_compare_measures_what_the_single_functions_measure(model):
    pictures = split()
    example = pictures.normalise(pictures.images[:1])
    sparse = pl.sparsify(model, amount=0.5)
    table = pl.compare({"dense": model, "sparse": sparse}, pictures, latency=True)
    defaults = ["accuracy", "sparsity", "parameters", "nonzero", "macs", "bytes"]
    assert list(table.rows["dense"]) == [*defaults, "latency"]
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


def test_compare_takes_any_columns(model):
    m, pictures = pl.metrics, split()
    example = pictures.normalise(pictures.images[:1])
    sparse = pl.sparsify(model, amount=0.5)
    table = pl.compare({"dense": model, "sparse": sparse}, pictures, columns=list(m.COLUMNS), batch_size=2)
    row = table.rows["sparse"]
    of_two = (
        m.ideal_compression_ratio, m.size_ratio, m.compression_ratio, m.memory_reduction,
        m.parameter_reduction,
    )  # fmt: skip
    for measure in of_two:
        assert row[measure.__name__] == measure(model, sparse)
    for measure in (m.flops_reduction, m.theoretical_speedup):
        assert row[measure.__name__] == measure(model, sparse, example)
    for measure in (m.flops, m.nonzero_flops, m.peak_activations):
        assert row[measure.__name__] == measure(sparse, example)
    for measure in (m.accuracy_drop, m.reconstruction_error):
        assert row[measure.__name__] == measure(model, sparse, pictures)
    assert row["csr"] == m.size(sparse, "csr") and row["bitmask"] == m.size(sparse, "bitmask")
    first = table.rows["dense"]
    assert row["latency_difference"] == row["latency"] - first["latency"]
    assert row["speedup"] == first["latency"] / row["latency"]
    assert table.plot().axes and all(column.heading in repr(table) for column in m.COLUMNS.values())
    front = table.plot_front("nonzero").axes[0]
    drawn = {tuple(place) for points in front.collections for place in points.get_offsets().tolist()}
    shares = {(r["nonzero"] / first["nonzero"], r["accuracy"]) for r in table.rows.values()}
    assert drawn == shares


def test_what_compare_refuses(model):
    pictures = split()
    for options, error, message in [
        ({"columns": ["mac"]}, ValueError, "columns: 'mac': did you mean 'macs'"),
        ({"columns": []}, ValueError, "columns is empty"),
        ({"batch_size": 21}, ValueError, "batch_size=21: split has 20 pictures"),
        ({"models": {"dense": "resnet20"}}, TypeError, r"models\['dense'\] must be a network .* got str"),
        ({"split": pictures.images}, TypeError, "split must be pictures such as data.test, got Tensor"),
    ]:
        with pytest.raises(error, match=message):
            pl.compare(**{"models": {"dense": model}, "split": pictures, **options})
    table = pl.compare({"dense": model}, pictures, columns=["accuracy"])
    with pytest.raises(ValueError, match="'macs' was not compared: There are: accuracy"):
        table.plot_front()
