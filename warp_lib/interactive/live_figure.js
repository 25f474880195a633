// Draws one plotly figure and follows it. Made for live_figure.py, which says why it is not plotly's own widget.

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

async function render({ model, el, signal }) {
  const manager = model.widget_manager;
  const place = document.createElement("div");
  place.textContent = "Loading the figure…";
  el.append(place);
  const failed = (error) => {
    place.textContent = `This figure could not be drawn (${error?.message ?? error}). Reload the page, or run its cell again.`;
  };
  try {
    const [Plotly, content] = await Promise.all([plotly(manager, model.get("_plotly")), manager.get_model(model.get("_content"))]);
    const draw = async () => {
      const { data, layout } = JSON.parse(content.get("text"));
      await Plotly.react(place, data, layout, { displaylogo: false });
    };
    const redraw = () => draw().catch(failed);
    place.textContent = "";
    await draw();
    place.on("plotly_click", ({ points }) => {
      if (points[0]?.customdata !== undefined) model.send({ clicked: points[0].customdata });
    });
    content.on("change:text", redraw);
    redraw(); // what changed while the first drawing was under way
    const fit = () => {
      const wide = el.clientWidth; // 0 while the page does not show it
      if (wide && !JSON.parse(content.get("text")).layout.width) Plotly.relayout(place, { width: wide });
    };
    const sizes = new ResizeObserver(fit);
    sizes.observe(el);
    signal?.addEventListener("abort", () => {
      sizes.disconnect();
      content.off("change:text", redraw);
      Plotly.purge(place);
    });
  } catch (error) {
    failed(error);
  }
}

export default { render };
