// Draws figures when they come into view, in the reader's theme, and unfolds the part that a link leads into.
"use strict";
const look = JSON.parse(document.getElementById("look").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => look.templates[dark.matches ? "dark" : "light"];
const drawn = new Set();

function draw(plot) {
  const { data, layout } = JSON.parse(plot.closest("figure").querySelector("script").textContent);
  layout.template = theme();
  if (plot.clientWidth < look.narrow) { // no room for names beside lines
    layout.annotations = (layout.annotations ?? []).filter((a) => a.name !== "end" || !(layout.showlegend = true));
    if (layout.showlegend && layout.xaxis?.range) layout.xaxis.autorange = true;
    layout.margin = { ...layout.margin, l: 10, r: 10 };
    layout.font = { size: 11 };
  }
  if (plot.closest("#front") && innerWidth >= 1000) delete layout.height; // the page's
  const buttons = { displaylogo: false, showSendToCloud: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  Plotly.newPlot(plot, data, layout, { responsive: true, ...buttons });
  drawn.add(plot);
}

const view = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    view.unobserve(target);
    draw(target);
  }
}, { rootMargin: "600px" });
document.querySelectorAll(".plot").forEach((plot) => view.observe(plot));
dark.addEventListener("change", () => drawn.forEach((plot) => Plotly.relayout(plot, { template: theme() })));
addEventListener("beforeprint", () => {
  document.querySelectorAll("details.part").forEach((part) => { part.open = true; });
  document.querySelectorAll(".plot").forEach((plot) => drawn.has(plot) || draw(plot));
});

function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();

if (innerWidth < 1180) document.querySelector("nav details").open = false;

// the contents show where one is
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const here = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) links.get(target.id)?.classList.toggle("here", isIntersecting);
}, { rootMargin: "-10% 0px -60% 0px" });
document.querySelectorAll("details.part, h3[id]").forEach((part) => here.observe(part));
