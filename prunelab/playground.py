"""Menus and a slider over stored results, in a page that has no kernel."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.colors import to_hex
from torch import Tensor

from prunelab import plots


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
<style>{STYLE}</style>
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
<script>{SCRIPT}</script>
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
STYLE = """
.playground { margin: 0; color-scheme: light }
.playground .controls, .playground label { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5em }
.playground .controls { gap: 0.5em 1.5em; margin-bottom: 1em }
.playground select { font: inherit; color: black; background: white }
.playground canvas { box-sizing: border-box; width: 100%; max-width: 36em; padding: 8px; background: white }
.playground table { border-collapse: collapse; line-height: 1.3; font-variant-numeric: tabular-nums }
.playground td, .playground th { padding: 0.2em 0.4em; text-align: right; font-weight: normal }
.playground th[scope=row] { text-align: left }
.playground p + table { table-layout: fixed; width: 100% }
.playground p + table td:first-child { width: 31% }
.playground i { display: block; height: 4px; background: dimgrey }
.playground td:last-child i { background: #0072B2 }
.playground .everything { overflow: auto; max-height: 30em }
.playground .everything td { white-space: nowrap }
@media (max-width: 600px) { .playground table { font-size: 0.75em } }
"""

SCRIPT = """{
  const figure = document.currentScript.closest("figure");
  const stored = JSON.parse(figure.querySelector("script").textContent);
  const [granularity, criterion] = figure.querySelectorAll("select");
  const [slider, amount, canvas, result, table] =
    ["input", "output", "canvas", "[role=status]", "table"].map((name) => figure.querySelector(name));
  [granularity.value, criterion.value] = stored.start;
  // The slider's place, kept while a granularity has one amount only.
  let wanted = stored.settings[granularity.value][criterion.value]
    .findIndex((choice) => choice.amount === stored.start[2]);

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

  granularity.oninput = criterion.oninput = show;
  slider.oninput = () => { wanted = slider.valueAsNumber; show(); };
  figure.querySelector("div").hidden = false;
  figure.querySelector("details").open = false;
  show();
}"""
