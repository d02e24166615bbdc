"""The labs are assignments of nbgrader, too: it makes the same release, and marks our released notebooks.

Only honest notebooks are marked here: nbgrader runs them on the bare machine.
"""

import json
from pathlib import Path

import gradebook
import pytest
import samples

from prunelab.grading import lab as labs

pytest.importorskip(
    "nbgrader", reason="nbgrader is missing: that released labs are valid assignments is NOT TESTED"
)

COURSE = [labs.understand(one) for one in labs.sources([Path(__file__).resolve().parents[2] / "labs"])]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course of nbgrader's: our master, our release of it, and of each lab; and two submissions."""
    folder = tmp_path_factory.mktemp("course")
    released = {lab.name: labs.write(labs.released(lab)) for lab in COURSE}
    sources = {"small-lab": samples.SOURCE.notebook, "released": labs.write(labs.released(samples.LAB))}
    partial = samples.notebook(filter_norms=samples.PARTIAL, sparsity=None)
    submitted = {
        ("small-lab", "perfect"): samples.stored(samples.notebook()),
        ("small-lab", "partial"): samples.stored(partial),
    }
    return folder, gradebook.mark(folder, {**sources, **released}, submitted)


def test_nbgrader_releases_our_master_as_we_do(course):
    theirs = json.loads((course[0] / "release/small-lab/small-lab.ipynb").read_text())["cells"]
    ours = labs.released(samples.LAB)["cells"]
    assert [cell["id"] for cell in theirs] == [cell["id"] for cell in ours]
    for their, our in zip(theirs, ours):
        text = labs.text_of(their).replace("# YOUR CODE HERE\n    raise NotImplementedError()", "…")
        assert text == labs.text_of(our).replace('raise NotImplementedError("your code here")', "…")
        for name in ("deletable", "editable"):
            assert their["metadata"].get(name) == our["metadata"].get(name)


@pytest.mark.parametrize("lab", [samples.LAB, *COURSE], ids=lambda lab: lab.name)
def test_nbgrader_accepts_our_releases_as_assignments(course, lab):
    name = "released" if lab is samples.LAB else lab.name
    theirs = json.loads((course[0] / f"release/{name}/{name}.ipynb").read_text())["cells"]
    marked = [cell["metadata"]["nbgrader"] for cell in theirs if "nbgrader" in cell["metadata"]]
    assert [one["grade_id"] for one in marked] == [
        name for answer in lab.answers for name in (answer, f"{answer}-check")
    ]
    assert sum(one.get("points", 0) for one in marked) == lab.points


def test_nbgrader_marks_our_notebooks(course):
    # By the public checks alone: "partial" passes that of filter_norms; dense_layers misses sparsity.
    assert course[1] == {("small-lab", "perfect"): [12, 12], ("small-lab", "partial"): [7, 12]}
