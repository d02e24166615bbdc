"""Sphinx extension: launch buttons on the labs, and only once the book knows where its repository is.

The theme puts them on every page with code, and fails if there is no address. The address is the one setting
`repository.url` in `_config.yml`. Binder installs the package by itself (`.binder/`), Colab has to be told.
"""

from __future__ import annotations

import html
from typing import Any

from sphinx.application import Sphinx

ON_COLAB = """<div class="admonition note"><p class="admonition-title">On Colab</p><p>Colab does not know the
course's package: run this in a new first cell. <code>%pip install --quiet git+{address}</code></p></div>"""


def on_labs_only(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], *rest: Any) -> None:
    options = app.config.html_theme_options
    address = options.get("repository_url")
    wanted = bool(address) and pagename.startswith("labs/")
    options["launch_buttons"] = app.config.lab_buttons if wanted else {}
    if wanted:
        title, end, body = context["body"].partition("</h1>")
        context["body"] = title + end + ON_COLAB.format(address=html.escape(address)) + body


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("lab_buttons", {}, "html")
    app.connect("html-page-context", on_labs_only, priority=100)  # before the theme looks
    return {"parallel_read_safe": True, "parallel_write_safe": True}
