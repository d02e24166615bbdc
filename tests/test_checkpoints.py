"""The weights that ship with the package: small enough, described, and as good as their cards say."""

import pytest

import prunelab as pl

CARDS = pl.models.checkpoints()
FILES = sorted(pl.models.CHECKPOINTS.glob("*.safetensors"))


def build(name, **options):
    card = CARDS[name]
    width = {"width": card["width"]} if "width" in card else {}
    return getattr(pl.models, card["model"])(weights=card["data"], **width, **options)


def test_there_are_the_promised_ones():
    assert {
        "resnet20-cifar10",
        "resnet56-cifar10",
        "resnet20-embedded",
        "vgg16-w0.25-cifar10",
        "vgg16-w0.25-embedded",
        "mobilenetv2-w0.5-embedded",
    } <= set(CARDS)


def test_every_file_has_a_card_and_they_stay_small():
    assert {path.stem for path in FILES} == set(CARDS)
    sizes = [path.stat().st_size for path in FILES]
    assert max(sizes) <= 4e6 and sum(sizes) <= 16e6


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_how_to_repeat_it_and_names_nobodys_folder(name):
    card = CARDS[name]
    model = build(name)
    assert card["command"].startswith(f"prunelab train {card['model']} --data {card['data']}")
    assert card["parameters"] == pl.metrics.parameters(model)
    assert {"recipe", "seed", "source", "validation_accuracy", "test_accuracy"} <= set(card)
    assert card["recipe"]["epochs"] > 0
    assert "/" not in card["source"]


@pytest.mark.parametrize("name", [name for name in CARDS if CARDS[name]["data"] == "embedded"])
def test_accuracy_on_the_embedded_pictures_is_the_cards(name):
    data = pl.data.load("embedded", quiet=True)
    model = build(name)
    for part in ("validation", "test"):
        accuracy = pl.evaluate(model, getattr(data, part)).accuracy
        assert accuracy == pytest.approx(CARDS[name][f"{part}_accuracy"], abs=0.005)


@pytest.mark.parametrize("name", [name for name in CARDS if CARDS[name]["data"] == "cifar10"])
def test_accuracy_on_cifar10_is_about_the_cards(name):
    try:
        data = pl.data.load("cifar10", quiet=True)
    except pl.data.DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    # A network that was trained on one encoding of the pictures may read another a few points worse.
    accuracy = pl.evaluate(build(name), data.test).accuracy
    assert accuracy == pytest.approx(CARDS[name]["test_accuracy"], abs=0.05)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="10 classes, this one has 100: give num_classes=10"):
        pl.models.resnet20(weights="embedded", num_classes=100)
