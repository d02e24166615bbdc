"""Two problems with a known answer: which variables LASSO selects, and which groups group lasso recovers.

    python benchmarks/group_lasso.py

writes ``results/group_lasso.json``. Both problems are linear regressions on random data, so that the true
support is known, solved by proximal gradient descent with the package's own proximal steps. Strengths are
given as a share of the smallest one at which everything is zero. It needs no data and takes a minute or two.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import lasso_path
from torch import Tensor

from prunelab.basics import versions
from prunelab.regularisers import block_soft_threshold, soft_threshold

RESULTS = Path(__file__).parent.parent / "results" / "group_lasso.json"
SEEDS = list(range(30))  # one random problem each
SHARES = np.geomspace(1, 0.05, 30).round(4).tolist()  # of the strength that zeroes everything
# The group problem: 20 groups of 8 variables, more variables than samples. In 3 groups every variable
# matters, but each only weakly.
SAMPLES, GROUPS, SIZE, TRUE_GROUPS, SIGNAL, NOISE = 100, 20, 8, (1, 4, 9), 0.35, 1.0
# The variable problem: 10 correlated variables, 3 of which matter. The path goes on until nearly all are in.
PATH_SEED, PATH_SAMPLES, PATH_TRUTH, CORRELATION = 0, 50, (3.0, -2.0, 1.5, 0, 0, 0, 0, 0, 0, 0), 0.5
PATH_SHARES = np.geomspace(1, 0.002, 50)


def descend(
    x: Tensor, y: Tensor, w: Tensor, shrink: Callable, strength: float, steps: int = 20_000
) -> Tensor:
    """Minimise ``|y - X w|^2 / 2n + strength R(w)`` from ``w`` on, where ``shrink`` is R's proximal step."""
    rate = float(len(x) / torch.linalg.matrix_norm(x, 2) ** 2)
    for _ in range(steps):
        before = w
        w = shrink(w - rate * x.T @ (x @ w - y) / len(x), rate * strength)
        if (w - before).abs().max() < 1e-9:
            break
    return w


def grouped_problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """``X (samples, variables)``, ``y (samples,)`` and the true coefficients ``(groups, size)``."""
    options: dict = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    x = torch.randn(SAMPLES, GROUPS * SIZE, **options)
    truth = torch.zeros(GROUPS, SIZE, dtype=torch.float64)
    truth[list(TRUE_GROUPS)] = SIGNAL * torch.randn(len(TRUE_GROUPS), SIZE, **options).sign()
    return x, x @ truth.flatten() + NOISE * torch.randn(SAMPLES, **options), truth


def block_shrink(w: Tensor, threshold: float) -> Tensor:
    return block_soft_threshold(w.view(GROUPS, SIZE), threshold).flatten()


def recovery() -> dict:
    """For each method and strength: the share of problems solved exactly, and of true and false groups found.

    A group counts as found when any of its coefficients is not zero, which is the reading that favours L1.
    """
    methods = {"l1": soft_threshold, "group_lasso": block_shrink}
    found = {name: torch.zeros(len(SEEDS), len(SHARES), GROUPS, dtype=torch.bool) for name in methods}
    for number, seed in enumerate(SEEDS):
        x, y, truth = grouped_problem(seed)
        pull = (x.T @ y / len(x)).view(GROUPS, SIZE)
        largest = {"l1": pull.abs().max(), "group_lasso": pull.norm(dim=1).max() / SIZE**0.5}
        for name, shrink in methods.items():
            w = torch.zeros_like(truth).flatten()
            for index, share in enumerate(SHARES):
                w = descend(x, y, w, shrink, share * float(largest[name]))
                found[name][number, index] = w.view(GROUPS, SIZE).any(1)
    wanted = torch.zeros(GROUPS, dtype=torch.bool)
    wanted[list(TRUE_GROUPS)] = True
    return {
        name: {
            "exact": (groups == wanted).all(2).double().mean(0).tolist(),
            "true_found": groups[:, :, wanted].double().mean((0, 2)).tolist(),
            "false_found": groups[:, :, ~wanted].double().mean((0, 2)).tolist(),
            # of the problems, those that some strength solves: the best that tuning could do
            "exact_at_some_strength": (groups == wanted).all(2).any(1).double().mean().item(),
        }
        for name, groups in found.items()
    }


def path() -> dict:
    """The coefficients against the strength: scikit-learn's path, and how far ours is from it at most."""
    generator = np.random.default_rng(PATH_SEED)
    truth = np.array(PATH_TRUTH)
    distance = np.abs(np.subtract.outer(np.arange(len(truth)), np.arange(len(truth))))
    x = generator.multivariate_normal(np.zeros(len(truth)), CORRELATION**distance, PATH_SAMPLES)
    y = x @ truth + generator.normal(size=PATH_SAMPLES)
    largest = float(np.abs(x.T @ y).max() / len(x))
    strengths = largest * PATH_SHARES
    _, theirs, _ = lasso_path(x, y, alphas=strengths, tol=1e-10, max_iter=100_000)
    w, ours = torch.zeros(len(truth), dtype=torch.float64), []
    for strength in strengths:
        w = descend(torch.from_numpy(x), torch.from_numpy(y), w, soft_threshold, float(strength))
        ours.append(w.numpy())
    return {
        "seed": PATH_SEED,
        "samples": PATH_SAMPLES,
        "correlation_of_neighbours": CORRELATION,
        "truth": truth.tolist(),
        "strengths": strengths.tolist(),
        "coefficients": (theirs.T.round(6) + 0.0).tolist(),
        "largest_difference_to_ours": float(np.abs(theirs.T - np.array(ours)).max()),
    }


def main() -> None:
    torch.set_num_threads(1)
    result = {
        "command": "python benchmarks/group_lasso.py",
        "seeds": SEEDS,
        "versions": versions("scikit-learn"),
        "shares": SHARES,
        "problem": {
            "samples": SAMPLES,
            "groups": GROUPS,
            "group_size": SIZE,
            "true_groups": list(TRUE_GROUPS),
            "coefficient": SIGNAL,
            "noise": NOISE,
        },
        "recovery": recovery(),
        "path": path(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
