"""The embedded data set: small pictures of shapes and textures, drawn from a seed instead of downloaded.

It has CIFAR-10's interface (32x32 RGB, ten balanced classes) and is hard enough to teach with: a class shows
in random pose, colour and light, on a cluttered background, partly covered, under noise. Colour says nothing
about it.

A class is one line of :data:`SHAPES`: an implicit function of the plane, negative inside, positive outside,
about 1 in radius. All are symmetric under reflection, so a flipped picture keeps its class.

Pixels are made with additions, multiplications, divisions, square roots and rounding, which IEEE arithmetic
defines to the last bit, so that a seed gives the same pictures on different machines.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

Array = np.ndarray

VERSION = 1  # raise it whenever a picture changes: caches are keyed on it
SIZE = 32

# What makes the pictures hard. Lengths are pixels, colours are 0..1.
RADIUS = (6.0, 11.0)  # of the object
SHIFT = 5.0  # of its centre, at most, along x and y
STRETCH = 1.3  # its longer axis over its shorter one, at most
CONTRAST = (0.13, 0.55)  # between the object's colour and the background's
CLUTTER = 3  # pieces behind the object
COVERS = 1  # pieces in front of it
PIECE = (1.5, 4.0)  # size of a piece
SHADE = 0.25  # how far light and colour drift across a picture
NOISE = (0.03, 0.15)  # standard deviation of a pixel


def _length(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y)


def _disc(x: Array, y: Array, radius: float = 1.0) -> Array:
    return _length(x, y) - radius


def _near(x: Array) -> Array:
    """Signed distance to the nearest whole number."""
    return x - np.rint(x)


def _wave(x: Array) -> Array:
    """A triangle wave of period 1, with slope 1 like a distance: negative around every whole number."""
    return np.abs(_near(x)) - 0.25


def _sides(x: Array, y: Array, count: int) -> Array:
    """How far a point lies in each of `count` directions, evenly turned; ascending along the first axis."""
    angles = 2 * np.pi * np.arange(count) / count
    return np.sort(np.stack([np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles]), axis=0)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: _disc(x, y, 0.85),
    "ring": lambda x, y: np.abs(_disc(x, y, 0.75)) - 0.22,
    "moon": lambda x, y: np.maximum(_disc(x, y), -_disc(x - 0.6, y, 0.85)),
    "triangle": lambda x, y: _sides(x, y, 3)[-1] - 0.55,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.75,
    "cross": lambda x, y: np.maximum(np.maximum(abs(x), abs(y)) - 1, np.minimum(abs(x), abs(y)) - 0.3),
    "star": lambda x, y: _sides(x, y, 5)[-2] - 0.36,  # a pentagram: beyond at most one of its five lines
    "stripes": lambda x, y: np.maximum(_disc(x, y, 1.1), 0.65 * _wave(x / 0.65)),
    "checks": lambda x, y: np.maximum(_disc(x, y, 1.1), 4 * _wave(x) * _wave(y)),
    "dots": lambda x, y: np.maximum(_disc(x, y, 1.1), 0.65 * _disc(_near(x / 0.65), _near(y / 0.65), 0.31)),
}
CLASSES: tuple[str, ...] = tuple(SHAPES)


def generate(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` pictures; the same seed gives the same pictures, another seed others.

    Args:
        count: how many, over all classes. They are balanced to within one picture, in shuffled order.
        seed: any whole number from 0.
    Returns:
        images ``(count, 3, 32, 32)`` uint8 and labels ``(count,)`` int64, indices into :data:`CLASSES`.
    Raises:
        ValueError: `count` or `seed` is negative.
    """
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed must not be negative; got count={count}, seed={seed}")
    rng = np.random.default_rng([VERSION, seed])
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    for label, shape in enumerate(SHAPES.values()):
        where = np.flatnonzero(labels == label)
        # A few hundred at a time fit into the processor's cache.
        for some in np.array_split(where, max(1, len(where) // 250)):
            images[some] = _draw(shape, len(some), rng)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def _draw(shape: Callable[[Array, Array], Array], n: int, rng: Generator) -> Array:
    """`n` pictures of one class, ``(n, 3, 32, 32)`` uint8."""
    ground = _uniform(rng, (n, 3, 1, 1), 0.2, 0.8)
    step = rng.standard_normal((n, 3, 1, 1), np.float32)
    step *= _uniform(rng, (n, 1, 1, 1), *CONTRAST) / np.sqrt(np.square(step).mean(axis=1, keepdims=True))

    picture = ground + _drift(rng, n)
    for _ in range(CLUTTER):
        picture = _stamp(picture, _piece, _uniform(rng, (n, 3, 1, 1), 0, 1), rng, PIECE, 3, 16)
    picture = _stamp(picture, shape, ground + step + _drift(rng, n), rng, RADIUS, STRETCH, SHIFT)
    for _ in range(COVERS):
        picture = _stamp(picture, _piece, _uniform(rng, (n, 3, 1, 1), 0, 1), rng, PIECE, 3, 12)
    picture += rng.standard_normal(picture.shape, np.float32) * _uniform(rng, (n, 1, 1, 1), *NOISE)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _piece(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.8


def _stamp(
    picture: Array,
    shape: Callable[[Array, Array], Array],
    colour: Array,
    rng: Generator,
    radius: tuple[float, float],
    stretch: float,
    shift: float,
) -> Array:
    """Paint a shape on every picture, each time in a pose of its own."""
    n = len(picture)
    size = _uniform(rng, (n, 1, 1), *radius)
    turn = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    cos, sin = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
    longer = np.sqrt(_uniform(rng, (n, 1, 1), 1, stretch))
    pixel = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x = pixel[None, None, :] - _uniform(rng, (n, 1, 1), -shift, shift)
    y = pixel[None, :, None] - _uniform(rng, (n, 1, 1), -shift, shift)
    distance = shape((cos * x + sin * y) / (size * longer), (cos * y - sin * x) * longer / size) * size
    cover = np.clip(0.5 - distance, 0, 1)[:, None]  # an edge is one pixel wide
    return picture + cover * (colour - picture)


def _drift(rng: Generator, n: int, knots: int = 4) -> Array:
    """Slow changes of light and colour, ``(n, 3, 32, 32)``: random at a few knots, straight lines between."""
    field = _uniform(rng, (n, 3, knots, knots), -SHADE, SHADE)
    place = np.linspace(0, knots - 1, SIZE, dtype=np.float32)
    left = np.minimum(place.astype(int), knots - 2)
    share = place - left.astype(np.float32)
    field = field[..., left] * (1 - share) + field[..., left + 1] * share
    return field[..., left, :] * (1 - share)[:, None] + field[..., left + 1, :] * share[:, None]


def _uniform(rng: Generator, shape: tuple[int, ...], low: float, high: float) -> Array:
    return np.float32(low) + np.float32(high - low) * rng.random(shape, np.float32)
