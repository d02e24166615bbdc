"""Find what was handed in, in a folder or a zip as learning platforms export them. Nothing is unpacked to
the disk.

Three layouts are known: ``<student>/<lab>.ipynb``; Moodle's
``<name>_<number>_assignsubmission_file/<lab>.ipynb``; Canvas's ``<name>_<number>_<number>_<lab>.ipynb``, all
in one folder.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prunelab.grading.rebuild import MOST_BYTES

MOODLE = re.compile(r"^(?P<student>.+?)_\d+_assignsubmission_\w+$")
CANVAS = re.compile(r"^(?P<student>[^_]+)(?:_LATE)?_\d+_\d+_(?P<file>.+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Submission:
    """One notebook of one student.

    Attributes:
        place: the file, or the zip's entry; ``None`` if nothing was handed in.
        archive: the zip, if it is one.
    """

    student: str
    lab: str
    place: str | None = None
    archive: Path | None = None
    notes: list[str] = field(default_factory=list)

    def read(self) -> tuple[bytes | None, list[str]]:
        """The file's content, or a little more of it than a notebook may have, and notes on what was odd."""
        notes = list(self.notes)
        if self.place is None:
            return None, notes
        try:
            if self.archive is None:
                # Not through a link, which may lead to somebody else's file; not from a pipe, which never
                # ends.
                opened = os.open(self.place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                with os.fdopen(opened, "rb") as file:
                    return file.read(MOST_BYTES + 1), notes
            with zipfile.ZipFile(self.archive) as archive, archive.open(self.place) as entry:
                return entry.read(MOST_BYTES + 1), notes
        except (
            OSError,
            RuntimeError,
            NotImplementedError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
        ) as error:
            return None, [*notes, f"the file cannot be read: {type(error).__name__}"]


def collect(place: Path, labs: list[str]) -> list[Submission]:
    """Every student's submission for every lab, in the order of their names.

    Args:
        place: a folder or a zip.
        labs: names of the labs. A notebook belongs to the lab whose name its own name begins with; if there
        is
            only one lab, a student's only notebook may have any name.
    Raises:
        ValueError: there is nothing that could be a submission.
    """
    try:
        entries = list(_zipped(place) if place.is_file() else _files(place))
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{place}: neither a folder nor a zip that can be read ({error})") from None
    students: dict[str, list[tuple[str, str, list[str]]]] = {}
    named = [(_parts(name), name, notes) for name, notes in entries]
    named = [entry for entry in named if not any(part.startswith((".", "__MACOSX")) for part in entry[0])]
    astray = [entry for entry in named if _leads_out(entry[1])]
    named = [entry for entry in named if entry not in astray]
    while len({parts[0] for parts, *_ in named}) == 1 and all(len(parts) > 2 for parts, *_ in named):
        named = [(parts[1:], name, notes) for parts, name, notes in named]  # a folder around the class
    for parts, name, notes in named:
        student, file = _student(parts)
        students.setdefault(student, []).append((file, name, notes))
    for parts, name, notes in astray:  # the folder in its path may be somebody else's
        students.setdefault("?", []).append((parts[-1], name, [*notes, "its path leads out of the zip"]))
    if not students:
        raise ValueError(f"{place}: no submissions; expected <student>/<lab>.ipynb, or a platform's export")
    return [
        _choose(student, lab, labs, files, place)
        for student, files in sorted(students.items())
        for lab in labs
    ]


def _files(folder: Path) -> Iterator[tuple[str, list[str]]]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder or zip")
    for parent, _, names in os.walk(folder, followlinks=False):
        for name in sorted(names):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            relative = str(PurePosixPath(path.relative_to(folder)))
            if stat.S_ISREG(mode):
                yield relative, []
            else:
                yield relative, [f"{name!r} is a link or no ordinary file: it was not followed"]


def _zipped(place: Path) -> Iterator[tuple[str, list[str]]]:
    with zipfile.ZipFile(place) as archive:
        for entry in archive.infolist():
            if stat.S_ISLNK(entry.external_attr >> 16):
                yield (
                    entry.filename,
                    [f"{PurePosixPath(entry.filename).name!r} is a link: it was not followed"],
                )
            elif not entry.is_dir():
                yield entry.filename, []


def _parts(name: str) -> list[str]:
    """The folders of a path and its file. What cannot be printed is written out, so names stay different."""
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
    return [part for part in PurePosixPath(text).parts if part not in ("..", "/")] or ["?"]


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def _student(parts: list[str]) -> tuple[str, str]:
    """Whose file this is, and its name."""
    if len(parts) > 1:
        moodle = MOODLE.match(parts[0])
        return (moodle["student"] if moodle else parts[0]), parts[-1]
    canvas = CANVAS.match(parts[0])
    return (canvas["student"], canvas["file"]) if canvas else ("?", parts[0])


def _choose(
    student: str, lab: str, labs: list[str], files: list[tuple[str, str, list[str]]], place: Path
) -> Submission:
    archive = place if place.is_file() else None
    notebooks = [entry for entry in files if entry[0].lower().endswith(".ipynb")]
    # The longest lab name that fits: 02-schedules-more.ipynb does not belong to 02-schedules if both are
    # labs.
    fitting = [
        entry
        for entry in notebooks
        if max((name for name in labs if entry[0].startswith(name)), key=len, default="") == lab
    ]
    if not fitting and len(labs) == 1 and len(notebooks) == 1:
        fitting = notebooks
    fitting.sort(key=lambda entry: (entry[0] != f"{lab}.ipynb", entry[0], entry[1]))
    if not fitting:
        other = [entry[0] for entry in files if entry not in notebooks]
        notes = [f"there are other files: {', '.join(other[:3])}"] if other else []
        return Submission(student, lab, notes=notes)
    file, name, notes = fitting[0]
    notes = list(notes)
    if len(fitting) > 1:
        notes.append(f"{len(fitting)} notebooks for this lab: {file!r} was graded")
    if notes and "not followed" in notes[0]:
        return Submission(student, lab, notes=notes)
    return Submission(student, lab, name if archive else str(place / name), archive, notes)
