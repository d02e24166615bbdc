"""Masters are read strictly, and released without their solutions and otherwise as they are."""

import copy
import difflib
import hashlib
import json
from pathlib import Path

import nbformat
import pytest
import samples

from prunelab import cli
from prunelab.grading import lab as labs
from prunelab.grading import release

COURSE = Path(__file__).resolve().parents[2] / "labs"


def changed(notebook=None, checks=None):
    """The small lab with something changed, as a source."""
    notebook = samples.SOURCE.notebook if notebook is None else labs.write(notebook)
    return labs.Source("small-lab", notebook, samples.SOURCE.checks if checks is None else checks.encode())


def master():
    return copy.deepcopy(samples.LAB.notebook)


def test_the_small_lab_is_read():
    lab = samples.LAB
    assert list(lab.exercises) == ["sparsity", "filter-norms", "smallest-mask", "dense-layers"]
    assert [exercise.points for exercise in lab.exercises.values()] == [3, 4, 3, 2] and lab.points == 12
    assert lab.setup == ["import torch"] and lab.modules == ["torch"]


def test_modules_are_those_that_the_set_up_imports():
    cells = [
        "import numpy as np\nimport torch.nn.functional as F",
        "from prunelab import plots\nimport numpy",
    ]
    assert labs.imports(cells) == ["numpy", "torch.nn.functional", "prunelab"]


@pytest.mark.parametrize(
    ("cell", "key", "value", "message"),
    [
        ("sparsity", "schema_version", 2, "version 3"),
        ("sparsity", "comment", "x", "has the keys"),
        ("sparsity", "grade_id", "sp\u0430rsity", "letters, digits and hyphens"),
        ("sparsity", "grade_id", "filter-norms", "two cells of this id"),
        ("sparsity", "grade", True, "not both"),
        ("sparsity", "locked", True, "not both"),
        ("sparsity", "points", 3, "points belong to check cells"),
        ("sparsity", "grade_id", "other", "need check cells of the same ids"),
        (
            "sparsity-check",
            "points",
            5,
            "'sparsity-check': 5 points in the notebook, but its parts add up to 3",
        ),
        ("sparsity-check", "grade_id", "lonely-check", "need check cells of the same ids"),
    ],
)
def test_metadata_that_does_not_fit(cell, key, value, message):
    notebook = master()
    samples.cell(notebook, cell)["metadata"]["nbgrader"][key] = value
    with pytest.raises(ValueError, match=message):
        labs.understand(changed(notebook))


def test_metadata_that_lacks_a_key():
    notebook = master()
    del samples.cell(notebook, "sparsity")["metadata"]["nbgrader"]["task"]
    with pytest.raises(ValueError, match=r"small-lab.ipynb, cell 'sparsity'.*has the keys.*task"):
        labs.understand(changed(notebook))


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    return 1\n",
        "def f():\n    ### BEGIN SOLUTION\n    return 1\n",
        "def f():\n    return 1\n    ### END SOLUTION\n",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION\n",
        "### END SOLUTION\n### BEGIN SOLUTION\n",
    ],
)
def test_markers_come_in_pairs(text):
    with pytest.raises(ValueError, match="SOLUTION"):
        labs.without_solution(text)


def test_solutions_are_replaced_where_they_stood():
    text = "def f():\n    '''What.'''\n    ### BEGIN SOLUTION\n    2\n    ### END SOLUTION\n\nx = 1"
    left = "def f():\n    '''What.'''\n    raise NotImplementedError(\"your code here\")\n\nx = 1"
    assert labs.without_solution(text) == left
    two = "### BEGIN SOLUTION\na = 1\n### END SOLUTION\nb = 2\n### BEGIN SOLUTION\nc = 3\n### END SOLUTION"
    stub = 'raise NotImplementedError("your code here")'
    assert labs.without_solution(two) == f"{stub}\nb = 2\n{stub}"


def test_a_notebook_that_jupyter_would_store_otherwise_is_refused():
    loose = json.dumps(master()).encode()
    with pytest.raises(ValueError, match=r"small-lab.ipynb is not stored as Jupyter stores"):
        labs.understand(labs.Source("small-lab", loose, samples.SOURCE.checks))


def test_cells_have_ids():
    notebook = master()
    del notebook["cells"][0]["id"]
    with pytest.raises(ValueError, match="cells without an id"):
        labs.understand(changed(notebook))


def test_checks_without_a_cell_and_cells_without_checks():
    checks = samples.SOURCE.checks.decode()
    with pytest.raises(ValueError, match="its checks are of"):
        labs.understand(changed(checks=checks.replace('"sparsity"', '"other"')))
    with pytest.raises(ValueError, match="needs checks/small-lab.py"):
        labs.understand(changed(checks=""))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ".float().mean().item()",
            ".float().sum().item()",
            "'sparsity', part \"the lab's own example\".*2.0",
        ),
        ("def sparsity(", "def sparse(", "defines no sparsity"),
    ],
)
def test_a_lab_whose_own_solution_is_wrong_is_not_released(tmp_path, old, new, message):
    notebook = master()
    text = labs.text_of(samples.cell(notebook, "sparsity"))
    samples.cell(notebook, "sparsity")["source"] = text.replace(old, new).splitlines(keepends=True)
    (tmp_path / "checks").mkdir()
    (tmp_path / "small-lab.ipynb").write_bytes(labs.write(notebook))
    (tmp_path / "checks/small-lab.py").write_bytes(samples.SOURCE.checks)
    with pytest.raises(ValueError, match=message):
        release.release([tmp_path], tmp_path / "course")
    assert not (tmp_path / "course").exists()


def test_each_exercise_has_a_public_part():
    checks = samples.SOURCE.checks.decode()
    hidden = checks.replace("public=True, hint=", "hint=")
    with pytest.raises(ValueError, match="'sparsity': at least one part.*public"):
        labs.verify(labs.understand(changed(checks=hidden)))


# ------------------------------------------------------------------------------------ released


def test_only_solutions_and_protection_differ(tmp_path, capsys):
    assert cli.main(["release", str(samples.LABS), "-o", str(tmp_path)]) == 0
    assert "4 exercises, 12 points" in capsys.readouterr().out
    before = samples.SOURCE.notebook.decode().splitlines()
    after = (tmp_path / "small-lab.ipynb").read_text().splitlines()
    lines = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    added = {line[1:].strip() for line in lines if line[0] == "+"}
    removed = "\n".join(line for line in lines if line[0] == "-")
    assert added == {
        '"deletable": false,',
        '"editable": false,',
        r'"    raise NotImplementedError(\"your code here\")"',
    }
    assert removed.count("BEGIN SOLUTION") == removed.count("END SOLUTION") == 4
    assert "SOLUTION" not in "\n".join(after)


def test_a_released_notebook_is_valid_and_its_checks_are_locked(tmp_path):
    release.release([samples.LABS], tmp_path)
    notebook = nbformat.read(tmp_path / "small-lab.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        graded = cell.metadata.get("nbgrader")
        if graded:
            assert cell.metadata.deletable is False
            assert cell.metadata.get("editable", True) is not graded.grade
        else:
            assert "deletable" not in cell.metadata and "editable" not in cell.metadata


def test_the_manifest_tells_what_was_released(tmp_path):
    release.release([samples.LABS], tmp_path)
    facts = json.loads((tmp_path / "manifest.json").read_text())["labs"]["small-lab"]
    assert facts["sha256"] == hashlib.sha256((tmp_path / "small-lab.ipynb").read_bytes()).hexdigest()
    assert facts["points"] == 12 and facts["exercises"]["filter-norms"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "small-lab.ipynb"}


def test_releasing_twice_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        release.release([samples.LABS], tmp_path / folder)
    for name in ("small-lab.ipynb", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("source", labs.sources([COURSE]), ids=lambda source: source.name)
def test_the_labs_of_the_course_are_sound(source):
    lab = labs.understand(source)
    labs.verify(lab)
    if not lab.exercises:
        assert labs.write(labs.released(lab)) == source.notebook


def test_commands_say_what_is_missing(tmp_path, capsys):
    assert cli.main(["release", str(tmp_path / "nowhere.ipynb"), "-o", str(tmp_path)]) == 1
    assert "nowhere.ipynb: there is no such notebook" in capsys.readouterr().err
    assert cli.main(["release", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "no notebooks to release" in capsys.readouterr().err
    for command in ("release", "grade"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert f"Example: prunelab {command} " in capsys.readouterr().out
