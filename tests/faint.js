// Texts of the page's figures whose contrast with what is painted behind them is below 4.5; axe-core leaves SVG out.
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
  return [...document.querySelectorAll("svg text")].filter((text) => {
    if (!text.textContent.trim() || !text.getClientRects().length || text.closest(".hoverlayer")) return false;
    const back = behind(text.closest("svg").parentElement), front = over(rgba(getComputedStyle(text).fill), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
  }).map((text) => `${text.textContent.slice(0, 40)} ${getComputedStyle(text).fill}`);
}
