"""What several rooms share: the type of a network, evaluation mode for a while, files that are whole, on what
processor and with which versions a result was made.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def evaluating(*models: nn.Module, training: bool = False) -> Iterator[None]:
    """Put networks into evaluation mode (or training mode), and every module back into its own at the end.

    One by one, because a part of a network may be frozen in evaluation mode while the rest trains.
    """
    changed = [module for model in models for module in model.modules() if module.training != training]
    for module in changed:
        module.training = training
    try:
        yield
    finally:
        for module in changed:
            module.training = not training


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to that becomes ``path`` at the end, so that nobody ever reads half a file.

    Folders are made as needed. If writing fails, ``path`` is as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def processor() -> str:
    """The name of the CPU; Python's ``platform`` does not know it on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Of this package, torch, Python and other ``packages``, as they are stored with a result."""
    found = {name: importlib.metadata.version(name) for name in ("prunelab", "torch", *packages)}
    return {name: text.split("+")[0] for name, text in found.items()} | {"python": platform.python_version()}
