"""The command line: ``prunelab data | train | methods | sweep | release | grade``."""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import prunelab
from prunelab import data, experiments, files, metrics, models, plots, ranking, registry, results, training
from prunelab.grading import command as grading


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="prunelab", description="Neural-network pruning on CIFAR-10.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = _add(commands, "data", "show or fetch the pictures", "prunelab data --download")
    command.add_argument("--download", action="store_true", help="fetch CIFAR-10 (170 MB) with torchvision")
    command.add_argument("--root", type=Path, help="folder of CIFAR-10 (default: the user's cache)")
    command.set_defaults(run=_data)

    example = "prunelab train resnet20 --data embedded --epochs 30 --out checkpoints"
    command = _add(commands, "train", "train a network; stopped, it continues where it was", example)
    command.add_argument("model", choices=models.NETWORKS, help="network to train")
    command.add_argument("--data", default="auto", choices=("auto", "cifar10", "embedded"))
    command.add_argument("--width", type=float, help="width of a VGG or MobileNetV2 (default: 1)")
    command.add_argument("--epochs", type=int, default=30)
    command.add_argument("--lr", type=float, default=0.2, help="highest learning rate (default: %(default)s)")
    command.add_argument("--weight-decay", type=float, default=5e-4, help="(default: %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads; part of what makes a run repeat exactly",
    )
    command.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    command.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    command.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="where the unfinished run is kept (default: %(default)s)",
    )
    command.add_argument("--describe", help="how the card calls the data, such as 'CIFAR-10, PNG files'")
    command.add_argument(
        "--out", type=Path, default=Path(), help="where the weights and their card go (default: here)"
    )
    command.set_defaults(run=_train)

    command = _add(commands, "methods", "list the methods", "prunelab methods criterion")
    command.add_argument("axis", nargs="?", choices=registry.AXES)
    command.set_defaults(run=_methods)

    example = "prunelab sweep results/sweeps/small.toml --workers 2"
    command = _add(commands, "sweep", "carry out many runs; stopped, it continues where it was", example)
    command.add_argument("file", type=Path, help="TOML file that describes the runs")
    command.add_argument(
        "--out", type=Path, default=Path("runs/sweeps.sqlite"), help="results (default: %(default)s)"
    )
    command.add_argument(
        "--known",
        type=Path,
        metavar="STORED",
        help="an earlier --export json, of another machine perhaps: its runs are not done again",
    )
    command.add_argument("--workers", type=int, help="processes (default: as many as the cores allow)")
    command.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: %(default)s)")
    command.add_argument(
        "--scheduler", help="address of a Dask scheduler, tcp://…, instead of processes here"
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: %(default)s)")
    command.add_argument("--retry-failed", action="store_true", help="do the runs that failed once more")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument("--status", action="store_true", help="only say how far it is")
    instead.add_argument(
        "--export", choices=("csv", "json"), help="only write out the results that are there"
    )
    instead.add_argument("--plot", type=Path, metavar="PICTURE", help="only draw the results that are there")
    instead.add_argument(
        "--compare",
        type=Path,
        metavar="STORED",
        help="only hold the results that are there against those of an earlier --export json",
    )
    command.set_defaults(run=_sweep)

    grading.add(commands, _add)

    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, data.DataError, training.TrainingDiverged) as error:
        print(f"prunelab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prunelab: stopped by hand", file=sys.stderr)
        return 130


def _add(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=summary.capitalize() + ".", epilog=f"Example: {example}"
    )


def _data(options: argparse.Namespace) -> int:
    if options.download:
        print(f"CIFAR-10 is in {data.download(options.root)}")
    loaded = data.load("auto", options.root)
    for part in ("train", "validation", "test"):
        print(f"{part:>10}: {len(getattr(loaded, part)):6,} pictures")
    return 0


def _train(options: argparse.Namespace) -> int:
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: must be at least 1")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)  # if this fails, then before the training, not after it
    loaded = data.load(options.data)
    torch.manual_seed(options.seed)
    width = {} if options.width is None else {"width": options.width}
    try:
        model = getattr(models, options.model)(**width)
    except TypeError:
        raise ValueError(f"--width: {options.model} has a fixed width") from None
    try:
        model.to(options.device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(f"--device {options.device}: {str(error).splitlines()[0]}") from None
    stem = models.checkpoint_name(options.model, options.width or 1, loaded.name)
    recipe = {
        "lr": options.lr,
        "schedule": "one-cycle",
        "batch_size": 128,
        "momentum": 0.9,
        "weight_decay": options.weight_decay,
        "label_smoothing": 0.0,
    }
    history = training.fit(
        model,
        loaded,
        options.epochs,
        seed=options.seed,
        checkpoint=options.runs / f"{stem}.pt",
        precision=options.precision,
        **recipe,
    )
    if history.interrupted:
        print("run the same command again to continue")
        return 130
    path = files.save(model.cpu(), options.out / f"{stem}.safetensors")
    stored = files.load(path, getattr(models, options.model)(**width))  # what is reported is what was stored
    card = {
        "model": options.model,
        **width,
        "data": loaded.name,
        "source": options.describe or loaded.source.removeprefix("data: "),
        "pictures": {part: len(getattr(loaded, part)) for part in ("train", "validation", "test")},
        "recipe": {
            "optimiser": "SGD, Nesterov",
            "epochs": options.epochs,
            **recipe,
            "augmentation": "crop (padding 4), flip",
        },
        "seed": options.seed,
        "threads": options.threads,
        "precision": history.precision,
        "parameters": metrics.parameters(stored),
        "macs": metrics.macs(stored, loaded.example),
        "validation_accuracy": training.evaluate(stored, loaded.validation).accuracy,
        "test_accuracy": training.evaluate(stored, loaded.test).accuracy,
        "chosen": "the last epoch; recipe and epochs by validation accuracy, nothing by the test pictures",
        "command": "prunelab train " + " ".join(_command(options, loaded.name, history.precision)),
        "machine": f"{platform.system()} {platform.machine()}, {options.device}",
        "torch": torch.__version__.split("+")[0],
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{path}: validation {card['validation_accuracy']:.2%}, test {card['test_accuracy']:.2%}")
    return 0


def _command(options: argparse.Namespace, name: str, precision: str) -> list[str]:
    """The command that repeats this run; what ``auto`` chose and the defaults are written out."""
    words = [options.model, "--data", name]
    if options.width is not None:
        words += ["--width", str(options.width)]
    words += ["--epochs", str(options.epochs), "--lr", str(options.lr)]
    words += ["--weight-decay", str(options.weight_decay), "--seed", str(options.seed)]
    words += ["--threads", str(options.threads), "--precision", precision]
    return words if options.device == "cpu" else [*words, "--device", options.device]


def _methods(options: argparse.Namespace) -> int:
    for method in registry.methods(options.axis):
        facts = f"{method.axis:<12} {method.name:<28} {method.cite:<28} {', '.join(method.needs) or '-':<24}"
        print(f"{facts} {_in_words(method.summary)}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    described = experiments.read(options.file)
    if options.status or options.export or options.plot or options.compare:
        return _look(options, described)
    if options.known:
        known = results.from_json(options.known.read_text())
        with closing(results.Store(options.out)) as store:
            taken = store.take(known["runs"], known["versions"]["prunelab"])
        print(f"{options.known}: {taken} runs taken over into {options.out}")
    counted = experiments.sweep(
        described.configurations,
        options.out,
        workers=options.workers,
        threads=options.threads,
        scheduler=options.scheduler,
        device=options.device,
        retry_failed=options.retry_failed,
    )
    print(f"{described.name}: {counted['done']} runs done, {counted['failed']} failed, in {options.out}")
    if counted["failed"]:
        print("see why with --status, and try those again with --retry-failed")
    return 1 if counted["failed"] else 0


def _look(options: argparse.Namespace, described: experiments.Sweep) -> int:
    """Show the results that are there."""
    if not options.out.exists():
        raise ValueError(f"--out {options.out}: there is no such file, so nothing was done yet")
    with closing(results.Store(options.out)) as store:
        keys = [results.key(one, prunelab.__version__) for one in described.configurations]
        rows = list(store.rows(keys).values())
        if options.status:
            print(_status(described, rows, store))
            return 0
    command = f"prunelab sweep {options.file.as_posix()}"
    about = {"sweep": described.name, "about": described.about, "command": command}
    done = [row for row in rows if row.state == "done"]
    text = results.to_json(done, **about, versions={"prunelab": prunelab.__version__})
    if options.export:
        print(text if options.export == "json" else results.to_csv(done), end="")
        return 0
    if not done:
        raise ValueError(f"{described.name}: no run is done yet")
    runs = results.from_json(text)["runs"]
    if options.plot:
        _draw(ranking.tables(runs)).savefig(options.plot)
        return 0
    stored = results.from_json(options.compare.read_text())["runs"]
    differences = ranking.compare(stored, runs)
    print(f"{'method':<40} {'stored':>8} {'now':>8} {'allowed difference':>20}")
    for one in differences:
        name = ", ".join(filter(None, (one.method, one.setting)))
        verdict = "" if one.agrees else "  DIFFERS"
        print(f"{name:<40} {one.stored:>8.2%} {one.fresh:>8.2%} {100 * one.allowed:>13.2f} points{verdict}")
    agree = sum(one.agrees for one in differences)
    print(
        f"accuracy of {agree} of {len(differences)} methods is what it was, within the spread over the seeds"
    )
    return 0 if agree == len(differences) else 1


def _draw(tables: dict[str, dict[str, list[float]]]) -> Figure:
    """A panel for each setting; bars that do not overlap differ (Tukey's honestly significant difference)."""
    shown = {setting: table for setting, table in tables.items() if len(table) > 1}
    if not shown:
        raise ValueError("--plot: there is no setting with two methods to compare")
    height = 1.2 + 0.16 * max(map(len, shown.values()))
    figure, axes = plots.panels(len(shown), height=height, squeeze=False)
    for ax, (setting, table) in zip(axes[0], shown.items()):
        repeats = max(map(len, table.values()))
        whole = {name: values for name, values in table.items() if len(values) == repeats}
        margin = ranking.honest_difference(whole) if repeats > 1 and len(whole) > 1 else 0.0
        means = {name: statistics.mean(values) for name, values in whole.items()}
        plots.ranking(means, margin, ax=ax, title=setting)
    return figure


def _status(described: experiments.Sweep, rows: list[results.Row], store: results.Store) -> str:
    """How far a sweep is: counts, and the errors of what failed."""
    counted = Counter(row.state for row in rows)
    missing = len(described.configurations) - len(rows)
    lines = [f"{described.name}: {described.about}"] if described.about else [described.name]
    lines += [
        f"{counted['done']} of {len(described.configurations)} runs done, {counted['failed']} failed, "
        f"{counted['running']} claimed, {missing} to do"
    ]
    if old := store.others(prunelab.__version__):
        lines.append(f"{old} rows are of other versions than prunelab {prunelab.__version__}: not counted")
    for row in rows:
        if row.error is not None:
            lines += ["", json.dumps(row.configuration), row.error.rstrip()]
    return "\n".join(lines)


def _in_words(summary: str) -> str:
    """A summary up to its first formula, which only the book can show."""
    return re.split(r":math:|``|`_", summary)[0].rstrip(" ,:(") or summary


if __name__ == "__main__":
    sys.exit(main())
