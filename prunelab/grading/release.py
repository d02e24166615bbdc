"""From masters to what students get: notebooks without solutions, and a manifest that says which they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from prunelab.basics import whole_file
from prunelab.grading import lab as labs

MANIFEST = "manifest.json"


def release(masters: Iterable[Path], out: Path) -> dict[str, dict]:
    """Write the students' notebooks and the manifest into a folder, once all labs have proved to be sound.

    Args:
        masters: notebooks, or folders of them.
        out: the folder; files of the same names are replaced, nothing else is touched.
    Returns:
        what the manifest says of each lab: its file, the file's SHA-256, points, and the exercises with
        theirs.
    Raises:
        ValueError: a lab's notebook and checks do not fit together, or its own solutions do not get full
        marks.
    """
    files, manifest = {}, {}
    for source in labs.sources(masters):
        lab = labs.understand(source)
        labs.verify(lab)
        file = f"{lab.name}.ipynb"
        files[file] = labs.write(labs.released(lab))
        manifest[lab.name] = {
            "file": file,
            "sha256": hashlib.sha256(files[file]).hexdigest(),
            "points": lab.points,
            "exercises": {name: exercise.points for name, exercise in lab.exercises.items()},
        }
    if not files:
        raise ValueError("there are no notebooks to release: name a folder of masters, or some of them")
    text = json.dumps({"labs": manifest}, indent=2, sort_keys=True) + "\n"
    for file, content in {**files, MANIFEST: text.encode()}.items():
        with whole_file(out / file) as partial:
            partial.write_bytes(content)
    return manifest
