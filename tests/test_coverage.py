"""What the book claims of the notes: every section, function, lab cell and test that it names is there."""

import csv
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
with (ROOT / "chapters" / "reference" / "coverage.csv").open(newline="") as file:
    ROWS = list(csv.DictReader(file))


@pytest.fixture(params=ROWS, ids=lambda row: f"{row['part']}: {row['notes'][:30]}")
def row(request):
    return request.param


def slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def test_section(row):
    page, _, heading = row["section"].partition("#")
    text = (ROOT / "chapters" / f"{page}.md").read_text()
    assert not heading or heading in {slug(line) for line in re.findall(r"^#+ (.+)$", text, re.M)}


def test_function(row):
    module, _, name = row["function"].rpartition(".")
    found = getattr(importlib.import_module(f"prunelab.{module}".rstrip(".")), name)
    assert callable(found) and found.__doc__


def test_lab_cell(row):
    number, cell = row["lab"].split()
    [lab] = (ROOT / "labs").glob(f"{number}-*.ipynb")
    assert cell in {found["id"] for found in json.loads(lab.read_bytes())["cells"]}


def test_test(row):
    file, name = row["test"].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.M)
