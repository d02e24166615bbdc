"""Criteria against values worked by hand, torch's own pruning, and the definitions evaluated the slow way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import prunelab as pl
from prunelab import granularity, registry
from prunelab.criteria import gradient, norms
from prunelab.sparsify import new_masks


def test_l1_and_l2_by_hand():
    groups = torch.tensor([[3.0, -4.0], [0.0, 2.0], [0.0, 0.0]])
    assert norms.l1(groups).tolist() == [7.0, 2.0, 0.0]
    assert norms.l2(groups).tolist() == [5.0, 2.0, 0.0]


def test_l1_and_l2_rank_differently():
    groups = torch.tensor([[3.0, 0.0], [2.0, 2.0]])
    assert norms.l1(groups).argmin() == 0
    assert norms.l2(groups).argmax() == 0


def test_random_is_repeatable_uniform_and_blind_to_the_weights():
    def draw(groups, seed):
        return norms.random(groups, torch.Generator().manual_seed(seed))

    many = draw(torch.zeros(4000, 2), 0)
    assert torch.equal(many, draw(torch.ones(4000, 2), 0))
    assert not torch.equal(many, draw(torch.zeros(4000, 2), 1))
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.02


def test_gradient_by_hand():
    groups, gradients = torch.ones(2, 2), torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    assert gradient.gradient(groups, gradients).tolist() == [3.0, 0.5]


@pytest.mark.parametrize("amount", [0.1, 0.35, 0.5, 0.9])
def test_weights_by_l1_are_those_that_torch_prunes(amount):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3)
    ours = pl.finalize(pl.sparsify(conv, criterion="l1", amount=amount))
    torch_prune.l1_unstructured(conv, "weight", amount)
    assert torch.equal(ours.weight, conv.weight)


@pytest.mark.parametrize(("criterion", "n"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize(("name", "dim"), [("filter", 0), ("channel", 1)])
def test_filters_and_channels_are_those_that_torch_prunes(criterion, n, name, dim):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3)
    ours = pl.finalize(pl.sparsify(conv, granularity=name, criterion=criterion, amount=0.4, layers=[""]))
    torch_prune.ln_structured(conv, "weight", 0.4, n=n, dim=dim)
    assert torch.equal(ours.weight, conv.weight)


@pytest.fixture(scope="module")
def network():
    """Small, for CIFAR's shapes; sizes that every granularity divides."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 8)),
    ).eval()


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, 3, 12, 12, generator=generator), torch.randint(0, 8, (6,), generator=generator))
        for _ in range(2)
    ]


def judged(criterion):
    """The granularities at which a criterion makes sense."""
    for shape in pl.methods("granularity"):
        scored = "weight" if shape.choose else shape.name
        if not criterion.granularities or scored in criterion.granularities:
            yield shape


@pytest.mark.parametrize("name", [method.name for method in pl.methods("criterion")])
def test_every_criterion_at_every_granularity_removes_the_amount(name, network, pictures):
    criterion = registry.find("criterion", name)
    model = pl.regularisers.attach_gates(network) if name == "gate" else network
    # The linear layer has no batch norm to read a scale from.
    layers = ["0", "3", "6"] if name in ("bn_scale", "gate") else None
    for shape in judged(criterion):
        for scope in ("local", "global"):
            share = {} if shape.choose else {"amount": 0.3}
            options = {"granularity": shape.name, "criterion": name, "scope": scope, "layers": layers}
            try:
                keep = new_masks(model, data=pictures, **options, **share)
            except ValueError as error:
                # Where the scores of one layer are all below those of the others, it is not emptied, but
                # nothing is done at all.
                assert scope == "global" and "would be emptied completely" in str(error), error
                assert name not in ("random", "l2", "lamp", "taylor_weight")
                continue
            groups = {
                layer: granularity.matrix(mask, granularity.positions(shape, model.get_submodule(layer)))
                for layer, mask in keep.items()
            }
            if shape.choose:
                kept = {"2:4": 2, "1:4": 1, "pattern": 4}[shape.name]
                assert all((each.sum(1) == kept).all() for each in groups.values()), (shape.name, scope)
                continue
            gone = {layer: (~each.any(1)).sum().item() for layer, each in groups.items()}
            assert all((each.all(1) | ~each.any(1)).all() for each in groups.values()), "whole groups only"
            wanted = {layer: 0.3 * len(each) for layer, each in groups.items()}
            if scope == "global":
                gone, wanted = {"all": sum(gone.values())}, {"all": sum(wanted.values())}
            for layer, count in gone.items():
                assert abs(count - wanted[layer]) <= 1, (shape.name, scope, layer)


def test_a_criterion_is_refused_where_it_makes_no_sense(network, pictures):
    with pytest.raises(ValueError, match="'hrank' does not judge granularity 'kernel'"):
        pl.sparsify(network, granularity="kernel", criterion="hrank", data=pictures)
    with pytest.raises(ValueError, match="'lasso' does not judge granularity 'filter'"):
        pl.sparsify(network, granularity="filter", criterion="lasso", data=pictures)
    with pytest.raises(ValueError, match="'obs' judges a weight: to prune, take one that judges filters"):
        pl.prune(network, torch.zeros(1, 3, 12, 12), criterion="obs", data=pictures)


@pytest.mark.parametrize("name", [method.name for method in pl.methods("criterion")])
def test_every_criterion_that_judges_filters_or_channels_prunes(name, network, pictures):
    criterion = registry.find("criterion", name)
    if criterion.granularities and not {"filter", "channel"} & set(criterion.granularities):
        pytest.skip(f"it judges {', '.join(criterion.granularities)}")
    model = pl.regularisers.attach_gates(network) if name == "gate" else network
    for scope in ("local", "global"):
        small = pl.prune(
            model, torch.zeros(1, 3, 12, 12), criterion=name, amount=0.3, scope=scope, data=pictures
        )
        left = [module.out_channels for module in small if isinstance(module, nn.Conv2d)]
        if scope == "local":
            assert left == [6, 6, 11]
        else:
            assert sum(left) >= 32 - 10  # at least: a layer that would be emptied keeps one


def with_a_dead_and_a_constant_map(network):
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight[2:4] = 0
        for norm in (network[1], network[4]):
            norm.weight[2:4] = 0
            norm.bias[2:4] = torch.tensor([-1.0, 0.5])  # behind ReLU: zero, and one half everywhere
    return network


def with_equal_filters(network):
    with torch.no_grad():
        for layer in (network[0], network[3]):
            layer.weight[:] = layer.weight[:1, :1].clone()
        network[3].bias.zero_()
    return network


def with_one_filter(network):
    torch.manual_seed(0)
    network[0], network[1], network[3] = nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1).eval(), nn.Conv2d(1, 8, 3)
    return network


@pytest.mark.parametrize("name", [method.name for method in pl.methods("criterion")])
def test_degenerate_input_has_a_defined_answer_or_a_clear_error(name, network, pictures):
    criterion = registry.find("criterion", name)
    shape = next(s for s in ("filter", "channel", "weight") if s in (criterion.granularities or ("filter",)))

    def masks(model, data=pictures):
        if name == "gate":
            model = pl.regularisers.attach_gates(model)
        # The first layer's input channels are the picture's colours.
        layers = ["3"] if shape == "channel" else ["0", "3"]
        return new_masks(model, granularity=shape, criterion=name, amount=0.5, data=data, layers=layers)

    one = [(images[:1], labels[:1]) for images, labels in pictures[:1]]
    for change, data in (
        (with_a_dead_and_a_constant_map, pictures),
        (with_equal_filters, pictures),
        (lambda model: model, one),
    ):
        model = change(copy.deepcopy(network))
        found = masks(model, data)
        for layer, keep in found.items():
            where = granularity.positions(registry.find("granularity", shape), model.get_submodule(layer))
            kept = granularity.matrix(keep, where).any(1)
            assert kept.sum() == len(kept) // 2, change
        if change is with_equal_filters:  # decided by their place, not by chance
            again = masks(model, data)
            assert all(torch.equal(keep, again[layer]) for layer, keep in found.items())
    alone = masks(with_one_filter(copy.deepcopy(network)))
    assert shape == "weight" or all(keep.any() for keep in alone.values())
    damaged = copy.deepcopy(network)
    with torch.no_grad():
        damaged[3].weight[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 576 values of the weight of layer '3' are infinite or NaN"):
        masks(damaged)
    if criterion.needs and set(criterion.needs) - {"generator", "norm_scale", "gates"}:
        with pytest.raises(ValueError, match="data is empty"):
            masks(network, [])


def test_a_criterion_that_needs_data_says_so():
    with pytest.raises(ValueError, match="'gradient' needs data: pass data="):
        pl.sparsify(nn.Linear(3, 3), criterion="gradient")
    with pytest.raises(ValueError, match="data is empty"):
        pl.sparsify(nn.Linear(3, 3), criterion="gradient", data=[])


def test_a_students_own_criterion_works_and_a_wrong_one_is_refused():
    layer = nn.Linear(4, 4, bias=False)
    sparse = pl.sparsify(layer, criterion=lambda groups: -groups.abs().sum(1), amount=0.5)
    largest_kept = sparse.weight.abs().max()
    assert largest_kept < layer.weight.abs().max(), "the largest go first with the sign turned round"
    with pytest.raises(ValueError, match="one finite number for each of the 16 groups"):
        pl.sparsify(layer, criterion=lambda groups: groups.sum())
    with pytest.raises(ValueError, match="infinite or NaN"):
        pl.sparsify(layer, criterion=lambda groups: groups.sum(1) / 0)


def test_every_method_is_cited_in_the_bibliography_and_described():
    from pathlib import Path

    bibliography = (Path(__file__).parents[1] / "references.bib").read_text()
    for method in pl.methods():
        assert f"{{{method.cite}," in bibliography, f"{method.name} cites {method.cite!r}"
        assert method.summary.endswith((".", "`.", ").")), f"{method.name}: {method.summary!r}"
        assert method.family and method.section, method.name
