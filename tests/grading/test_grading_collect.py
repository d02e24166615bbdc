"""Whatever is handed in, and however: it is found, read with care, and only the answers are taken over."""

import copy
import json
import os
import zipfile

import pytest
import samples

from prunelab.grading import lab as labs
from prunelab.grading import rebuild as rebuilding
from prunelab.grading.collect import collect
from prunelab.grading.rebuild import rebuild

LAB = samples.LAB
PERFECT = samples.stored(samples.notebook())


def found(place, names=("small-lab",)):
    """{student: (what was read, notes)} of the only lab."""
    return {submission.student: submission.read() for submission in collect(place, list(names))}


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


LAYOUTS = {
    "plain": ("Ada/small-lab.ipynb", "Ben/small-lab.ipynb"),
    "moodle": (
        "Ada_123_assignsubmission_file/small-lab.ipynb",
        "Ben_9_assignsubmission_file_/small-lab.ipynb",
    ),
    "canvas": ("Ada_123_456_small-lab.ipynb", "Ben_LATE_9_456_small-lab-1.ipynb"),
    "one folder more": ("class/Ada/small-lab.ipynb", "class/Ben/small-lab.ipynb"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_layouts_of_platforms(tmp_path, layout, zipped):
    entries = dict(zip(LAYOUTS[layout], (b"of Ada", b"of Ben")))
    if zipped:
        place = make_zip(tmp_path / "export.zip", entries)
    else:
        place = tmp_path / "export"
        for name, data in entries.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
    assert found(place) == {"Ada": (b"of Ada", []), "Ben": (b"of Ben", [])}


def test_one_row_for_each_student_and_lab(tmp_path):
    make_zip(
        tmp_path / "a.zip", {"Ada/lab-1.ipynb": b"1", "Ada/lab-1-more.ipynb": b"2", "Ben/notes.txt": b""}
    )
    rows = [
        (one.student, one.lab, *one.read()) for one in collect(tmp_path / "a.zip", ["lab-1", "lab-1-more"])
    ]
    nothing = ["there are other files: notes.txt"]
    assert rows == [
        ("Ada", "lab-1", b"1", []),
        ("Ada", "lab-1-more", b"2", []),
        ("Ben", "lab-1", None, nothing),
        ("Ben", "lab-1-more", None, nothing),
    ]


def test_the_exact_name_wins_and_the_choice_is_noted(tmp_path):
    entries = {"Ada/small-lab (1).ipynb": b"1", "Ada/small-lab.ipynb": b"2", "Ben/mine.ipynb": b"3"}
    read = found(make_zip(tmp_path / "a.zip", entries))
    assert read["Ada"] == (b"2", ["2 notebooks for this lab: 'small-lab.ipynb' was graded"])
    assert read["Ben"] == (b"3", [])  # the only notebook for the only lab


def test_what_systems_leave_behind_is_no_submission(tmp_path):
    entries = {
        f"{folder}/small-lab.ipynb": b"x" for folder in ("__MACOSX/Ada", "Ada/.ipynb_checkpoints", "Ada")
    }
    assert found(make_zip(tmp_path / "a.zip", entries)) == {"Ada": (b"x", [])}


def test_nothing_handed_in_at_all(tmp_path):
    with pytest.raises(ValueError, match="no submissions; expected <student>/<lab>.ipynb"):
        collect(tmp_path, ["small-lab"])
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    for place in ("no.zip", "nowhere"):
        with pytest.raises(ValueError, match=place):
            collect(tmp_path / place, ["small-lab"])


# ------------------------------------------------------------------------------------ hostile files


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret.ipynb").write_bytes(b"secret")
    place = tmp_path / "class"
    for student in ("link", "folder", "pipe"):
        (place / student).mkdir(parents=True)
    (place / "link/small-lab.ipynb").symlink_to(tmp_path / "secret.ipynb")
    (place / "folder/inside").symlink_to(tmp_path)
    (place / "folder/small-lab.txt").write_bytes(b"")
    os.mkfifo(place / "pipe/small-lab.ipynb")
    read = found(place)
    assert all(data is None for data, _ in read.values()) and len(read) == 3
    assert "not followed" in read["link"][1][0] and "not followed" in read["pipe"][1][0]


def test_a_link_that_comes_after_the_look_is_not_followed_either(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    samples.hand_in(tmp_path / "class", {"Ada": b"x"})
    [submission] = collect(tmp_path / "class", ["small-lab"])
    os.remove(tmp_path / "class/Ada/small-lab.ipynb")
    (tmp_path / "class/Ada/small-lab.ipynb").symlink_to(tmp_path / "secret")
    data, notes = submission.read()
    assert data is None and "cannot be read" in notes[0]


def test_a_zip_with_links_traversal_and_a_bomb(tmp_path):
    link = zipfile.ZipInfo("Eve/small-lab.ipynb")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../../../../tmp/evil/small-lab.ipynb", b"out")
        archive.writestr("/etc/small-lab.ipynb", b"absolute")
        archive.writestr("Bob/small-lab.ipynb", b"\0" * 300_000_000)
    assert (tmp_path / "a.zip").stat().st_size < 1_000_000
    read = found(tmp_path / "a.zip")
    assert read["Eve"] == (None, ["'small-lab.ipynb' is a link: it was not followed"])
    assert len(read["Bob"][0]) == rebuilding.MOST_BYTES + 1
    assert {student for student in read if "/" in student or student in ("", ".", "..")} == set()
    assert not (tmp_path / "evil").exists() and {path.name for path in tmp_path.iterdir()} == {"a.zip"}


def test_a_path_that_leads_out_of_the_zip_is_nobodys(tmp_path):
    """Otherwise it would be graded in another student's place, since its name comes first."""
    entries = {"class/Ada/small-lab.ipynb": b"1", "class/Ben/small-lab.ipynb": b"2"}
    hostile = {"../Ada/small-lab.ipynb": b"3", "/class/Ben/small-lab.ipynb": b"4"}
    read = found(make_zip(tmp_path / "a.zip", hostile | entries))
    assert (read["Ada"], read["Ben"], len(read)) == ((b"1", []), (b"2", []), 3)
    assert "its path leads out of the zip" in read["?"][1]


def test_a_damaged_entry_and_a_locked_one(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"Ada/small-lab.ipynb": os.urandom(5000)})
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    assert found(path)["Ada"] == (None, ["the file cannot be read: BadZipFile"])
    data = path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    path.write_bytes(data)
    assert found(path)["Ada"] == (None, ["the file cannot be read: RuntimeError"])


def test_names_that_are_no_text_stay_apart(tmp_path):
    for name in (b"x\xff", b"x\xfe", b"x\x1b[31m", "x\u202e".encode()):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        with open(os.path.join(folder, b"small-lab.ipynb"), "wb") as file:
            file.write(name)
    read = found(tmp_path)
    assert len(read) == 4 and all(student.isprintable() for student in read)
    json.dumps(list(read)).encode()


# ------------------------------------------------------------------------------------ rebuilt


def notes_of(data):
    return " | ".join(rebuild(LAB, data).notes)


def test_only_answers_are_taken_over():
    handed_in = samples.notebook()
    handed_in["cells"].insert(
        0, {**handed_in["cells"][1], "id": "mine", "source": "import os", "metadata": {}}
    )
    for cell in handed_in["cells"]:
        cell["metadata"] = {**cell["metadata"], "tags": ["nbval-skip", "raises-exception"]}
        if cell["cell_type"] == "code":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "12 of 12"}]
    samples.cell(handed_in, "sparsity")["source"] = (
        "# NBVAL_SKIP\n   ## NBVAL_CHECK_OUTPUT\nx = '# NBVAL_SKIP'\n"
    )
    handed_in["cells"][-1]["source"] = "print('forged')"
    result = rebuild(LAB, samples.stored(handed_in))
    rebuilt = json.loads(result.notebook)
    assert result.answers["sparsity"] == "x = '# NBVAL_SKIP'\n"
    assert [cell["id"] for cell in rebuilt["cells"]] == [cell["id"] for cell in LAB.notebook["cells"]]
    for cell, own in zip(rebuilt["cells"], LAB.notebook["cells"]):
        assert cell.get("outputs", []) == []
        if cell["cell_type"] == "code":
            kept = [tag for tag in own["metadata"].get("tags", []) if tag != "nbval-check-output"]
            assert cell["metadata"] == {"tags": kept}
    assert labs.text_of(rebuilt["cells"][-1]) == labs.text_of(LAB.notebook["cells"][-1])
    told = " | ".join(result.notes)
    assert "comments for nbval were taken out of the answer 'sparsity'" in told
    assert "1 code cells of the student's own were left out" in told
    assert "cells of the lab were changed or deleted (use-them)" in told


def test_an_honest_notebook_needs_no_notes():
    assert rebuild(LAB, PERFECT).notes == []
    spaced = json.dumps(json.loads(PERFECT)).encode()
    assert rebuild(LAB, spaced).notes == [] and rebuild(LAB, spaced).answers == rebuild(LAB, PERFECT).answers


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (None, "nothing was handed in"),
        (b"", "not a notebook"),
        (b"not JSON", "not a notebook"),
        (b"[" * 500_000, "not a notebook"),
        (b"[]", "not a notebook"),
        (b'{"cells": 3}', "not a notebook"),
        (b'{"worksheets": []}', "not a notebook"),
        (b"\0" * 1000, "not a notebook"),
        (b" " * 30_000_000, "too large"),
        (b"9" * 10_000, "not a notebook"),
    ],
    ids=lambda value: repr(value[:12]) if value else None,
)
def test_files_that_are_no_notebook_give_nothing_and_say_so(data, note):
    result = rebuild(LAB, data)
    assert set(result.answers.values()) == {None} and note in " | ".join(result.notes)


def test_nonsense_inside_a_notebook_does_not_stop_the_rest():
    handed_in = samples.notebook()
    nonsense = [
        3, None, [], {}, {"cell_type": "code"}, {"metadata": None}, {"metadata": {"nbgrader": []}},
        {"metadata": {"nbgrader": {"grade_id": 7}}, "source": [1, None]},
        {"metadata": {"nbgrader": {"grade_id": ["sparsity"]}}}, {"id": {}, "source": {}, "cell_type": "code"},
    ]  # fmt: skip
    handed_in["cells"] = nonsense + handed_in["cells"]
    assert rebuild(LAB, samples.stored(handed_in)).answers == rebuild(LAB, PERFECT).answers


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_unicode_are_read(encoding):
    assert rebuild(LAB, PERFECT.decode().encode(encoding)).answers == rebuild(LAB, PERFECT).answers


def test_an_encoding_that_is_not_unicode_costs_its_characters_only():
    handed_in = samples.notebook(sparsity="# na\u00efve\ndef sparsity(weight):\n    return 0\n")
    data = json.dumps(handed_in, ensure_ascii=False).encode("latin-1", errors="ignore")
    result = rebuild(LAB, data)
    assert result.answers["sparsity"].endswith("return 0\n") and "not UTF-8" in " | ".join(result.notes)
    assert result.answers["smallest-mask"] == rebuild(LAB, PERFECT).answers["smallest-mask"]
    surrogate = rebuild(LAB, samples.stored(samples.notebook(sparsity="x = '\ud800'")))
    surrogate.answers["sparsity"].encode()


def test_missing_renamed_doubled_and_reordered_answers():
    handed_in = samples.renamed()
    result = rebuild(LAB, samples.stored(handed_in))
    told = " | ".join(result.notes)
    assert result.answers["sparsity"] is None and result.answers["dense-layers"] is None
    assert result.answers["smallest-mask"] and result.answers["filter-norms"]
    assert "'sparsity' is missing (renamed or deleted), though there is one called 'sp\\u0430rsity'" in told
    assert "'dense-layers' is missing (renamed or deleted) |" in told
    assert "'smallest-mask' is there 2 times" in told
    assert "in another order" in told


@pytest.mark.parametrize(
    "like", ["sparsit\u0443", "Sparsity", "\uff53parsity", "sp\u200barsity", "spar\u0455ity", "sparsity1"]
)
def test_ids_that_look_alike_are_told_apart(like):
    handed_in = samples.notebook()
    samples.cell(handed_in, "sparsity")["metadata"]["nbgrader"]["grade_id"] = like
    result = rebuild(LAB, samples.stored(handed_in))
    assert result.answers["sparsity"] is None and f"one called {like!a}" in " | ".join(result.notes)


def test_of_two_answers_the_last_that_was_worked_on_counts():
    stub = rebuilding.stub(LAB, "sparsity")
    handed_in = samples.notebook(sparsity="first = 1")
    for number, text in enumerate(("second = 2", stub)):
        twin = copy.deepcopy(samples.cell(handed_in, "sparsity"))
        handed_in["cells"].append({**twin, "source": text, "id": f"twin{number}"})
    assert rebuild(LAB, samples.stored(handed_in)).answers["sparsity"] == "second = 2"


def test_a_notebook_of_another_lab():
    handed_in = samples.notebook()
    for number, cell in enumerate(handed_in["cells"]):
        cell["id"] = f"other{number}"
        if "nbgrader" in cell["metadata"]:
            cell["metadata"]["nbgrader"]["grade_id"] = f"task-{number}"
    assert "another lab, or another version" in notes_of(samples.stored(handed_in))


def test_answers_of_another_kind_or_length_are_left_out():
    handed_in = samples.notebook(filter_norms="x" * (rebuilding.MOST_CHARACTERS + 1))
    samples.cell(handed_in, "sparsity")["cell_type"] = "markdown"
    result = rebuild(LAB, samples.stored(handed_in))
    told = " | ".join(result.notes)
    assert result.answers["sparsity"] is None and "no longer a code cell" in told
    assert result.answers["filter-norms"] is None and "longer than" in told


def test_untouched_answers_are_not_attempts():
    result = rebuild(LAB, samples.stored(samples.notebook(sparsity=None)))
    assert not result.attempted(LAB, "sparsity") and result.attempted(LAB, "filter-norms")
