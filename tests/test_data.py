"""The pictures: both layouts of CIFAR-10, the cache, batches, and everything that can be wrong with files."""

import hashlib
import http.server
import io
import os
import pickle
import socket
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms
from torchvision.transforms.functional import crop, hflip, pad

from prunelab import data, embedded
from prunelab.data import DataError, Split

# What the fixture below hides.
REAL = os.environ.get("PRUNELAB_DATA", "")
COUNTS = dict(data.EMBEDDED_COUNTS)
TRAIN_FILES = [name for name, _ in datasets.CIFAR10.train_list]


@pytest.fixture(autouse=True)
def a_machine_without_data(tmp_path, monkeypatch):
    """No variable, an empty cache of its own, and an embedded data set that takes no time to make."""
    monkeypatch.delenv("PRUNELAB_DATA", raising=False)
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "EMBEDDED_COUNTS", {"train": 30, "validation": 10, "test": 20})


# ------------------------------------------------------------------------- a small CIFAR-10, twice


def pictures(train=100, test=40):
    """{part: (images (n, 3, 32, 32) uint8, labels)}: all pictures different, classes in mixed order."""
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), rng.permutation(np.arange(n) % 10))
        for part, n in (("train", train), ("test", test))
    }


def write_batches(root: Path, monkeypatch, parts=None) -> Path:
    """torchvision's layout, and torchvision told what the checksums are."""
    parts = parts or pictures()
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name, images, labels):
        rows = {"data": images.reshape(len(images), -1), "labels": labels.tolist()}
        return [name, write(name, rows)]

    pieces = zip(
        TRAIN_FILES, np.array_split(parts["train"][0], 5), np.array_split(parts["train"][1], 5), strict=True
    )
    train_list = [batch(*piece) for piece in pieces]
    test_list = [batch("test_batch", *parts["test"])]
    names = {"label_names": list(data.CIFAR10_CLASSES)}
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", names)}
    for name, value in (("train_list", train_list), ("test_list", test_list), ("meta", meta)):
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return root


def write_folder(root: Path, parts=None, kind="png") -> Path:
    """The layout of an image folder: numbered inside each class, in the order of appearance."""
    for part, (images, labels) in (parts or pictures()).items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = root / part / data.CIFAR10_CLASSES[label] / f"{number:05}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return root


def as_set(*splits: Split) -> set[tuple[bytes, int]]:
    """Every picture with its label."""
    return {
        (image.numpy().tobytes(), int(label))
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    }


def splits(loaded):
    return loaded.train, loaded.validation, loaded.test


def same(one, other):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in zip(splits(one), splits(other), strict=True)
    )


# ------------------------------------------------------------------------------------- the splits


def test_both_layouts_give_the_same_splits(tmp_path, monkeypatch):
    batches = data.load("cifar10", write_batches(tmp_path / "batches", monkeypatch))
    folder = data.load("cifar10", write_folder(tmp_path / "folder"))
    assert same(batches, folder)
    assert "torchvision's files" in batches.source and "an image folder" in folder.source


def test_a_split_has_every_picture_once_with_its_label(tmp_path):
    loaded = data.load(root=write_folder(tmp_path))
    assert [len(split) for split in splits(loaded)] == [90, 10, 40]
    given = pictures()
    for part, theirs in (("train", (loaded.train, loaded.validation)), ("test", (loaded.test,))):
        assert as_set(*theirs) == {
            (image.tobytes(), int(label)) for image, label in zip(*given[part], strict=True)
        }
    assert not as_set(loaded.train) & as_set(loaded.validation)
    assert loaded.name == "cifar10" and loaded.classes[3] == "cat"


def test_the_split_is_fixed_and_in_random_order(tmp_path):
    root = write_folder(tmp_path)
    one = data.load(root=root)
    torch.manual_seed(7)
    assert same(one, data.load(root=root))
    for split in splits(one):
        labels = split.labels.tolist()
        assert labels != sorted(labels)


def test_an_incomplete_copy_is_called_so(tmp_path, capsys):
    data.load(root=write_folder(tmp_path))
    assert "INCOMPLETE: 100 + 40 pictures" in capsys.readouterr().out


def test_folders_may_hold_jpeg_grey_and_other_files(tmp_path):
    root = write_folder(tmp_path, kind="JPEG")
    grey = Image.fromarray(np.full((32, 32), 9, np.uint8))
    grey.save(root / "train" / "cat" / "grey.png")
    (root / "train" / "cat" / "notes.txt").write_text("not a picture")
    loaded = data.load(root=root)
    assert len(loaded.train) + len(loaded.validation) == 101
    assert any((split.images == 9).all(dim=(1, 2, 3)).any() for split in (loaded.train, loaded.validation))


def test_embedded_counts():
    assert COUNTS == {"train": 10_000, "validation": 1_000, "test": 2_000}


def test_embedded_parts_differ_and_have_cifars_interface():
    loaded = data.load("embedded")
    assert [len(split) for split in splits(loaded)] == [30, 10, 20]
    assert len(as_set(*splits(loaded))) == 60
    assert loaded.name == "embedded" and loaded.classes == embedded.CLASSES
    assert loaded.train.images.dtype == torch.uint8 and loaded.train.labels.dtype == torch.int64
    assert loaded.example.shape == (1, 3, 32, 32) and loaded.example.dtype == torch.float32
    assert same(loaded, data.load("embedded"))
    assert "train 30, validation 10, test 20" in repr(loaded)


@pytest.mark.skipif(
    REAL in ("", "embedded"), reason="no CIFAR-10: set PRUNELAB_DATA to a folder that holds it"
)
def test_the_real_cifar10(monkeypatch):
    monkeypatch.undo()  # the machine's own cache: 60,000 pictures are decoded once, not at every run
    loaded = data.load("cifar10")
    assert [len(split) for split in splits(loaded)] == [45_000, 5_000, 10_000]
    assert loaded.classes == data.CIFAR10_CLASSES
    together = torch.cat([loaded.train.labels, loaded.validation.labels])
    assert together.bincount().tolist() == [5_000] * 10
    assert loaded.test.labels.bincount().tolist() == [1_000] * 10
    assert loaded.validation.labels.bincount(minlength=10).min() > 400
    pixels = loaded.train.subset(10_000).images.float() / 255
    for measured, constant in (
        (pixels.mean((0, 2, 3)), data.CIFAR10_MEAN),
        (pixels.std((0, 2, 3)), data.CIFAR10_STD),
    ):
        torch.testing.assert_close(measured, torch.tensor(constant), atol=0.005, rtol=0)


# ---------------------------------------------------------------------------------- which source


def test_auto_takes_the_embedded_default_last_and_says_why(capsys):
    assert data.load().name == "embedded"
    assert capsys.readouterr().out == (
        "data: the embedded default (no CIFAR-10 on this machine; 'prunelab data --download' fetches it)\n"
    )


def test_the_order_of_sources(tmp_path, monkeypatch, capsys):
    """The argument goes before the variable, the variable before the cache, the cache before the default."""
    parts = {count: pictures(count, 10) for count in (20, 30, 40)}
    write_folder(tmp_path / "cache" / "cifar10", parts[20])
    loaded = data.load()
    assert len(loaded.train) == 18
    assert capsys.readouterr().out.startswith("data: CIFAR-10 (an image folder), from the user's cache")

    monkeypatch.setenv("PRUNELAB_DATA", str(write_folder(tmp_path / "named", parts[30])))
    assert len(data.load().train) == len(data.load("cifar10").train) == 27
    assert "from the folder that PRUNELAB_DATA names" in capsys.readouterr().out

    loaded = data.load(root=write_folder(tmp_path / "asked", parts[40]))
    assert len(loaded.train) == 36
    said = capsys.readouterr().out
    assert "from the folder that was asked for" in said and said.count("\n") == 1

    assert data.load("embedded").name == "embedded"
    assert capsys.readouterr().out == "data: the embedded default (asked for)\n"
    data.load(quiet=True)
    assert capsys.readouterr().out == ""


def test_fast_mode_keeps_the_first_pictures_of_each_split(monkeypatch):
    whole = data.load("embedded", quiet=True)
    monkeypatch.setenv("PRUNELAB_FAST", "1")
    monkeypatch.setattr(data, "FAST_COUNTS", {"train": 12, "validation": 50, "test": 7})
    fast = data.load("embedded", quiet=True)
    assert (len(fast.train), len(fast.validation), len(fast.test)) == (12, len(whole.validation), 7)
    assert torch.equal(fast.train.images, whole.train.images[:12])
    assert "fast mode" in fast.source and "fast mode" not in whole.source


def test_the_variable_can_say_embedded(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "cache" / "cifar10")
    monkeypatch.setenv("PRUNELAB_DATA", "embedded")
    assert data.load().name == "embedded"
    assert capsys.readouterr().out == "data: the embedded default (PRUNELAB_DATA says so)\n"
    assert data.load("cifar10").name == "cifar10"  # asked for by name: the variable does not forbid it


def test_nothing_is_fallen_back_on_silently(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="not on this machine: run 'prunelab data --download'"):
        data.load("cifar10")
    with pytest.raises(DataError, match=f"no CIFAR-10 in {tmp_path / 'nowhere'}: expected torchvision's"):
        data.load(root=tmp_path / "nowhere")
    monkeypatch.setenv("PRUNELAB_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=f"no CIFAR-10 in {tmp_path / 'elsewhere'}"):
        data.load()
    monkeypatch.delenv("PRUNELAB_DATA")
    (tmp_path / "cache" / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match="data_batch_1 is missing"):
        data.load()


def test_load_never_downloads(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert data.load().name == "embedded"
    with pytest.raises(DataError):
        data.load("cifar10")


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="source='cifar': use 'auto', 'cifar10' or 'embedded'"):
        data.load("cifar")
    with pytest.raises(ValueError, match=f"root='{tmp_path}': the embedded default is made by the package"):
        data.load("embedded", tmp_path)


# ---------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "is damaged"),
        (Path.unlink, "is missing"),
    ],
    ids=["truncated", "altered", "missing"],
)
def test_a_damaged_file_is_named_and_how_to_mend_it(tmp_path, monkeypatch, name, harm, fault):
    folder = write_batches(tmp_path, monkeypatch) / "cifar-10-batches-py"
    harm(folder / name)
    with pytest.raises(DataError) as caught:
        data.load(root=tmp_path)
    assert str(caught.value).startswith(f"{folder / name} {fault}")
    assert str(caught.value).endswith(f"delete {folder} and run 'prunelab data --download --root {tmp_path}'")


def test_an_altered_file_is_never_unpickled(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    folder = write_batches(tmp_path, monkeypatch) / "cifar-10-batches-py"
    (folder / "data_batch_1").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="data_batch_1 is damaged"):
        data.load(root=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_class(tmp_path):
    root = write_folder(tmp_path)
    (root / "test" / "frog").rename(root / "test" / "toad")
    with pytest.raises(DataError, match=r"one folder for each class.*it has airplane.*toad") as caught:
        data.load(root=root)
    assert str(root / "test") in str(caught.value)


def test_an_empty_class(tmp_path):
    root = write_folder(tmp_path)
    for path in (root / "train" / "ship").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/ship holds no \.png or \.jpg pictures"):
        data.load(root=root)


def png(size=(32, 32)) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is not a readable picture"),
        (b"hello", "is not a readable picture"),
        (png()[:500], "is not a readable picture"),  # Pillow: OSError
        (png()[:20], "is not a readable picture"),  # Pillow: ValueError
        (png().replace(b"IDAT", b"I\x19\x04T"), "is not a readable picture"),  # Pillow: SyntaxError
        (png((32, 33)), "is 32x33 pixels: CIFAR-10's pictures are 32x32"),
    ],
    ids=["empty", "text", "truncated", "no header", "garbled", "wrong size"],
)
def test_an_unusable_picture_is_named(tmp_path, content, fault):
    root = write_folder(tmp_path)
    path = next((root / "train" / "dog").iterdir())
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.load(root=root)
    assert str(path) in str(caught.value) and fault in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_mismatched_torchvision_is_named(monkeypatch, tmp_path):
    root = write_batches(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"do not belong together .*--force-reinstall torch torchvision"):
        data.load(root=root)


# -------------------------------------------------------------------------------------- the cache


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that were decoded so far."""
    seen = []
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda path: seen.append(path) or decode(path))
    return seen


def cache_files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_a_folder_is_decoded_once(tmp_path, decoded):
    root = write_folder(tmp_path / "folder")
    first = data.load(root=root)
    assert len(decoded) == 140
    assert same(first, data.load(root=root))
    assert len(decoded) == 140
    (file,) = cache_files(tmp_path)
    assert file.startswith("folder-") and file.endswith(".safetensors")


def test_two_folders_have_two_caches(tmp_path):
    one = data.load(root=write_folder(tmp_path / "one", pictures(20, 10)))
    other = data.load(root=write_folder(tmp_path / "other", pictures(30, 10)))
    assert (len(one.train), len(other.train)) == (18, 27) and len(cache_files(tmp_path)) == 2


def touch_only(path):
    os.utime(path, ns=(1, 1))


def redraw(path):
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path)


@pytest.mark.parametrize(
    "change",
    [
        touch_only,
        redraw,
        lambda path: path.with_name("added.png").write_bytes(path.read_bytes()),
        lambda path: path.rename(path.with_name("renamed.png")),
        lambda path: path.rename(path.parent.parent / "truck" / path.name),
        lambda path: path.rename(path.parent.parent.parent / "test" / "bird" / path.name),
    ],
    ids=["touched", "redrawn", "added", "renamed", "other class", "other part"],
)
def test_a_changed_folder_is_read_again(tmp_path, decoded, change):
    root = write_folder(tmp_path / "folder")
    data.load(root=root)
    change(sorted((root / "train" / "bird").iterdir())[0])
    count = len(decoded)
    changed = data.load(root=root)
    assert len(decoded) > count
    assert len(cache_files(tmp_path)) == 1
    (tmp_path / "cache").rename(tmp_path / "old")
    assert same(changed, data.load(root=root))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        lambda path: path.write_bytes(b"\xff" * 100),
    ],
    ids=["empty", "truncated", "garbage"],
)
def test_a_damaged_cache_is_made_again(tmp_path, harm):
    first = data.load("embedded")
    path = tmp_path / "cache" / "embedded.safetensors"
    whole = path.read_bytes()
    harm(path)
    assert same(first, data.load("embedded"))
    assert path.read_bytes() == whole


def test_the_cache_of_another_version_is_not_used(tmp_path, monkeypatch):
    data.load("embedded")
    made = []
    generate = embedded.generate
    monkeypatch.setattr(embedded, "generate", lambda *given: made.append(given) or generate(*given))
    data.load("embedded")
    assert made == []
    monkeypatch.setattr(embedded, "VERSION", embedded.VERSION + 1)
    data.load("embedded")
    assert len(made) == 3 and len({seed for _, seed in made}) == 3


def test_half_a_cache_is_never_read(tmp_path, monkeypatch):
    """Stopped while writing, nothing is left; killed, what is left has another name. Then it starts again."""

    def stopped(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data, "save_file", stopped)
        with pytest.raises(KeyboardInterrupt):
            data.load("embedded")
    assert cache_files(tmp_path) == []
    (tmp_path / "cache" / "embedded.safetensors.1.partial").write_bytes(b"half")
    assert data.load("embedded").name == "embedded"
    assert "embedded.safetensors" in cache_files(tmp_path)
    assert same(data.load("embedded"), data.load("embedded"))


def test_the_cache_appears_whole(tmp_path, monkeypatch):
    """Until the last byte is written, its own name does not exist."""
    save = data.save_file

    def watched(tensors, path, metadata):
        save(tensors, path, metadata)
        assert not (tmp_path / "cache" / "embedded.safetensors").exists()
        assert str(path).endswith(".partial")

    monkeypatch.setattr(data, "save_file", watched)
    data.load("embedded")
    assert cache_files(tmp_path) == ["embedded.safetensors"]


def test_without_a_cache_it_still_loads_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path / "file" / "cache"))
    assert data.load("embedded").name == "embedded"
    assert "could not be written" in capsys.readouterr().out


# -------------------------------------------------------------------------------------- batches


def coded_split(count=50):
    """Pictures that say who they are: red is the row, green the column (from 1), blue the picture."""
    row, column = torch.meshgrid(torch.arange(1, 33), torch.arange(1, 33), indexing="ij")
    images = torch.stack([row, column, torch.zeros(32, 32)]).to(torch.uint8).repeat(count, 1, 1, 1)
    images[:, 2] = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1)
    return Split(images, torch.arange(count), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


def random_split(count=64):
    images = torch.from_numpy(pictures(count, 10)["train"][0])
    return Split(images, torch.arange(count) % 10, data.CIFAR10_MEAN, data.CIFAR10_STD)


def collect(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches_in_order_are_the_pictures_as_torchvision_normalises_them():
    split = random_split(50)
    sizes = [len(labels) for _, labels in split.batches(20)]
    images, labels = collect(split.batches(20))
    assert sizes == [20, 20, 10] and torch.equal(labels, split.labels)
    reference = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(data.CIFAR10_MEAN, data.CIFAR10_STD)]
    )
    expected = torch.stack([reference(image.permute(1, 2, 0).numpy()) for image in split.images])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_shuffled_batches_have_every_picture_once():
    split = coded_split(50)
    images, labels = collect(split.batches(16, shuffle=True, seed=3))
    assert labels.tolist() != list(range(50)) and sorted(labels.tolist()) == list(range(50))
    torch.testing.assert_close(images, split.images[labels].float())  # each picture kept its label


def test_seeds_decide_everything():
    split = random_split()

    def drawn(seed, **more):
        return collect(split.batches(16, seed=seed, **more))[0]

    for how in ({"shuffle": True}, {"augment": True}, {"shuffle": True, "augment": True}):
        torch.manual_seed(11)
        first = drawn(5, **how)
        state = torch.random.get_rng_state()
        torch.manual_seed(12)
        assert torch.equal(first, drawn(5, **how))
        assert not torch.equal(first, drawn(6, **how))
        torch.manual_seed(11)
        assert torch.equal(state, torch.random.get_rng_state())  # and the global generator is left alone


def test_the_draws_stay_what_they_were():
    """The commands in the cards of stored networks repeat only while the order of the random draws stays."""
    images, labels = next(coded_split(50).batches(8, shuffle=True, augment=True, seed=0))
    assert labels.tolist() == [44, 39, 7, 6, 17, 29, 21, 37]
    assert [offsets(image) for image in images[:4]] == [
        (7, 4, True),
        (4, 2, False),
        (2, 2, False),
        (5, 4, False),
    ]


def offsets(image):
    """(top, left, flipped) of an augmented coded picture, read from two pixels in its middle."""
    row, here, right = int(image[0, 16, 16]), int(image[1, 16, 16]), int(image[1, 16, 17])
    flipped = right < here
    return row - 1 - 16 + 4, here - 1 - (15 if flipped else 16) + 4, flipped


def test_augmentation_is_one_of_torchvisions_crops_and_flips():
    """Against Pillow: each picture must be one of the 9 x 9 x 2 that pad, crop and flip can make of it."""
    images = random_split(12).images
    augmented = data.crop_and_flip(images, torch.Generator().manual_seed(0))
    for image, result in zip(images, augmented, strict=True):
        picture = pad(Image.fromarray(image.permute(1, 2, 0).numpy()), 4)
        possible = [crop(picture, top, left, 32, 32) for top in range(9) for left in range(9)]
        possible += [hflip(cropped) for cropped in possible]
        found = [torch.from_numpy(np.array(made)).permute(2, 0, 1) for made in possible]
        assert sum(torch.equal(result, made) for made in found) == 1


def test_augmentation_draws_all_crops_and_flips_equally_often():
    images = coded_split(250).images.repeat(40, 1, 1, 1)
    augmented = data.crop_and_flip(images, torch.Generator().manual_seed(0))
    drawn = torch.tensor([offsets(image) for image in augmented])
    top, left, flipped = drawn.unbind(1)
    # 10,000 draws: counts of 1,111 and 5,000, standard deviations 31 and 50.
    for offset in (top, left):
        assert offset.bincount(minlength=9).tolist() == pytest.approx([10_000 / 9] * 9, abs=125)
    assert int(flipped.sum()) == pytest.approx(5_000, abs=200)
    together = drawn.double().T.corrcoef() - torch.eye(3)
    assert together.abs().max() < 0.04  # independent of each other


def test_augmentation_leaves_its_input_and_other_sizes_work():
    images = torch.randint(0, 256, (5, 2, 8, 12), dtype=torch.uint8)
    before = images.clone()
    augmented = data.crop_and_flip(images, torch.Generator().manual_seed(0), padding=0)
    assert torch.equal(images, before) and augmented.shape == images.shape
    for image, result in zip(images, augmented, strict=True):
        assert torch.equal(result, image) or torch.equal(result, image.flip(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gets_the_same_batches():
    split = random_split()
    how = {"batch_size": 16, "shuffle": True, "augment": True, "seed": 1}
    images, labels = collect(split.to("cuda").batches(**how))
    assert images.is_cuda and labels.is_cuda
    expected = collect(split.batches(**how))
    torch.testing.assert_close((images.cpu(), labels.cpu()), expected, atol=1e-6, rtol=0)


def test_batches_are_made_on_the_splits_device():
    """The meta device has shapes but no values: a value fetched to the CPU on the way would fail."""
    images, labels = next(random_split().to("meta").batches(16, shuffle=True, augment=True))
    assert images.is_meta and labels.is_meta and images.shape == (16, 3, 32, 32)


def test_data_moves_as_a_whole():
    split = random_split()
    whole = data.Data("cifar10", ("a",) * 10, split, split, split, "made up")
    moved = whole.to("meta")
    assert all(
        part.images.is_meta and part.labels.is_meta for part in (moved.train, moved.validation, moved.test)
    )
    assert (moved.name, moved.source) == (whole.name, whole.source) and not split.images.is_meta
    assert moved.example.is_meta


def test_subset():
    split = random_split(20)
    part = split.subset(5)
    assert len(part) == 5 and torch.equal(part.images, split.images[:5])
    assert torch.equal(part.labels, split.labels[:5]) and part.mean == split.mean
    for count in (0, 21, -1):
        with pytest.raises(ValueError, match=f"count={count}: this split has 20 pictures, ask for 1 to 20"):
            split.subset(count)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size=0: must be at least 1"):
        next(random_split().batches(0))


# -------------------------------------------------------------------------------------- download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with a small CIFAR-10 in the real archive's layout; `server.send` may be replaced."""
    write_batches(tmp_path / "made", monkeypatch)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    content = file.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.send(self)

        def log_message(self, *arguments):
            pass

    def send(handler, share=1.0):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: int(share * len(content))])

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.send = send
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    monkeypatch.setattr(datasets.CIFAR10, "url", url)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_puts_it_into_the_cache_with_a_progress_bar(server, tmp_path, capsys):
    assert data.download() == tmp_path / "cache" / "cifar10"
    assert "100%" in capsys.readouterr().err
    loaded = data.load()
    assert same(loaded, data.load("cifar10", tmp_path / "made", quiet=True))
    assert "from the user's cache" in loaded.source
    server.send = None  # a second call has nothing to fetch
    data.download()


def test_a_truncated_download_is_an_error_and_the_next_one_mends_it(server, tmp_path):
    whole = server.send
    server.send = lambda handler: whole(handler, share=0.5)
    with pytest.raises(
        DataError, match=r"could not be downloaded from http.*Try again, or put .* \(md5 "
    ) as caught:
        data.download(tmp_path / "there")
    assert datasets.CIFAR10.tgz_md5 in str(caught.value) and str(tmp_path / "there") in str(caught.value)
    assert data.load().name == "embedded"  # nothing of it is taken for CIFAR-10
    server.send = whole
    assert data.load(root=data.download(tmp_path / "there")).name == "cifar10"


def test_an_altered_download_is_an_error(server, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(DataError, match="could not be downloaded"):
        data.download(tmp_path / "there")
    assert not (tmp_path / "there" / "cifar-10-batches-py").exists()


def test_a_server_that_answers_nonsense(server, tmp_path):
    server.send = lambda handler: handler.wfile.write(b"nonsense\r\n\r\n")
    with pytest.raises(DataError, match="could not be downloaded"):
        data.download(tmp_path / "there")


def test_a_dead_server(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError, match=f"could not be downloaded from http://127.0.0.1:{port}/.*refused"):
        data.download(tmp_path / "there")


def test_a_download_that_was_cut_short_while_unpacking_is_mended_by_the_next(server, tmp_path):
    folder = data.download() / "cifar-10-batches-py"
    (folder / "data_batch_5").unlink()
    (folder / "test_batch").write_bytes(b"half")
    with pytest.raises(DataError, match=r"data_batch_5 is missing.*prunelab data --download"):
        data.load()
    data.download()
    assert data.load().name == "cifar10"
