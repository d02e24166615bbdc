"""Masks on a model: right at the start, and still right after everything that happens to a model."""

import copy
import io

import pytest
import torch
from torch import nn

import prunelab as pl


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )


def zeros(model):
    return {name: weight == 0 for name, weight in effective_weights(model).items()}


def effective_weights(model):
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter", "channel"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_share_of_groups_is_what_was_asked_and_the_model_is_unchanged(model, granularity, scope):
    before = state_of(model)
    sparse = pl.sparsify(model, granularity=granularity, amount=0.5, scope=scope)
    assert same(before, state_of(model)) and not pl.masks(model)
    masks = pl.masks(sparse)
    if granularity == "weight":
        removed, total = (
            sum(int((~mask).sum()) for mask in masks.values()),
            sum(m.numel() for m in masks.values()),
        )
    else:
        rows = {
            "kernel": lambda m: m.flatten(0, 1),
            "filter": lambda m: m,
            "channel": lambda m: m.transpose(0, 1),
        }
        cut = [rows[granularity](mask.reshape(*mask.shape[:2], -1)).flatten(1) for mask in masks.values()]
        assert all((group.all(1) | ~group.any(1)).all() for group in cut), "a group lives or dies as one"
        removed, total = sum(int((~group.any(1)).sum()) for group in cut), sum(len(group) for group in cut)
    assert removed == pytest.approx(total / 2, abs=1)


def test_filters_of_the_last_layer_channels_of_the_first_and_kernels_of_a_linear_layer_are_left_alone(model):
    assert list(pl.masks(pl.sparsify(model, granularity="weight"))) == ["0", "3", "5"]
    assert list(pl.masks(pl.sparsify(model, granularity="filter"))) == ["0", "3"]
    assert list(pl.masks(pl.sparsify(model, granularity="channel"))) == ["3", "5"]
    assert list(pl.masks(pl.sparsify(model, granularity="kernel"))) == ["0", "3"]
    assert list(pl.masks(pl.sparsify(model, granularity="filter", layers=["5"]))) == ["5"]


def test_masks_survive_training(model):
    sparse = pl.sparsify(model, amount=0.7)
    before = zeros(sparse)
    weights = effective_weights(sparse)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        loss = nn.functional.cross_entropy(sparse(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert same(before, zeros(sparse)), "zeros stay zero and nothing else became zero"
    assert not same(weights, effective_weights(sparse)), "the others were trained"


def test_masks_survive_deepcopy_and_the_copy_is_independent(model):
    sparse = pl.sparsify(model, amount=0.7)
    twin = copy.deepcopy(sparse)
    assert same(effective_weights(sparse), effective_weights(twin))
    with torch.no_grad():
        twin[0].parametrizations.weight.original.zero_()
    assert sparse[0].weight.any()


def test_masks_survive_state_dict(model):
    sparse = pl.sparsify(model, amount=0.7)
    buffer = io.BytesIO()
    torch.save(sparse.state_dict(), buffer)
    buffer.seek(0)
    other = pl.sparsify(copy.deepcopy(model), criterion="random", amount=0.1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(effective_weights(sparse), effective_weights(other))


def test_masks_move_with_the_model(model):
    sparse = pl.sparsify(model, amount=0.7).to("meta")
    assert all(mask.device.type == "meta" and mask.dtype == torch.bool for mask in pl.masks(sparse).values())
    half = pl.sparsify(model, amount=0.7).double()
    assert all(mask.dtype == torch.bool for mask in pl.masks(half).values())
    assert half[0].weight.dtype == torch.float64


def test_finalize_bakes_the_zeros_in_and_leaves_its_argument_masked(model):
    sparse = pl.sparsify(model, amount=0.7)
    plain = pl.finalize(sparse)
    assert same(effective_weights(sparse), effective_weights(plain))
    assert pl.masks(sparse) and not pl.masks(plain)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert type(plain[0]) is nn.Conv2d


def test_sparsifying_again_continues_and_never_brings_back(model):
    first = pl.sparsify(model, criterion="random", amount=0.5)
    second = pl.sparsify(first, criterion="l1", amount=0.8)
    assert pl.metrics.sparsity(second) == pytest.approx(0.8, abs=0.01)
    for name, mask in pl.masks(second).items():
        assert not (mask & ~pl.masks(first)[name]).any()
    third = pl.sparsify(second, amount=0.1)
    assert pl.metrics.sparsity(third) == pytest.approx(0.8, abs=0.01), "a smaller amount restores nothing"


def test_within_another_models_masks(model):
    winner = pl.sparsify(model, amount=0.6)
    torch.manual_seed(1)
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        nn.init.normal_(parameter)
    ticket = pl.sparsify(fresh, amount=0.6, within=winner)
    assert same(zeros(ticket), zeros(winner))


def test_finer_masks_combine_with_coarser_ones(model):
    filters = pl.sparsify(model, granularity="filter", amount=0.5)
    both = pl.sparsify(filters, granularity="weight", amount=0.6)
    for name, mask in pl.masks(filters).items():
        assert not (pl.masks(both)[name] & ~mask).any()


def test_a_layer_emptied_completely_is_refused_and_named(model):
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    before = state_of(model)
    with pytest.raises(ValueError, match="layer '3' would be emptied completely"):
        pl.sparsify(model, amount=0.6, scope="global")
    assert same(before, state_of(model)) and not pl.masks(model)


def test_clear_errors_for_wrong_arguments(model):
    with pytest.raises(ValueError, match="did you mean 'filter'"):
        pl.sparsify(model, granularity="filters")
    with pytest.raises(ValueError, match=r"amount=1\.5: must be the share"):
        pl.sparsify(model, amount=1.5)
    with pytest.raises(ValueError, match="There are: 0, 3, 5"):
        pl.sparsify(model, layers=["conv1"])
    with pytest.raises(ValueError, match="layers is empty"):
        pl.sparsify(model, layers=[])
    with pytest.raises(ValueError, match="ReLU has no convolution or linear layer"):
        pl.sparsify(nn.ReLU())
    with pytest.raises(ValueError, match="no layer in which removing a filter makes sense"):
        pl.sparsify(nn.Linear(3, 3), granularity="filter")
