"""What a lab shows was made from the code that is there."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import store_labs


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    cells = [
        nbformat.v4.new_markdown_cell("Two", id="say"),
        nbformat.v4.new_code_cell("print(1 + 1)", id="sum"),
    ]
    path = tmp_path / "labs" / "lab.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def change(path: Path, cell: int, source: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[cell].source = source
    nbformat.write(notebook, path)


def test_outputs_are_stored_once_and_known_to_be_older_than_changed_code(lab: Path) -> None:
    assert not store_labs.is_stored(lab)
    store_labs.store(lab)
    assert nbformat.read(lab, as_version=4).cells[1].outputs[0].text == "2\n"
    assert store_labs.is_stored(lab)
    change(lab, 0, "Two, in other words")
    assert store_labs.is_stored(lab)
    change(lab, 1, "print(1 + 2)")
    assert not store_labs.is_stored(lab)


def test_code_is_what_the_cells_import_and_what_that_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pack"
    modules = {
        "__init__.py": "from pack import one",
        "one.py": "def late():\n    from pack.part.two import deep",
        "part/__init__.py": "",
        "part/two.py": "deep = 2",
        "three.py": "import pack.one",
        "grading.py": "",
    }
    for name, text in modules.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(store_labs, "PACKAGE", package)

    def used(source: str) -> set[str]:
        return {path.relative_to(package).as_posix() for path in store_labs.files(source)}

    always = {"__init__.py", "one.py", "part/__init__.py", "part/two.py"}
    assert used("import pack as p") == used("from pack import one") == always
    assert used("from pack.three import one") == used("import pack.three") == always | {"three.py"}
    assert used("import json, packs") == set()

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%time 1\nimport pack")])
    before = store_labs.code(notebook)
    (package / "grading.py").write_text("b = 1")
    assert store_labs.code(notebook) == before
    (package / "part" / "two.py").write_text("deep = 3")
    assert store_labs.code(notebook) != before


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("import sys; print('careful', file=sys.stderr)", "writes to stderr"),
        ("import os; print(os.getcwd())", "folder"),
    ],
)
def test_complaints_and_folders_are_not_stored(lab: Path, cell: str, message: str) -> None:
    change(lab, 1, cell)
    before = lab.read_bytes()
    with pytest.raises(ValueError, match=message):
        store_labs.store(lab)
    assert lab.read_bytes() == before


def test_check_says_what_is_old_and_fails_only_then(lab: Path) -> None:
    command = [sys.executable, store_labs.__file__, "--check", lab]
    before = subprocess.run(command, capture_output=True, text=True)
    assert before.returncode == 1 and before.stderr == f"{lab}: its outputs are older than the code\n"
    store_labs.store(lab)
    after = subprocess.run(command, capture_output=True, text=True)
    assert (after.returncode, after.stderr) == (0, "")
