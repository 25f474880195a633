// Draws figures when they come into view, in the reader's theme, and unfolds the part that a link leads into.
"use strict";
const look = JSON.parse(document.getElementById("look").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => look.templates[dark.matches ? "dark" : "light"];
const drawn = new Set();

function draw(plot) {
  const { data, layout } = JSON.parse(plot.closest("figure").querySelector("script").textContent);
  layout.template = theme();
  if (plot.clientWidth < look.narrow) layOutNarrow(layout);
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

// What is wider than the page scrolls, by keyboard too.
const scrolls = new ResizeObserver((entries) => entries.forEach(({ target }) => {
  if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
  else target.removeAttribute("tabindex");
}));
document.querySelectorAll(".output_area, .wide").forEach((area) => scrolls.observe(area));

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

// The first mention of a term in each part says on hover, focus or touch what it means.
const tip = document.getElementById("tip");
const meaning = new Map(look.terms.flatMap(([named, means]) => named.map((word) => [word.toLowerCase(), means])));
if (meaning.size) {
  const words = [...meaning.keys()].sort((a, b) => b.length - a.length).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const mention = RegExp(`(?<![\\p{L}\\p{M}\\d_-])(${words.join("|")})s?(?![\\p{L}\\p{M}\\d_])`, "giu");
  const prose = "p, li, figcaption, .numbers div";
  const other = "a, code, pre, summary, figure > :not(figcaption), .slide, table, [id$=-glossary] ~ ul";
  document.querySelectorAll("#front, .part").forEach((part) => {
    const seen = new Set(), texts = [], walk = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const parent = walk.currentNode.parentElement;
      if (parent.closest(prose) && !parent.closest(other)) texts.push(walk.currentNode);
    }
    for (const text of texts) {
      const pieces = [];
      let from = 0;
      for (const { 0: found, 1: named, index } of text.data.matchAll(mention)) {
        const word = named.toLowerCase(), means = meaning.get(word);
        if (seen.has(word)) continue;
        seen.add(word);
        const term = Object.assign(document.createElement("dfn"), { textContent: found, tabIndex: 0 });
        term.setAttribute("aria-describedby", "tip");
        for (const show of ["mouseenter", "focus"]) term.addEventListener(show, () => explain(term, means));
        for (const hide of ["mouseleave", "blur"]) term.addEventListener(hide, () => { tip.hidden = true; });
        pieces.push(text.data.slice(from, index), term);
        from = index + found.length;
      }
      if (pieces.length) text.replaceWith(...pieces, text.data.slice(from));
    }
  });
  addEventListener("keydown", ({ key }) => { if (key === "Escape") tip.hidden = true; });
  addEventListener("scroll", () => { tip.hidden = true; });
}

function explain(term, means) {
  tip.textContent = means;
  tip.hidden = false;
  const { left, top, bottom } = term.getBoundingClientRect();
  const below = bottom + tip.offsetHeight + 6 < innerHeight;
  tip.style.top = `${below ? bottom + 4 : top - tip.offsetHeight - 4}px`;
  tip.style.left = `${Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
}

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
