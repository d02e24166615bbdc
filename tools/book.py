"""Build the book, strictly, and print where its first page is: `.venv/bin/python tools/book.py`."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import environment
from environment import ROOT


def build(root: Path = ROOT) -> Path:
    """Build the book in `root` and return its first page; a warning raises `subprocess.CalledProcessError`.

    Every page is read anew, because a page that is not read again does not repeat its warnings; what costs
    time, the execution of the chapters' cells, is cached (see `pages.py`).
    """
    if not environment.is_vendored():
        environment.vendor()
    output = root / "_build"
    drop_stale_cache(root, output)
    shutil.rmtree(output / "html", ignore_errors=True)  # else pages that have left the book would stay
    # The kernel is this Python's own, whatever kernels the user has registered.
    settings = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    settings.pop("JUPYTER_PATH", None)
    pages = str(Path(__file__).with_name("pages.py"))
    subprocess.run([sys.executable, pages, str(root)], check=True, env=settings)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    options = ["--all", "-n", "-W", "--keep-going", "-q"]
    subprocess.run([jupyter_book, "build", root, *options], check=True, env=settings)
    drop_font_preloads(output / "html")
    return output / "html" / "index.html"


def drop_font_preloads(html: Path) -> None:
    """Delete what the last theme for Python 3.10 asks of a browser that refuses it to a page from disk."""
    for page in html.rglob("*.html"):
        page.write_text(re.sub('<link rel="preload" as="font"[^>]*>', "", page.read_text("utf8")), "utf8")


def drop_stale_cache(root: Path, output: Path) -> None:
    """Forget cached outputs when what the chapters' cells import or read has changed.

    Jupyter Book itself looks at the cells alone.
    """
    digest = hashlib.sha256(sys.version.encode())
    patterns = [
        "constraints.txt",
        "prunelab/**/*.py",
        "prunelab/checkpoints/*.json",
        "results/**/*.json",
        "_toc.yml",
        "labs/**/*.ipynb",
        "labs/**/*.py",
    ]
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    stamp = output / "made-from"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        shutil.rmtree(output / ".jupyter_cache", ignore_errors=True)
        output.mkdir(exist_ok=True)
        stamp.write_text(digest.hexdigest())


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        page = build()
    except environment.SetupError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError:
        sys.exit("\nThe book has warnings or a cell that fails (above), and a warning is an error here.")
    print(f"\nThe book is ready. Open {page.as_uri()}")
