// Draws figures when they come into view, in the reader's theme, and unfolds the part that a link leads into.
"use strict";
const look = JSON.parse(document.getElementById("look").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => look.templates[dark.matches ? "dark" : "light"];
const drawn = new Set();

// On a phone panels stand below each other, each as wide as the figure, with axes that say what they are.
function stack(layout) {
  const keys = (axis) => Object.keys(layout).filter((key) => RegExp(`^${axis}axis\\d*$`).test(key));
  const centre = ({ domain: [from, to] }) => (from + to) / 2;
  const panels = keys("x").filter((key) => layout[key].anchor)
    .map((key) => ({ x: layout[key], y: layout[`yaxis${layout[key].anchor.slice(1)}`] }));
  if (new Set(panels.map(({ x }) => centre(x))).size < 2) return;
  const shared = (axis) => keys(axis).map((key) => layout[key].title).find((title) => title?.text);
  const titles = { x: shared("x"), y: shared("y") };
  panels.sort((a, b) => b.y.domain[1] - a.y.domain[1] || a.x.domain[0] - b.x.domain[0]);
  const gap = 0.36 / panels.length, tall = (1 - gap * (panels.length - 1)) / panels.length;
  layout.height = 330 * panels.length;
  layout.legend = { ...layout.legend, y: -110 / layout.height };
  const names = panels.map(({ x, y }) => (layout.annotations ?? []).find(
    (a) => a.yref === "paper" && Math.abs(a.x - centre(x)) < 0.02 && Math.abs(a.y - y.domain[1]) < 0.02));
  panels.forEach(({ x, y }, k) => {
    const top = 1 - k * (tall + gap);
    if (names[k]) Object.assign(names[k], { x: 0.5, y: top });
    Object.assign(x, { domain: [0, 1], showticklabels: true, title: x.title?.text ? x.title : titles.x });
    Object.assign(y, { domain: [top - tall, top], showticklabels: true, title: y.title?.text ? y.title : titles.y });
  });
}

// and what is said of an interval takes two lines
function unfoldRows(layout) {
  const rows = (layout.annotations ?? []).filter((a) => a.name === "row");
  const lines = (text) => text.replace(/: (?=[^:]*$)/, ":<br>").replace(/^(.{30,}), (?=[^,]{8,}:<br>)/, (all, name, _, whole) => whole.indexOf(":<br>") > 58 ? `${name},<br>` : all);
  rows.forEach((a) => Object.assign(a, { text: lines(a.text), align: "left", font: { size: 12 } }));
  if (rows.length) layout.height *= 1.35;
}

function draw(plot) {
  const { data, layout } = JSON.parse(plot.closest("figure").querySelector("script").textContent);
  layout.template = theme();
  if (plot.clientWidth < look.narrow) { // no room for names beside lines
    layout.annotations = (layout.annotations ?? []).filter((a) => a.name !== "end" || !(layout.showlegend = true));
    if (layout.showlegend && layout.xaxis?.range) layout.xaxis.autorange = true;
    stack(layout);
    unfoldRows(layout);
    for (const key in layout) // and long names of axes
      if (key.startsWith("xaxis") && layout[key].title?.text?.length > 50)
        layout[key].title = { ...layout[key].title, text: layout[key].title.text.replace(/^(.{20,42}) /, "$1<br>") };
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

// what policies write along η, from the JSON beside it; texts are a model's, so they are only ever set as text
document.querySelectorAll(".slide").forEach((place) => {
  const { prompts, etas, full, written } = JSON.parse(place.nextElementSibling.textContent);
  const make = (tag, given = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), given);
    made.append(...children);
    return made;
  };
  const list = (texts) => make("select", {}, ...texts.map((text) => make("option", { textContent: text })));
  const prompt = list(prompts), policy = list(Object.keys(written)), shown = make("div");
  const eta = make("input", { type: "range", min: 0, max: etas.length - 1, value: etas.length - 1 });
  const summary = make("p", { role: "status" });
  const token = ([text, kl, gain]) => {
    const span = make("span", { textContent: text, title: `KL ${kl.toFixed(2)} nats` });
    span.style.background = `rgba(213, 94, 0, ${0.7 * Math.min(1, kl / full)})`;
    return gain === undefined ? [span] : [span, " ", make("sub", { textContent: signed(gain), title: "what this sentence adds to r̃" })];
  };
  const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(2);
  const show = () => {
    const { reward, kl, count, texts } = written[policy.value][eta.value][prompt.selectedIndex];
    const at = `η = ${etas[eta.value]} of ${policy.value}`;
    eta.setAttribute("aria-valuetext", at);
    summary.textContent = `${at}: r̃ ${signed(reward)}, KL ${kl.toFixed(2)} nats, mean of ${count} completions; ${texts.length} of them:`;
    shown.replaceChildren(...texts.map(({ reward, before, tokens }) => make("p", {},
      make("b", { textContent: `r̃ ${signed(reward)}` }), make("br"), `${prompt.value} `,
      make("sub", { textContent: signed(before), title: "r̃ of the prompt alone" }), ...tokens.flatMap(token))));
  };
  for (const control of [prompt, policy, eta]) control.addEventListener("input", show);
  const label = (text, control) => make("label", {}, `${text} `, control);
  place.replaceChildren(label("prompt", prompt), label("policy", policy), label("η: from SFT to the policy", eta), summary, shown);
  show();
});
