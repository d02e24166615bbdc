"""Have nbgrader's own commands release and mark notebooks, in a folder of its own.

It runs what was handed in on the bare machine: HONEST NOTEBOOKS ONLY.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys
from nbgrader.api import Gradebook
from nbgrader.apps import NbGraderAPI
from traitlets.config import Config

config = Config()
config.CourseDirectory.course_id = "course"
config.IncludeHeaderFooter.header = ""
config.Execute.timeout = 600
api = NbGraderAPI(config=config)
assignments, submissions = json.load(sys.stdin)
told = [api.generate_assignment(name) for name in assignments]
told += [api.autograde(name, student) for name, student in submissions]
for result in told:
    if not result["success"]:
        sys.exit(result["log"])
with Gradebook("sqlite:///gradebook.db") as book:
    marked = [book.find_submission(name, student) for name, student in submissions]
    print(json.dumps([[one.score, one.max_score] for one in marked]))
"""


def mark(
    folder: Path, sources: dict[str, bytes], submitted: dict[tuple[str, str], bytes]
) -> dict[tuple[str, str], list[float]]:
    """Let nbgrader make assignments and mark submissions, in the labs' fast mode.

    Args:
        folder: an empty one, for nbgrader's course.
        sources: each assignment's notebook. The assignment's releases lie in ``release/<assignment>`` then.
        submitted: ``{(assignment, student): notebook}``.
    Returns:
        ``{(assignment, student): [points, points that there are]}``
    Raises:
        RuntimeError: nbgrader refuses one of them; with what it says.
    """
    for name, notebook in sources.items():
        _write(folder / f"source/{name}/{name}.ipynb", notebook)
    for (name, student), notebook in submitted.items():
        _write(folder / f"submitted/{student}/{name}/{name}.ipynb", notebook)
    commands = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls alembic by its name
    )
    own = {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_CONFIG_DIR": str(folder / "jupyter"), "PATH": commands}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        env={**os.environ, **own, "PRUNELAB_FAST": "1"},
        input=json.dumps([list(sources), list(submitted)]),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-5000:])
    return dict(zip(submitted, json.loads(done.stdout.splitlines()[-1])))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
