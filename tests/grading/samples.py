"""A small lab and made-up submissions for it, all of them made from its master."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from prunelab.grading import lab as labs

LABS = Path(__file__).parent / "labs"
SOURCE = labs.sources([LABS])[0]
LAB = labs.understand(SOURCE)


def notebook(**answers: str | None) -> dict:
    """The released notebook with the master's own answers, or others: ``filter_norms="def …"``.

    ``None`` leaves an answer cell as it was released.
    """
    handed_in = labs.released(LAB)
    for name, place in LAB.answers.items():
        solved = labs.text_of(LAB.notebook["cells"][place])
        text = answers.get(name.replace("-", "_"), solved)
        if text is not None:
            handed_in["cells"][place]["source"] = text.splitlines(keepends=True)
    return handed_in


def stored(handed_in: dict) -> bytes:
    return json.dumps(handed_in, indent=1).encode()


def cell(handed_in: dict, grade_id: str) -> dict:
    """A cell by its id in nbgrader's metadata."""
    marked = [one for one in handed_in["cells"] if one["metadata"].get("nbgrader")]
    return next(one for one in marked if one["metadata"]["nbgrader"]["grade_id"] == grade_id)


def renamed() -> dict:
    """Two answers under other names, one of which looks the same; the order changed, one cell doubled."""
    handed_in = notebook()
    cell(handed_in, "sparsity")["metadata"]["nbgrader"]["grade_id"] = "sp\u0430rsity"  # a Cyrillic a
    cell(handed_in, "dense-layers")["metadata"]["nbgrader"]["grade_id"] = "my-layers"
    twice = copy.deepcopy(cell(handed_in, "smallest-mask"))
    handed_in["cells"].insert(1, {**twice, "id": "copy"})
    return handed_in


NOISY = """
import logging, sys, warnings
from tqdm.auto import tqdm
%matplotlib inline
!echo shell

def filter_norms(weight):
    print("working", flush=True)
    print("still working", file=sys.stderr)
    logging.error("not an error")
    warnings.warn("not an error either")
    display(weight.shape)
    return torch.tensor([float(one.abs().sum()) for one in tqdm(weight, desc="filters")])

filter_norms(torch.ones(2, 3))
"""
PARTIAL = """
def filter_norms(weight):
    return weight.abs().sum(dim=(1, 2, 3))  # forgets linear layers
"""
NEARLY = """
def smallest_mask(weight, amount):
    count = round(amount * weight.numel())
    return weight >= weight.flatten().sort().values[count]  # sorts the values, not their sizes
"""
HOSTILE = """
import os, sys
print("filter-norms: 4/4")
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'{"verdict": "right", "points": 4}')
    except OSError:
        pass

class Yes:
    def __eq__(self, other):
        return True

def filter_norms(weight):
    return Yes()
"""


def sample_class() -> dict[str, tuple[bytes, float]]:
    """Eight students: what each handed in, and the points that it deserves, counted by hand.

    Ben gets 3 for ``sparsity``, 3 for ``filter_norms`` (all but the linear layer), 1 for ``smallest_mask``
    (the example).
    """
    wrong = {
        "sparsity": "def sparsity(weight):\n    return (weight == 0).float().sum().item()\n",
        "filter_norms": "def filter_norms(weight):\n    return weight.flatten(1).norm(dim=1)\n",
        "smallest_mask": "def smallest_mask(weight, amount):\n    return weight\n",
        "dense_layers": "def dense_layers(layers, most):\n    return layers\n",
    }
    slow = "def dense_layers(layers, most):\n    while True:\n        pass\n"
    crashed = "import os\nos._exit(1)\n\ndef smallest_mask(weight, amount):\n    return weight\n"
    nothing = dict.fromkeys(("sparsity", "filter_norms", "smallest_mask", "dense_layers"))
    return {
        "Ada perfect": (stored(notebook(filter_norms=NOISY)), 12),
        "Ben partial": (stored(notebook(filter_norms=PARTIAL, smallest_mask=NEARLY, dense_layers=None)), 7),
        "Cem wrong": (stored(notebook(**wrong)), 0),
        "Dee empty": (stored(notebook(**nothing)), 0),
        "Eli crashed": (stored(notebook(smallest_mask=crashed)), 9),
        "Fay slow": (stored(notebook(dense_layers=slow)), 10),
        "Gus renamed": (stored(renamed()), 7),
        "Hal hostile": (stored(notebook(filter_norms=HOSTILE)), 8),
    }


def hand_in(folder: Path, submissions: dict[str, bytes]) -> Path:
    """Write submissions as ``<student>/small-lab.ipynb``."""
    for student, data in submissions.items():
        (folder / student).mkdir(parents=True)
        (folder / student / "small-lab.ipynb").write_bytes(data)
    return folder
