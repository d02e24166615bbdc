"""Make `.venv` ready: `python3 tools/setup.py`, which is what `make setup` runs.

This file only turns away a Python that is too old, and so must itself stay readable for Python 2.7.
"""

import os
import sys

VENV_PYTHON = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".venv", "bin", "python")

if sys.version_info < (3, 10):
    if os.path.exists(VENV_PYTHON):  # made earlier with a newer Python: that one goes on
        os.execv(VENV_PYTHON, [VENV_PYTHON, os.path.abspath(__file__)])
    sys.exit(
        "prunelab needs Python 3.10 or later, and this is Python {0}.{1}: install a newer one and name it, "
        "for example `make book PYTHON=python3.12`.".format(*sys.version_info)
    )

import environment

if __name__ == "__main__":
    sys.exit(environment.main())
