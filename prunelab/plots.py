"""Every picture of the book and the labs.

Each function takes tensors or plain Python data, draws on ``ax`` (or on a new figure) and returns the
matplotlib ``Figure``. New figures are closed to pyplot, so that a notebook cell that ends in
``plots.masks(...)`` shows its figure once. Quantities are drawn in the colours of Okabe and Ito,
magnitudes in cividis: both survive colour blindness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from prunelab import registry

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
KEPT, REMOVED, FADED = BLUE, VERMILION, "#E4E4E4"
MARKERS = "os^Dvx+"  # beside colour, so that things can be told apart in grey too
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (2, 1)))
HATCHES = (None, "///", "...", "xx", "\\\\\\", "++", "oo")
WIDTH = 7.0  # inches: the text column of the book, about 700 pixels

STYLE: dict[Any, Any] = {
    "figure.dpi": 144,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 9,
}

P = ParamSpec("P")
T = TypeVar("T")


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    @wraps(draw)
    def drawing(*args: P.args, **options: P.kwargs) -> T:
        with plt.rc_context(STYLE):
            return draw(*args, **options)

    return drawing


# --- the canvas -------------------------------------------------------------------------------------


@_styled
def panels(columns: int = 1, rows: int = 1, height: float = 3.0, **options: Any) -> tuple[Figure, Any]:
    """A new figure of the book's width and its axes, as from ``plt.subplots`` (which gets ``options``)."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", **options)
    plt.close(figure)  # else a notebook shows it twice: when the cell ends, and as the cell's value
    return figure, axes


def _canvas(ax: Axes | None, height: float = 3.0) -> tuple[Figure, Axes]:
    if ax is None:
        return panels(height=height)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure, ax


def _array(name: str, value: Any, dimensions: int | None = None, shape: str = "") -> np.ndarray:
    """``value`` as a NumPy array; a wrong number of dimensions is an error that names the argument."""
    if isinstance(value, Tensor):
        value = value.detach().float().cpu()
    array = np.asarray(value, dtype=float)
    if dimensions is not None and array.ndim != dimensions:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: shape {tuple(array.shape)}")
    return array


def _check_some(name: str, value: Any) -> None:
    if len(value) == 0:
        raise ValueError(f"{name} is empty: there is nothing to draw")


def _magnitudes(values: np.ndarray) -> dict[str, Any]:
    """cividis for what is kept, pale grey for what is removed (drawn as -1), nothing for gaps (NaN)."""
    colours = plt.get_cmap("cividis").with_extremes(under=FADED, bad="none")
    largest = values.max(initial=0) or 1  # a scale from 0 to 0 has one colour, for what is removed as well
    return {"cmap": colours, "vmin": 0, "vmax": largest}


def _beside(bars: int, groups: int) -> tuple[float, np.ndarray]:
    """Width of a bar and places ``(bars, groups)``, for groups of bars that stand side by side."""
    width = 0.8 / bars
    return width, np.arange(groups) + (np.arange(bars)[:, None] - (bars - 1) / 2) * width


def _plain_log(ax: Axes) -> None:
    """A logarithmic x axis with numbers such as 0.2 and 5 in place of powers of ten."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())


def _legend_above(ax: Axes, title: str) -> None:
    """Legend over the axes, where it hides no data: in as few rows as fit, and the title above it."""
    widths = [len(label) + 6 for label in ax.get_legend_handles_labels()[1]]  # with the line beside it
    inches = ax.get_position().width * ax.figure.get_figure(root=True).get_figwidth()
    letters = int(15 * inches)  # of 9 points
    columns = len(widths)
    while columns > 1 and sum(max(column) for column in np.array_split(widths, columns)) >= letters:
        columns -= 1
    rows = -(-len(widths) // columns)
    columns = -(-len(widths) // rows)  # as many in the last row as in the others, if that can be
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns)
    ax.set_title(title, pad=8 + 15 * rows)


# --- weights ----------------------------------------------------------------------------------------


@_styled
def heatmap(
    weights: Tensor,
    ax: Axes | None = None,
    title: str = "",
    xlabel: str = "input",
    ylabel: str = "output",
    label: str = "|weight|",
) -> Figure:
    """Magnitudes of a matrix ``(out, in)``, such as a weight; exact zeros are pale grey."""
    matrix = np.abs(_array("weights", weights, 2, "(out, in)"))
    matrix[matrix == 0] = -1
    figure, ax = _canvas(ax)
    image = ax.imshow(matrix, aspect="auto", interpolation="nearest", **_magnitudes(matrix))
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    figure.colorbar(image, ax=ax, label=label)
    return figure


@_styled
def histogram(
    weights: Tensor | Mapping[str, Tensor],
    thresholds: Mapping[str, float] | None = None,
    ax: Axes | None = None,
    title: str = "",
    bins: int = 80,
) -> Figure:
    """Densities of one or several sets of weights, with cuts at plus and minus each threshold.

    A threshold that has the name of a set is drawn in its colour, any other in black.
    """
    sets = weights if isinstance(weights, Mapping) else {"weights": weights}
    _check_some("weights", sets)
    arrays = {name: _array(f"weights[{name!r}]", value).ravel() for name, value in sets.items()}
    colours = dict(zip(arrays, COLOURS, strict=False))
    limit = max(np.abs(values).max() for values in arrays.values())
    figure, ax = _canvas(ax)
    for name, values in arrays.items():
        look: dict[str, Any] = {"bins": bins, "range": (-limit, limit), "density": True, "histtype": "step"}
        ax.hist(values, color=colours[name], label=name, **look)
    for name, cut in (thresholds or {}).items():
        look = {"color": colours.get(name, BLACK), "linestyle": "--" if name in colours else "-"}
        ax.axvline(cut, linewidth=1, label=f"cut, {name}", **look)
        ax.axvline(-cut, linewidth=1, **look)
    ax.set(title=title, xlabel="weight", ylabel="density")
    ax.legend()
    return figure


@_styled
def masks(
    weight: Tensor,
    keep: Tensor | None = None,
    ax: Axes | None = None,
    title: str = "",
    xlabel: str = "filter",
    ylabel: str = "channel",
) -> Figure:
    """One convolution weight ``(filters, channels, kh, kw)``, filters side by side; what is removed is faded.

    Args:
        weight: the weight; kept cells are coloured by magnitude.
        keep: boolean, of a shape that broadcasts to the weight's; by default what is not zero.
    """
    values = np.abs(_array("weight", weight, 4, "(filters, channels, kh, kw)"))
    mask = values != 0 if keep is None else _array("keep", keep) != 0
    try:
        kept = np.broadcast_to(mask, values.shape)
    except ValueError:
        raise ValueError(f"keep of shape {mask.shape} does not fit weight of shape {values.shape}") from None
    filters, channels, kh, kw = values.shape
    # an empty cell between kernels; (channel, row) goes downwards, (filter, column) to the right
    cells = np.full((filters, channels, kh + 1, kw + 1), np.nan)
    cells[:, :, :kh, :kw] = np.where(kept, values, -1)
    picture = cells.transpose(1, 2, 0, 3).reshape(channels * (kh + 1), filters * (kw + 1))[:-1, :-1]
    figure, ax = _canvas(ax, height=min(6.0, 0.8 + WIDTH * picture.shape[0] / picture.shape[1]))
    ax.pcolormesh(picture, edgecolors="white", linewidth=0.4, **_magnitudes(values))
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_xticks(np.arange(filters) * (kw + 1) + kw / 2, [str(j) for j in range(filters)])
    ax.set_yticks(np.arange(channels) * (kh + 1) + kh / 2, [str(j) for j in range(channels)])
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


@_styled
def granularity(
    weight: Tensor,
    where: Tensor,
    keep: Tensor,
    member: tuple[int, ...] = (2, 1, 1, 1),
    filters: int = 8,
    channels: int = 8,
) -> Figure:
    """One granularity on one convolution weight ``(o, i, kh, kw)``: a single group, and what stays.

    Args:
        where: positions of each group's members in the flattened weight, ``(groups, members)``, as from
            :func:`prunelab.granularity.positions`.
        keep: boolean, the weight's shape: what stays.
        member: the weight whose group is shown on the left: filter, channel, row, column.
        filters, channels: how many of them are drawn, from the first on.
    """
    if keep.shape != weight.shape:
        raise ValueError(f"keep of shape {tuple(keep.shape)} does not fit weight {tuple(weight.shape)}")
    drawn = weight[:filters, :channels]
    if any(not 0 <= place < size for place, size in zip(member, drawn.shape, strict=True)):
        raise ValueError(f"member={member} lies outside what is drawn, {tuple(drawn.shape)}")
    position = int(np.ravel_multi_index(member, weight.shape))
    one = torch.zeros(weight.numel(), dtype=torch.bool)
    one[where[(where == position).any(1)]] = True
    figure, (left, right) = panels(2, height=3.5)
    masks(drawn, one.view(weight.shape)[:filters, :channels], left, f"one group, of {len(where):,}")
    masks(drawn, keep[:filters, :channels], right, f"what stays: {keep.float().mean():.2f} of the weights")
    return figure


@_styled
def scores(
    values: Tensor, amount: float, ax: Axes | None = None, title: str = "", xlabel: str = "group"
) -> Figure:
    """Scores of groups ``(n,)`` in rising order; the lowest, a share of ``amount`` (0..1), are marked."""
    heights = np.sort(_array("values", values, 1, "(n,)"))
    if not 0 <= amount <= 1:
        raise ValueError(f"amount must lie in 0..1, got {amount}")
    cut = round(amount * len(heights))
    places = np.arange(len(heights))
    figure, ax = _canvas(ax)
    ax.bar(places[:cut], heights[:cut], color=REMOVED, hatch="///", edgecolor="white", label="removed")
    ax.bar(places[cut:], heights[cut:], color=KEPT, label="kept")
    ax.set(xlabel=f"{xlabel}, in order of score", ylabel="score")
    _legend_above(ax, title)
    return figure


@_styled
def contours(
    values: Callable[[Tensor], Tensor],
    ax: Axes | None = None,
    title: str = "",
    levels: int | Sequence[float] = 8,
    span: tuple[float, float] = (-1.5, 1.5),
    paths: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Lines of equal value over the plane of two weights.

    Args:
        values: a criterion or a loss, ``(n, 2) -> (n,)``.
        levels: how many lines, or the values that they stand for.
        span: from where to where, on both axes.
        paths: ways through the plane, ``{"label": [(w1, w2), ...]}``, each with a marker at every point.
    """
    figure, ax = _canvas(ax)
    axis = torch.linspace(*span, 201)  # an odd number: zero is among them
    grid = torch.cartesian_prod(axis, axis)
    heights = _array("values", values(grid), 1, "(n,)")
    if len(heights) != len(grid):
        raise ValueError(f"values returned {len(heights)} numbers for {len(grid)} points")
    ax.contour(axis, axis, heights.reshape(201, 201).T, levels, colors="dimgrey", linewidths=1)
    for j, (name, path) in enumerate((paths or {}).items()):
        look: dict[str, Any] = {"color": COLOURS[j % 7], "marker": MARKERS[j % 7], "linestyle": DASHES[j % 7]}
        ax.plot(*zip(*path, strict=True), label=name, **look)
    ax.set_aspect("equal")
    ax.set(xlabel="first weight", ylabel="second weight", title=title)
    if paths:
        _legend_above(ax, title)
    return figure


@_styled
def vectors(filters: Tensor, keep: Tensor, ax: Axes | None = None, title: str = "") -> Figure:
    """Filters of two weights each, ``(n, 2)``, as numbered arrows from zero; those not kept are dashed."""
    places, kept = _array("filters", filters, 2, "(n, 2)"), _array("keep", keep, 1, "(n,)") != 0
    if places.shape[1] != 2 or len(kept) != len(places):
        raise ValueError(f"filters of shape {places.shape} and keep of shape {kept.shape}: (n, 2) and (n,)")
    figure, ax = _canvas(ax)
    for j, (place, stays) in enumerate(zip(places, kept, strict=True)):
        look: dict[str, Any] = {"color": KEPT if stays else REMOVED, "linestyle": "-" if stays else "--"}
        marker = "o" if stays else "x"
        ax.plot([0, place[0]], [0, place[1]], marker=marker, markevery=[1], linewidth=1.4, **look)
        along = place / max(np.linalg.norm(place), 1e-9)
        shift = 7 * (along + along[::-1] * (-1, 1))  # beside the tip, where a longer arrow does not pass
        ax.annotate(str(j), place, shift, textcoords="offset points", ha="center", va="center", fontsize=8)
    ax.axhline(0, color=FADED, linewidth=0.8, zorder=0)
    ax.axvline(0, color=FADED, linewidth=0.8, zorder=0)
    ax.margins(0.15)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xlabel="first weight", ylabel="second weight", title=title)
    return figure


@_styled
def layer_sparsity(
    methods: Mapping[str, Mapping[str, float]], ax: Axes | None = None, title: str = ""
) -> Figure:
    """Sparsity (0..1) of every layer, by method: ``{"local": {"conv1": 0.5, ...}, "global": {...}}``."""
    _check_some("methods", methods)
    layers = list(next(iter(methods.values())))
    for name, sparsity in methods.items():
        if list(sparsity) != layers:
            raise ValueError(f"methods[{name!r}] has the layers {list(sparsity)}, the first has {layers}")
    figure, ax = _canvas(ax, height=3.4)
    width, places = _beside(len(methods), len(layers))
    for j, (name, sparsity) in enumerate(methods.items()):
        look: dict[str, Any] = {"color": COLOURS[j % 7], "hatch": HATCHES[j % 7], "edgecolor": "white"}
        ax.bar(places[j], list(sparsity.values()), width, label=name, **look)
    ax.set_xticks(np.arange(len(layers)), layers, rotation=90, fontsize=8)
    ax.set(ylabel="sparsity", ylim=(0, 1), xlabel="layer, from input to output")
    _legend_above(ax, title)
    return figure


# --- measurements -----------------------------------------------------------------------------------


@_styled
def curves(
    series: Mapping[str, tuple[Sequence[float], Any]],
    ax: Axes | None = None,
    xlabel: str = "amount",
    ylabel: str = "accuracy",
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Lines ``{"label": (x, y)}``; a ``y`` of shape ``(seeds, n)`` becomes its mean and a min to max band.

    ``levels`` are horizontal dotted lines to compare with, such as ``{"chance": 0.1}``. Their names stand at
    the end where the lines of the series are farther away.
    """
    _check_some("series", series)
    figure, ax = _canvas(ax)
    ends: list[np.ndarray] = []  # of each series, its values at the left and at the right
    for j, (name, (x, y)) in enumerate(series.items()):
        places = _array(f"series[{name!r}] x", x, 1, "(n,)")
        runs = np.atleast_2d(_array(f"series[{name!r}] y", y))
        if runs.ndim != 2 or runs.shape[1] != len(places):
            raise ValueError(
                f"series[{name!r}]: y of shape {np.shape(y)} does not fit {len(places)} x values"
            )
        label = name if len(runs) == 1 else f"{name} (mean and range, {len(runs)} seeds)"
        colour = COLOURS[j % 7]
        ax.plot(places, runs.mean(0), color=colour, marker=MARKERS[j % 7], markersize=4, label=label)
        ends.append(runs.mean(0)[[places.argmin(), places.argmax()]])
        if len(runs) > 1:
            ax.fill_between(places, runs.min(0), runs.max(0), color=colour, alpha=0.25, linewidth=0)
    for name, level in (levels or {}).items():
        ax.axhline(level, color="grey", linestyle=":", linewidth=1)
        left, right = np.abs(np.array(ends) - level).min(0)
        place, side = (0.99, "right") if right > left else (0.01, "left")
        across = ax.get_yaxis_transform()  # a share of the width, a value of y
        ax.text(place, level, name, ha=side, va="bottom", color="dimgrey", transform=across)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _legend_above(ax, title)
    return figure


@_styled
def scatter(
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    ax: Axes | None = None,
    xlabel: str = "",
    ylabel: str = "",
    equal: bool = False,
    title: str = "",
) -> Figure:
    """One numbered dot for each group: two of its numbers against each other. Where dots crowd, the first
    keeps its number, unless it would lie on another dot.

    Args:
        x, y: ``(n,)`` each.
        equal: draw the line where the two are equal, for an estimate against the truth.
    """
    across, up = _array("x", x, 1, "(n,)"), _array("y", y, 1, "(n,)")
    if len(across) != len(up):
        raise ValueError(f"x has {len(across)} numbers, y has {len(up)}")
    figure, ax = _canvas(ax)
    ax.plot(across, up, "o", color=BLUE, markersize=4)
    if equal:
        ends = min(across.min(), up.min()), max(across.max(), up.max())
        ax.plot(ends, ends, ":", color="grey", linewidth=1, zorder=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.get_xlim(), ax.get_ylim()  # fixes what a dot's place on the canvas is
    places = np.column_stack([across, up])
    spots = ax.transData.transform(places) * 72 / figure.dpi  # in points
    numbered: list[int] = []
    for j, spot in enumerate(spots):
        size = np.array([5 * len(str(j)) + 4, 11])  # of the number, and of a dot's half on each side
        covers = ((spots > spot + 1) & (spots < spot + 1 + size)).all(1)
        if not covers.any() and all(np.abs(spot - spots[other]).max() > 8 for other in numbered):
            numbered.append(j)
            ax.annotate(str(j), places[j], (3, 3), textcoords="offset points", fontsize=7, color="dimgrey")
    return figure


@_styled
def widths(layers: Mapping[str, tuple[int, int]], ax: Axes | None = None, title: str = "") -> Figure:
    """How many filters each layer had and keeps: ``layers[name]`` is (before, after)."""
    _check_some("layers", layers)
    before, after = (np.array(column) for column in zip(*layers.values()))
    if (after > before).any() or (after < 0).any():
        raise ValueError("layers: a layer cannot keep more filters than it has, nor fewer than none")
    figure, ax = _canvas(ax, height=3.2)
    places = np.arange(len(layers))
    ax.bar(places, before, 0.85, color=FADED, label="removed")
    ax.bar(places, after, 0.85, color=KEPT, label="kept")
    every = -(-len(layers) // 30)  # more names than that would run into each other
    ax.set_xticks(places[::every], list(layers)[::every], rotation=90, fontsize=7)
    ax.set(ylabel="filters")
    _legend_above(ax, title)
    return figure


@_styled
def bars(
    values: Mapping[str, float],
    ax: Axes | None = None,
    xlabel: str = "",
    log: bool = False,
    title: str = "",
) -> Figure:
    """One horizontal bar for each named value, with the value beside it."""
    _check_some("values", values)
    figure, ax = _canvas(ax, height=0.9 + 0.3 * len(values))
    drawn = ax.barh(list(values), list(values.values()), color=BLUE, log=log)
    labels = [f"{value:g}" for value in values.values()]
    if not log and not any("e" in label for label in labels):  # on one scale as many decimals for all
        decimals = max(len(label.partition(".")[2]) for label in labels)
        labels = [f"{value:.{decimals}f}" for value in values.values()]
    ax.bar_label(drawn, labels, padding=3)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(title=title, xlabel=xlabel)
    return figure


@_styled
def dots(
    rows: Mapping[str, Sequence[float]],
    groups: Mapping[str, str] | None = None,
    band: tuple[float, float] | None = None,
    ax: Axes | None = None,
    xlabel: str = "accuracy",
    level: float | None = None,
    title: str = "",
) -> Figure:
    """One line of dots for each row: the mean of its runs, and a bar from the lowest to the highest.

    Args:
        rows: ``{"l1": [0.9], "random": [0.1, 0.3, 0.2]}``, one number for each run.
        groups: the group of each row, such as its family; rows of one group stand together, a gap between
            groups, each in a colour and with a marker of its own.
        band: from where to where to shade, such as the range of the random draws.
        level: where to draw a dotted line, such as the accuracy of the dense network.
    """
    _check_some("rows", rows)
    groups = groups or {}
    if groups and (missing := [name for name in rows if name not in groups]):
        raise ValueError(f"groups lacks {missing}, which rows has")
    families = list(dict.fromkeys(groups.get(name, "") for name in rows))
    figure, ax = _canvas(ax, height=0.9 + 0.16 * (len(rows) + len(families)))
    place, ticks = 0, {}
    for number, family in enumerate(families):
        look: dict[str, Any] = {"color": COLOURS[number % 7]}
        for name, values in rows.items():
            if groups.get(name, "") != family:
                continue
            runs = _array(f"rows[{name!r}]", values, 1, "(runs,)")
            ax.hlines(place, runs.min(), runs.max(), linewidth=2, alpha=0.5, **look)
            ax.plot([runs.mean()], [place], marker=MARKERS[number % 7], markersize=5, linestyle="", **look)
            ticks[name] = place
            place += 1
        place += 1
    if band is not None:
        ax.axvspan(*band, color=FADED, zorder=0)
    if level is not None:
        ax.axvline(level, color="grey", linestyle=":", linewidth=1)
    room = 72 * ax.bbox.height / ax.figure.dpi / (place - 1)  # points for each row, gaps between groups too
    ax.set_yticks(list(ticks.values()), list(ticks), fontsize=min(9, max(7, 0.7 * room)))
    ax.set(ylim=(place - 1, -1), xlabel=xlabel, title=title)
    ax.grid(axis="y", color=FADED, linewidth=0.5)
    ax.set_axisbelow(True)
    return figure


@_styled
def beside_random(result: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """What some criteria keep without retraining, in a local and in a global ranking, each beside random.

    Args:
        result: as in ``results/criteria.json``: ``amounts``, the ``dense`` accuracy, and by scope and
            criterion the ``accuracy``, one row of amounts for each seed.
        names: the criteria; one that was not measured is an error.
    """
    _check_some("names", names)
    for name in names:
        if name not in result["accuracy"]["local"]:
            known = list(result["accuracy"]["local"])
            raise ValueError(f"names: {name!r}: {registry.suggestion(name, known)}")
    figure, axes = panels(2, height=1.0 + 0.19 * len(names), sharey=True)
    for ax, scope, amount in zip(axes, ("local", "global"), (0.2, 0.3), strict=True):
        at = result["amounts"].index(amount)
        runs = {name: [row[at] for row in result["accuracy"][scope][name]] for name in ("random", *names)}
        drawn = runs.pop("random")
        band, title = (min(drawn), max(drawn)), f"{scope}, amount {amount:g}"
        dots(runs, None, band, ax, "validation accuracy", result["dense"], title)
        ax.set_xlim(0, 1)
    return figure


@_styled
def ranking(
    values: Mapping[str, float],
    margin: float,
    groups: Mapping[str, str] | None = None,
    band: tuple[float, float] | None = None,
    ax: Axes | None = None,
    xlabel: str = "accuracy",
    lowest_first: bool = False,
    title: str = "",
) -> Figure:
    """Methods from best to worst, each with a bar: two whose bars do not overlap differ by more than
    ``margin``.

    Args:
        values: one number for each method, such as its mean accuracy or its average rank.
        margin: how far two must lie apart to differ, such as ``prunelab.ranking.critical_difference``.
        groups: the group of each method, such as its family; each has a colour and a marker.
        band: from where to where to shade, such as the range of the random draws.
        lowest_first: the lowest is the best, as for ranks.
    """
    _check_some("values", values)
    groups = groups or {}
    if groups and (missing := [name for name in values if name not in groups]):
        raise ValueError(f"groups lacks {missing}, which values has")
    order = sorted(values, key=lambda name: values[name], reverse=not lowest_first)
    families = list(dict.fromkeys(groups.get(name, "") for name in values))
    figure, ax = _canvas(ax, height=1.2 + 0.16 * len(order))
    if band is not None:
        ax.axvspan(*band, color=FADED, zorder=0)
    for number, family in enumerate(families):
        places = [place for place, name in enumerate(order) if groups.get(name, "") == family]
        ax.errorbar(
            [values[order[place]] for place in places], places, xerr=margin / 2, linestyle="",
            marker=MARKERS[number % 7], markersize=4, linewidth=1, color=COLOURS[number % 7],
            label=family, markerfacecolor="none" if number >= 7 else None,
        )  # fmt: skip
    ax.set_yticks(range(len(order)), order, fontsize=7)
    ax.set(ylim=(len(order) - 0.5, -0.5), xlabel=xlabel)
    ax.grid(axis="y", color=FADED, linewidth=0.5)
    ax.set_axisbelow(True)
    if groups:
        _legend_above(ax, title)
    else:
        ax.set_title(title)
    return figure


@_styled
def comparison(
    rows: Mapping[str, Mapping[str, float]],
    spread: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Several models under several measures, each as a ratio to the first model, which therefore stands at 1.

    A measure that is 0 for the first, such as the sparsity of a dense model, has no ratio and is left out.

    Args:
        rows: ``{"dense": {"accuracy": 0.9, "MACs": 4e7}, "pruned": {...}}``, the same measures in each.
        spread: ``{"pruned": {"latency": (low, high)}}``, in the measure's own unit, drawn as error bars.
    """
    _check_some("rows", rows)
    first = next(iter(rows))
    measures = list(rows[first])
    for name, row in rows.items():
        if missing := [measure for measure in measures if measure not in row]:
            raise ValueError(f"rows[{name!r}] lacks {missing}, which rows[{first!r}] has")
    measures = [measure for measure in measures if rows[first][measure] != 0]
    if not measures:
        raise ValueError(
            f"rows[{first!r}] is the reference and holds no measure but zeros: there is no ratio"
        )
    figure, ax = _canvas(ax, height=3.2)
    width, places = _beside(len(rows), len(measures))
    for j, (name, row) in enumerate(rows.items()):
        ratios = np.array([row[measure] / rows[first][measure] for measure in measures])
        look: dict[str, Any] = {"color": COLOURS[j % 7], "hatch": HATCHES[j % 7], "edgecolor": "white"}
        ax.bar(places[j], ratios, width, label=name, **look)
        for x, ratio, measure in zip(places[j], ratios, measures, strict=True):
            low, high = (spread or {}).get(name, {}).get(measure, (row[measure], row[measure]))
            low, high = low / rows[first][measure], high / rows[first][measure]
            ax.vlines(x, low, high, color=BLACK, linewidth=1.5)
            if name != first:
                look = {"fontsize": 7, "rotation": 90 if len(rows) > 3 else 0}  # narrow bars: upright numbers
                look |= {"ha": "center", "va": "bottom"}
                look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the dotted line
                ax.annotate(f"{ratio:.2f}", (x, max(ratio, high)), (0, 2), textcoords="offset points", **look)
    ax.margins(y=0.12)  # room for the numbers
    ax.axhline(1, color="grey", linestyle=":", linewidth=1)
    ax.set_xticks(np.arange(len(measures)), measures)
    ax.set(ylabel=f"ratio to {first}")
    _legend_above(ax, title)
    return figure


@_styled
def front(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    front: Sequence[tuple[float, float]],
    ax: Axes | None = None,
    xlabel: str = "cost",
    ylabel: str = "accuracy",
    title: str = "",
) -> Figure:
    """Networks as points ``{"label": (costs, accuracies)}``, and the best accuracy that a budget buys.

    Args:
        front: the points ``(cost, accuracy)`` that no other beats, in rising order of cost: the corners of a
            staircase.
    """
    _check_some("series", series)
    _check_some("front", front)
    figure, ax = _canvas(ax)
    for j, (name, (costs, accuracies)) in enumerate(series.items()):
        if np.shape(costs) != np.shape(accuracies):
            raise ValueError(f"series[{name!r}]: {np.size(costs)} costs, {np.size(accuracies)} accuracies")
        ax.scatter(costs, accuracies, color=COLOURS[j % 7], marker=MARKERS[j % 7], label=name, zorder=3)
    steps, best = zip(*front, strict=True)
    right = max(steps[-1], *(np.max(costs) for costs, _ in series.values()))
    look: dict[str, Any] = {"color": "grey", "linewidth": 1, "linestyle": "--"}
    ax.step([*steps, right], [*best, best[-1]], where="post", label="best for this budget", **look)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _legend_above(ax, title)
    return figure


@_styled
def speed(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time as a multiple of the dense network's, against sparsity: one panel for each batch size.

    Args:
        rows: those of ``results/speed.json``, one for each network that was timed: ``method``, ``sparsity``,
            ``theory`` (the time as a multiple of dense, if only FLOPs of non-zero weights took any) and
            ``latency``, by batch size the ``median``, ``lower`` and ``upper`` quartile in seconds. The row of
            method ``"dense"`` is the reference.
    """
    dense = [row for row in rows if row["method"] == "dense"]
    methods = {row["method"]: [r for r in rows if r["method"] == row["method"]] for row in rows}
    if len(dense) != 1 or len(methods) < 2:
        found = [row["method"] for row in rows]
        raise ValueError(f"rows must hold one of method 'dense' and others to compare with it, got {found}")
    del methods["dense"]
    figure, axes = panels(len(dense[0]["latency"]), height=3.4, squeeze=False, sharey=True)
    for ax, (batch_size, reference) in zip(axes[0], dense[0]["latency"].items(), strict=True):
        ax.axhline(1, color="grey", linewidth=1)
        for j, (method, measured) in enumerate(methods.items()):
            places = [row["sparsity"] for row in measured]
            seconds = [
                [row["latency"][batch_size][key] for key in ("lower", "median", "upper")] for row in measured
            ]
            lower, median, upper = np.transpose(seconds) / reference["median"]
            look: dict[str, Any] = {"color": COLOURS[j % 7], "marker": MARKERS[j % 7], "markersize": 4}
            spread = np.stack([median - lower, upper - median])
            ax.errorbar(places, median, spread, linewidth=1.2, capsize=2, label=method, **look)
            if j == 0:
                look = {"color": BLACK, "linestyle": ":", "linewidth": 1.2, "label": f"theory, {method}"}
                ax.plot(places, [row["theory"] for row in measured], **look)
        ax.set(title=f"batch size {batch_size}", xlabel="sparsity", yscale="log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel("time, as a multiple of dense")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


@_styled
def history(epochs: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """Training curves from one record per epoch: ``epoch`` and any of ``loss``, ``train_accuracy`` and
    ``validation_accuracy``.
    """
    _check_some("epochs", epochs)
    figure, (left, right) = panels(2, height=2.8)
    x = [record["epoch"] for record in epochs]
    for ax, name, key, colour, marker in [
        (left, "training", "loss", BLUE, "o"),
        (right, "training", "train_accuracy", BLUE, "o"),
        (right, "validation", "validation_accuracy", ORANGE, "s"),
    ]:
        if any(key in record for record in epochs):
            y = [record.get(key, np.nan) for record in epochs]
            ax.plot(x, y, color=colour, marker=marker, markersize=3, label=name)
            ax.legend()
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="accuracy")
    figure.suptitle(title)
    return figure


# --- schedules and penalties -------------------------------------------------------------------------


@_styled
def schedules(
    names: Sequence[str | Callable[[float], float]] | None = None, ax: Axes | None = None, title: str = ""
) -> Figure:
    """How much is removed by when: each schedule as a line over the share of the training that is over.

    Args:
        names: schedules, or functions of ``t`` in 0..1; by default all of ``pl.methods("schedule")``.
    """
    if names is None:
        names = [method.name for method in registry.methods("schedule")]
    _check_some("names", names)
    figure, ax = _canvas(ax, height=3.4)
    t = np.linspace(0, 1, 2001)  # fine enough for a jump to look upright
    for j, name in enumerate(names):
        method = registry.find("schedule", name)
        shares = [method.function(float(share)) for share in t]
        look: dict[str, Any] = {"color": COLOURS[j % 7], "linestyle": DASHES[j % 7]}
        ax.plot(t, shares, linewidth=1.6, label=method.name.replace("_", " "), **look)
    ax.set(xlabel="share of the training that is over", ylabel="share of the final amount", title=title)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=3.5)
    return figure


@_styled
def regularisation_path(
    strengths: Sequence[float],
    coefficients: Any,
    truth: Sequence[float] | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Coefficients ``(strengths, variables)`` against the strength of the penalty.

    Args:
        strengths: above 0, on a logarithmic axis; zero penalty is far to the left.
        truth: the coefficients that the data were made with: variables whose own is not zero are coloured and
            numbered, with a dotted line at the true value; the others are grey. By default all are coloured.
    """
    x = _array("strengths", strengths, 1, "(strengths,)")
    paths = _array("coefficients", coefficients, 2, "(strengths, variables)")
    if len(paths) != len(x):
        raise ValueError(f"coefficients of shape {paths.shape} do not fit {len(x)} strengths")
    true = np.full(paths.shape[1], np.nan) if truth is None else _array("truth", truth, 1, "(variables,)")
    if len(true) != paths.shape[1]:
        raise ValueError(f"truth of {len(true)} variables does not fit coefficients of shape {paths.shape}")
    figure, ax = _canvas(ax, height=3.4)
    weakest, coloured = x.argmin(), 0
    for variable, path in enumerate(paths.T):
        if true[variable] == 0:
            label = None if (true[:variable] == 0).any() else "true coefficient is zero"
            ax.plot(x, path, color="grey", linewidth=1, alpha=0.7, label=label)
            continue
        look: dict[str, Any] = {"color": COLOURS[coloured % 7], "linestyle": DASHES[coloured % 7]}
        coloured += 1
        ax.plot(x, path, linewidth=2, label=f"variable {variable}", **look)
        beside: dict[str, Any] = {"xytext": (-6, 0), "textcoords": "offset points", "ha": "right"}
        ax.annotate(str(variable), (x[weakest], path[weakest]), va="center", color=look["color"], **beside)
        if np.isfinite(true[variable]):
            ax.axhline(true[variable], color=look["color"], linestyle=":", linewidth=1, alpha=0.7)
    ax.axhline(0, color=BLACK, linewidth=0.6)
    _plain_log(ax)
    ax.set(xlabel="strength λ of the penalty", ylabel="coefficient")
    _legend_above(ax, title)
    return figure


@_styled
def support_recovery(
    shares: Sequence[float], recovery: Mapping[str, Mapping[str, Sequence[float]]], title: str = ""
) -> Figure:
    """Which groups a penalty finds, against its strength: the share of the true groups and of the false ones
    that have a coefficient other than zero, and the share of problems in which all groups are right.

    Args:
        shares: the strength as a share, above 0 to 1, of the smallest at which everything is zero.
        recovery: for each method the lists ``true_found``, ``false_found`` and ``exact``, as in
            ``results/group_lasso.json``.
    """
    _check_some("recovery", recovery)
    x = _array("shares", shares, 1, "(strengths,)")
    figure, axes = panels(3, height=2.9, sharey=True)
    titles = {"true_found": "true groups found", "false_found": "false groups found", "exact": "all right"}
    for ax, (key, what) in zip(axes, titles.items(), strict=True):
        for j, (name, found) in enumerate(recovery.items()):
            if key not in found:
                raise ValueError(f"recovery[{name!r}] lacks {key!r}: it has {list(found)}")
            y = _array(f"recovery[{name!r}][{key!r}]", found[key], 1, "(strengths,)")
            if len(y) != len(x):
                raise ValueError(f"recovery[{name!r}][{key!r}] has {len(y)} values for {len(x)} shares")
            look: dict[str, Any] = {"color": COLOURS[j % 7], "marker": MARKERS[j % 7]}
            ax.plot(x, y, markersize=3, label=name, **look)
        ax.set(title=what, xlabel="strength, relative", ylim=(-0.03, 1.03))
        _plain_log(ax)
    axes[0].set_ylabel("share of groups")
    axes[2].set_ylabel("share of problems")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(recovery))
    figure.suptitle(title)
    return figure


# --- diagrams ---------------------------------------------------------------------------------------


@_styled
def network_sketch(weights: Sequence[Tensor], ax: Axes | None = None, title: str = "") -> Figure:
    """A small fully connected network as a graph, from its weight matrices ``(out, in)``.

    A zero weight is a removed edge (dotted); a hidden unit with no edge in, or none out, is removed (hollow).
    """
    _check_some("weights", weights)
    matrices = [_array(f"weights[{j}]", weight, 2, "(out, in)") for j, weight in enumerate(weights)]
    for j in range(1, len(matrices)):
        outputs, inputs = len(matrices[j - 1]), matrices[j].shape[1]
        if inputs != outputs:
            raise ValueError(
                f"weights[{j - 1}] gives {outputs} outputs, but weights[{j}] takes {inputs} inputs"
            )
    sizes = [matrices[0].shape[1]] + [len(matrix) for matrix in matrices]
    alive: list[Any] = [np.full(size, True) for size in sizes]
    for j in range(1, len(matrices)):
        alive[j] = (matrices[j - 1] != 0).any(axis=1) & (matrices[j] != 0).any(axis=0)
    heights = [(size - 1) / 2 - np.arange(size) for size in sizes]
    figure, ax = _canvas(ax, height=2.6)
    for j, matrix in enumerate(matrices):
        for target, source in np.ndindex(*matrix.shape):
            look: dict[str, Any] = {"color": KEPT, "linewidth": 1.1, "zorder": 2}
            if matrix[target, source] == 0 or not (alive[j][source] and alive[j + 1][target]):
                look = {"color": "lightgrey", "linewidth": 0.8, "linestyle": ":", "zorder": 1}
            ax.plot([j, j + 1], [heights[j][source], heights[j + 1][target]], **look)
    for j, (height, units) in enumerate(zip(heights, alive, strict=True)):
        ax.scatter(np.full(units.sum(), j), height[units], s=110, color=KEPT, edgecolors="white", zorder=3)
        look = {"color": "white", "edgecolors": "grey", "linestyle": ":", "zorder": 3}
        ax.scatter(np.full((~units).sum(), j), height[~units], s=110, **look)
    ax.set(title=title)
    ax.margins(0.1)
    ax.axis("off")
    return figure


@_styled
def coupling(filters: int = 5, channels: int = 3, next_filters: int = 4, removed: int = 2) -> Figure:
    """Why one filter cannot leave alone: filter, feature map and the next layer's channel are one row.

    Row ``removed`` is struck from left to right: that filter of layer i, the feature map that it makes, and
    the kernels of layer i+1 that would have read it.
    """
    if not 0 <= removed < filters:
        raise ValueError(f"removed must be one of the filters 0..{filters - 1}, got {removed}")
    figure, ax = panels(height=0.45 * filters + 1.2)
    maps = channels + 1.6  # the horizontal places: kernels from 0, the feature maps, then the next layer
    after = maps + 2.6
    end = after + 1.3 * next_filters
    for row in range(filters):
        gone = row == removed
        look: dict[str, Any] = {"edgecolor": "white"}
        if gone:
            look = {"edgecolor": REMOVED, "linestyle": "--", "linewidth": 1.2}
        blocks = [(float(column), 0.82, BLUE) for column in range(channels)] + [(maps, 1.0, SKY)]
        blocks += [(after + 1.3 * column, 0.82, ORANGE) for column in range(next_filters)]
        for x, width, colour in blocks:
            ax.add_patch(Rectangle((x, -row), width, 0.8, facecolor=FADED if gone else colour, **look))
        arrow = {"arrowstyle": "->", "color": "lightgrey" if gone else "dimgrey"}
        for left, right in [(channels, maps - 0.1), (maps + 1.1, after - 0.1)]:
            ax.annotate("", (right, 0.4 - row), (left, 0.4 - row), arrowprops=arrow)
    for x, text in [
        (channels / 2 - 0.1, f"layer i:\n{filters} filters (rows)\nof {channels} kernels each"),
        (maps + 0.5, "feature\nmaps"),
        ((after + end) / 2 - 0.2, f"layer i+1:\n{next_filters} filters (columns)\nof {filters} kernels each"),
    ]:
        ax.annotate(text, (x, 1.0), ha="center", va="bottom")
    place = {"va": "center", "color": REMOVED}
    ax.annotate(f"filter {removed}\nis removed", (-0.2, 0.4 - removed), ha="right", **place)
    ax.annotate(f"channel {removed}\ngoes with it", (end, 0.4 - removed), ha="left", **place)
    ax.set(xlim=(-2.6, end + 2.6), ylim=(0.6 - filters, 2.5))
    ax.axis("off")
    return figure


@_styled
def stations(places: Mapping[str, Sequence[str]], back: str = "", title: str = "") -> Figure:
    """Boxes from left to right, an arrow from each to the next, and under each the names that belong there.

    Args:
        places: ``{"filter": ["norms", "correlation"], ...}``.
        back: what runs from the last box back to the first; by default nothing does.
    """
    _check_some("places", places)
    top = 1.0 if back else 0.35
    figure, ax = panels(height=0.8 + 0.7 * top + 0.2 * max(map(len, places.values())))
    arrow: dict[str, Any] = {"arrowstyle": "->", "color": "dimgrey"}
    for j, (place, names) in enumerate(places.items()):
        ax.add_patch(Rectangle((j - 0.38, -0.25), 0.76, 0.5, facecolor=SKY, edgecolor="white"))
        ax.annotate(place, (j, 0), ha="center", va="center", fontsize=9)
        ax.annotate("\n".join(names), (j, -0.35), ha="center", va="top", fontsize=9, color=BLUE)
        if j:
            ax.annotate("", (j - 0.39, 0), (j - 0.61, 0), arrowprops=arrow)
    if back:
        curve = arrow | {"color": VERMILION, "linestyle": "--", "connectionstyle": "arc3,rad=0.12"}
        ax.annotate("", (0, 0.28), (len(places) - 1, 0.28), arrowprops=curve)
        ax.annotate(back, ((len(places) - 1) / 2, 0.75), ha="center", va="bottom", color=VERMILION)
    ax.set(
        xlim=(-0.5, len(places) - 0.5), ylim=(-0.5 - 0.22 * max(map(len, places.values())), top), title=title
    )
    ax.axis("off")
    return figure


# --- data -------------------------------------------------------------------------------------------


@_styled
def feature_maps(maps: Tensor, names: Sequence[str], ylabel: str = "picture", title: str = "") -> Figure:
    """Feature maps ``(pictures, filters, h, w)``: a row for each picture, a column for each filter.

    All share one scale of magnitudes; exact zeros are pale grey.

    Args:
        names: what stands under each column.
    """
    values = np.abs(_array("maps", maps, 4, "(pictures, filters, h, w)"))
    pictures, filters, h, w = values.shape
    if len(names) != filters:
        raise ValueError(f"names: {len(names)} for {filters} filters")
    values[values == 0] = -1
    gap = -(-max(h, w) // 8)  # an empty strip between maps
    cells = np.full((pictures, filters, h + gap, w + gap), np.nan)
    cells[:, :, :h, :w] = values
    picture = cells.transpose(0, 2, 1, 3).reshape(pictures * (h + gap), filters * (w + gap))[:-gap, :-gap]
    figure, ax = panels(height=min(6.0, 0.9 + 0.86 * WIDTH * picture.shape[0] / picture.shape[1]))
    image = ax.imshow(picture, interpolation="nearest", **_magnitudes(values))
    ax.set_xticks(np.arange(filters) * (w + gap) + (w - 1) / 2, names)
    ax.set_yticks(np.arange(pictures) * (h + gap) + (h - 1) / 2, [str(j) for j in range(pictures)])
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    ax.set(title=title, ylabel=ylabel)
    figure.colorbar(image, ax=ax, label="|activation|", shrink=0.8)
    return figure


@_styled
def pictures(
    images: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    classes: Sequence[str] = (),
    columns: int = 10,
) -> Figure:
    """A contact sheet of images ``(n, 3, h, w)``, uint8 or float in 0..1, each under its class."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a tensor of shape (n, 3, h, w), got {given}")
    if images.dtype == torch.uint8:
        images = images / 255
    elif images.min() < 0 or images.max() > 1:
        limits = f"{images.min():.2f}..{images.max():.2f}"
        raise ValueError(f"float images must lie in 0..1 (as before normalisation), got {limits}")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"labels: {len(labels)} for {len(images)} images")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    line = 0.0 if labels is None else 0.25  # inches, for the class above a picture
    figure, axes = panels(columns, rows, height=rows * (WIDTH / columns + line), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for j, (ax, image) in enumerate(zip(axes.flat, images, strict=False)):
        ax.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        if labels is not None:
            label = int(labels[j])
            ax.set_title(classes[label] if classes else str(label), fontsize=8, pad=2)
    return figure
