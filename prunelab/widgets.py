"""Figures that answer to a slider.

One asks the network at every move and so needs a running kernel; the other was drawn beforehand and works in
a static page.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import ipywidgets
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

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
