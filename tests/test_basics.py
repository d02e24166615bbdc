"""What is stored with every result."""

import platform

import torch

import prunelab
from prunelab.basics import versions


def test_versions_are_those_of_the_packages_that_run():
    found = versions("scikit-learn")
    assert found["prunelab"] == prunelab.__version__
    assert torch.__version__.startswith(found["torch"]) and "+" not in found["torch"]
    assert found["python"] == platform.python_version()
    assert list(found) == ["prunelab", "torch", "scikit-learn", "python"]
