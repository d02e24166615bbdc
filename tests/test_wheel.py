"""What `pip install` gives is whole: the package from a wheel, by itself, without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel."""
    source, dist, target = (tmp_path_factory.mktemp(name) for name in ("source", "dist", "target"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "prunelab", source / "prunelab", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, dist], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, *words: str) -> str:
    settings = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    settings.pop("PRUNELAB_DATA", None)
    done = subprocess.run(
        [sys.executable, *words], cwd=installed.parent, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_file_of_the_package_is_in_it(installed):
    def files(folder):
        return {
            path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
        }

    assert files(installed / "prunelab") == files(ROOT / "prunelab")


def test_networks_and_pictures_come_with_it(installed):
    code = """
import prunelab as pl
print(pl.__file__)
data = pl.data.load("embedded")
few = data.test.subset(200)
for name, card in pl.models.checkpoints().items():
    if card["data"] == "embedded":
        width = {"width": card["width"]} if "width" in card else {}
        model = getattr(pl.models, card["model"])(weights="embedded", **width)
        print(name, pl.evaluate(model, few, progress=False).accuracy > 0.85)
"""
    first, *networks = [
        line for line in run(installed, "-c", code).splitlines() if "data:" not in line and line
    ]
    assert first.startswith(str(installed))
    assert len(networks) == 3 and all(line.endswith("True") for line in networks)


def test_the_command_and_the_grader_are_there(installed):
    assert "geometric_median" in run(installed, "-m", "prunelab", "methods")
    run(installed, "-c", "import prunelab.grading.worker, prunelab.grading.command")
