"""Physical removal: the pruned network computes what the full one computes with the same channels
silenced.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.channels import trace
from prunelab.surgery import pruning_record, silenced

NETWORKS = {
    "resnet20": lambda: pl.models.resnet20(),
    "resnet20-B": lambda: pl.models.resnet20(shortcut="B"),
    "resnet56": lambda: pl.models.resnet56(),
    "vgg16": lambda: pl.models.vgg16(width=0.125),
    "mobilenetv2": lambda: pl.models.mobilenetv2(width=0.25),
    "densenet40": lambda: pl.models.densenet40(),
}


def lively(model: nn.Module) -> nn.Module:
    """The model in float64 with batch norms that do something, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.double().eval()


def assert_exact(model: nn.Module, small: nn.Module, x: torch.Tensor) -> None:
    assert pl.metrics.parameters(small) < pl.metrics.parameters(model)
    with silenced(model, trace(model, x[:1]), pruning_record(small)["kept"]), torch.no_grad():
        expected = model(x)
    with torch.no_grad():
        found = small(x)
    assert expected.abs().max() > 1e-3, "a test that compares zeros shows nothing"
    assert (expected - found).abs().max() <= 1e-9 * max(1, expected.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("amount", "scope"), [(0.3, "local"), (0.6, "local"), (0.5, "global")])
def test_pruning_equals_silencing(name, amount, scope):
    torch.manual_seed(0)
    model = lively(NETWORKS[name]())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = pl.prune(
        model, x[:1], criterion="random" if scope == "global" else "l1", amount=amount, scope=scope
    )
    assert_exact(model, small, x)
    assert type(small) is type(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()), "left untouched"


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_twice_and_nothing(name):
    torch.manual_seed(0)
    model = lively(NETWORKS[name]())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert torch.equal(pl.prune(model, x, amount=0.0)(x), model(x))
    once = pl.prune(model, x, amount=0.3)
    twice = pl.prune(once, x, amount=0.3)
    assert_exact(once, _renumbered(once, twice, x), x)
    assert_exact(model, twice, x)


def _renumbered(once, twice, x):
    """``twice`` with its record in terms of ``once``, to compare the two with each other."""
    result = copy.deepcopy(twice)
    first, second = pruning_record(once)["kept"], pruning_record(twice)["kept"]
    pruning_record(result)["kept"] = {
        name: [first[name].index(number) for number in kept] for name, kept in second.items()
    }
    return result


def test_the_right_filters_go():
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, -1.0, 2.0]).view(3, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(2, 3, 1, 1))
    small = pl.prune(model, torch.zeros(1, 1, 4, 4), amount=1 / 3)
    assert small[0].weight.flatten().tolist() == [3.0, 2.0]
    assert small[2].weight.flatten().tolist() == [1.0, 3.0, 4.0, 6.0]
    assert (small[0].out_channels, small[2].in_channels, small[2].out_channels) == (2, 2, 2)


def test_added_channels_are_scored_together_by_their_mean():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            x = self.a(x)
            return self.fc(F.relu(x + self.b(x)).mean((2, 3)))

    model = Residual()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        model.b.weight.copy_(torch.diag(torch.tensor([9.0, 1.0, 1.0])).view(3, 3, 1, 1))  # means: 5, 1.5, 2
    small = pl.prune(model, torch.zeros(1, 1, 2, 2), amount=1 / 3)
    assert pruning_record(small)["kept"] == {"a": [0, 2], "b": [0, 2], "fc": [0, 1]}


def test_every_layer_keeps_at_least_one_channel():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 50, 3), nn.Flatten(), nn.Linear(50 * 16, 2)
    )
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    small = pl.prune(model, torch.zeros(1, 3, 8, 8), amount=0.5, scope="global")
    assert small[0].out_channels == 1
    assert small(torch.zeros(1, 3, 8, 8)).shape == (1, 2)


def test_a_module_used_twice_and_depthwise_multiplier_and_grouped():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.shared = nn.Conv2d(8, 8, 3, padding=1)
            self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
            self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
            self.norm = nn.BatchNorm2d(12)
            self.fc = nn.Linear(12 * 4, 5)

        def forward(self, x):
            x = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
            x = torch.cat([F.relu(self.norm(self.grouped(self.depthwise(x))))], dim=1) * 2
            x = F.adaptive_avg_pool2d(x, 2)
            return self.fc(x.view(x.size(0), -1))

    torch.manual_seed(0)
    model = lively(Odd())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for amount in (0.3, 0.6):
        small = pl.prune(model, x[:1], amount=amount, criterion="random")
        assert_exact(model, small, x)
        assert small.depthwise.groups == small.depthwise.in_channels == small.shared.out_channels
        assert small.grouped.groups == 4


def test_the_pruned_network_trains_copies_and_exports():
    torch.manual_seed(0)
    small = pl.prune(pl.models.resnet20(), torch.zeros(1, 3, 32, 32), amount=0.5)
    small.train()
    F.cross_entropy(small(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    twin = copy.deepcopy(small).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(twin, (x,)).module()
    assert torch.allclose(exported(x), twin(x), atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        pl.models.resnet20,
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Hardswish(), nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), nn.ReLU6(),
            nn.Conv2d(16, 12, 1, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
        ),
    ],
    ids=["residual", "depthwise and grouped"],
)  # fmt: skip
def test_the_pruned_network_is_exported_to_onnx(network, tmp_path):
    """And an interpreter that knows nothing of torch computes the same, for any number of pictures."""
    runtime = pytest.importorskip("onnxruntime", reason="onnx, onnxscript and onnxruntime are not installed")
    torch.manual_seed(0)
    model = lively(network()).float()
    small = pl.prune(model, torch.zeros(1, 3, 32, 32), amount=0.5)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        small, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},), verbose=False
    )
    program.save(tmp_path / "small.onnx")
    session = runtime.InferenceSession(tmp_path / "small.onnx")
    x = torch.randn(3, 3, 32, 32)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = small(x)
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_masked_model_is_pruned_with_its_zeros():
    torch.manual_seed(0)
    sparse = pl.sparsify(pl.models.resnet20(), amount=0.5)
    small = pl.prune(sparse, torch.zeros(1, 3, 32, 32), amount=0.3)
    assert not pl.masks(small) and pl.masks(sparse)
    assert 0.3 < pl.metrics.sparsity(small) < 0.6


def test_clear_errors_for_wrong_arguments():
    model, example = pl.models.resnet20(), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"amount=1: every layer would be emptied"):
        pl.prune(model, example, amount=1.0)
    with pytest.raises(ValueError, match=r"amount=-0\.5"):
        pl.prune(model, example, amount=-0.5)
    with pytest.raises(ValueError, match="did you mean 'l1'"):
        pl.prune(model, example, criterion="L1")
    with pytest.raises(ValueError, match="needs data"):
        pl.prune(model, example, criterion="gradient")
    with pytest.raises(ValueError, match="scope='everywhere'"):
        pl.prune(model, example, scope="everywhere")


def test_what_tracing_cannot_see_is_found_by_running_the_smaller_network():
    """A hook is no part of the forward function: this one expects eight channels."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output + torch.ones(1, 8, 1, 1))
    with pytest.raises(ValueError, match="smaller Sequential does not run: sizes are fixed in its forward"):
        pl.prune(model, torch.zeros(1, 3, 8, 8), amount=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("zeroed", [False, True])
def test_on_a_gpu(zeroed):
    torch.manual_seed(0)
    model, x = lively(pl.models.resnet20()).cuda(), torch.randn(2, 3, 32, 32, dtype=torch.float64).cuda()
    small = pl.prune(model, x[:1], flops=0.5, zeroed=zeroed)
    assert all(parameter.is_cuda for parameter in small.parameters())
    if not zeroed:
        assert_exact(model, small, x)
    times = pl.metrics.latencies({"full": model, "small": small}, x, repeats=5)
    assert all(seconds.median > 0 for seconds in times.values())
    peaks = [pl.metrics.peak_activations(network, x) for network in (small, model)]
    assert peaks[0] == peaks[1] if zeroed else peaks[0] < peaks[1]  # zeroed, the widest stage has to stay
    assert pl.plan(model, x, latency=0.9).totals["latency"][0] > 0


def test_channels_of_a_residual_stage_are_one_class_each():
    channels = trace(pl.models.resnet20(), torch.zeros(1, 3, 32, 32))
    makers = channels.makers()
    stage1 = ["conv", "stage1.0.conv2", "stage1.1.conv2", "stage1.2.conv2"]
    assert all(torch.equal(makers["conv"], makers[name]) for name in stage1)
    assert not set(makers["conv"].tolist()) & set(makers["stage1.0.conv1"].tolist())
    # Zero padding puts stage 1's sixteen channels in the middle of stage 2's thirty-two.
    assert torch.equal(makers["stage2.0.conv2"][8:24], makers["conv"])
    assert not channels.free[makers["fc"]].any()


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_an_optimiser_goes_on_with_what_stays(kind):
    torch.manual_seed(0)
    model = pl.models.resnet20()
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    extra = nn.Parameter(torch.ones(3))  # of something else
    parameters = [*model.parameters(), extra]
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimiser = getattr(torch.optim, kind)(parameters, lr=0.01, **options)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimiser.step()
    memory = "momentum_buffer" if kind == "SGD" else "exp_avg"
    before = {name: optimiser.state[p][memory].clone() for name, p in model.named_parameters()}
    small = pl.prune(model, x[:1], amount=0.5, optimiser=optimiser)
    kept = pruning_record(small)["kept"]
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()} | {id(extra)}
    after = {name: optimiser.state[p][memory] for name, p in small.named_parameters()}
    rows, columns = kept["stage1.0.conv2"], kept["stage1.0.conv1"]
    assert torch.equal(after["stage1.0.conv2.weight"], before["stage1.0.conv2.weight"][rows][:, columns])
    assert torch.equal(after["fc.weight"], before["fc.weight"][:, kept["stage3.2.conv2"]])
    assert set(optimiser.state) <= {*small.parameters(), extra}, "nothing is remembered of what is gone"
    # The next step moves what stays.
    weight = small.stage1[0].conv1.weight.detach().clone()
    optimiser.zero_grad()
    F.cross_entropy(small(x), labels).backward()
    optimiser.step()
    assert not torch.equal(weight, small.stage1[0].conv1.weight)


def test_an_optimiser_of_masked_weights_is_refused():
    sparse = pl.sparsify(pl.models.resnet20(), amount=0.5)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimiser= trains masked"):
        pl.prune(sparse, torch.zeros(1, 3, 32, 32), optimiser=optimiser)
