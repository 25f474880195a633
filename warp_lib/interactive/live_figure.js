// Stands after report/narrow.js, whose layOutNarrow it calls. Draws one plotly figure and follows it, in the reader's theme. Made for live_figure.py, which says why it is not plotly's own widget.

// One plotly for the page, however many figures, kernels and models of this file there are.
function plotly(manager, id) {
  globalThis.warpPlotly ??= manager
    .get_model(id)
    .then((source) => new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = URL.createObjectURL(new Blob([source.get("text")], { type: "text/javascript" }));
      script.onload = () => (globalThis.Plotly ? resolve(globalThis.Plotly) : reject(new Error("plotly.js did not start")));
      script.onerror = () => reject(new Error("plotly.js was refused by the page"));
      document.head.append(script);
    }))
    .catch((error) => {
      globalThis.warpPlotly = undefined; // the next figure tries again
      throw error;
    });
  return globalThis.warpPlotly;
}

// JupyterLab has a theme of its own; a page of Voilà is in the reader's
const preferred = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => ("voila" in document.body.dataset || !document.body.dataset.jpThemeName ? preferred.matches : document.body.dataset.jpThemeLight === "false");

const config = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud", "sendDataToCloud"] };

// The figures of a page are drawn anew one after another, and after each the page rests for as long as that took: on a slow machine, too, its buttons answer.
function inTurn(draw) {
  globalThis.warpTurn = (globalThis.warpTurn ?? Promise.resolve()).then(async () => {
    const began = performance.now();
    await draw();
    await new Promise((rested) => setTimeout(rested, performance.now() - began));
  });
}

// ipywidgets gives the handle of a slider no name: it takes the label beside it. Sliders stand next to figures everywhere here.
function nameSliders() {
  document.querySelectorAll(".widget-slider [role=slider]:not([aria-label])").forEach((handle) => {
    const handles = [...handle.closest(".widget-slider").querySelectorAll("[role=slider]")];
    const end = handles.length > 1 ? [", from", ", to"][handles.indexOf(handle)] : "";
    const label = handle.closest(".widget-slider").querySelector(".widget-label")?.textContent;
    if (label) handle.setAttribute("aria-label", label + end);
  });
}

async function render({ model, el, signal }) {
  const manager = model.widget_manager;
  if (!globalThis.warpSliders) {
    globalThis.warpSliders = new MutationObserver(nameSliders);
    globalThis.warpSliders.observe(document.body, { childList: true, subtree: true });
  }
  nameSliders();
  const place = document.createElement("div");
  place.textContent = "Loading the figure…";
  el.append(place);
  const failed = (error) => {
    globalThis.Plotly?.purge(place); // or what is drawn next is drawn into nodes that are gone
    place.textContent = `This figure could not be drawn (${error?.message ?? error}). Reload the page, or run its cell again.`;
  };
  try {
    const [Plotly, content] = await Promise.all([plotly(manager, model.get("_plotly")), manager.get_model(model.get("_content"))]);
    let wide = 0; // as drawn last; 0 while the page does not show it
    let text; // as drawn last
    const draw = async () => {
      if (signal?.aborted) return; // taken from the page
      text = content.get("text");
      const { data, layout } = JSON.parse(text);
      const { dark, narrow } = model.get("_looks");
      if (isDark()) layout.template = dark;
      wide = el.clientWidth;
      if (wide) layout.width ??= wide;
      if (wide && wide < narrow) layOutNarrow(layout);
      const { finding, caption } = layout.meta ?? {};
      place.setAttribute("role", "figure");
      place.setAttribute("aria-label", finding ? `${finding}. ${caption}` : "figure");
      if (!place._fullLayout) place.textContent = ""; // what it said so far
      await Plotly.react(place, data, layout, config);
    };
    let waiting = false;
    const redraw = () => {
      if (waiting) return; // what changes until its turn is drawn together
      waiting = true;
      inTurn(async () => {
        waiting = false;
        await draw().catch(failed);
      });
    };
    await draw().catch(failed);
    if (signal?.aborted) return Plotly.purge(place);
    place.on?.("plotly_click", ({ points }) => {
      if (points[0]?.customdata !== undefined) model.send({ clicked: points[0].customdata });
    });
    content.on("change:text", redraw);
    if (content.get("text") !== text) redraw(); // changed while the first drawing was under way
    const sizes = new ResizeObserver(() => el.clientWidth && el.clientWidth !== wide && redraw());
    sizes.observe(el);
    preferred.addEventListener("change", redraw);
    const themes = new MutationObserver(redraw);
    themes.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
    signal?.addEventListener("abort", () => {
      sizes.disconnect();
      themes.disconnect();
      preferred.removeEventListener("change", redraw);
      content.off("change:text", redraw);
      Plotly.purge(place);
    });
  } catch (error) {
    failed(error);
  }
}

export default { render };
