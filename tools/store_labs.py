"""Run labs from top to bottom and store their outputs: `.venv/bin/python tools/store_labs.py labs/*.ipynb`.

A lab whose outputs were made from the very code that is here, its own and the package's, is not run again; so
what was interrupted goes on. `--check` runs nothing and says which outputs are older than the code.

What is stored is what a page without a kernel can show: progress bars and live widgets are left out, and so
is everything that would differ from machine to machine without saying something (times of cells, versions of
tools).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"
PACKAGE = Path(__file__).resolve().parents[1] / "prunelab"


def imported(source: str) -> set[str]:
    """Full names that Python code imports from the package, and perhaps are no modules but what is in one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE.name}


def files(source: str) -> list[Path]:
    """The files of the package that Python code runs: what it imports, and what that imports in turn."""
    found: set[Path] = set()
    waiting = imported(source)
    while waiting:
        name = waiting.pop()
        parts = name.split(".")[1:]
        for length in range(len(parts) + 1):  # importing a.b.c runs a, a.b and a.b.c
            place = PACKAGE.joinpath(*parts[:length])
            path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if path.exists() and path not in found:
                found.add(path)
                waiting |= imported(path.read_text())
    return sorted(found)


def code(notebook: NotebookNode) -> str:
    """Digest of all code that the outputs depend on: the lab's cells, and what they import of the package."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    # Lines for IPython are no Python; they are left out of the search, not of the digest.
    plain = [line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!"))]
    digest = hashlib.sha256()
    for path in files("\n".join(plain)):
        digest.update(path.read_bytes())
    for source in cells:
        digest.update(source.encode())
    return digest.hexdigest()[:16]


def is_stored(path: Path) -> bool:
    """Whether the outputs in the notebook at `path` were made from the code that is here."""
    notebook = nbformat.read(path, as_version=4)
    return notebook.metadata.get("prunelab", {}).get("code") == code(notebook)


def store(path: Path) -> None:
    """Run the notebook at `path` in its own folder with this Python, and write its outputs into it.

    Raises:
        CellExecutionError: a cell fails; the file is left as it was.
        ValueError: an output complains on stderr or names a folder of this machine; the file is left as it
            was.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel python3 of this environment
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        record_timing=False,
    )
    client.execute()
    folders = [str(Path.home()), str(path.resolve().parents[1]), os.environ.get("PRUNELAB_DATA", "")]
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = joined([output for output in cell.outputs if WIDGET not in output.get("data", {})])
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise ValueError(f"cell {cell.id} writes to stderr: {output.text}")
            if named := [folder for folder in folders if "/" in folder and folder in str(output)]:
                raise ValueError(f"cell {cell.id} shows a folder of this machine: {named}")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "prunelab": {"code": code(notebook)},
    }
    nbformat.validate(notebook)
    partial = path.with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(path)


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The same outputs, with text that was printed in several pieces in one."""
    result: list[NotebookNode] = []
    for output in outputs:
        if result and output.output_type == "stream" and output.get("name") == result[-1].get("name"):
            result[-1].text += output.text
        else:
            result.append(output)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labs", nargs="+", type=Path, help="notebooks, such as labs/*.ipynb")
    parser.add_argument("--check", action="store_true", help="only say which outputs are older than the code")
    options = parser.parse_args()
    old = [lab for lab in options.labs if not is_stored(lab)]
    if options.check:
        sys.exit("\n".join(f"{lab}: its outputs are older than the code" for lab in old) or 0)
    for lab in old:
        started = time.perf_counter()
        try:
            store(lab)
        except (CellExecutionError, ValueError) as error:
            sys.exit(f"{lab}: {error}")
        print(f"{lab}: stored after {time.perf_counter() - started:.0f} s, {lab.stat().st_size / 1e6:.2f} MB")
