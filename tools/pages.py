"""Run the code of the book's pages: `python tools/pages.py` (the book build does it first).

A page is an executable notebook in MyST Markdown, and Jupyter Book would start a kernel for each: several
seconds apiece, most of them to import torch once more. Here one process runs all of them, each in a namespace
of its own, and puts the outputs into the cache in which Jupyter Book looks before it starts a kernel. Figures
become SVG.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import nbformat
from environment import ROOT
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.display import display
from IPython.utils.capture import capture_output
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import is_myst_markdown_notebook, read_myst_markdown_notebook
from traitlets.config import Config


class ShowValue(DisplayHook):
    """A cell's last value is an output like any other."""

    def __call__(self, result: Any = None) -> None:
        if result is not None and not self.quiet():  # a semicolon keeps it quiet
            display(result)


class Shell(InteractiveShell):
    displayhook_class = ShowValue


class PageError(RuntimeError):
    """A cell raised; the message says where and what."""


def pages(root: Path) -> list[Path]:
    """The executable pages below ``chapters/``, in order of their names."""
    found = sorted((root / "chapters").rglob("*.md"))
    return [path for path in found if is_myst_markdown_notebook(path.read_text("utf8"))]


def run_pages(root: Path, cache_folder: Path) -> list[Path]:
    """Run every page whose outputs the cache lacks, and return those.

    Raises:
        PageError: a cell failed.
    """
    cache = get_cache(str(cache_folder))
    ran, shell = [], None
    for path in pages(root):
        notebook = read_myst_markdown_notebook(path.read_text("utf8"), path=path)
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            shell = shell or new_shell()
            run_page(shell, notebook, path)
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": None})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            ran.append(path)
    return ran


def new_shell() -> InteractiveShell:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "prunelab"  # equal figures become equal files
    # Cells are remembered (a semicolon at their end is looked up there), but not in the user's own history.
    shell = Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.xmode = "Plain"
    select_figure_formats(shell, {"svg"}, metadata={"Date": None})
    return shell


def run_page(shell: InteractiveShell, notebook: Any, path: Path) -> None:
    """Fill in the outputs of one notebook, its code run where the page lies."""
    shell.reset(new_session=False)
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            with capture_output() as captured:
                result = shell.run_cell(cell.source, store_history=True)
            error = result.error_before_exec or result.error_in_exec
            if error is not None:
                trace = "".join(traceback.format_exception(error)[-3:])
                raise PageError(f"{path}: cell {number} failed:\n\n{cell.source}\n\n{trace}")
            cell.outputs = outputs(captured)
            cell.execution_count = 1
    finally:
        os.chdir(before)


def outputs(captured: Any) -> list[Any]:
    """What a cell printed and showed, as a notebook stores it."""
    found = [
        nbformat.v4.new_output("stream", name=name, text=text)
        for name, text in (("stdout", captured.stdout), ("stderr", captured.stderr))
        if text
    ]
    for shown in captured.outputs:
        found.append(nbformat.v4.new_output("display_data", data=shown.data, metadata=shown.metadata or {}))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="folder of the book")
    book = parser.parse_args().root
    try:
        run_pages(book, book / "_build" / ".jupyter_cache")
    except PageError as error:
        sys.exit(str(error))
