// A figure's layout where it is narrow, as on a phone; for the report's page (page.js) and for live figures (live_figure.js).
// Panels stand below each other, each as wide as the figure, with axes that say what they are.
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

// What is said of an interval takes two lines
function unfoldRows(layout) {
  const rows = (layout.annotations ?? []).filter((a) => a.name === "row");
  const lines = (text) => text.replace(/: (?=[^:]*$)/, ":<br>").replace(/^(.{30,}), (?=[^,]{8,}:<br>)/, (all, name, _, whole) => whole.indexOf(":<br>") > 58 ? `${name},<br>` : all);
  rows.forEach((a) => Object.assign(a, { text: lines(a.text), align: "left", font: { size: 12 } }));
  if (rows.length) layout.height = 1.35 * (layout.height ?? 450);
}

// The finding and its caption take as many lines as they need; the page has them as text of its own.
function unfoldTitle(layout) {
  const { title, meta, margin } = layout;
  if (!title?.text || !meta?.finding) return;
  const lines = (text, pixels) => {
    const most = Math.max(8, Math.floor((layout.width - 30) / pixels));
    return (text.match(RegExp(`(.{1,${most}}|\\S+)(?= |$)`, "g")) ?? [text]).map((line) => line.trim());
  };
  const finding = lines(meta.finding, 9), caption = lines(meta.caption, 7);
  const more = (now, before) => now.length - before.split("<br>").length;
  const taller = 23 * more(finding, title.text) + 17 * more(caption, title.subtitle.text);
  layout.title = { ...title, text: finding.join("<br>"), subtitle: { ...title.subtitle, text: caption.join("<br>") } };
  layout.margin = { ...margin, t: margin.t + taller };
  layout.height += taller;
}

// No room for names beside lines: they go to a legend.
function layOutNarrow(layout) {
  layout.annotations = (layout.annotations ?? []).filter((a) => a.name !== "end" || !(layout.showlegend = true));
  for (const key in layout)
    if (layout.showlegend && /^xaxis\d*$/.test(key) && layout[key].range) layout[key] = { ...layout[key], range: undefined, autorange: true };
  stack(layout);
  unfoldRows(layout);
  unfoldTitle(layout);
  for (const key in layout) // long names of axes take two lines
    if (key.startsWith("xaxis") && layout[key].title?.text?.length > 50)
      layout[key].title = { ...layout[key].title, text: layout[key].title.text.replace(/^(.{20,42}) /, "$1<br>") };
  layout.margin = { ...layout.margin, l: 10, r: 10 };
  layout.font = { ...layout.font, size: 11 };
}
