"""``prunelab release`` and ``prunelab grade``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The rooms are imported only when they are needed: nobody else should wait for them.


def add(commands: Any, describe: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both commands to the command line."""
    example = "prunelab release labs/ -o course/"
    command = describe(commands, "release", "make the students' notebooks, without solutions", example)
    command.add_argument("masters", type=Path, nargs="+", help="master notebooks, or folders of them")
    command.add_argument("-o", "--out", type=Path, required=True, help="folder for the notebooks")
    command.set_defaults(run=_release)

    example = "prunelab grade submissions/ -o reports/ --lab labs/ --jobs 2"
    command = describe(
        commands, "grade", "grade a class; exit code 3 if the machine failed for some", example
    )
    command.add_argument("submissions", type=Path, help="folder <student>/<lab>.ipynb, or a platform's zip")
    command.add_argument("-o", "--out", type=Path, required=True, help="folder for the reports")
    command.add_argument(
        "--lab",
        type=Path,
        action="append",
        help="master notebook, or a folder of them; may be repeated (default: labs)",
    )
    command.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="submissions at a time (default: %(default)s)"
    )
    command.add_argument(
        "--timeout", type=float, default=300, help="seconds for one notebook (default: %(default)s)"
    )
    command.add_argument(
        "--memory", type=float, default=4, help="GB for one submission (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the hidden inputs (default: %(default)s)")
    command.add_argument("--resume", action="store_true", help="keep what an earlier run has graded")
    command.add_argument("--scheduler", help="address of a Dask scheduler, tcp://…, whose workers grade")
    command.add_argument(
        "--no-sandbox",
        action="store_true",
        help="run the students' code with your own rights: only if you trust every line of it",
    )
    command.set_defaults(run=_grade)


def _release(options: argparse.Namespace) -> int:
    from prunelab.grading import release

    for facts in release.release(options.masters, options.out).values():
        print(
            f"{options.out / facts['file']}: {len(facts['exercises'])} exercises, {facts['points']:g} points"
        )
    return 0


def _grade(options: argparse.Namespace) -> int:
    from prunelab.grading import run, sandbox

    if options.no_sandbox:
        print("prunelab: NO SANDBOX: what was handed in runs with all your rights", file=sys.stderr)
    settings = run.Settings(options.seed, options.timeout, options.memory, not options.no_sandbox)
    masters = options.lab or [Path("labs")]
    more = {"jobs": options.jobs, "scheduler": options.scheduler, "resume": options.resume}
    try:
        failed = run.grade(options.submissions, options.out, masters, settings, **more)
    except sandbox.SandboxError as error:
        print(f"prunelab: {error}", file=sys.stderr)
        return 3
    for (student, lab), why in failed.items():
        print(f"prunelab: {student}, {lab}: not graded: {why}", file=sys.stderr)
    print(f"the reports are in {options.out}: begin with overview.html")
    return 3 if failed else 0
