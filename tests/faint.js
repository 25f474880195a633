// Texts of the page whose contrast with what is painted behind them is below 4.5.
() => {
  const rgba = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const over = (top, below) => below.map((b, k) => k < 3 ? top[k] * top[3] + b * (1 - top[3]) : 1);
  const light = ([r, g, b]) => [r, g, b].reduce((s, v, k) => {
    v /= 255; return s + [0.2126, 0.7152, 0.0722][k] * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4) }, 0);
  const behind = (e) => {
    const parts = [];
    for (let at = e; at; at = at.parentElement) parts.push(rgba(getComputedStyle(at).backgroundColor));
    return parts.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !e.checkVisibility?.() || !e.getClientRects().length) continue;
    if (e.closest("script, style, option, .hoverlayer")) continue;
    const css = getComputedStyle(e), svg = e.closest("svg");
    const back = behind(svg ? svg.parentElement : e);
    const front = over(rgba(svg ? css.fill : css.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(walk.currentNode.data.trim().slice(0, 40) + " " + css.color + css.fill);
  }
  return found;
}
