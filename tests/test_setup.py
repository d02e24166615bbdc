"""The set-up names what is missing in one sentence, redoes what is half done, and does nothing twice."""

import ast
import errno
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import environment
import pytest
from packaging.requirements import Requirement

ROOT = environment.ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's requirements and nothing set up, into which nothing is really installed."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "VENDOR", tmp_path / "vendor_root" / "vendor")
    return tmp_path


@pytest.fixture
def commands(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that the set-up would run, in order; it makes only an empty environment."""
    ran: list[str] = []

    def pretend(command: list[object], settings: object = None) -> None:
        ran.append(" ".join(map(str, command)))
        environment.python().parent.mkdir(parents=True, exist_ok=True)
        environment.python().touch()

    monkeypatch.setattr(environment, "run", pretend)
    monkeypatch.setattr(environment, "uv_settings", dict)
    monkeypatch.setattr(environment, "check_disk", lambda: None)
    monkeypatch.setattr(environment, "check_torch_pair", lambda python: None)
    monkeypatch.setattr(environment, "vendor", lambda: ran.append("vendor"))
    monkeypatch.setattr(environment, "is_vendored", lambda: "vendor" in ran)
    return ran


def one_sentence(text: str) -> str:
    """The last line that was printed, which must be the whole message."""
    lines = text.strip().splitlines()
    assert "Traceback" not in text
    assert lines[-1].endswith(".")
    return lines[-1]


def test_second_run_does_nothing(commands: list[str]) -> None:
    assert environment.main() == 0
    assert [word for word in commands if "uv pip install" in word and "constraints.txt" in word]
    first = len(commands)
    assert environment.main() == 0
    assert len(commands) == first


def test_half_finished_setup_is_redone(commands: list[str]) -> None:
    assert environment.main() == 0
    environment.stamp().unlink()
    leftover = environment.VENV / "leftover"
    leftover.touch()
    assert environment.main() == 0
    assert len([word for word in commands if "uv pip install" in word]) == 2
    assert not leftover.exists()


@pytest.mark.parametrize("change", ["constraints.txt", "pyproject.toml", "moved"])
def test_changed_requirements_are_installed(commands: list[str], project: Path, change: str) -> None:
    assert environment.main() == 0
    if change == "moved":
        environment.stamp().write_text(environment.stamp().read_text().replace(str(project), "/elsewhere"))
    else:
        path = project / change
        path.write_text(path.read_text().replace("einops", "einops-new", 1))
    assert environment.main() == 0
    assert len([word for word in commands if "uv pip install" in word]) == 2


def test_changed_linter_settings_install_nothing(commands: list[str], project: Path) -> None:
    assert environment.main() == 0
    path = project / "pyproject.toml"
    path.write_text(path.read_text().replace("line-length = 110", "line-length = 100"))
    assert environment.is_installed()


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 9, 18)])
def test_old_python_is_turned_away(version: tuple[int, ...]) -> None:
    pretend = (
        f"import runpy, os, sys; sys.version_info = {version}; os.path.exists = lambda path: False; "
        "runpy.run_path('tools/setup.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", pretend], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"Python 3.10 or later, and this is Python {version[0]}.{version[1]}" in one_sentence(done.stderr)


def test_old_python_can_read_the_message() -> None:
    """What Python 2.7 cannot read would be a syntax error there, and no sentence."""
    tree = ast.parse((ROOT / "tools" / "setup.py").read_text())
    modern = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal, ast.AsyncFunctionDef)
    assert [node for node in ast.walk(tree) if isinstance(node, modern)] == []


def test_missing_venv_module_is_named(
    commands: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    assert environment.main() == 1
    assert "sudo apt install python3-venv" in one_sentence(capsys.readouterr().err)
    assert commands == []


def test_too_small_a_disk_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(project)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_500_000_000))
    assert environment.main() == 1
    assert "1.5 GB are free" in one_sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    "words",
    [
        "OSError: [Errno 28] No space left on device",
        "failed to write to file `/x`: No space left on device (os error 28)",
        "npm error code ENOSPC",
        "[Errno 122] Disk quota exceeded",
    ],
)
def test_disk_that_fills_up_is_named(project: Path, words: str) -> None:
    with pytest.raises(environment.SetupError, match=r"^The disk is full: .*\.$"):
        environment.run([sys.executable, "-c", f"print({words!r}); raise SystemExit(2)"])


def test_full_disk_while_writing_is_named(
    commands: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(environment, "vendor", full)
    assert environment.main() == 1
    assert one_sentence(capsys.readouterr().err).startswith("The disk is full")


def test_failing_command_is_named(project: Path) -> None:
    with pytest.raises(environment.SetupError, match=r"raise SystemExit\(3\).*says above why"):
        environment.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_torch_pair_that_fits_passes() -> None:
    environment.check_torch_pair(sys.executable)


def test_mismatched_torch_pair_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("torch", "2.13.0"), ("torchvision", "0.29.2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    reason = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({reason!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(environment.SetupError) as error:
        environment.check_torch_pair(sys.executable)
    pair = "torch 2.13.0 and torchvision 0.29.2"
    assert str(error.value).startswith(f"{pair} do not load together (RuntimeError: {reason})")


def test_pip_settings_reach_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "python", lambda: Path(sys.executable))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://more.example/simple")
    monkeypatch.setenv("PIP_CERT", "/certificates.pem")
    settings = environment.uv_settings()
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["UV_INDEX"] == "https://more.example/simple"
    assert settings["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert settings["SSL_CERT_FILE"] == "/certificates.pem"


FAKE_NPM = """#!/bin/sh
printf '%s' "$4" | tr -d '\\n' > archive.tgz
"""


def test_altered_javascript_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = project / "npm"
    npm.write_text(FAKE_NPM)
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(project), prepend=":")
    with pytest.raises(environment.SetupError, match=r"^mathjax .* arrived altered"):
        environment.vendor()
    assert not environment.is_vendored()


def test_unreachable_npm_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = project / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(project), prepend=":")
    with pytest.raises(environment.SetupError, match=r"could not fetch mathjax@.*check the connection"):
        environment.vendor()


def test_constraints_meet_the_bounds_and_name_no_host() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert "://" not in constraints
    pinned: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^ ;\n]+)", constraints, re.MULTILINE):
        pinned.setdefault(name, []).append(version)
    for requirement in map(Requirement, importlib.metadata.requires("prunelab") or []):
        if requirement.name == "prunelab":  # one extra that names another
            continue
        versions = pinned.get(requirement.name, [])
        assert versions, f"{requirement.name} is not in constraints.txt"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


@pytest.mark.parametrize("tool", [["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]], ids=" ".join)
def test_code_is_clean(tool: list[str]) -> None:
    where = [] if tool == ["mypy"] else ["."]
    done = subprocess.run([sys.executable, "-m", *tool, *where], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_does_not_import_torchvision() -> None:
    """It takes as long as all the rest together, and only reading a few files of CIFAR-10 needs it."""
    code = "import prunelab, sys; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
