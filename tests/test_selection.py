"""From scores to decisions."""

import pytest
import torch

from prunelab.selection import check_amount, keep_best, select


def test_the_lowest_scores_go():
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0])
    assert keep_best(scores, 0.5).tolist() == [True, False, False, True]
    assert keep_best(scores, 0.0).all()
    assert not keep_best(scores, 1.0).any()


def test_ties_go_in_order_and_exactly_as_many_as_asked():
    assert keep_best(torch.ones(5), 0.4).tolist() == [False, False, True, True, True]


def test_local_takes_a_share_of_each_layer_and_global_of_all():
    scores = {"small": torch.tensor([1.0, 2.0]), "large": torch.tensor([10.0, 20.0])}
    local = select(scores, 0.5, "local")
    assert {name: keep.tolist() for name, keep in local.items()} == {
        "small": [False, True],
        "large": [False, True],
    }
    everywhere = select(scores, 0.5, "global")
    assert {name: keep.tolist() for name, keep in everywhere.items()} == {
        "small": [False, False],
        "large": [True, True],
    }


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan")])
def test_an_amount_outside_0_to_1_is_refused(amount):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        check_amount(amount)


def test_a_percentage_is_recognised():
    with pytest.raises(ValueError, match=r"for 50 % write amount=0\.5"):
        check_amount(50)


@pytest.mark.parametrize("amount", ["0.5", None, True])
def test_something_that_is_no_number_is_refused(amount):
    with pytest.raises(TypeError, match="must be a number"):
        check_amount(amount)


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match=r"'local'.*'global'"):
        select({"a": torch.ones(2)}, 0.5, "layer")
