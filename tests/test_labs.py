"""What the labs promise: they run every method, a laptop is enough, and nobody is shut out."""

import json
import re
from pathlib import Path

import pytest

import prunelab as pl
from prunelab import registry
from prunelab.grading import lab as labs

NOTEBOOKS = sorted((Path(__file__).parents[1] / "labs").glob("*.ipynb"))
each_lab = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_bytes())["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> list[str]:
    """The lines that a cell printed when its outputs were stored."""
    streams = (output["text"] for output in cell["outputs"] if output["output_type"] == "stream")
    return "".join("".join(text) for text in streams).splitlines()


def rows(axis: str) -> dict[str, str]:
    """For each method that a lab has run, the line that says how it did."""
    cells = [cell for path in NOTEBOOKS for cell in code_cells(path)]
    tables = [printed(cell) for cell in cells if f"runs-{axis}" in cell["metadata"].get("tags", [])]
    return {line.split()[0]: line for table in tables for line in table[1:]}


@pytest.mark.parametrize("axis", registry.AXES)
def test_every_method_is_run_in_a_lab(axis: str) -> None:
    """A cell that runs methods has the tag runs-<axis>; it prints a header and one line for each."""
    run = rows(axis)
    assert set(run) == {method.name for method in pl.methods(axis)}
    unmeasured = [name for name, line in run.items() if not re.search(r"\d\.\d%", line)]
    assert not unmeasured


@each_lab
def test_laptop_is_enough(path: Path) -> None:
    [took] = [printed(cell) for cell in code_cells(path) if cell["id"] == "took"]
    assert int(re.search(r"up to here: (\d+) s", took[0])[1]) < 600
    assert float(re.search(r"([\d.]+) GB", took[1])[1]) < 2


@each_lab
def test_figures_have_a_text_for_those_who_do_not_see_them(path: Path) -> None:
    for cell in code_cells(path):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt.split()) > 8, cell["id"]


@each_lab
def test_nobody_unfolds_a_solution_unawares(path: Path) -> None:
    """The function's head is in the same cell: the book folds it, and says what is inside."""
    answers = [
        cell["metadata"] for cell in code_cells(path) if "### BEGIN SOLUTION" in "".join(cell["source"])
    ]
    assert answers
    for metadata in answers:
        assert "hide-input" in metadata["tags"]
        assert "solution" in metadata["mystnb"]["code_prompt_show"]


def test_exercises_of_each_lab_and_points_of_the_course() -> None:
    found = [labs.understand(source) for source in labs.sources(NOTEBOOKS)]
    assert all(3 <= len(lab.exercises) <= 6 for lab in found)
    assert sum(lab.points for lab in found) == 100
