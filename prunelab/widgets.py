"""Figures that answer to a slider.

One asks the network at every move and so needs a running kernel; the others show what was drawn or measured
beforehand and work in a static page.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from prunelab import metrics, plots, registry
from prunelab.data import Data
from prunelab.sparsify import sparsify
from prunelab.training import evaluate


class Explorer(ipywidgets.VBox):
    """A slider and menus that sparsify a network anew at every change, and show what is left.

    Args:
        model: a plain network; left untouched.
        data: the accuracy is that on its validation split; criteria that need data get training pictures.
        layer: name of the convolution whose masks are shown (its first 16 filters and 8 channels).
        pictures: how many validation pictures to measure on, at most.
    Attributes:
        amount, granularity, criterion, scope: the controls; setting ``.value`` is like moving one.
        sparse: the masked network on show; ``None`` if the choices cannot be carried out (the view says why).
        accuracy: of ``sparse``, 0..1, or ``None``.
    Raises:
        ValueError: ``layer`` is not a convolution of ``model``.
    """

    def __init__(self, model: nn.Module, data: Data, layer: str, pictures: int = 1000):
        convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        if layer not in convolutions:
            raise ValueError(f"layer={layer!r}: {registry.suggestion(layer, convolutions)}")
        self.model, self.layer = model, layer
        self.train = data.train.subset(min(256, len(data.train)))
        self.validation = data.validation.subset(min(pictures, len(data.validation)))
        self.sparse: nn.Module | None = None
        self.accuracy: float | None = None

        self.amount = ipywidgets.FloatSlider(
            0.5, min=0, max=0.95, step=0.05, description="amount", continuous_update=False
        )
        names = [method.name for method in registry.methods("granularity")]
        self.granularity = ipywidgets.Dropdown(options=names, description="granularity")
        self.criterion = ipywidgets.Dropdown(options=self._judges(), value="l1", description="criterion")
        self.scope = ipywidgets.Dropdown(options=["local", "global"], description="scope")
        self.view = ipywidgets.HTML()
        controls = [self.amount, self.granularity, self.criterion, self.scope]
        super().__init__([*controls, self.view])
        self.granularity.observe(self._offer, "value")
        for control in controls:
            control.observe(self._update, "value")
        self._update()

    def _judges(self) -> list[str]:
        """The criteria that make sense at the chosen granularity, without those that take minutes or need a
        training first.
        """
        return [
            method.name
            for method in registry.methods("criterion")
            if not {"silenced_loss", "gates"} & set(method.needs)
            and (not method.granularities or self._scored() in method.granularities)
        ]

    def _scored(self) -> str:
        shape = registry.find("granularity", self.granularity.value)
        return "weight" if shape.choose else shape.name

    def _offer(self, change: object = None) -> None:
        before, names = self.criterion.value, self._judges()
        self.criterion.options = names
        self.criterion.value = before if before in names else "l1"

    def _update(self, change: object = None) -> None:
        fixed = registry.find("granularity", self.granularity.value).choose is not None
        self.amount.disabled = fixed  # N:M and patterns say themselves how much goes
        try:
            sparse = sparsify(
                self.model,
                granularity=self.granularity.value,
                criterion=self.criterion.value,
                amount=None if fixed else self.amount.value,
                scope=self.scope.value,
                data=self.train,
            )
        except ValueError as error:  # such as a layer that would be emptied: the student should read why
            self.sparse = self.accuracy = None
            self.view.value = f"<p role='alert'>Not possible: {html.escape(str(error))}.</p>"
            return
        self.sparse = sparse
        self.accuracy = evaluate(sparse, self.validation, progress=False).accuracy
        measured = f"accuracy {self.accuracy:.1%} on {len(self.validation):,} validation pictures"
        text = f"{measured}, sparsity {metrics.sparsity(sparse):.1%}"
        weight = sparse.get_submodule(self.layer).weight[:16, :8]
        figure = plots.masks(weight, title=self.layer)
        alt = f"The weights of {self.layer}, filters side by side; those set to zero are pale"
        self.view.value = f"<p>{text}</p>{_image(figure, alt)}"


def flipbook(frames: Mapping[str, tuple[Figure, str]], label: str = "amount", start: int = 0) -> HTML:
    """A slider over figures that were drawn beforehand: works without a kernel, a network or a library.

    Args:
        frames: for each position of the slider its name, a figure and its alternative text, all of one size.
        label: what the slider moves.
        start: position that is shown first.
    Returns:
        One self-contained piece of HTML, as the value of a notebook cell.
    Raises:
        ValueError: no frames, an empty alternative text, or ``start`` out of range.
    """
    if not frames:
        raise ValueError("frames is empty: give at least one figure with its alternative text, by name")
    if not 0 <= start < len(frames):
        raise ValueError(f"start={start}: there are {len(frames)} frames, so 0 to {len(frames) - 1}")
    for name, (_, alt) in frames.items():
        if not alt.strip():
            raise ValueError(f"frames[{name!r}]: the alternative text is empty; say what the figure shows")
    images = [
        _image(figure, alt, name, hidden=place != start)
        for place, (name, (figure, alt)) in enumerate(frames.items())
    ]
    first = html.escape(list(frames)[start])
    # The slider finds its pictures in the figure around it, so that a page may have several.
    # autocomplete: after a reload some browsers would put the slider back where it was, but not the picture.
    # data-lm-suppress-shortcuts: JupyterLab would take the arrow keys for its own shortcuts.
    return HTML(
        f"""<figure style="margin: 0">
<label style="display: flex; gap: 0.6em; align-items: center">{html.escape(label)}
<input type="range" min="0" max="{len(frames) - 1}" value="{start}" aria-valuetext="{first}"
 autocomplete="off" data-lm-suppress-shortcuts="true" style="flex: 1; max-width: 20em" oninput="
  const figure = this.closest('figure'), images = figure.querySelectorAll('img');
  const name = images[this.value].dataset.name;
  images.forEach((image, place) => image.style.display = place == this.value ? 'block' : 'none');
  this.setAttribute('aria-valuetext', name);
  figure.querySelector('b').textContent = name"> <b aria-hidden="true">{first}</b></label>
{"".join(images)}
</figure>"""
    )


def _image(figure: Figure, alt: str, name: str = "", hidden: bool = False) -> str:
    """An ``<img>`` with the picture inside it."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    # 128 colours are enough for a drawing, and take a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    source = base64.b64encode(small.getvalue()).decode()
    return (
        f'<img alt="{html.escape(alt)}" data-name="{html.escape(name)}" src="data:image/png;base64,{source}" '
        f'style="display: {"none" if hidden else "block"}; max-width: 100%; height: auto">\n'
    )


class Setting(NamedTuple):
    """What the controls of a playground show at one of their positions.

    Attributes:
        keep: bool, the weight's shape, true = keep.
        said: the result in a sentence; a screen reader says it when the controls have moved.
        measured: for each measure how it reads, and the length of its bar, 0..1.
    """

    keep: Tensor
    said: str
    measured: Mapping[str, tuple[str, float]]


def playground(
    weight: Tensor,
    settings: Mapping[tuple[str, str, str], Setting],
    dense: Mapping[str, tuple[str, float]],
    start: tuple[str, str, str],
    title: str = "",
    control: str = "random",
) -> HTML:
    """Menus and a slider over stored results: masks of one layer, and what was measured with them.

    Without JavaScript it is a table of all settings.

    Args:
        weight: of a convolution, ``(filters, channels, kh, kw)``; what is kept is coloured by magnitude.
        settings: by granularity, criterion and amount, each as the controls call it. Every granularity has
            amounts of its own, in the order of the slider, and at each of them all criteria.
        dense: the measures of the network before anything went.
        start: the setting that is shown first.
        title: what the mask is of.
        control: the criterion that is shown beside the one that is chosen.
    Returns:
        One self-contained piece of HTML, as the value of a notebook cell.
    Raises:
        ValueError: a setting that is missing, a mask of another shape, or measures that are not ``dense``'s.
    """
    _check_settings(weight, settings, dense, start, control)
    stored: dict[str, dict[str, list]] = {}
    for shape, amount in dict.fromkeys((shape, amount) for shape, _, amount in settings):
        for criterion in dict.fromkeys(criterion for _, criterion, _ in settings):
            setting = settings[shape, criterion, amount]
            mask = base64.b64encode(np.packbits(setting.keep.flatten().numpy()).tobytes()).decode()
            cells = list(setting.measured.values())
            shown = {"amount": amount, "mask": mask, "said": setting.said, "cells": cells}
            stored.setdefault(shape, {}).setdefault(criterion, []).append(shown)
    magnitudes = weight.detach().abs().flatten()
    levels = (15 * magnitudes / magnitudes.max()).round().int().tolist()
    data = {
        "settings": stored,
        "control": control,
        "dense": list(dense.values()),
        "start": start,
        "title": title,
        "shape": list(weight.shape),
        "levels": "".join(f"{level:x}" for level in levels),  # of magnitude, one hexadecimal digit a weight
        "colours": [to_hex(colour) for colour in plt.get_cmap("cividis")(np.linspace(0, 1, 16))],
        "faded": plots.FADED,
    }
    menus = [
        f"<label>{name} <select {STAYS}>{_cells('option', options)}</select></label>"
        for name, options in (("granularity", stored), ("criterion", stored[start[0]]))
    ]
    script = json.dumps(data, separators=(",", ":")).replace("<", r"\u003c")  # no </script> in it
    bars = "<td><span></span><i></i></td>" * 3
    lines = "".join(f"<tr>{_cells('th scope=row', [name])}{bars}</tr>" for name in dense)
    everything = [("dense", "", ""), *settings], [dense, *(setting.measured for setting in settings.values())]
    rows = [(*key, *(text for text, _ in measured.values())) for key, measured in zip(*everything)]
    return HTML(
        f"""<figure class="playground">
<style>{PLAYGROUND_STYLE}</style>
<div hidden>
<div class="controls">
{"".join(menus)}
<label>amount <input type="range" min="0" {STAYS}> <output></output></label>
</div>
<canvas role="img"></canvas>
<p role="status" aria-live="polite"></p>
<table>
<tr><td></td>{_cells("th scope=col", ["dense", control, ""])}</tr>
{lines}
</table>
</div>
<details open><summary>All settings in one table</summary>
<div class="everything" tabindex="0"><table>
<tr>{_cells("th scope=col", ["granularity", "criterion", "amount", *dense])}</tr>
{"".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)}
</table></div>
</details>
<script type="application/json">{script}</script>
<script>{PLAYGROUND_SCRIPT}</script>
</figure>"""
    )


def _check_settings(
    weight: Tensor,
    settings: Mapping[tuple[str, str, str], Setting],
    dense: Mapping[str, tuple[str, float]],
    start: tuple[str, str, str],
    control: str,
) -> None:
    criteria = dict.fromkeys((*(criterion for _, criterion, _ in settings), control))
    wanted = [(shape, criterion, amount) for shape, _, amount in settings for criterion in criteria]
    for key in (start, *wanted):
        if key not in settings:
            raise ValueError(f"settings: {key} is missing; each granularity and amount needs all criteria")
    for key, setting in settings.items():
        if setting.keep.shape != weight.shape:
            shapes = f"{tuple(setting.keep.shape)}, the weight {tuple(weight.shape)}"
            raise ValueError(f"settings[{key}]: keep has the shape {shapes}")
        if list(setting.measured) != list(dense):
            raise ValueError(f"settings[{key}]: measured {list(setting.measured)}, dense {list(dense)}")


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag.split()[0]}>" for text in texts)


# As in a flip book.
STAYS = 'autocomplete="off" data-lm-suppress-shortcuts="true"'

# The book's dark theme puts what a cell has made on a light ground, so the controls are light in both themes.
PLAYGROUND_STYLE = """
.playground { margin: 0; color-scheme: light }
.playground .controls, .playground label { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5em }
.playground .controls { gap: 0.5em 1.5em; margin-bottom: 1em }
.playground select { font: inherit; color: black; background: white }
.playground canvas { box-sizing: border-box; width: 100%; max-width: 36em; padding: 8px; background: white }
.playground table { border-collapse: collapse; line-height: 1.3; font-variant-numeric: tabular-nums }
.playground td, .playground th { padding: 0.2em 0.4em; text-align: right; font-weight: normal }
.playground th[scope=row] { text-align: left }
.playground i { display: block; height: 4px; background: dimgrey }
.playground td:last-child i { background: #0072B2 }
.playground .everything { overflow: auto; max-height: 30em }
.playground .everything td { white-space: nowrap }
@media (max-width: 600px) { .playground table { font-size: 0.75em } }
"""

PLAYGROUND_SCRIPT = """{
  const figure = document.currentScript.closest("figure");
  const stored = JSON.parse(figure.querySelector("script").textContent);
  const [granularity, criterion] = figure.querySelectorAll("select");
  const [slider, amount, canvas, result, table] =
    ["input", "output", "canvas", "[role=status]", "table"].map((name) => figure.querySelector(name));
  let wanted = 0;  // the slider's place, kept while a granularity has one amount only

  function draw(mask) {
    const bytes = atob(mask), [filters, channels, rows, columns] = stored.shape, size = 10;
    canvas.width = size * (filters * (columns + 1) - 1);
    canvas.height = size * (channels * (rows + 1) - 1);
    const pen = canvas.getContext("2d");
    let place = 0, kept = 0;
    for (let filter = 0; filter < filters; filter++)
      for (let channel = 0; channel < channels; channel++)
        for (let row = 0; row < rows; row++)
          for (let column = 0; column < columns; column++, place++) {
            const keep = (bytes.charCodeAt(place >> 3) >> (7 - (place & 7))) & 1;
            kept += keep;
            pen.fillStyle = keep ? stored.colours[parseInt(stored.levels[place], 16)] : stored.faded;
            const x = filter * (columns + 1) + column, y = channel * (rows + 1) + row;
            pen.fillRect(size * x, size * y, size - 1, size - 1);
          }
    canvas.ariaLabel = `${stored.title}: ${kept} of ${place} weights stay, the others are pale`;
  }

  function show() {
    const choices = stored.settings[granularity.value][criterion.value];
    const place = Math.min(wanted, choices.length - 1), chosen = choices[place];
    slider.disabled = choices.length === 1;
    slider.max = Math.max(choices.length - 1, 1);
    slider.value = slider.disabled ? 1 : place;
    slider.ariaValueText = amount.value = chosen.amount;
    draw(chosen.mask);
    result.textContent = chosen.said;
    table.rows[0].cells[3].textContent = criterion.value;
    const beside = stored.settings[granularity.value][stored.control][place];
    stored.dense.forEach((dense, number) =>
      [dense, beside.cells[number], chosen.cells[number]].forEach(([text, share], column) => {
        const cell = table.rows[number + 1].cells[column + 1];
        cell.querySelector("span").textContent = text;
        cell.querySelector("i").style.width = `${100 * Math.min(share, 1)}%`;
      }));
  }

  [granularity.value, criterion.value] = stored.start;
  const choices = stored.settings[granularity.value][criterion.value];
  wanted = choices.findIndex((choice) => choice.amount === stored.start[2]);
  granularity.oninput = criterion.oninput = show;
  slider.oninput = () => { wanted = slider.valueAsNumber; show(); };
  figure.querySelector("div").hidden = false;
  figure.querySelector("details").open = false;
  show();
}"""
