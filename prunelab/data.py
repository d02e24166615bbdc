"""CIFAR-10 and its embedded stand-in: whole splits in memory, augmented one batch at a time.

A picture set of this size fits in memory as bytes (CIFAR-10: 184 MB), so nothing is decoded or
transformed picture by picture while a network waits: a batch is gathered, cropped and flipped in
one indexing operation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from types import ModuleType

import platformdirs
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from prunelab import embedded
from prunelab.basics import whole_file

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_COUNTS = (50_000, 10_000)
# Mean and standard deviation of CIFAR-10's training pictures per colour, in 0..1. They are constants,
# not computed, because the stored checkpoints were trained with exactly these.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EMBEDDED_MEAN, EMBEDDED_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
EMBEDDED_COUNTS = {"train": 10_000, "validation": 1_000, "test": 2_000}
FAST_COUNTS = {"train": 1_500, "validation": 500, "test": 500}  # what is left in fast mode

SPLIT_SEED = 0
PADDING = 4  # pixels of zeros around a picture before it is cropped back, as in He et al. (2016), section 4.2


class DataError(RuntimeError):
    """Data that is missing, damaged or not what it should be; the message says how to mend it."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, in memory.

    Attributes:
        images: ``(n, 3, 32, 32)`` uint8.
        labels: ``(n,)`` int64, the class of each picture.
        mean, std: three floats each, subtracted from and divided into pictures scaled to 0..1.
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int) -> Split:
        """The first ``count`` pictures. Every split is stored in random order, so this is a fair sample."""
        if not 1 <= count <= len(self):
            raise ValueError(f"count={count}: this split has {len(self)} pictures, ask for 1 to {len(self)}")
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def to(self, device: str | torch.device) -> Split:
        """The same split with its pictures and labels on ``device``; batches are then made there."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pictures ``(n, 3, h, w)`` to float32 ones with about zero mean and unit variance."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1) * 255
        return (images.float() - mean) / std

    def batches(
        self, batch_size: int = 128, *, shuffle: bool = False, augment: bool = False, seed: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go once through the split.

        Args:
            batch_size: pictures per batch; the last batch may be smaller.
            shuffle: new random order (decided by ``seed``).
            augment: random crop after padding by 4 pixels, and random horizontal flip (decided by ``seed``).
            seed: equal seeds give equal batches, on every device. Pass another one for each epoch.
        Yields:
            images ``(b, 3, 32, 32)`` float32, normalised, and labels ``(b,)``, on the split's device.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        generator = torch.Generator().manual_seed(seed)
        count, device = len(self), self.images.device
        order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
        for rows in order.split(batch_size):
            images = self.images[rows.to(device)]
            if augment:
                images = crop_and_flip(images, generator)
            yield self.normalise(images), self.labels[rows.to(device)]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Random crop after zero padding and random horizontal flip, for a whole batch at once.

    Every output pixel is one lookup in the padded batch: row ``top + y``, column ``left + x`` (read
    backwards where the picture is flipped).

    Args:
        images: ``(b, c, h, w)``.
        generator: a CPU generator; so the same seed augments equally on every device.
    Returns:
        ``(b, c, h, w)``, channels-last in memory.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4).permute(0, 2, 3, 1)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    y, x = torch.arange(height), torch.arange(width)
    rows = (top + y).to(images.device)
    columns = (left + torch.where(flip, width - 1 - x, x)).to(images.device)
    pictures = torch.arange(count, device=images.device)
    cropped = padded[pictures[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: ``train`` to learn from, ``validation`` to choose on, ``test`` to report once.

    Attributes:
        name: ``"cifar10"`` or ``"embedded"``; also the name of the checkpoints trained on it.
        classes: the ten class names; ``labels`` index them.
        source: where it came from, in one sentence.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    source: str

    def to(self, device: str | torch.device) -> Data:
        """The same data with all pictures and labels on ``device``."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return replace(self, **parts)

    @property
    def example(self) -> Tensor:
        """One normalised picture, ``(1, 3, 32, 32)``: what tracing and counting need to know of the input."""
        return self.train.normalise(self.train.images[:1])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part)):,}" for part in ("train", "validation", "test"))
        return f"Data({self.name!r}: {sizes}; {self.source})"


def load(source: str = "auto", root: str | os.PathLike | None = None, *, quiet: bool = False) -> Data:
    """Load a data set into memory.

    Args:
        source: ``"cifar10"``, ``"embedded"`` (made by the package, needs no download), or ``"auto"``:
            CIFAR-10 if it is on this machine, else the embedded default. What was taken, and why, is printed.
        root: folder with CIFAR-10 in it: torchvision's ``cifar-10-batches-py``, or an image folder
            ``train/<class>/*.png`` and ``test/<class>/*.png`` (or ``.jpg``). Without it the environment
            variable ``PRUNELAB_DATA`` is looked at (a folder, or the word ``embedded``), then the user's
            cache, where ``prunelab data --download`` puts it.
        quiet: print nothing.

    In *fast mode*, when the environment variable ``PRUNELAB_FAST`` is set, only the first pictures of each
    split are kept, so that a whole lab runs in seconds; that is how labs are graded.

    Raises:
        DataError: nothing there, or damaged. A folder that was named but holds no CIFAR-10 is an error,
            never a silent fallback. Nothing is downloaded.
    """
    if source not in ("auto", "cifar10", "embedded"):
        raise ValueError(f"source={source!r}: use 'auto', 'cifar10' or 'embedded'")
    if source == "embedded" and root is not None:
        raise ValueError(f"root={str(root)!r}: the embedded default is made by the package and has no folder")
    named = os.environ.get("PRUNELAB_DATA", "")
    cached = cache_folder() / "cifar10"
    if source == "embedded":
        data = _embedded("asked for")
    elif root is not None:
        data = _cifar10(Path(root), "from the folder that was asked for")
    elif named and not (named == "embedded" and source == "cifar10"):
        data = (
            _embedded("PRUNELAB_DATA says so")
            if named == "embedded"
            else _cifar10(Path(named), "from the folder that PRUNELAB_DATA names")
        )
    elif _layout(cached):
        data = _cifar10(cached, "from the user's cache")
    elif source == "auto":
        data = _embedded("no CIFAR-10 on this machine; 'prunelab data --download' fetches it")
    else:
        raise DataError(
            "CIFAR-10 is not on this machine: run 'prunelab data --download' (170 MB), or set PRUNELAB_DATA "
            "or root= to a folder that holds it"
        )
    if os.environ.get("PRUNELAB_FAST"):
        few = {part: getattr(data, part) for part in FAST_COUNTS}
        few = {part: split.subset(min(len(split), FAST_COUNTS[part])) for part, split in few.items()}
        data = replace(data, **few, source=f"{data.source}; fast mode: few pictures")
    if not quiet:
        print(data.source)
    return data


def download(root: str | os.PathLike | None = None) -> Path:
    """Fetch CIFAR-10 with torchvision (170 MB, progress bar, checksum verified) and return its folder.

    Raises:
        DataError: the server cannot be reached, or what arrived is not CIFAR-10.
    """
    CIFAR10 = _torchvision_datasets().CIFAR10
    folder = Path(root) if root is not None else cache_folder() / "cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        CIFAR10(folder, download=True)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        raise DataError(
            f"CIFAR-10 could not be downloaded from {CIFAR10.url} to {folder}: {error}. Try again, or put "
            f"'{CIFAR10.filename}' (md5 {CIFAR10.tgz_md5}) there by hand and run this once more"
        ) from error
    return folder


def cache_folder() -> Path:
    """The user's cache folder for this package (``PRUNELAB_CACHE`` overrides it)."""
    return Path(os.environ.get("PRUNELAB_CACHE") or platformdirs.user_cache_dir("prunelab"))


# ---------------------------------------------------------------------------------------- CIFAR-10


def _layout(root: Path) -> str | None:
    """How CIFAR-10 lies in ``root``: ``"torchvision"``, ``"folder"``, or ``None``."""
    if (root / "cifar-10-batches-py").is_dir():
        return "torchvision"
    if (root / "train").is_dir() and (root / "test").is_dir():
        return "folder"
    return None


def _cifar10(root: Path, why: str) -> Data:
    layout = _layout(root)
    if layout is None:
        raise DataError(
            f"no CIFAR-10 in {root}: expected torchvision's 'cifar-10-batches-py' or 'train/<class>/' and "
            f"'test/<class>/' with pictures. 'prunelab data --download --root {root}' would put it there"
        )
    tensors = _torchvision_arrays(root) if layout == "torchvision" else _folder_arrays(root)
    # Order by class, then by appearance: so both layouts give the same pictures the same places, and a
    # validation picture of one is never a training picture of the other.
    for part in ("train", "test"):
        order = tensors[f"{part}_labels"].argsort(stable=True)
        for kind in ("images", "labels"):
            tensors[f"{part}_{kind}"] = tensors[f"{part}_{kind}"][order]
    counts = len(tensors["train_labels"]), len(tensors["test_labels"])
    complete = "" if counts == CIFAR10_COUNTS else f", INCOMPLETE: {counts[0]:,} + {counts[1]:,} pictures"
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train_order = torch.randperm(counts[0], generator=generator)
    test_order = torch.randperm(counts[1], generator=generator)
    held_out = counts[0] // 10

    def split(part: str, rows: Tensor) -> Split:
        images, labels = tensors[f"{part}_images"], tensors[f"{part}_labels"]
        return Split(images[rows], labels[rows], CIFAR10_MEAN, CIFAR10_STD)

    kind = "torchvision's files" if layout == "torchvision" else "an image folder"
    return Data(
        "cifar10",
        CIFAR10_CLASSES,
        split("train", train_order[held_out:]),
        split("train", train_order[:held_out]),
        split("test", test_order),
        f"data: CIFAR-10 ({kind}), {why}{complete}",
    )


def _torchvision_datasets() -> ModuleType:
    # Imported only here: it takes seconds, and nothing else needs it.
    try:
        from torchvision import datasets
    except (RuntimeError, AttributeError, ImportError) as error:
        raise DataError(
            f"torch {torch.__version__} and the installed torchvision do not belong together ({error}): "
            "install a pair of one release, such as with 'pip install --force-reinstall torch torchvision'"
        ) from error
    return datasets


def _torchvision_arrays(root: Path) -> dict[str, Tensor]:
    datasets = _torchvision_datasets()
    CIFAR10, check_integrity = datasets.CIFAR10, datasets.utils.check_integrity
    folder = root / CIFAR10.base_folder
    for name, md5 in [
        *CIFAR10.train_list,
        *CIFAR10.test_list,
        (CIFAR10.meta["filename"], CIFAR10.meta["md5"]),
    ]:
        # Checked before torchvision unpickles it: a pickle from elsewhere could run code.
        if not check_integrity(str(folder / name), md5):
            fault = "is damaged (its checksum is wrong)" if (folder / name).exists() else "is missing"
            raise DataError(
                f"{folder / name} {fault}: delete {folder} and run 'prunelab data --download --root {root}'"
            )
    tensors = {}
    for part in ("train", "test"):
        dataset = CIFAR10(root, train=part == "train", download=False)
        tensors[f"{part}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        tensors[f"{part}_labels"] = torch.tensor(dataset.targets)
    return tensors


def _folder_arrays(root: Path) -> dict[str, Tensor]:
    files: dict[str, list[tuple[Path, int]]] = {"train": [], "test": []}
    fingerprint = hashlib.sha256()
    for part, listed in files.items():
        classes = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir())
        if classes != list(CIFAR10_CLASSES):
            raise DataError(
                f"{root / part} must have one folder for each class of CIFAR-10 "
                f"({', '.join(CIFAR10_CLASSES)}); it has {', '.join(classes) or 'none'}"
            )
        for label, name in enumerate(classes):
            entries = [
                entry
                for entry in os.scandir(root / part / name)
                if entry.name.lower().endswith((".png", ".jpg", ".jpeg"))
            ]
            if not entries:
                raise DataError(f"{root / part / name} holds no .png or .jpg pictures")
            for entry in sorted(entries, key=lambda entry: entry.name):
                facts = entry.stat()
                listed.append((Path(entry.path), label))
                fingerprint.update(
                    f"{part}/{name}/{entry.name} {facts.st_size} {facts.st_mtime_ns}\n".encode()
                )

    def decode() -> dict[str, Tensor]:
        tensors = {}
        for part, listed in files.items():
            with ThreadPoolExecutor() as pool:  # Pillow decodes outside Python's lock
                decoded = pool.map(_decode, (path for path, _ in listed))
                pictures = list(
                    tqdm(decoded, total=len(listed), desc=f"decoding {part} pictures", leave=False)
                )
            tensors[f"{part}_images"] = torch.stack(pictures)
            tensors[f"{part}_labels"] = torch.tensor([label for _, label in listed])
        return tensors

    name = f"folder-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]}"
    return _cached(name, fingerprint.hexdigest(), decode)


def _decode(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            pixels = picture.convert("RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # all that Pillow raises
        raise DataError(f"{path} is not a readable picture ({error}): replace it") from error
    if pixels.size != (32, 32):
        raise DataError(f"{path} is {pixels.size[0]}x{pixels.size[1]} pixels: CIFAR-10's pictures are 32x32")
    return torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)


# -------------------------------------------------------------------------------- embedded, caching


def _embedded(why: str) -> Data:
    def make() -> dict[str, Tensor]:
        tensors = {}
        for seed, (part, count) in enumerate(EMBEDDED_COUNTS.items()):
            tensors[f"{part}_images"], tensors[f"{part}_labels"] = embedded.generate(count, seed)
        return tensors

    tensors = _cached("embedded", f"version {embedded.VERSION}", make)
    train, validation, test = (
        Split(tensors[f"{part}_images"], tensors[f"{part}_labels"], EMBEDDED_MEAN, EMBEDDED_STD)
        for part in EMBEDDED_COUNTS
    )
    return Data("embedded", embedded.CLASSES, train, validation, test, f"data: the embedded default ({why})")


def _cached(name: str, fingerprint: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """``make()``, or what an earlier call with the same fingerprint stored."""
    path = cache_folder() / f"{name}.safetensors"
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("fingerprint") == fingerprint:
                    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError):
            pass  # damaged from outside, or not readable: made anew below
    tensors = make()
    try:
        with whole_file(path) as partial:
            contiguous = {key: value.contiguous() for key, value in tensors.items()}
            save_file(contiguous, partial, {"fingerprint": fingerprint})
    except OSError as error:
        print(f"note: {path} could not be written ({error}); the data will be prepared again next time")
    return tensors
