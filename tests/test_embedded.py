"""The embedded data set: deterministic, balanced, and not to be solved by cheap means."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prunelab import embedded


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return embedded.generate(3000, seed=7)


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).double() / 255 - 0.5


def test_interface(pictures):
    images, labels = pictures
    assert images.shape == (3000, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.shape == (3000,) and labels.dtype == torch.int64
    assert len(embedded.CLASSES) == len(set(embedded.CLASSES)) == 10


def test_classes_are_balanced_and_shuffled(pictures):
    _, labels = pictures
    assert labels.bincount().tolist() == [300] * 10
    assert labels[:1000].bincount(minlength=10).min() > 60
    assert sorted(embedded.generate(23, seed=0)[1].bincount(minlength=10).tolist()) == [2] * 7 + [3] * 3


def test_a_seed_repeats_its_pictures_and_another_draws_others():
    images, labels = embedded.generate(200, seed=1)
    again, labels_again = embedded.generate(200, seed=1)
    other, _ = embedded.generate(200, seed=2)
    assert torch.equal(images, again) and torch.equal(labels, labels_again)
    assert torch.cdist(flat(images), flat(other)).min() / 3072**0.5 > 0.05  # root mean square difference


def test_pictures_are_those_of_this_version(pictures):
    """Change of a picture without a new VERSION would leave stale caches and stale checkpoints behind."""
    images, labels = pictures
    brightness = images.double().mean((1, 2, 3))
    assert embedded.VERSION == 1
    assert labels[:12].tolist() == [1, 4, 4, 3, 4, 8, 5, 9, 7, 4, 2, 5]
    torch.testing.assert_close(
        brightness[:4], torch.tensor([151.96, 152.02, 130.69, 142.16]).double(), atol=0.05, rtol=0
    )
    assert images.double().mean().item() == pytest.approx(127.97, abs=0.02)


def test_every_shape_is_negative_inside_and_positive_outside():
    y, x = np.mgrid[-2:2:81j, -2:2:81j].astype(np.float32)
    for name, shape in embedded.SHAPES.items():
        inside = shape(x, y) < 0
        share = inside.mean() * 16 / np.pi  # of the unit circle
        assert 0.25 < share < 0.85, name
        assert not inside[np.hypot(x, y) > 1.25].any(), name
        assert (inside == inside[::-1]).all(), f"a flipped {name} is another class"


def test_the_star_is_a_pentagram():
    """Its five points and the notches between them, by elementary geometry."""
    inradius = 0.36
    point, notch = inradius / np.cos(np.radians(72)), inradius / np.cos(np.radians(36))
    turns = np.radians(36 * np.arange(10))
    radius = np.where(np.arange(10) % 2, notch, point)
    for scale, sign in ((0.98, -1), (1.02, 1)):
        x, y = scale * radius * np.cos(turns), scale * radius * np.sin(turns)
        assert (np.sign(embedded.SHAPES["star"](x, y)) == sign).all()


def test_colour_does_not_give_the_class_away(pictures):
    """Mean and spread of the three colours tell the class little better than guessing does."""
    images, labels = pictures
    colours = flat(images).unflatten(1, (3, -1))
    assert linear_accuracy(torch.cat([colours.mean(2), colours.std(2)], dim=1), labels) < 0.15


def test_pixels_alone_do_not_give_the_class_away(pictures):
    images, labels = pictures
    assert linear_accuracy(flat(F.avg_pool2d(images.double(), 2)), labels) < 0.2


def linear_accuracy(features: torch.Tensor, labels: torch.Tensor, ridge: float = 10.0) -> float:
    """Test accuracy of a ridge regression on one-hot labels; the last third is the test set."""
    split = 2 * len(labels) // 3
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    x, y = features[:split], F.one_hot(labels[:split], 10).double()
    weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]).double(), x.T @ y)
    return ((features[split:] @ weight).argmax(1) == labels[split:]).double().mean().item()


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (1, -1)])
def test_negative_arguments_are_refused(count, seed):
    with pytest.raises(ValueError, match=f"count={count}, seed={seed}"):
        embedded.generate(count, seed)


def test_no_pictures_at_all():
    images, labels = embedded.generate(0, seed=0)
    assert images.shape == (0, 3, 32, 32) and labels.shape == (0,)
