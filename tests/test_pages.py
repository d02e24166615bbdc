"""The pages' code runs in one process, and Jupyter Book finds its outputs."""

import subprocess
import sys
from pathlib import Path

import environment
import pytest
from jupyter_cache import get_cache
from myst_nb.core.read import read_myst_markdown_notebook

HEAD = """---
file_format: mystnb
kernelspec: {name: python3}
---
"""


def run(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, environment.ROOT / "tools" / "pages.py", root]
    return subprocess.run(command, capture_output=True, text=True)


def write(root: Path, name: str, *cells: str) -> Path:
    path = root / "chapters" / "part" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + "\n".join(f"```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells))
    return path


def cells(root: Path, page: Path) -> list:
    """The cells of a page with the outputs that Jupyter Book will find."""
    notebook = read_myst_markdown_notebook(page.read_text(), path=page)
    _, found = get_cache(str(root / "_build" / ".jupyter_cache")).merge_match_into_notebook(notebook)
    return [cell for cell in found.cells if cell.cell_type == "code"]


def test_outputs_are_what_a_kernel_would_store(tmp_path: Path) -> None:
    draw = "from matplotlib.figure import Figure\nfigure = Figure()\nfigure.subplots().plot([1, 2])\nfigure"
    glue = "from myst_nb import glue\nglue('answer', 6 * 7, display=False)"
    page = write(tmp_path, "page", "print('said')\n6 * 7", draw, glue, "6 * 7;", "open('beside.txt').read()")
    (page.parent / "beside.txt").write_text("here")
    assert run(tmp_path).returncode == 0
    value, figure, glued, quiet, beside = (cell.outputs for cell in cells(tmp_path, page))
    assert value[0].text == "said\n" and value[1].data["text/plain"] == "42"
    assert figure[-1].data["image/svg+xml"].lstrip().startswith("<?xml")
    assert glued[0].metadata["scrapbook"]["name"] == "answer" and "42" in glued[0].data.values()
    assert quiet == []
    assert beside[0].data["text/plain"] == "'here'"


def test_only_changed_pages_run_again(tmp_path: Path) -> None:
    count = "from pathlib import Path\nwith Path('../../runs').open('a') as f: f.write('{}')"
    write(tmp_path, "one", count.format(1))
    write(tmp_path, "two", count.format(2))
    run(tmp_path)
    write(tmp_path, "two", count.format(3))
    run(tmp_path)
    assert (tmp_path / "runs").read_text() == "123"


@pytest.mark.parametrize(("cell", "said"), [("1 / 0", "ZeroDivisionError"), ("left_behind", "NameError")])
def test_cell_that_fails_stops_the_build(tmp_path: Path, cell: str, said: str) -> None:
    write(tmp_path, "a", "left_behind = 1")  # a page does not see what another one defined
    write(tmp_path, "b", "1 + 1", cell)
    done = run(tmp_path)
    assert done.returncode == 1
    assert "b.md: cell 1 failed" in done.stderr and said in done.stderr
