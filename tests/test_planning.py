"""Plans: what would go, how a target is met, and what limits it."""

import json

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import latency, planning
from prunelab.channels import trace
from prunelab.surgery import pruning_record

X = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return pl.models.resnet20()


def chain(*scales):
    """Three convolutions whose filters have the norms ``scales``."""
    layers, inputs = [], 1
    for norms in scales:
        layer = nn.Conv2d(inputs, len(norms), 1, bias=False)
        with torch.no_grad():
            weight = torch.ones_like(layer.weight) / inputs
            layer.weight.copy_(weight * torch.tensor(norms).view(-1, 1, 1, 1))
        layers += [layer, nn.ReLU()]
        inputs = len(norms)
    return nn.Sequential(*layers, nn.Conv2d(inputs, 2, 1))


def kept(model, **options):
    plan = pl.plan(model, torch.zeros(1, 1, 4, 4), **options)
    return [plan.kept[name] for name in list(plan.kept)[:-1]]


SCALES = ([1.0, 2.0, 9.0, 8.0], [3.0, 4.0, 5.0, 6.0])


def test_local_and_global_orders():
    model = chain(*SCALES)
    assert kept(model, amount=0.5) == [[2, 3], [2, 3]]
    assert kept(model, amount=0.5, scope="global") == [[2, 3], [2, 3]]
    assert kept(model, amount=0.25, scope="global") == [[2, 3], [0, 1, 2, 3]]
    assert kept(model, amount=0.75, scope="global") == [[2, 3], [3]], "6.0 is the last of its layer"


def test_limits():
    model = chain(*SCALES)
    assert kept(model, amount=0.75, exclude=["0"]) == [[0, 1, 2, 3], [3]]
    assert kept(model, amount=0.75, most=0.5) == [[2, 3], [2, 3]]
    assert kept(model, amount=0.75, most={"2": 0.5}) == [[2], [2, 3]]
    assert kept(model, amount=0.75, most={"0": 0.25, "2": 0}) == [[1, 2, 3], [0, 1, 2, 3]]
    assert kept(model, amount=0.75, round_to=2) == [[2, 3], [2, 3]]
    assert kept(model, amount=0.99) == [[2], [3]], "every layer keeps one"
    assert kept(model, amount=0.99, scope="global") == [[2], [3]]
    assert kept(model, amount=0.99, round_to=3) == [[1, 2, 3], [1, 2, 3]]


def test_caps_by_name_hold_for_what_is_inside_and_the_last_one_counts(resnet):
    plan = pl.plan(resnet, X, amount=0.7, most={"stage1": 0.25, "stage1.1": 0.5}, exclude="stage3.2")
    left = {name: row["kept"] for name, row in plan.layers.items() if name.endswith("conv1")}
    assert left == {
        "stage1.0.conv1": 12, "stage1.1.conv1": 8, "stage1.2.conv1": 12, "stage2.0.conv1": 10,
        "stage2.1.conv1": 10, "stage2.2.conv1": 10, "stage3.0.conv1": 19, "stage3.1.conv1": 19,
        "stage3.2.conv1": 64,
    }  # fmt: skip


def test_rounding_gives_back_the_last_to_go():
    model = chain([5.0, 1.0, 4.0, 2.0, 3.0, 6.0], [1.0, 1.0, 1.0])
    assert kept(model, amount=0.5, round_to=2)[0] == [0, 2, 4, 5], "three would stay; 3.0 went last"
    assert kept(model, amount=0.3, round_to=4)[1] == [0, 1, 2], "three filters cannot be rounded to four"


def test_equal_scores_go_from_the_first():
    assert kept(chain([1.0, 1.0, 1.0, 1.0], [1.0, 1.0]), amount=0.5) == [[2, 3], [1]]


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_scores_of_channels_that_go_together(reduce):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            y = self.a(x)
            return self.c(F.relu(y + self.b(y)))

    model = Residual()
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1))
        model.b.weight.copy_(torch.diag(torch.tensor([9.0, 1.0, 1.0])).view(3, 3, 1, 1))
    channels = trace(model, torch.zeros(1, 1, 2, 2))
    scores = planning.channel_scores(model, channels, pl.registry.find("criterion", "l1"), reduce=reduce)[
        channels.makers()["a"]
    ]
    expected = {"mean": [5.0, 1.5, 2.0], "sum": [10.0, 3.0, 4.0], "max": [9.0, 2.0, 3.0]}[reduce]
    assert scores.tolist() == pytest.approx(expected)


def test_a_criterion_of_the_users_own_may_judge_input_channels_without_data():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 5.0, 0.0], [2.0, -5.0, 1.0]]).view(2, 3, 1, 1))
    read = pl.registry.Method("criterion", "read", lambda w: w.abs().sum(1), granularities=("channel",))
    scores = planning.channel_scores(model, trace(model, torch.zeros(1, 1, 2, 2)), read)
    assert scores[scores > 0].tolist() == [3.0, 10.0, 1.0]
    small = pl.prune(model, torch.zeros(1, 1, 2, 2), criterion=read, amount=2 / 3)
    assert torch.equal(small[0].weight, model[0].weight[1:2])


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", ["flops", "params"])
@pytest.mark.parametrize("value", [0.9, 0.48, 0.2])
def test_targets_are_met_and_the_plan_says_what_the_pruned_network_has(resnet, scope, target, value):
    plan = pl.plan(resnet, X, scope=scope, **{target: value})
    small = pl.prune(resnet, X, plan=plan)
    found = {"params": pl.metrics.parameters(small), "macs": pl.metrics.macs(small, X)}
    assert plan.totals == {
        "params": [pl.metrics.parameters(resnet), found["params"]],
        "macs": [pl.metrics.macs(resnet, X), found["macs"]],
    }
    measure = "macs" if target == "flops" else target
    reached = plan.totals[measure][1] / plan.totals[measure][0]
    assert reached == plan.target["reached"] and plan.target[target] == value
    assert abs(reached - value) <= 0.01 * value
    twin = pl.prune(resnet, X, scope=scope, **{target: value})
    assert pruning_record(twin) == pruning_record(small)


def test_the_nearest_point_is_taken_where_steps_are_large():
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1, bias=False))
    x = torch.zeros(1, 1, 2, 2)
    assert [pl.plan(model, x, params=share).target["reached"] for share in (0.99, 0.8, 0.6, 0.1)] == [
        1.0, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(1 / 3),
    ]  # fmt: skip


def test_what_would_overshoot_stays_and_what_is_behind_it_goes():
    """a filters in the first layer and b in the second have a + ab + b parameters; 2 and 10 have 32."""
    model = nn.Sequential(*(nn.Conv2d(i, o, 1, bias=False) for i, o in ((1, 2), (2, 10), (10, 1))))
    norms = [5.0, 6.0, 7.0, 8.0, 0.005, 0.01, 1.0, 2.0, 3.0, 4.0]
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.1, 9.0]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor(norms).view(10, 1, 1, 1).expand(10, 2, 1, 1) / 2)

    def left(params):
        plan = pl.plan(model, torch.zeros(1, 1, 2, 2), params=params / 32, scope="global")
        return round(plan.target["reached"] * 32), plan.kept["0"], plan.kept["1"]

    # The order: two of the second layer (29, 26), one of the first (17), more of the second (15, 13, ...).
    assert left(17) == (17, [1], [0, 1, 2, 3, 6, 7, 8, 9])
    assert left(20) == (20, [0, 1], [0, 1, 2, 3, 8, 9]), "26, and without the first layer's: 23, 20"
    assert left(24) == (23, [0, 1], [0, 1, 2, 3, 7, 8, 9]), "26 would be 2 off, 17 would be 7 off"
    assert left(18) == (17, [1], [0, 1, 2, 3, 6, 7, 8, 9]), (
        "26, 23, 20, and then 17 again: the order's is taken"
    )


def test_what_is_multiplied_outside_layers_counts():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mix = nn.Linear(8, 16), nn.Linear(16, 8)
            self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x):
            y = self.mix(F.relu(self.stem(x)))
            y = torch.softmax(y @ y.transpose(1, 2), -1) @ y
            return self.down(F.gelu(self.up(y)))

    model, x = Attention(), torch.zeros(1, 10, 8)
    plan = pl.plan(model, x, flops=0.7)
    small = pl.prune(model, x, plan=plan)
    assert plan.totals["macs"] == [pl.metrics.macs(model, x), pl.metrics.macs(small, x)]
    assert (small.mix.out_features, small.down.out_features) == (8, 8) and small.up.out_features < 32
    assert "matmul" in plan.pinned[0]


def test_a_mask_and_a_gate_on_one_layer_both_go_into_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    gated = pl.regularisers.attach_gates(model, layers=["0"])
    (gate,) = (module for module in gated.modules() if isinstance(module, pl.regularisers.Gate))
    nn.init.normal_(gate.logits)
    both = pl.sparsify(gated, amount=0.5).eval()
    plain = planning.plain(both)
    assert not pl.masks(plain) and not pl.regularisers.gate_values(plain)
    assert pl.metrics.sparsity(plain) == 0.5 == pl.metrics.sparsity(both)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), both(x))


def test_a_plan_is_a_table_a_picture_and_json(resnet):
    plan = pl.plan(resnet, X, amount=0.5)
    lines = repr(plan).splitlines()
    assert lines[0].split() == ["layer", "filters", "kept", "share", "MACs", "kept", "tied", "to"]
    assert lines[2].split()[:4] == ["stage1.0.conv1", "16", "8", "50%"]
    assert lines[1].endswith("stage1.0.conv2 and 8 more")
    assert "asked for amount=0.5, reached 0.5" in lines and plan._repr_html_().startswith("<pre>")
    assert isinstance(plan.plot(), Figure)
    again = pl.Plan.from_json(plan.to_json())
    assert again == plan
    x = torch.randn(2, 3, 32, 32)
    small, twin = (pl.prune(resnet, X, plan=item).eval() for item in (plan, again))
    assert torch.equal(small(x), twin(x))


def test_a_plan_can_be_edited_within_its_ties(resnet):
    facts = json.loads(pl.plan(resnet, X, amount=0.5).to_json())
    facts["kept"]["stage1.0.conv1"] = [3]
    small = pl.prune(resnet, X, plan=pl.Plan(**facts))
    assert small.stage1[0].conv1.out_channels == 1
    facts["kept"]["conv"] = [0, 1, 2]
    with pytest.raises(ValueError, match="whose partners in tied layers"):
        pl.prune(resnet, X, plan=pl.Plan(**facts))
    facts["kept"]["conv"] = pl.plan(resnet, X, amount=0.5).kept["conv"]
    facts["kept"]["fc"] = [0, 1]
    with pytest.raises(ValueError, match="filters of 'fc' that the network needs"):
        pl.prune(resnet, X, plan=pl.Plan(**facts))


def test_clear_errors(resnet):
    plan = pl.plan(resnet, X)
    with pytest.raises(ValueError, match="another network"):
        pl.prune(pl.models.vgg16(width=0.125), X, plan=plan)
    with pytest.raises(TypeError, match="leave out amount"):
        pl.prune(resnet, X, plan=plan, amount=0.3)
    with pytest.raises(ValueError, match="not a plan"):
        pl.Plan.from_json('{"kept": {}}')
    with pytest.raises(ValueError, match="not a plan"):
        pl.Plan.from_json("kept")
    with pytest.raises(ValueError, match="flops and params are given|params and flops are given"):
        pl.plan(resnet, X, flops=0.5, params=0.5)
    for value in (0, 1.5, -1, True, "half"):
        with pytest.raises(ValueError, match="flops=.*share of the dense network's to keep"):
            pl.plan(resnet, X, flops=value)
    with pytest.raises(ValueError, match="exclude='stage1.0.conv': did you mean 'stage1.0.conv"):
        pl.plan(resnet, X, exclude=["stage1.0.conv"])
    with pytest.raises(ValueError, match="round_to=0"):
        pl.plan(resnet, X, round_to=0)
    with pytest.raises(ValueError, match="most=2: must be a share"):
        pl.plan(resnet, X, most=2)
    with pytest.raises(ValueError, match="most=-1 for 'stage1': must be a share"):
        pl.plan(resnet, X, most={"stage1": -1})
    with pytest.raises(ValueError, match="most='stages': did you mean 'stage"):
        pl.plan(resnet, X, most={"stages": 0.5})
    with pytest.raises(ValueError, match="scope='uniform': use 'local' .*also called uniform"):
        pl.plan(resnet, X, scope="uniform")
    with pytest.raises(ValueError, match="reduce='average'"):
        pl.plan(resnet, X, reduce="average")


# ------------------------------------------------------------------------------------------ latency


@pytest.fixture
def clock(monkeypatch):
    """A clock on which a layer takes as long as it has weights that it multiplies, and nothing else any."""
    now = [0.0]

    def tick(module, args, output):
        if isinstance(module, nn.Conv2d | nn.Linear):
            now[0] += module.weight.numel() * (output[0, 0].numel() if output.dim() == 4 else 1) * 1e-9

    handle = nn.modules.module.register_module_forward_hook(tick)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    yield
    handle.remove()


def test_latency_is_predicted_from_the_layers(resnet, clock):
    """On a clock that counts multiplications, time is FLOPs."""
    plan = pl.plan(resnet, X, latency=0.5)
    small = pl.prune(resnet, X, plan=plan)
    before, after = plan.totals["latency"]
    assert before == pytest.approx(pl.metrics.macs(resnet, X) * 1e-9, rel=1e-6)
    assert after == pytest.approx(pl.metrics.macs(small, X) * 1e-9, rel=0.02)  # between the table's points
    assert plan.target["reached"] == pytest.approx(0.5, rel=0.01)


def test_latency_of_depthwise_grouped_and_transposed_layers(clock):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 16, 1, groups=4), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip
    plan = pl.plan(model, torch.zeros(1, 3, 8, 8), latency=0.6)
    assert plan.target["reached"] == pytest.approx(0.6, rel=0.2)
    assert plan.totals["latency"][0] == pytest.approx(plan.totals["macs"][0] * 1e-9)
