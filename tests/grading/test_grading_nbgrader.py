"""The labs are assignments of nbgrader, too: it makes the same release, and marks our released notebooks.

Only honest notebooks are marked here: nbgrader runs them on the bare machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import samples

from prunelab.grading import lab as labs

pytest.importorskip(
    "nbgrader", reason="nbgrader is missing: that released labs are valid assignments is NOT TESTED"
)

# What nbgrader's own commands do, in one process; the last line tells the scores.
SCRIPT = """
import json, sys
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from traitlets.config import Config

config = Config()
config.CourseDirectory.course_id = "course"
config.IncludeHeaderFooter.header = ""
api = NbGraderAPI(config=config)
told = [api.generate_assignment(name) for name in ("small-lab", "released")]
told += [api.autograde("small-lab", student) for student in ("perfect", "partial")]
for result in told:
    if not result["success"]:
        sys.exit(result["log"])
with Gradebook("sqlite:///gradebook.db") as book:
    marked = {one.student.id: (one.score, one.max_score) for one in book.assignment_submissions("small-lab")}
print(json.dumps(marked))
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course of nbgrader's: our master as one assignment, our release as another, and three submissions."""
    folder = tmp_path_factory.mktemp("course")
    handed_in = {
        "source/small-lab": samples.SOURCE.notebook,
        "source/released": labs.write(labs.released(samples.LAB)),
        "submitted/perfect/small-lab": samples.stored(samples.notebook()),
        "submitted/partial/small-lab": samples.stored(
            samples.notebook(filter_norms=samples.PARTIAL, sparsity=None)
        ),
    }
    for place, notebook in handed_in.items():
        (folder / place).mkdir(parents=True)
        (folder / place / "small-lab.ipynb").write_bytes(notebook)
    commands = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls alembic by its name
    )
    own = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_DIR": str(folder / "jupyter"), "PATH": commands}
    settings = {**os.environ, **own}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_nbgrader_releases_our_master_as_we_do(course):
    theirs = json.loads((course[0] / "release/small-lab/small-lab.ipynb").read_text())["cells"]
    ours = labs.released(samples.LAB)["cells"]
    assert [cell["id"] for cell in theirs] == [cell["id"] for cell in ours]
    for their, our in zip(theirs, ours):
        text = labs.text_of(their).replace("# YOUR CODE HERE\n    raise NotImplementedError()", "…")
        assert text == labs.text_of(our).replace('raise NotImplementedError("your code here")', "…")
        for name in ("deletable", "editable"):
            assert their["metadata"].get(name) == our["metadata"].get(name)


def test_nbgrader_accepts_our_release_as_an_assignment(course):
    theirs = json.loads((course[0] / "release/released/small-lab.ipynb").read_text())["cells"]
    marked = [cell["metadata"]["nbgrader"]["grade_id"] for cell in theirs if "nbgrader" in cell["metadata"]]
    assert marked == [name for answer in samples.LAB.answers for name in (answer, f"{answer}-check")]


def test_nbgrader_marks_our_notebooks(course):
    # By the public checks alone: "partial" passes that of filter_norms; dense_layers misses sparsity.
    assert course[1] == {"perfect": [12, 12], "partial": [7, 12]}
