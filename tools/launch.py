"""Sphinx extension: launch buttons on the labs, and only once the book knows where its repository is.

The theme puts them on every page with code, and fails if there is no address. The address is the one setting
`repository.url` in `_config.yml`.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def on_labs_only(app: Sphinx, pagename: str, *rest: Any) -> None:
    options = app.config.html_theme_options
    wanted = bool(options.get("repository_url")) and pagename.startswith("labs/")
    options["launch_buttons"] = app.config.lab_buttons if wanted else {}


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("lab_buttons", {}, "html")
    app.connect("html-page-context", on_labs_only, priority=100)  # before the theme looks
    return {"parallel_read_safe": True, "parallel_write_safe": True}
