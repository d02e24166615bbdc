"""The command line, called as a function; once as a program."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import prunelab as pl
from prunelab import cli, registry, training
from prunelab import data as data_module
from prunelab.data import Data, Split

COMMANDS = ("data", "train", "methods", "sweep")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """A folder of its own, small pictures, and the caller's number of threads afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PRUNELAB_DATA", raising=False)
    monkeypatch.setenv("PRUNELAB_PRECISION", "float32")
    monkeypatch.setattr(data_module, "EMBEDDED_COUNTS", {"train": 30, "validation": 10, "test": 20})
    training.fastest_precision.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    training.fastest_precision.cache_clear()


def train(*more, model="vgg11", width="0.05", epochs=2):
    words = ["train", model, "--epochs", str(epochs), "--threads", "1", "--data", "embedded"]
    return cli.main([*words, *(["--width", width] if width else []), *more])


def weights(path):
    return pl.load(path, pl.models.vgg11(width=0.05)).state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def said_one_line(capsys, start):
    line = capsys.readouterr().err
    assert line.startswith(f"prunelab: {start}") and line.count("\n") == 1, line
    return True


def show_help(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_names_the_commands(capsys):
    shown = show_help(capsys)
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_shows_an_example_that_works(command, capsys, monkeypatch):
    shown = " ".join(show_help(capsys, command).split())
    example = re.search(r"Example: (prunelab .*)$", shown).group(1)
    called = []
    monkeypatch.setattr(cli, f"_{command}", lambda options: called.append(options) or 0)
    assert cli.main(shlex.split(example)[1:]) == 0
    assert called[0].command == command


def test_methods_lists_the_registry(capsys):
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[method.axis, method.name] for method in pl.methods()]
    for line, method in zip(lines, pl.methods(), strict=True):
        assert method.cite in line and all(need in line for need in method.needs)
        assert ":math:" not in line and line.split()[-1] in method.summary
    for axis in registry.AXES:
        assert cli.main(["methods", axis]) == 0
        names = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
        assert names == [method.name for method in pl.methods(axis)]


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "prunelab", "methods", "criteria"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "invalid choice: 'criteria'" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_says_what_there_is(capsys, monkeypatch):
    monkeypatch.setenv("PRUNELAB_DATA", "embedded")
    assert cli.main(["data"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "data: the embedded default (PRUNELAB_DATA says so)",
        "     train:     30 pictures",
        "validation:     10 pictures",
        "      test:     20 pictures",
    ]


def test_data_downloads_only_when_told_to(capsys, monkeypatch, tmp_path):
    asked = []

    def download(root=None):
        asked.append(root)
        raise data_module.DataError("the server is asleep")

    monkeypatch.setattr(data_module, "download", download)
    assert cli.main(["data"]) == 0 and asked == []
    assert cli.main(["data", "--download", "--root", str(tmp_path / "here")]) == 1
    assert asked == [tmp_path / "here"]
    assert said_one_line(capsys, "the server is asleep")


def test_train_stores_weights_and_a_card_that_repeats_them(tmp_path, monkeypatch, capsys):
    assert train("--out", "made", "--seed", "3", "--lr", "0.1", "--weight-decay", "0.02") == 0
    path = tmp_path / "made" / "vgg11-w0.05-embedded.safetensors"
    shown = capsys.readouterr().out
    card = json.loads(path.with_suffix(".json").read_text())

    loaded = data_module.load("embedded", quiet=True)
    model = pl.load(path, pl.models.vgg11(width=0.05))
    assert card["test_accuracy"] == pl.evaluate(model, loaded.test).accuracy
    assert card["validation_accuracy"] == pl.evaluate(model, loaded.validation).accuracy
    assert card["parameters"] == sum(w.numel() for w in model.parameters())
    assert f"validation {card['validation_accuracy']:.2%}, test {card['test_accuracy']:.2%}" in shown
    assert (card["model"], card["width"], card["data"], card["seed"]) == ("vgg11", 0.05, "embedded", 3)
    assert card["pictures"] == {"train": 30, "validation": 10, "test": 20}
    recipe = card["recipe"]
    assert (recipe["epochs"], recipe["lr"], recipe["weight_decay"]) == (2, 0.1, 0.02)
    assert card["precision"] == "float32" and card["threads"] == 1

    # The card's own command, elsewhere, where another precision would be chosen and other data is at hand.
    monkeypatch.setenv("PRUNELAB_PRECISION", "bfloat16")
    training.fastest_precision.cache_clear()
    words = shlex.split(card["command"])
    assert words[0] == "prunelab"
    assert cli.main([*words[1:], "--runs", "elsewhere", "--out", "again"]) == 0
    again = tmp_path / "again" / path.name
    assert equal(weights(again), weights(path))
    assert json.loads(again.with_suffix(".json").read_text()) == card


def test_the_command_is_written_out_in_full(monkeypatch):
    written = []
    monkeypatch.setattr(cli, "_train", lambda options: written.append(options) or 0)
    given = ["train", "mobilenetv2", "--width", "0.5", "--lr", "0.123456789", "--weight-decay", "0.003"]
    cli.main([*given, "--seed", "7", "--threads", "3", "--device", "mps", "--epochs", "12"])
    words = cli._command(written[0], "cifar10", "bfloat16")
    cli.main(["train", *words])
    first, second = (vars(options) for options in written)
    assert second == {**first, "data": "cifar10", "precision": "bfloat16"}


def test_train_auto_names_the_data_it_found(tmp_path):
    torch.set_num_threads(2)
    assert cli.main(["train", "resnet20", "--epochs", "1", "--threads", "1"]) == 0
    assert torch.get_num_threads() == 1
    card = json.loads((tmp_path / "resnet20-embedded.json").read_text())
    assert "--data embedded" in card["command"] and "width" not in card
    assert "no CIFAR-10 on this machine" in card["source"]
    assert card["macs"] == 40_551_040 and card["threads"] == 1
    pl.load(tmp_path / "resnet20-embedded.safetensors", pl.models.resnet20())


def test_train_learns(tmp_path, monkeypatch, capsys):
    """Dark and bright pictures: the numbers of the card mean something."""
    labels = torch.arange(64) % 2
    images = (labels * 200).to(torch.uint8).view(-1, 1, 1, 1).expand(64, 3, 32, 32).contiguous()
    split = Split(images, labels, (0.4, 0.4, 0.4), (0.4, 0.4, 0.4))
    mostly = replace(split, labels=torch.cat([labels[:48], 1 - labels[48:]]))  # a quarter is labelled wrongly
    two = Data("embedded", tuple("abcdefghij"), split, split, mostly, "data: dark and bright")
    monkeypatch.setattr(data_module, "load", lambda *given: two)
    assert train("--lr", "0.02", epochs=12, width="0.1") == 0
    card = json.loads((tmp_path / "vgg11-w0.1-embedded.json").read_text())
    assert (card["validation_accuracy"], card["test_accuracy"]) == (1.0, 0.75)
    assert "validation 100.00%, test 75.00%" in capsys.readouterr().out


def test_a_stopped_training_continues(tmp_path, monkeypatch, capsys):
    write = training._write_checkpoint

    def stopped(path, stored):
        write(path, stored)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_write_checkpoint", stopped)
        assert train() == 130
    assert "run the same command again to continue" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.json"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["vgg11-w0.05-embedded.pt"]

    assert train() == 0
    assert train("--runs", "other", "--out", "whole") == 0
    name = "vgg11-w0.05-embedded.safetensors"
    assert equal(weights(tmp_path / name), weights(tmp_path / "whole" / name))


def test_ctrl_c_outside_of_training(monkeypatch, capsys):
    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_module, "load", stopped)
    assert cli.main(["data"]) == 130
    assert said_one_line(capsys, "stopped by hand")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "resnet21"], "invalid choice: 'resnet21'"),
        (["train", "resnet20", "--data", "cifar100"], "invalid choice: 'cifar100'"),
        (["train", "resnet20", "--epochs", "many"], "invalid int value: 'many'"),
        (["methods", "criteria"], "invalid choice: 'criteria'"),
        (["prune"], "invalid choice: 'prune'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_words_that_are_not_known(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "resnet20", "--width", "0.5"], "--width: resnet20 has a fixed width"),
        (["train", "vgg11", "--width", "0"], "width=0.0: must be above 0"),
        (["train", "resnet20", "--epochs", "0"], "epochs=0: must be at least 1"),
        (["train", "resnet20", "--lr", "-1"], "lr=-1.0: must be above 0"),
        (["train", "resnet20", "--threads", "0"], "--threads 0: must be at least 1"),
        (["train", "resnet20", "--device", "abacus"], "--device abacus: Expected one of cpu"),
        (["train", "resnet20", "--data", "cifar10"], "CIFAR-10 is not on this machine: run"),
        (["train", "resnet20", "--out", "file"], "[Errno 17] File exists: 'file'"),
        (["data", "--root", "nowhere"], "no CIFAR-10 in nowhere: expected"),
    ],
)
def test_values_that_cannot_be(words, message, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert cli.main(words) == 1
    assert said_one_line(capsys, message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert cli.main(["train", "resnet20", "--device", "cuda"]) == 1
    assert said_one_line(capsys, "--device cuda: ")


def test_a_run_with_other_settings_is_in_the_way(capsys):
    assert train(epochs=1) == 0
    capsys.readouterr()
    assert train("--seed", "1", epochs=1) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "is of a run with other settings (seed was 0, is 1): delete it to start afresh" in line


def test_a_training_that_diverges(capsys, tmp_path):
    assert train("--lr", "1e30") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("prunelab: ") and "try a lower lr" in line
    assert not list(tmp_path.glob("*.safetensors"))
