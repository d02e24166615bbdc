// What is wrong with the page that is open, one sentence each; tests/test_book.py runs it.
async () => {
  const found = [];
  const start = (text) => (text ?? "").trim().slice(0, 80);

  const images = [...document.images];
  images.forEach((image) => (image.loading = "eager"));
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  for (const image of images) {
    const source = start(image.getAttribute("src"));
    if (image.naturalWidth === 0) found.push(`broken image: ${source}`);
    const name = image.alt || image.getAttribute("aria-label") || image.title;
    // Where a picture has no text, Sphinx puts the name of its file.
    const missing = !name.trim() || /^\S+\.(png|svg|jpe?g|gif|webp)$/i.test(name);
    if (missing && image.role !== "presentation") found.push(`missing alt text: ${source}`);
  }

  for (const formula of document.querySelectorAll(".math")) {
    const before = formula.previousSibling?.textContent ?? "";
    const after = formula.nextSibling?.textContent ?? "";
    if (!formula.querySelector("mjx-container")) found.push(`unrendered maths: ${start(formula.textContent)}`);
    else if (before.endsWith("$") || after.startsWith("$"))
      found.push(`dollar beside maths: ${start(formula.parentElement.textContent)}`);
  }
  for (const error of document.querySelectorAll("mjx-merror, [data-mml-node=merror]"))
    found.push(`error in maths: ${error.dataset.mjxError ?? error.textContent}`);
  for (const macro of document.querySelectorAll("mjx-assistive-mml [mathcolor=red]"))
    found.push(`unknown macro in maths: ${macro.textContent}`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { textContent, parentElement } = walker.currentNode;
    const raw = /\$\$|\\[(\[]|\\[a-zA-Z]+\{/.test(textContent);
    if (raw && !parentElement.closest("code, pre, script, style, textarea, .math, mjx-container"))
      found.push(`raw TeX: ${start(textContent)}`);
  }

  for (const script of document.querySelectorAll("script[type='application/vnd.jupyter.widget-view+json']")) {
    const widget = script.parentElement.querySelector(".jupyter-widgets");
    const folded = script.closest("details:not([open])");
    if (!widget || (!folded && widget.getBoundingClientRect().height === 0))
      found.push(`blank widget: ${start(script.textContent)}`);
  }
  return found;
};
