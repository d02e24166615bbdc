"""Criteria against values worked by hand, torch's own pruning, and the definitions evaluated the slow way."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import prunelab as pl
from prunelab import evidence, granularity, registry
from prunelab.criteria import gradient, norms


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


def test_gradient_evidence_is_that_of_the_mean_loss_over_all_batches():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    ).train()
    batches = [(torch.randn(n, 1, 4, 4), torch.randint(0, 3, (n,))) for n in (5, 2)]
    statistics = model[1].running_mean.clone()
    score = evidence.scorer(registry.find("criterion", "gradient"), model, {"0": model[0]}, batches, 0)
    where = granularity.positions(registry.find("granularity", "filter"), model[0])
    scores = score("0", where)
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    model.eval()
    nn.functional.cross_entropy(model(images), labels).backward()
    assert torch.allclose(scores, model[0].weight.grad.abs().sum((1, 2, 3)), atol=1e-6)
    assert torch.equal(statistics, model[1].running_mean), "measuring must not change batch norm's statistics"


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


@pytest.mark.parametrize("name", [method.name for method in pl.methods("criterion")])
def test_every_criterion_works_at_every_granularity(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 4, 5)
    )
    data = [(torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 2, 3]))]
    for shape in pl.methods("granularity"):
        sparse = pl.sparsify(model, granularity=shape.name, criterion=name, amount=0.5, data=data)
        assert 0.3 < pl.metrics.layer_sparsity(sparse)["2"] < 0.7


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
        assert method.section
