"""Networks as files of tensors and JSON, dense, sparse or pruned: reading one never runs code."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunelab.basics import Network, whole_file
from prunelab.channels import trace
from prunelab.planning import keep_from
from prunelab.sparsify import masks, set_mask
from prunelab.surgery import pruning_record, rebuild, set_pruning_record


def save(model: nn.Module, path: str | os.PathLike) -> Path:
    """Store a network: its tensors, which layers are masked, and which channels pruning has left.

    The file is written beside and then renamed, so that a file that exists is whole.
    """
    path = Path(path)
    facts = {"masked": sorted(masks(model)), "pruned": pruning_record(model)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as partial:
        save_file(tensors, partial, {"prunelab": json.dumps(facts)})
    return path


def load(path: str | os.PathLike, model: Network) -> Network:
    """Read a network that :func:`save` stored.

    Args:
        model: a network of the same kind, full size and without masks, such as ``pl.models.resnet20()``; left
            untouched.
    Returns:
        A copy of it with the stored masks, channels and weights.
    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or belongs to another network or number of classes; the message says
            what differs.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        facts = json.loads(metadata.get("prunelab", "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}): make or fetch it anew"
        ) from error
    result = copy.deepcopy(model)
    if facts.get("pruned"):
        result = _shrunk(result, facts["pruned"], path)
        set_pruning_record(result, facts["pruned"])
    layers = dict(result.named_modules())
    for name in facts.get("pruned", {}).get("biases", []):  # where constants had to go
        layers[name].bias = nn.Parameter(torch.zeros_like(tensors[f"{name}.bias"]))
    for name in facts.get("masked", []):
        if name not in layers or not hasattr(layers[name], "weight"):
            raise ValueError(
                f"{path} holds another network: it masks {name!r}, which {type(model).__name__} has not"
            )
        set_mask(layers[name], torch.ones_like(layers[name].weight, dtype=torch.bool))
    _check_names(path, tensors, result)
    result.load_state_dict(tensors)
    return result


def _shrunk(model: Network, pruned: dict, path: Path) -> Network:
    channels = trace(model, tuple(torch.zeros(shape) for shape in pruned["example"]))
    made, kept = channels.makers(), pruned["kept"]
    if set(made) != set(kept) or any(max(kept[name]) >= len(filters) for name, filters in made.items()):
        name = type(model).__name__
        raise ValueError(f"{path} holds another network: its layers are not those of this {name}")
    keep = keep_from(channels, kept)
    for name, filters in made.items():
        if not (keep | channels.free)[filters].all():  # outputs of the network, which pruning never removes
            raise _wrong_classes(path, len(kept[name]), len(filters))
    return rebuild(model, channels, keep)


def _wrong_classes(path: Path, there: int, here: int) -> ValueError:
    return ValueError(
        f"{path} holds a network with {there} classes, this one has {here}: give num_classes={there}"
    )


def _check_names(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected == found:
        return
    different = {name for name in expected.keys() & found.keys() if expected[name] != found[name]}
    last = list(model.named_parameters())[-1][0]  # the classifier's bias
    if expected.keys() == found.keys() and {name.split(".")[0] for name in different} == {last.split(".")[0]}:
        raise _wrong_classes(path, found[last][0], expected[last][0])
    lines = [f"{name} is {found[name]} there and {expected[name]} here" for name in sorted(different)]
    lines += [f"{name} is only there" for name in sorted(found.keys() - expected.keys())]
    lines += [f"{name} is only here" for name in sorted(expected.keys() - found.keys())]
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    raise ValueError(f"{path} does not fit this {type(model).__name__}: {'; '.join(lines[:3])}{more}")
