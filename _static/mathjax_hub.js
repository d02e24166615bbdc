// Widgets typeset their labels through MathJax 2's queue, which MathJax 3 no longer has: pass it on.
window.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !MathJax.Hub)
    MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
});
