"""The book builds without a warning, and every page shows all that it has, from disk, without a network."""

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import book as book_tool
import environment
import ipywidgets as widgets
import launch
import pytest
import summary
from ipywidgets.embed import dependency_state, embed_data
from playwright.sync_api import Browser, TimeoutError, sync_playwright

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome here to open the pages")

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
LOCAL = re.compile("file:|data:|blob:")

# Runs in the page and returns what is wrong with it, one sentence each.
LOOK = Path(__file__).with_name("page_faults.js").read_text()
WIDGETS_ARE_THERE = """() => [...document.querySelectorAll("script[type$='widget-view+json']")]
    .every((script) => script.parentElement.querySelector(".jupyter-widgets"))"""
# All that is visible beside a slider in its widget.
WHAT_A_SLIDER_SHOWS = """(handle) => {
  let widget = handle, outer = handle;
  while ((outer = outer.parentElement.closest(".jupyter-widgets"))) widget = outer;
  return [...widget.querySelectorAll("*")]
    .filter((element) => !element.closest(".widget-slider") && element.checkVisibility())
    .map((element) => element.src ?? element.childNodes[0]?.nodeValue).join();
}"""


@pytest.fixture(scope="module")
def html() -> Path:
    """The folder of the built book."""
    return book_tool.build().parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-sync"])
        yield browser
        browser.close()


def faults(browser: Browser, file: Path) -> list[str]:
    """Open a page from disk, without a network, and say what is wrong with it."""
    found: list[str] = []
    context = browser.new_context(viewport=DESKTOP, offline=True)
    page = context.new_page()
    page.on("console", lambda said: found.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on("requestfailed", lambda request: found.append(f"not loaded: {request.url[:200]}"))
    context.on(
        "request", lambda request: LOCAL.match(request.url) or found.append(f"outside: {request.url[:200]}")
    )
    page.goto(file.as_uri(), wait_until="networkidle", timeout=120_000)
    page.evaluate("() => window.MathJax?.startup?.promise")
    with contextlib.suppress(TimeoutError):  # LOOK says which widget is blank
        page.wait_for_function(WIDGETS_ARE_THERE, timeout=5_000)
    found += page.evaluate(LOOK)
    for handle in page.locator(".widget-slider [role=slider]").all():
        shown = []
        for key in ("Home", "End"):
            handle.press(key)
            shown.append(handle.evaluate(WHAT_A_SLIDER_SHOWS))
        if shown[0] == shown[1]:
            found.append("slider moves nothing")
    page.set_viewport_size(PHONE)
    too_wide = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
    if too_wide > 0:
        found.append(f"wider than a phone: by {too_wide} pixels")
    context.close()
    return found


def test_book_builds_without_a_warning(html: Path) -> None:
    assert (html / "index.html").exists()
    assert (html / "chapters" / "index.html").exists()


@needs_browser
def test_every_page_is_whole(html: Path, browser: Browser) -> None:
    pages = [page for page in sorted(html.rglob("*.html")) if "_static" not in page.parts]
    assert pages
    found = [f"{page.relative_to(html)}: {fault}" for page in pages for fault in faults(browser, page)]
    assert not found, "\n".join(found)


# The tests above are worth what they notice: one page for each fault.

VENDOR = environment.VENDOR.as_uri()
MATHJAX = f'<script src="{VENDOR}/mathjax/tex-svg-full.js"></script>'
HUB = f'<script src="{(environment.ROOT / "_static" / "mathjax_hub.js").as_uri()}"></script>'
WIDGETS = "".join(f'<script src="{VENDOR}/widgets/{name}.js"></script>' for name in ("require", "embed-amd"))


def as_html(widget: widgets.Widget) -> str:
    """A widget as a page holds it: the state of its parts, and the place where it is shown."""
    data = embed_data(views=[widget], state=dependency_state([widget]))
    mime = "application/vnd.jupyter.widget"
    return (
        f'<script type="{mime}-state+json">{json.dumps(data["manager_state"])}</script>'
        f'<div><script type="{mime}-view+json">{json.dumps(data["view_specs"][0])}</script></div>'
    )


def slider_with_figure() -> str:
    slider = widgets.IntSlider(description="amount $a$", max=1)
    figure = widgets.Stack([widgets.HTML("half"), widgets.HTML("all")], selected_index=0)
    widgets.jslink((slider, "value"), (figure, "selected_index"))
    return as_html(widgets.VBox([slider, figure]))


SLIDER = slider_with_figure()
PICTURE = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/%3E"

WHOLE = {
    "text": "<p>It costs $5, or $6.</p><pre>\\frac{1}{2}</pre>",
    "maths": MATHJAX + r'<p class="math">\(\lVert w \rVert_1\)</p>',
    "picture": f'<img src="{PICTURE}" alt="A square">',
    "widget": WIDGETS + SLIDER,
    "widget and maths": MATHJAX + HUB + WIDGETS + SLIDER + r'<p class="math">\(a\)</p>',
}
FAULTY = {
    "console: oh": "<script>console.error('oh')</script>",
    "script: oh": "<script>throw new Error('oh')</script>",
    "outside: https://example.org/": '<script src="https://example.org/a.js"></script>',
    "not loaded: file:": '<script src="missing.js"></script>',
    "unrendered maths: ": r'<p class="math">\(w\)</p>',
    "dollar beside maths: ": MATHJAX + r'<p>$<span class="math">\(w\)</span>$</p>',
    "raw TeX: ": "<p>$$ w $$</p>",
    "raw TeX: a": r"<p>a \frac{1}{2}</p>",
    "error in maths: ": MATHJAX + r'<p class="math">\(\frac{1}\)</p>',
    "unknown macro in maths: ": MATHJAX + r'<p class="math">\(\nosuchmacro\)</p>',
    "broken image: missing.png": '<img src="missing.png" alt="A picture">',
    "missing alt text: data:": f'<img src="{PICTURE}">',
    "missing alt text: data:image": f'<img src="{PICTURE}" alt="../_images/a.png">',
    "blank widget: ": SLIDER,
    "script: Cannot read properties": MATHJAX + WIDGETS + SLIDER,
    "slider moves nothing": WIDGETS + as_html(widgets.VBox([widgets.IntSlider(), widgets.HTML("half")])),
    "wider than a phone: ": '<p style="width: 500px">wide</p>',
}


def write_page(folder: Path, body: str) -> Path:
    page = folder / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>page</title><body>{body}</body>")
    return page


@needs_browser
@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
def test_whole_page_passes(browser: Browser, tmp_path: Path, body: str) -> None:
    assert faults(browser, write_page(tmp_path, body)) == []


@needs_browser
@pytest.mark.parametrize(("fault", "body"), FAULTY.items(), ids=FAULTY)
def test_each_fault_is_noticed(browser: Browser, tmp_path: Path, fault: str, body: str) -> None:
    found = faults(browser, write_page(tmp_path, body))
    assert any(sentence.startswith(fault.strip()) for sentence in found), found


def test_warning_fails_the_build(tmp_path: Path) -> None:
    for name in ("_config.yml", "_static", "tools", "vendor_root", "references.bib"):
        (tmp_path / name).symlink_to(environment.ROOT / name)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (tmp_path / "index.md").write_text("# A page\n\nIt cites {cite}`nobody1900nothing`.\n")
    with pytest.raises(subprocess.CalledProcessError):
        book_tool.build(tmp_path)
    (tmp_path / "index.md").write_text("# A page\n\nIt cites nobody.\n")
    assert book_tool.build(tmp_path).exists()


def test_changed_package_drops_cached_outputs(tmp_path: Path) -> None:
    (tmp_path / "prunelab").mkdir()
    module = tmp_path / "prunelab" / "norms.py"
    cache = tmp_path / "_build" / ".jupyter_cache"
    module.write_text("p = 1")
    book_tool.drop_stale_cache(tmp_path, tmp_path / "_build")
    cache.mkdir()
    book_tool.drop_stale_cache(tmp_path, tmp_path / "_build")
    assert cache.exists()
    module.write_text("p = 2")
    book_tool.drop_stale_cache(tmp_path, tmp_path / "_build")
    assert not cache.exists()


def test_launch_buttons_wait_for_the_repositorys_address(tmp_path: Path) -> None:
    class Config:
        lab_buttons: ClassVar = {"binderhub_url": "https://mybinder.org"}
        html_theme_options: ClassVar = {"repository_url": ""}

    app = SimpleNamespace(config=Config)

    def buttons(page: str) -> dict:
        launch.on_labs_only(app, page, "page.html", context, None)
        return Config.html_theme_options["launch_buttons"]

    context = {"body": "<h1>Lab</h1><p>Text</p>"}
    assert buttons("labs/01-first-pruning") == {} and "pip" not in context["body"]
    Config.html_theme_options["repository_url"] = "https://github.com/someone/prunelab"
    assert buttons("labs/01-first-pruning") == Config.lab_buttons
    assert "%pip install --quiet git+https://github.com/someone/prunelab</code>" in context["body"]
    assert context["body"].startswith("<h1>Lab</h1>") and context["body"].endswith("<p>Text</p>")
    assert buttons("chapters/introduction") == {}


def test_the_readmes_table_says_what_the_results_say() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert summary.written(readme) == readme
    changed = readme.replace(" times as fast", " times as slow")
    assert changed != readme and summary.written(changed) == readme
